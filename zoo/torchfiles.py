"""Reading of files that ``torch.save`` wrote, without running what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from zoo.files import without_remarks

_REMARKS = "Detected pickle protocol|Validating sparse tensor"


def load_torch(path: Path, *, mmap: bool = False, stand_in: type | None = None) -> Any:
    """Return the content of a file, with its tensors on the CPU.

    Args:
        path: path of the file.
        mmap: whether tensors are mapped, not read; for files of torch 1.6 and later only.
        stand_in: class of the objects that are made in place of those of other classes; None to refuse these.

    Raises:
        pickle.UnpicklingError: content of another class.
        Exception: another kind of file, which fails in any way.
    """
    with without_remarks(_REMARKS):
        stubs: list[Any] = []
        if stand_in is not None:
            stubs = [(stand_in, name) for name in get_unsafe_globals_in_checkpoint(path)]
        with safe_globals(stubs):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
