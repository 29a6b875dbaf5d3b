"""The number of files that a soak test makes."""

import pytest


@pytest.fixture
def count(request):
    """Files of a test: 2000, or what ``--soak-files`` gives."""
    return request.config.getoption("soak_files")
