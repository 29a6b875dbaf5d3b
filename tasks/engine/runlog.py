"""Where a run's records go: ``log.jsonl`` always, further sinks by ``train.sinks``."""

from __future__ import annotations

import io
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from tasks.engine.records import Record
from tasks.errors import ConfigError, TrainingError
from tasks.progress import print_line
from zoo.errors import one_line, suggestion
from zoo.files import flush_folder


class Sink(Protocol):
    """A destination of records."""

    def write(self, record: Record) -> None:
        """Write one record."""

    def flush(self) -> None:
        """Write all records to the disk or the server."""

    def close(self) -> None:
        """End the log; nothing is written afterwards."""


SinkFactory = Callable[[Path, int], Sink]
SINKS: dict[str, SinkFactory] = {}  # what ``train.sinks`` chooses from


def register_sink(name: str) -> Callable[[SinkFactory], SinkFactory]:
    """Return a decorator that makes a sink's class, or a function that makes a sink, available to ``train.sinks``.

    The class is called with the run's folder and the number of optimizer steps done. Records of later steps that an
    interrupted run wrote are written again.

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
        keep_bytes: length at which an existing file is cut off; the rest is of steps that will be done again.
    """

    def __init__(self, path: Path, keep_bytes: int) -> None:
        path.touch()
        flush_folder(path.parent)
        # Without a buffer: what a full disk did not take would be written again when the file is closed.
        self._file = path.open("r+b", buffering=0)  # and users watch the file
        # A file that is shorter, or was deleted, must not be filled with zeros up to that length.
        self.size = self._file.truncate(min(keep_bytes, path.stat().st_size))
        self._file.seek(self.size)

    def write(self, record: Record) -> None:
        for written in _parts_written(self._file, (json.dumps(record.as_dict()) + "\n").encode()):
            self.size += written

    def flush(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _parts_written(file: io.FileIO, content: bytes) -> Iterator[int]:
    """Write content to a file without a buffer, and yield the length of each part that the system takes.

    A disk that becomes full takes a part, and refuses the next one.
    """
    while content:
        written = file.write(content)
        content = content[written:]
        yield written


@register_sink("tensorboard")
class TensorBoardSink:
    """Curves of all numbers, in ``tensorboard/``.

    The file is not written by torch's ``SummaryWriter``: its thread prints a traceback where the disk is full.
    """

    def __init__(self, folder: Path, step: int) -> None:
        board = folder / "tensorboard"
        board.mkdir(exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names
        path = board / f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = path.open("xb", buffering=0)
        flush_folder(board)
        self._write(Event(file_version="brain.Event:2"))
        # of later steps, which an interrupted run wrote, nothing is shown
        self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, record: Record) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in record.scalars()]
        self._write(Event(step=record.step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        framed = io.BytesIO()
        RecordWriter(framed).write(event.SerializeToString())
        for _ in _parts_written(self._file, framed.getvalue()):
            pass

    def flush(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class RunLog:
    """The log of a run, which passes each record to every sink. It has no sinks on all ranks but the first.

    A sink that fails during a run, as where its server does not answer, is reported and gets no more records.
    ``log.jsonl`` must not fail: a run goes on from it.

    Args:
        sinks: destinations of the records.
    """

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self.sinks = list(sinks)

    def write(self, record: Record) -> None:
        """Write a record to every sink."""
        self._of_each(lambda sink: sink.write(record))

    def flush(self) -> int:
        """Write all records to the disk, and return the bytes of ``log.jsonl`` (0 without that sink)."""
        self._of_each(lambda sink: sink.flush())
        return sum(sink.size for sink in self.sinks if isinstance(sink, JsonlSink))

    def close(self) -> None:
        """Close every sink, once."""
        try:
            self._of_each(lambda sink: sink.close())
        finally:
            self.sinks = []

    def _of_each(self, function: Callable[[Sink], None]) -> None:
        """Call a function of every sink, and leave out from now on those that fail."""
        for sink in list(self.sinks):
            try:
                function(sink)
            except Exception as error:
                if isinstance(sink, JsonlSink):
                    raise
                self.sinks.remove(sink)
                what = f"{type(error).__name__}: {one_line(error)}"
                print_line(f"{type(sink).__name__} failed and gets no more records of this run ({what})")


def check_sinks(names: Sequence[str]) -> None:
    """Refuse sinks that are not registered, and those that would write each record twice.

    Raises:
        ConfigError: an unknown name, or one that occurs twice.
    """
    if len(set(names)) < len(names):
        raise ConfigError(f"train.sinks={list(names)}: a name occurs twice; remove one")
    for name in names:
        if name not in SINKS:
            raise ConfigError(f"train.sinks: unknown sink {name!r}{suggestion(name, SINKS)}")


def open_log(folder: Path, names: Sequence[str], *, keep_bytes: int, step: int) -> RunLog:
    """Open the log of a run: ``log.jsonl`` in its folder and the named sinks.

    Args:
        folder: folder of the run.
        names: registered sinks.
        keep_bytes: bytes of ``log.jsonl`` to keep, see ``JsonlSink``.
        step: optimizer steps done.

    Raises:
        TrainingError: a named sink cannot be opened.
        OSError: the same of ``log.jsonl``.
    """
    log = RunLog([JsonlSink(folder / "log.jsonl", keep_bytes)])
    for name in names:
        try:
            log.sinks.append(SINKS[name](folder, step))
        except Exception as error:
            log.close()
            what = f"{type(error).__name__}: {one_line(error)}"
            raise TrainingError(
                f"train.sinks: {name} cannot be opened ({what}); correct that, or leave it out"
            ) from None
    return log
