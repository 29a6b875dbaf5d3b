"""How many files a soak takes: ``pytest tests/soak -m slow --soak 20000``."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--soak", type=int, default=None, help="number of files of a soak; default: 2000")


@pytest.fixture
def count(request):
    """The number of files; pytest knows the option only where this folder is named on its command line."""
    return request.config.getoption("soak", None) or 2000
