"""Reading of numpy's files, which may come from anywhere."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reading_arrays() -> Iterator[None]:
    """Drop numpy's remark on headers of Python 2, which also describes damaged ones: an error reports what matters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Reading `.npy` or `.npz` file", UserWarning)
        yield
