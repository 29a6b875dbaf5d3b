"""A process that ends when the process that started it ends, however that one ends."""

from __future__ import annotations

import os
import threading
import time

PARENT = "RESCALENET_PARENT"  # environment variable: number of the process that started this one


def end_with_parent() -> None:
    """End this process within a second after its parent, if ``RESCALENET_PARENT`` names one.

    A parent that is killed cannot end its children. What they write is complete at every moment, so they may end
    anywhere. On Windows a process does not learn that its parent has ended, and goes on.
    """
    parent = os.environ.pop(PARENT, None)  # not for the children of this process
    if parent is None or os.name != "posix":
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
