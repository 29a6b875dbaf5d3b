"""Run ``rescalenet`` with the packages of this installation.

``tasks`` and ``zoo`` are names that a user's own modules may have too. In a folder on PYTHONPATH these would be found
first, so the packages beside this one are loaded by their place.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path


def load_beside(name: str) -> None:
    """Load a package from the folder of this one under its name, unless there is none, as in other installations."""
    folder = str(Path(__file__).resolve().parents[1])
    spec = importlib.machinery.PathFinder.find_spec(name, [folder])
    if spec is None or spec.loader is None or name in sys.modules:
        return
    package = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


# when this module is imported, and not when ``main`` runs: data loading processes that do not fork import it again
for package_name in ("zoo", "tasks"):
    load_beside(package_name)

from tasks.cli import main  # noqa: E402  (after the packages are loaded)

if __name__ == "__main__":
    main()
