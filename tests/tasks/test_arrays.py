"""numpy's files of unknown origin: an error is one line, without a remark of numpy beside it."""

import warnings

import numpy as np
import pytest

from tasks.errors import DataError
from tasks.images import read_picture
from tasks.translation.corpus import _load_ends
from tasks.video.evaluate import read_predictions


@pytest.fixture
def damaged(tmp_path):
    """A file with a header of Python 2, on which numpy remarks, and with another name of a field."""
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((4, 4, 5), np.uint8))
    content = path.read_bytes().replace(b"'descr'", b"'decr' ").replace(b"(4, 4, 5), } ", b"(4L, 4, 5), }")
    path.write_bytes(content)
    return path


def ends(path):
    return _load_ends(path, 4)


def picture(path):
    return read_picture(path, 5)


@pytest.mark.parametrize("read", [ends, picture, read_predictions])
def test_an_error_stands_alone(damaged, read):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with pytest.raises(DataError, match=r"x\.npy"):
            read(damaged)
    assert shown == []
