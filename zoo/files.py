"""Atomic writing of files and folders, paths as users write them, and a check of names from files of unknown origin."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zoo.errors import ZooError

_SAFE = re.compile(r"[A-Za-z0-9_-]+")
_SURROGATE = re.compile("[\ud800-\udfff]")


_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([^}]*)\})")

# A temporary name has the machine and the process that writes it: .NAME.MACHINE-PROCESS-THREAD.tmp
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-([0-9]+)-[0-9]+\.tmp")
_MACHINE = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_ABANDONED = 24 * 3600.0  # seconds without a change after which the temporary of another machine is abandoned
_KEPT = 50  # characters of NAME, as file systems take 255 bytes
_writing: set[Path] = set()  # temporaries of this process
_cleaned: set[Path] = set()  # folders whose stale temporaries this process has removed


def atomic_write(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file completely or not at all; when the function returns, the file is on the disk.

    Temporaries that killed processes left in the folder are removed once.

    Args:
        path: path of the file; missing folders are created.
        write: function that fills a temporary file beside ``path``, which is then renamed.
    """
    make_folder(path.parent)
    with _temporary(path) as temporary:
        try:
            write(temporary)
            _flush(temporary)
            os.replace(temporary, path)
            flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def atomic_folder(path: Path, fill: Callable[[Path], None], *, replace: bool = False) -> None:
    """Write a folder with all its files completely or not at all; when the function returns, all is on the disk.

    Args:
        path: path of the folder, which must not exist or be empty unless ``replace``; missing folders above it are
            created.
        fill: function that fills a temporary folder beside ``path``, which is then renamed.
        replace: whether ``path`` may have files, which are removed when the new folder is complete.
    """
    make_folder(path.parent)
    with _temporary(path) as temporary:
        temporary.mkdir()
        try:
            fill(temporary)
            for inner in sorted(temporary.rglob("*")):
                flush_folder(inner) if inner.is_dir() else _flush(inner)
            flush_folder(temporary)
            if replace and path.is_dir() and any(path.iterdir()):
                # a crash between the two steps leaves both folders on the disk
                old = path.with_name(f".{path.name[:_KEPT]}.replaced")
                shutil.rmtree(old, ignore_errors=True)
                os.replace(path, old)
                os.replace(temporary, path)
                shutil.rmtree(old)
            else:
                os.replace(temporary, path)
            flush_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are missing; when the function returns, they are on the disk."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush_folder(path.parent)


def remove_stale(folder: Path) -> list[Path]:
    """Remove the temporaries in a folder whose writers are gone, and return their paths.

    Those of running processes stay, and for a day those of other machines, whose processes cannot be seen from here.
    """
    try:
        found = sorted(folder.iterdir())
    except OSError:  # no such folder, or one that may be written but not listed
        return []
    removed = []
    for path in found:
        parts = _TEMPORARY.fullmatch(path.name)
        if parts is None or path in _writing or not _is_abandoned(path, parts[1], int(parts[2])):
            continue
        try:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError:  # another process was faster, or the folder is read-only: the file is only in the way
            continue
        removed.append(path)
    return removed


def _is_abandoned(path: Path, machine: str, process: int) -> bool:
    if machine != _MACHINE or os.name != "posix":  # where signal 0 is a question
        try:
            return time.time() - path.stat().st_mtime > _ABANDONED
        except OSError:
            return False
    if process == os.getpid():
        return True  # of an earlier process with this number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield the temporary name beside a path, known as one that this process writes."""
    temporary = path.with_name(f".{path.name[:_KEPT]}.{_MACHINE}-{os.getpid()}-{threading.get_native_id()}.tmp")
    _writing.add(temporary)
    try:
        if path.parent not in _cleaned:
            _cleaned.add(path.parent)
            remove_stale(path.parent)
        yield temporary
    finally:
        _writing.discard(temporary)


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(path: Path) -> None:
    """Wait until a folder's list of names is on the disk, where its file system can do that."""
    if os.name != "posix":  # other systems cannot open a folder
        return
    try:
        _flush(path)
    except OSError as error:
        # network and FUSE file systems without such a call; a folder that may be written but not listed
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EACCES):
            raise


def encodable(text: str, *, escape: str = "\\") -> str:
    r"""Return a text that can be encoded: bytes of a file name that are not UTF-8 become ``\xe9`` and so on.

    Args:
        text: text that may contain surrogates, which Python puts in the place of such bytes.
        escape: begin of an escape; two backslashes in JSON, which is then read as one.
    """

    def escaped(found: re.Match[str]) -> str:
        code = ord(found[0])
        return f"{escape}x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"{escape}u{code:04x}"

    return _SURROGATE.sub(escaped, text)


def write_text(text: str, path: Path) -> None:
    """Write a UTF-8 text file, completely or not at all; see ``encodable`` for bytes that are not UTF-8."""

    def write(temporary: Path) -> None:
        temporary.write_text(encodable(text), encoding="utf-8")

    atomic_write(path, write)


def write_json(content: Any, path: Path) -> None:
    """Write a JSON file, completely or not at all."""
    write_text(encodable(json.dumps(content, indent=1, ensure_ascii=False), escape="\\\\") + "\n", path)


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


def is_address(text: str) -> bool:
    """Return whether a text names a place other than a path: ``https://...``, ``hf-hub:owner/name``, ``timm:NAME``."""
    return re.match(r"[a-z][a-z0-9-]+:", text) is not None


def expand_path(text: str) -> str:
    """Return a path as a user wrote it, with ``~`` at its beginning, ``$NAME`` and ``${NAME}`` replaced.

    Args:
        text: path. A dollar sign that no name follows is kept, and so are those of a file that exists under the text
            itself if a name in it is no environment variable.

    Raises:
        ZooError: an unknown variable or user, an empty path, or one with control characters.

    >>> expand_path("runs/a #2")
    'runs/a #2'
    """
    if not text.strip():
        raise ZooError("the path is empty")
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise ZooError(f"{text!r}: a path must not have control characters")
    if unknown := [name for name in _variables(text) if name not in os.environ]:
        if os.path.lexists(text):
            return text
        raise ZooError(f"{text!r}: the environment variable {unknown[0]!r} is not set; set it, or write the path out")
    # what a variable has, or the name of the home folder, is not replaced again
    user = text.partition("/")[0] if text.startswith("~") else ""
    home = os.path.expanduser(user)
    if user and home == user:
        raise ZooError(f"{text!r}: no user {user[1:]!r}; write ./{text} for a file of this name")
    return home + _VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], text[len(user) :])


def _variables(text: str) -> list[str]:
    """Return the names of the variables in a path."""
    return [plain or braced for plain, braced in _VARIABLE.findall(text)]


@contextlib.contextmanager
def without_remarks(pattern: str) -> Iterator[None]:
    """Drop the remarks of a library on the form of a file: an error reports what matters.

    Args:
        pattern: regular expression for the beginning of the warnings.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", pattern, UserWarning)
        yield
