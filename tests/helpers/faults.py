"""Faults in a process of its own: it is killed, signalled or refused at the n-th operation on the files of a folder.

Python reports every opening, renaming, removing and making of files to audit hooks, before it happens, and a hook may
raise. What other languages write (safetensors is Rust) is met by limits of the system: on the length of files, and on
the size of a file system in memory.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tasks import cli

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATH_EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


def path_of(file: int | str | bytes | os.PathLike[Any]) -> str | bytes:
    """Return the path of a file that an audit hook is told of, by its path or its descriptor."""
    return os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.fspath(file)


def each_operation(folder: Path, act: Callable[[str, str], None]) -> None:
    """Call a function before each operation that changes a folder.

    Args:
        folder: folder of a run.
        act: function of the operation's name and path; what it raises, the operation raises.
    """
    prefix = str(folder)
    fsync = os.fsync

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            if isinstance(given[0], str | os.PathLike) and given[2] & WRITING:
                path = os.fspath(given[0])
            else:
                return
        elif event in PATH_EVENTS:
            path = path_of(given[0])
        else:
            return
        removes_nothing = event == "os.remove" and not os.path.lexists(path)
        if str(path).startswith(prefix) and not removes_nothing:
            act(event, str(path))

    def synchronised(descriptor: int) -> None:
        act("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    os.fsync = synchronised
    sys.addaudithook(hook)


class Counter:
    """Calls a function at the n-th operation, and with ``lasting`` at each one after it."""

    def __init__(self, number: int, act: Callable[[str, str], None], *, lasting: bool = False) -> None:
        self.number, self.act, self.lasting, self.count = number, act, lasting, 0

    def __call__(self, event: str, path: str) -> None:
        self.count += 1
        if self.count == self.number or (self.lasting and self.count > self.number):
            self.act(event, path)


def count(folder: Path, result: Path) -> None:
    """Write the number of operations of a run into a file."""
    counter = Counter(0, lambda event, path: None)
    each_operation(folder, counter)
    at_end(lambda: result.write_text(str(counter.count)))


def signal_at(folder: Path, number: int, *signals: int) -> None:
    """Send signals to this process at the n-th operation."""

    def send(event: str, path: str) -> None:
        for each in signals:
            os.kill(os.getpid(), each)

    each_operation(folder, Counter(number, send))


def refuse_from(folder: Path, number: int, error: int) -> None:
    """Refuse the n-th operation and all later ones but removing, as a full disk or one that failed does."""

    def refuse(event: str, path: str) -> None:
        if event != "os.remove":
            raise OSError(error, os.strerror(error), path)

    each_operation(folder, Counter(number, refuse, lasting=True))


def limit_length(length: int, kill: bool = False) -> None:
    """Let a write end in the middle of a file, with the error EFBIG or the end of this process.

    Args:
        length: largest length of a file in bytes.
        kill: whether the process ends, by the signal SIGXFSZ.
    """
    if kill:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, length))


def drop_privileges() -> None:
    """Let the modes of files bind this process, also if it is root's."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def mount(folder: Path, kind: str, *, flags: int = 0, data: str = "") -> None:
    """Mount a file system for this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private = 0x20000, 0x4000 | 0x40000
    calls: list[tuple[Callable[..., int], tuple[Any, ...]]] = [
        (libc.unshare, (new_namespace,)),
        (libc.mount, (b"none", b"/", None, private, None)),
        (libc.mount, (str(folder).encode(), str(folder).encode(), kind.encode(), flags, data.encode())),
    ]
    for function, given in calls:
        if function(*given):
            raise OSError(ctypes.get_errno(), "mount")


def small_disk(folder: Path, size: int, remains: Path) -> None:
    """Let a folder be a file system of its own with so many bytes; a copy of what is in it at the end remains."""
    folder.mkdir()
    mount(folder, "tmpfs", data=f"size={size}")
    at_end(lambda: shutil.copytree(folder, remains))


def small_board(folder: Path, size: int, remains: Path) -> None:
    """Let the curves of a run that has not begun be in a file system of their own, see ``small_disk``."""
    folder.mkdir()
    small_disk(folder / "tensorboard", size, remains)


def read_only(folder: Path) -> None:
    """Let a folder be a file system that cannot be written."""
    bind, remount = 0x1000, 0x20 | 0x1000 | 1
    mount(folder, "", flags=bind)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, str(folder).encode(), None, remount, None):
        raise OSError(ctypes.get_errno(), "mount")


def at_end(act: Callable[[], Any]) -> None:
    """Call a function when the command line ends, in whatever way."""
    main = cli.main

    def run() -> None:
        try:
            main()
        finally:
            act()

    cli.main = run


def long_step(reached: Path, seconds: float) -> None:
    """Let the first optimizer step take some time; a file is made when it begins."""
    step = torch.optim.SGD.step

    def slow(optimizer: torch.optim.SGD, closure: Any = None) -> Any:
        torch.optim.SGD.step = step  # type: ignore[method-assign]
        reached.touch()
        time.sleep(seconds)
        return step(optimizer, closure)

    torch.optim.SGD.step = slow  # type: ignore[method-assign,assignment]
