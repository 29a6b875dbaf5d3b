"""Print the lower bounds of setup.cfg as constraints for pip, NAME==BOUND (``make test-lowest`` installs them).

    python tools/lowest.py > bounds.txt && pip install -c bounds.txt -c constraints-lowest.txt -e '.[dev]'

constraints-lowest.txt has the versions of all other packages, so that the environment is the same every time.
"""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def requirements(setup: str) -> list[Requirement]:
    """Return the requirements of ``install_requires`` and of all extras, in the order of setup.cfg.

    Args:
        setup: text of setup.cfg.
    """
    parser = ConfigParser()
    parser.read_string(setup)
    texts = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    return [Requirement(line) for text in texts for line in text.split("\n") if line]


def lower_bounds(setup: str) -> dict[str, str]:
    """Return package -> lower bound, for every package that setup.cfg names.

    Args:
        setup: text of setup.cfg.

    Raises:
        ValueError: a requirement is not of the form NAME>=VERSION, or two bounds of a package differ.
    """
    bounds: dict[str, str] = {}
    for requirement in requirements(setup):
        specifiers = list(requirement.specifier)
        if [specifier.operator for specifier in specifiers] != [">="]:
            raise ValueError(f"setup.cfg: {requirement}: must be NAME>=VERSION, the lowest version that was tested")
        name, bound = canonicalize_name(requirement.name), specifiers[0].version
        if bounds.setdefault(name, bound) != bound:
            raise ValueError(f"setup.cfg: {name}>={bounds[name]} and {name}>={bound}: give one lower bound")
    return bounds


if __name__ == "__main__":
    for package, bound in lower_bounds((ROOT / "setup.cfg").read_text()).items():
        print(f"{package}=={bound}")
