"""A command that is watched: how its memory goes while it works through many inputs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from tests.helpers.commands import environment

PERIOD = 0.05  # seconds between looks
TOLERANCE = 60  # MiB that the last third of a command may take more than the second: arenas, caches


class Watched(NamedTuple):
    """How a command ended, and the resident memory of it and its workers over time, in MiB."""

    code: int
    output: str
    errors: str
    memory: list[float]

    def assert_flat(self) -> None:
        """Check that the last third of the time takes no more memory than the second; the first loads and warms up."""
        third = len(self.memory) // 3
        assert third > 20, "too few looks to tell"
        second, last = max(self.memory[third : 2 * third]), max(self.memory[2 * third :])
        assert last < second + TOLERANCE, (second, last)


def watch(*arguments: object) -> Watched:
    """Run ``rescalenet`` with these arguments and watch its memory."""
    command = [sys.executable, "-m", "rescalenet_zoo", *map(str, arguments)]
    process = subprocess.Popen(
        command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors="surrogateescape"
    )
    memory: list[float] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            memory.append(sum(map(_resident, [process.pid, *_children(process.pid)])))
            time.sleep(PERIOD)

    thread = threading.Thread(target=look)
    thread.start()
    output, errors = process.communicate()
    ended.set()
    thread.join()
    return Watched(process.returncode, output, errors, memory[:-1])


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [child for each in map(int, text.split()) for child in (each, *_children(each))]


def _resident(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * 4096 / 2**20
