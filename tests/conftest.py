"""Settings of all tests: one thread a worker, one seed, real data where it is there, no GPU.

Tests compare with the CPU to the last bits, so they see no CUDA device; ``RESCALENET_TEST_DEVICE=cuda`` shows them to
those that are marked ``gpu`` (make test-gpu).
``pytest --write-expected`` rewrites the files below ``tests/expected`` with what the tests find; look at the difference
before you commit it. Helpers are in ``tests/helpers``, fixtures of several files in the nearest ``conftest.py``.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if os.environ.setdefault("RESCALENET_TEST_DEVICE", "cpu") == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also for the processes that tests start
torch.set_num_threads(1)
# tests with an environment of their own: make test-interop, make test-export
collect_ignore = [
    folder
    for package, folder in (("detectron2", "interop"), ("ncnn", "export"))
    if importlib.util.find_spec(package) is None
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-expected", action="store_true", help="rewrite the files below tests/expected")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device: make test-gpu"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def expected(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with the file of that name below ``tests/expected``; ``--write-expected`` writes it before."""

    def compare(name: str, text: str) -> None:
        path = Path(__file__).parent / "expected" / name
        if request.config.getoption("write_expected"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        lines = path.read_text(encoding="utf-8").splitlines()
        assert text.splitlines() == lines, f"tests/expected/{name} differs; pytest --write-expected rewrites it"

    return compare
