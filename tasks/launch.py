"""The number of processes of a run and the place among them, from the environment, without torch."""

from __future__ import annotations

import os


def process_count() -> int:
    """Return the number of processes of a run: those that torchrun started, or 1."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def local_process_count() -> int:
    """Return the number of a run's processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def is_first_process() -> bool:
    """Return whether this is the only process of a run, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"
