"""Reading of numpy's files, which may come from anywhere."""

from __future__ import annotations

from contextlib import AbstractContextManager

from zoo.files import without_remarks


def reading_arrays() -> AbstractContextManager[None]:
    """Drop numpy's remark on headers of Python 2, which also describes damaged ones."""
    return without_remarks("Reading `.npy` or `.npz` file")
