"""Signals that end a run: the step is finished and its state saved; a second signal ends the process at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from tasks.errors import Interrupted
from tasks.launch import process_count
from tasks.progress import print_line

# Ctrl+C, the end of a job, and the warning that SLURM sends before a job's end; Windows lacks the last.
HANDLED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

PATIENCE = 20.0  # seconds that one of several processes waits for its step after a signal; torchrun kills it after 30
_SAME = 1.0  # seconds within which several signals count as one
_AFTER_SIGTERM = 15  # seconds that a data loading process works on


class Signals:
    """Handlers of the signals, as a context.

    Where signals are ``deferred`` one is noted in ``requested``, as in a step whose state is not saved. Everywhere else
    it raises ``Interrupted`` at once: what is on the disk is complete at every moment. A second signal ends the
    process; those within a second of the first do not count, because Ctrl+C reaches a process directly and through
    torchrun.

    Args:
        patience: seconds after which the process ends even if its step does not, as when it waits for a process that
            has ended; by default ``PATIENCE`` for one of several processes, while one alone waits.

    Attributes:
        requested: number of the signal that arrived, 0 before.
    """

    def __init__(self, patience: float | None = None) -> None:
        self.patience = PATIENCE if patience is None and process_count() > 1 else patience
        self.requested = 0
        self._deferred = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._before = {number: signal.signal(number, self._handle) for number in HANDLED}
            self._watch()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if not self._before:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._sending.close()
        self._before = {}

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Note signals in ``requested`` instead of raising, inside of this context."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Raise ``Interrupted`` at a signal inside of this context, and if one has arrived before it."""
        self.stop_if_requested()
        deferred, self._deferred = self._deferred, 0
        try:
            yield
        finally:
            self._deferred = deferred

    def stop_if_requested(self) -> None:
        """Raise ``Interrupted`` if a signal has arrived."""
        if self.requested:
            raise Interrupted(self.requested)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:  # the thread below decides
            return
        self.requested = number
        if not self._deferred:
            raise Interrupted(number)

    def _watch(self) -> None:
        """Start the thread that ends the process at a second signal, or when the first one has waited for too long.

        Python's handlers run between two of its instructions, so not while the main thread waits in a library. The byte
        that a signal sends through a socket arrives at once.
        """
        self._sending, receiving = socket.socketpair()
        self._sending.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._sending.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_listen, args=(receiving, self.patience), name="signals", daemon=True).start()


def _listen(receiving: socket.socket, patience: float | None) -> None:
    """End the process at a second signal, or some time after the first.

    Args:
        receiving: socket that receives the number of each signal as a byte, and ends with the context.
        patience: seconds after the first signal; None: no limit.
    """
    with receiving:
        if not (first := _next_signal(receiving, None)):
            return
        begun = time.monotonic()
        name, reason = signal.Signals(first).name, ""
        while not reason:
            try:
                again = _next_signal(receiving, None if patience is None else begun + patience)
            except TimeoutError:
                reason = f"the step did not end within {patience:g} s"
            else:
                if not again:
                    return
                if time.monotonic() - begun > _SAME:
                    name, reason = signal.Signals(again).name, "a second signal"
    print_line(f"{name}: {reason}; what is on the disk is complete, continue with --resume")
    os._exit(128 + first)


def _next_signal(receiving: socket.socket, end: float | None) -> int:
    """Return the number of the next signal among ``HANDLED``, 0 at the end of the context.

    The socket receives every signal that has a handler in Python. Torch has one for SIGCHLD, which arrives whenever a
    data loading process ends.

    Args:
        receiving: socket that receives the numbers.
        end: time of the monotonic clock at which a ``TimeoutError`` is raised; None: never.
    """
    while True:
        receiving.settimeout(None if end is None else max(end - time.monotonic(), 0.001))
        received = receiving.recv(1)
        if not received:
            return 0
        if received[0] in HANDLED:
            return received[0]


def outlive_signals(worker: int) -> None:
    """Let a data loading process work on when a signal arrives for the whole group: its parent finishes the step.

    It ends some time after SIGTERM, by which Python also ends such processes at the exit of their parent.

    Args:
        worker: number of the process among those of its loader.
    """
    for number in HANDLED:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # not on Windows, where SIGTERM ends a process at once
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_AFTER_SIGTERM))
