"""The lower bounds of setup.cfg: ``make test-lowest`` installs exactly these."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.helpers.paths import ROOT
from tools.lowest import lower_bounds

SETUP = "[options]\ninstall_requires =\n    torch>=2.11\n[options.extras_require]\nonnx =\n    onnx>=1.18\n"


def pins(name):
    """Return package -> version of a constraints file."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    found = [Requirement(line) for line in lines]
    assert all([s.operator for s in pin.specifier] == ["=="] for pin in found)
    return {canonicalize_name(pin.name): Version(next(iter(pin.specifier)).version) for pin in found}


def test_bounds_of_the_package_and_of_its_extras():
    assert lower_bounds(SETUP) == {"torch": "2.11", "onnx": "1.18"}
    assert lower_bounds(SETUP + "demo =\n    %(onnx)s\n    PyYAML>=6.0\n")["pyyaml"] == "6.0"


@pytest.mark.parametrize(
    ("requirement", "message"),
    [
        ("timm", "setup.cfg: timm: must be NAME>=VERSION, the lowest version that was tested"),
        ("timm==1.0", "timm==1.0: must be NAME>=VERSION"),
        ("timm>=1.0,<2", "must be NAME>=VERSION"),
        ("torch>=2.13", "setup.cfg: torch>=2.11 and torch>=2.13: give one lower bound"),
    ],
)
def test_what_cannot_be_tested_is_an_error(requirement, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lower_bounds(f"{SETUP}demo =\n    {requirement}\n")


def test_the_constraints_complete_the_bounds_and_do_not_repeat_them():
    """What is in both could contradict a bound; the tested versions are not below the bounds."""
    bounds = lower_bounds((ROOT / "setup.cfg").read_text())
    assert not bounds.keys() & pins("constraints-lowest.txt").keys()
    tested = pins("constraints.txt") | pins("tests/export/requirements.txt")
    assert bounds.keys() - tested.keys() == {"decord", "setuptools", "torchcodec"}  # not in [dev], or pip leaves it out
    assert [name for name in bounds.keys() & tested.keys() if tested[name] < Version(bounds[name])] == []


def test_the_build_requires_the_bound_of_setuptools():
    assert (
        f'"setuptools>={lower_bounds((ROOT / "setup.cfg").read_text())["setuptools"]}"'
        in (ROOT / "pyproject.toml").read_text()
    )
