"""Command lines in processes that are forked from a server which has torch and the project loaded.

A server, not the process of pytest: torch refuses a backward pass in a process that was forked from one which has made
a backward pass, and threads do not survive a fork. The server computes nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tasks import cli

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.helpers.small_run"])


@dataclass(frozen=True)
class Ended:
    """How a command line ended: exit code (negative: number of the signal that killed it), and what it wrote."""

    code: int
    written: str

    def error(self) -> str:
        """Return the line of the error, which must be the only one and the last."""
        lines = self.written.splitlines()
        assert self.code == 1, self
        assert "Traceback" not in self.written, self.written
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], self.written
        return lines[-1]


class Forked:
    """``rescalenet ARGUMENTS`` in a forked process.

    Args:
        arguments: command line.
        output: file for standard output and standard error.
        before: function of a module that the process calls first, with ``given``.
        given: arguments of ``before``.
    """

    def __init__(self, *arguments: object, output: Path, before: Callable[..., None] | None = None, given: Any = ()):
        self.output = output
        output.write_text("", encoding="utf-8")
        self.process = CONTEXT.Process(target=_main, args=([*map(str, arguments)], str(output), before, given))
        self.process.start()

    def signal(self, number: int) -> None:
        """Send a signal, if the process has not ended."""
        if self.process.is_alive():
            assert self.process.pid is not None
            os.kill(self.process.pid, number)

    def wait_until(self, reached: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until a condition is true."""
        end = time.monotonic() + seconds
        while not reached():
            assert self.process.is_alive(), self.output.read_text()
            assert time.monotonic() < end, self.output.read_text()
            time.sleep(0.001)

    def end(self, seconds: float = 120) -> Ended:
        """Wait for the end of the process."""
        self.process.join(seconds)
        late = self.process.is_alive()
        self.signal(signal.SIGKILL)
        self.process.join()
        written = self.output.read_text(encoding="utf-8", errors="replace")
        assert not late, f"no end within {seconds} s: {written}"
        return Ended(self.process.exitcode or 0, written)


def rescalenet(*arguments: object, output: Path, before: Callable[..., None] | None = None, given: Any = ()) -> Ended:
    """Run ``rescalenet ARGUMENTS`` in a forked process to its end."""
    return Forked(*arguments, output=output, before=before, given=given).end()


def _main(arguments: list[str], output: str, before: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    torch.set_num_threads(1)
    sys.argv = ["rescalenet", *arguments]
    if before is not None:
        before(*given)
    cli.main()
