"""Atomic writing of files, and a check of names that come from files of unknown origin."""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.errors import ZooError

_SAFE = re.compile(r"[A-Za-z0-9_-]+")


def atomic_write(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file completely or not at all; when the function returns, the file is on the disk.

    Args:
        path: path of the file; missing folders are created.
        write: function that fills a temporary file beside ``path``, which is then renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.tmp")
    try:
        write(temporary)
        _flush(temporary)
        os.replace(temporary, path)
        if os.name == "posix":  # other systems cannot open a folder
            _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(path: Path) -> None:
    """Wait until a folder's list of names is on the disk, where its file system can do that."""
    try:
        _flush(path)
    except OSError as error:
        # network and FUSE file systems without such a call; a folder that may be written but not listed
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EACCES):
            raise


def write_text(text: str, path: Path) -> None:
    """Write a UTF-8 text file, completely or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    atomic_write(path, write)


def write_json(content: Any, path: Path) -> None:
    """Write a JSON file, completely or not at all."""
    write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", path)


def safe_name(name: str, what: str, *, longest: int = 100) -> str:
    """Return the name, after a check that it can be part of a file's name and never leads to another folder.

    Args:
        name: name that was read from a file of unknown origin.
        what: description of the named thing, for the message.
        longest: largest number of characters.

    Raises:
        ZooError: a name with other characters than letters, digits, - and _, an empty or a long one.
    """
    if len(name) > longest or not _SAFE.fullmatch(name):
        raise ZooError(f"{what}={name!r}: must be 1 to {longest} letters, digits, - or _")
    return name
