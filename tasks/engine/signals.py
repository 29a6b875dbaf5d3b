"""Signals that end a run: the step is finished and its state saved; a second signal ends the process at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from tasks.errors import Interrupted
from tasks.progress import print_line

# Ctrl+C, the end of a job, and the warning that SLURM sends before a job's end; Windows lacks the last.
HANDLED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Signals:
    """Handlers of the signals, as a context.

    Between steps a signal is noted in ``requested``. Everywhere else it raises ``Interrupted`` at once: what is on the
    disk is complete at every moment.

    Args:
        patience: seconds after which the process ends even if its step does not, as when it waits for a process that
            has ended; None: it waits.

    Attributes:
        requested: number of the signal that arrived, 0 before.
    """

    def __init__(self, patience: float | None = None) -> None:
        self.patience = patience
        self.requested = 0
        self._deferred = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._before = {number: signal.signal(number, self._handle) for number in HANDLED}
            if self.patience is not None:
                self._watch(self.patience)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before and self.patience is not None:
            signal.set_wakeup_fd(-1)
            self._wake.close()
        self._before = {}

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Note signals in ``requested`` instead of raising, inside of this context."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # From now on a signal has its usual effect on a process.
        for each in HANDLED:
            signal.signal(each, signal.SIG_DFL)
        self.requested = number
        if not self._deferred:
            raise Interrupted(number)

    def _watch(self, patience: float) -> None:
        """End the process some time after a signal, even while the main thread waits in a library and cannot handle it.

        Python's handlers run between two of its instructions; the byte that arrives in a socket does not wait for that.
        """
        self._wake, listening = socket.socketpair()
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)

        def listen() -> None:
            with listening:
                received = listening.recv(1)
                if not received:  # the context has ended
                    return
                listening.settimeout(patience)
                try:
                    while listening.recv(1):
                        pass
                except TimeoutError:
                    name = signal.Signals(received[0]).name
                    print_line(f"{name}: the step did not end within {patience:g} s; the last saved state is kept")
                    os._exit(128 + received[0])

        threading.Thread(target=listen, name="signals", daemon=True).start()


def ignore_signals(worker: int) -> None:
    """Let a data loading process go on when a signal arrives for the whole group: its parent ends it after the step.

    Args:
        worker: number of the process among those of its loader.
    """
    for number in HANDLED:
        signal.signal(number, signal.SIG_IGN)
