"""The undisturbed run with which all others are compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import faults
from tests.helpers.classification import picture
from tests.helpers.small_run import SmallRun


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """The small run."""
    return SmallRun(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def operations(run: SmallRun) -> int:
    """The number of operations on files that the small run makes."""
    folder, result = run.root / "counted", run.root / "operations"
    assert run.start(folder, fault=faults.count, given=(folder, result)).end().code == 0
    return int(Path(result).read_text())


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 12 px pictures."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 16), ("val", 5)):
        for first, name in enumerate(("blue", "green", "red")):
            for i in range(count):
                picture(root / split / name / f"{i}.png", (12, 12), seed=100 * first + i)
    return root
