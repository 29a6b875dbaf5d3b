"""Lines as they come: those that are there are translated, and none waits for others."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator

from tasks.errors import UserError

_PAUSE = 0.01  # seconds without a further line after which those that are there are given on


def windows(lines: Iterable[str], size: int, *, live: bool = False) -> Iterator[list[str]]:
    """Yield lists of up to ``size`` lines; an error of the lines comes after the lines before it.

    Args:
        lines: lines, whose iteration may raise a ``UserError``.
        size: largest number of lines of a list.
        live: whether a list ends where the next line is not there yet. A thread then reads the lines.

    Raises:
        UserError: the error of the lines.
    """
    yield from _live(lines, size) if live else _whole(lines, size)


def _whole(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    window: list[str] = []
    iterator = iter(lines)
    while True:
        try:
            window.append(next(iterator))
        except StopIteration:
            break
        except UserError:
            if window:
                yield window
            raise
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def _live(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    ready: queue.Queue[str | BaseException | None] = queue.Queue(size)  # lines; at last None or an error

    def read() -> None:
        try:
            for line in lines:
                ready.put(line)
        except BaseException as error:  # the thread that reads the queue raises it
            ready.put(error)
        else:
            ready.put(None)

    # A thread that waits for a line does not keep the process from ending.
    threading.Thread(target=read, daemon=True).start()
    while True:
        item = ready.get()
        window: list[str] = []
        while isinstance(item, str):
            window.append(item)
            if len(window) == size:
                break
            try:
                item = ready.get(timeout=_PAUSE)
            except queue.Empty:
                break
        if window:
            yield window
        if isinstance(item, BaseException):
            raise item
        if item is None:
            return
