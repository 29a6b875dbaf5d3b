"""Reading of files that ``torch.save`` wrote, without running what is in them."""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from zoo.files import without_remarks

_ZIP = b"PK\x03\x04"  # what files of torch 1.6 and later begin with
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
            stubs = [(stand_in, name) for name in _other_classes(path)]
        with safe_globals(stubs):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _other_classes(path: Path) -> list[str]:
    """Return the names of the classes and functions in a file that torch refuses by itself.

    Raises:
        Exception: another kind of file, which fails in any way.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            return get_unsafe_globals_in_checkpoint(path)
        # The form of torch before 1.6 has pickles in a row: a number, the version, the system, the object. The last one
        # is given to torch in the present form.
        file.seek(0)
        for _ in range(4):
            begin = file.tell()
            for _ in pickletools.genops(file):
                pass
        size = file.tell() - begin
        file.seek(begin)
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr("archive/data.pkl", file.read(size))
            archive.writestr("archive/version", "3\n")
    content.seek(0)
    return get_unsafe_globals_in_checkpoint(content)
