"""Settings of all tests: one thread a worker, one seed, real data where it is there.

``pytest --write-expected`` rewrites the files below ``tests/expected`` with what the tests find; look at the difference
before you commit it. Helpers are in ``tests/helpers``, fixtures of several files in the nearest ``conftest.py``.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

torch.set_num_threads(1)
collect_ignore = [] if importlib.util.find_spec("detectron2") else ["interop"]  # its own environment: test-interop


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-expected", action="store_true", help="rewrite the files below tests/expected")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
