"""Files that one process at a time may use. A lock ends with the process that has it, however that one ends."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from tasks.errors import UserError
from tasks.progress import print_line
from zoo.files import make_folder

LOCK_FILE = ".lock"  # in a folder that is taken
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # of file systems without locks


def take_folder(folder: Path, what: str) -> filelock.BaseFileLock | None:
    """Take a folder for this process, until the lock is released or the process ends; the folder is made.

    Args:
        folder: folder that is written to.
        what: noun for what another process may do in it, for the message: ``run``, ``study``.

    Returns:
        The lock; None where the file system has no locks, which is reported.

    Raises:
        UserError: another process has the folder.
        OSError: the folder cannot be made or written to.
    """
    make_folder(folder)
    lock = filelock.FileLock(folder / LOCK_FILE, thread_local=False)
    try:
        with warnings.catch_warnings(action="ignore"):
            lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"{folder}: another process has a {what} in it; wait for it, stop it, or choose another folder"
        ) from None
    except (NotImplementedError, OSError) as error:  # the first where older versions of filelock meet ENOSYS
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
    else:
        if not isinstance(lock, filelock.SoftFileLock):
            return lock
        # newer versions take a file that exists for a lock, which a process that was killed would leave
        lock.release()
    print_line(f"{folder}: its file system has no locks; do not start two {what}s in it")
    return None


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Let the processes of this machine use a file one after the other, without a limit of time.

    A barrier of a process group would end the run after ``train.timeout_minutes``.

    Args:
        path: file, or folder, that is read or made.
    """
    with filelock.FileLock(_lock_of(path)):
        yield


_reserved: dict[Path, filelock.BaseFileLock] = {}  # paths of this process


def reserve(path: Path) -> bool:
    """Reserve a path for this process until it ends; return whether no other process of this machine has it.

    Nothing is written there. It is for names that several processes might choose at the same time.
    """
    path = path.absolute()
    if path not in _reserved:
        lock = filelock.FileLock(_lock_of(path), thread_local=False)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            return False
        _reserved[path] = lock
    return True


def _lock_of(path: Path) -> Path:
    """Return the lock file of a path: in the folder for temporary files, because that of the data may be read-only."""
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    return Path(tempfile.gettempdir()) / f"rescalenet-{_user()}-{name}.lock"


def _user() -> int:
    """Return the number of the user, whose files others cannot lock."""
    return os.getuid() if hasattr(os, "getuid") else 0
