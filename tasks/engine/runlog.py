"""Where a run's records go: ``log.jsonl`` always, further sinks by ``train.sinks``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter

from tasks.engine.records import Record
from tasks.errors import ConfigError
from zoo.errors import suggestion


class Sink(Protocol):
    """A destination of records."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def flush(self) -> None:
        """Bring all records to the disk or the server."""

    def close(self) -> None:
        """End the log; nothing is written afterwards."""


SinkFactory = Callable[[Path, int], Sink]
SINKS: dict[str, SinkFactory] = {}  # what ``train.sinks`` chooses from


def register_sink(name: str) -> Callable[[SinkFactory], SinkFactory]:
    """Decorator of a sink's class (or a function that makes one) that makes it available to ``train.sinks``.

    It is called with the run's folder and the number of optimizer steps done: records of later steps that an
    interrupted run wrote come again.

    Raises:
        ValueError: another sink has the name.
    """
    if name in SINKS:
        raise ValueError(f"sink {name!r} is registered already")

    def register(factory: SinkFactory) -> SinkFactory:
        SINKS[name] = factory
        return factory

    return register


class JsonlSink:
    """One JSON object a line.

    Args:
        path: file to write; made if it does not exist.
        keep_bytes: length at which an existing file is cut off: what follows is of steps that will be done again.
    """

    def __init__(self, path: Path, keep_bytes: int) -> None:
        path.touch()
        self._file = path.open("r+b")
        # A file that is shorter, or was deleted, must not be filled with zeros up to that length.
        self.size = self._file.truncate(min(keep_bytes, path.stat().st_size))
        self._file.seek(self.size)

    def write(self, record: Record) -> None:
        self.size += self._file.write((json.dumps(record.as_dict()) + "\n").encode())
        self._file.flush()  # for those who watch it

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


@register_sink("tensorboard")
class TensorBoardSink:
    """Curves of all numbers, in ``tensorboard/``."""

    def __init__(self, folder: Path, step: int) -> None:
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, record: Record) -> None:
        for tag, value in record.scalars():
            self._board.add_scalar(tag, value, record.step)

    def flush(self) -> None:
        self._board.flush()

    def close(self) -> None:
        self._board.close()


class RunLog:
    """The log of a run: hands each record to every sink. Without sinks (on all ranks but the first) it does nothing."""

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self.sinks = list(sinks)

    def write(self, record: Record) -> None:
        """Hand a record to every sink."""
        for sink in self.sinks:
            sink.write(record)

    def flush(self) -> int:
        """Bring all records to the disk. Returns the bytes of ``log.jsonl``, 0 without that sink."""
        for sink in self.sinks:
            sink.flush()
        return sum(sink.size for sink in self.sinks if isinstance(sink, JsonlSink))

    def close(self) -> None:
        """Close every sink."""
        for sink in self.sinks:
            sink.close()


def check_sinks(names: Sequence[str]) -> None:
    """Refuse sinks that are not registered.

    Raises:
        ConfigError: an unknown name.
    """
    for name in names:
        if name not in SINKS:
            raise ConfigError(f"train.sinks: unknown sink {name!r}{suggestion(name, SINKS)}")


def open_log(folder: Path, names: Sequence[str], *, keep_bytes: int, step: int) -> RunLog:
    """The log of a run: ``log.jsonl`` in its folder and the named sinks.

    Args:
        folder: folder of the run.
        names: registered sinks.
        keep_bytes: bytes of ``log.jsonl`` to keep, see ``JsonlSink``.
        step: optimizer steps done.
    """
    return RunLog([JsonlSink(folder / "log.jsonl", keep_bytes), *(SINKS[name](folder, step) for name in names)])
