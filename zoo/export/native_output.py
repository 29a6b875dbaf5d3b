"""What native libraries print. They write to the file descriptors of the process, where sys.stdout is not asked."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Printed:
    """What was printed, after the context has ended."""

    text: str = ""


@contextmanager
def captured() -> Iterator[Printed]:
    """Keep what native code of this process prints to its output and its errors off the terminal.

    Python's own output of other threads is kept off too, so that the context must be short.
    """
    printed = Printed()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    with tempfile.TemporaryFile() as file:
        try:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
            yield printed
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for descriptor, before in zip((1, 2), saved, strict=True):
                os.dup2(before, descriptor)
                os.close(before)
            file.seek(0)
            printed.text = file.read().decode(errors="replace")
