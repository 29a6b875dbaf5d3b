"""Index of a set of videos: a JSON file with the frame times of each, so that every video is probed only once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import pydantic
from pydantic import ConfigDict, Field, model_validator
from torch.utils.data import DataLoader, Dataset

from tasks.errors import DataError
from tasks.progress import Progress, print_line
from tasks.video.decode import MOST_FRAMES, NOTES, Note, VideoInfo, probe
from tasks.video.times import Run
from zoo.errors import ZooError
from zoo.files import write_json
from zoo.jsontext import first_error, read_json

VERSION = 3
READ = (1, 2, 3)
LONGEST = 2**31  # bytes of the file; an entry takes a few hundred
LARGEST_SIDE = 2**16  # pixels
LONGEST_DELAY = 1e8  # seconds
_SAVE_EVERY = 30.0  # seconds between two writes while videos are probed; more if writing takes long
_SHARE = 20  # least ratio of the time between two writes to that of a write


@dataclass(frozen=True)
class Entry:
    """Result of probing a video.

    Attributes:
        info: frame times, key frames and size; None if the video cannot be decoded.
        failure: reason why ``info`` is None.
    """

    info: VideoInfo | None
    failure: str = ""


class Index:
    """Index file and its entries.

    An entry is valid as long as its video has the same size and modification time. While videos are probed, the whole
    file is written every 30 seconds and at an interruption, so that little is lost.

    Args:
        path: path of the JSON file, which is created if it does not exist.
        root: folder to which the paths in the file are relative.

    Raises:
        DataError: the file exists and is not an index.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root = path, root
        self.records: dict[str, dict[str, Any]] = {}
        if path.exists():
            content = _read_file(path)
            if content.rescalenet_video_index in READ:
                self.records = content.videos
            version = content.rescalenet_video_index
            self.records = {key: record for key, record in self.records.items() if not _outdated(record, version)}

    def entries(self, paths: Sequence[Path], *, workers: int = 0, write: bool = True) -> list[Entry]:
        """Return the entry of each video; probe the videos that have no valid entry.

        Args:
            paths: paths of the videos.
            workers: number of processes that probe videos.
            write: write new entries to the file.

        Raises:
            DataError: a damaged entry, or a file that cannot be written.
        """
        stats = {path: _stat(path) for path in paths}
        new = [path for path, stat in stats.items() if self._record(path, stat) is None]
        if new:
            print_line(f"{self.path}: probing {len(new)} of {len(stats)} videos")
            self._probe(new, stats, workers, write)
        checked = [self._checked(path) for path in paths]
        if old := sum(isinstance(each, _Decodable) and "pixel_ratio" not in each.model_fields_set for each in checked):
            print_line(
                f"{self.path}: {old} of {len(paths)} entries are of version 0.1.0, which took all pixels for squares; "
                "if videos are anamorphic, remove the file: it is made again"
            )
        return [_to_entry(each) for each in checked]

    def _record(self, path: Path, stat: tuple[int, int]) -> dict[str, Any] | None:
        """Return the stored record of a video, None if there is no record or the video has changed since."""
        if self._key(path) not in self.records:
            return None
        record = self._checked(path)
        return self.records[self._key(path)] if (record.bytes, record.changed) == stat else None

    def _checked(self, path: Path) -> _Decodable | _Undecodable:
        """Return the record of a video.

        Raises:
            DataError: a record that is not one of ``_to_record``.
        """
        key = self._key(path)
        record = self.records[key]
        schema = _Decodable if isinstance(record, dict) and record.get("decodable") is True else _Undecodable
        try:
            return schema.model_validate(record)
        except pydantic.ValidationError as error:
            reason = first_error(error, "an entry")
            raise DataError(
                f"{self.path}: its entry of {key!r} is damaged ({reason}); remove the index, it is made again"
            ) from None

    def _key(self, path: Path) -> str:
        """Return the path as stored in the file: relative to ``root`` if it is below it, absolute otherwise."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path.absolute())

    def _probe(self, paths: Sequence[Path], stats: dict[Path, tuple[int, int]], workers: int, write: bool) -> None:
        """Probe videos and store their records; see ``entries`` for the arguments."""
        loader: Any = DataLoader(
            _Probes(paths), batch_size=None, num_workers=min(workers, len(paths)), collate_fn=_unchanged
        )
        saved, pause = time.monotonic(), _SAVE_EVERY
        if write:
            self._write()  # a file that cannot be written is known before the work
        try:
            with Progress(len(paths), 0, 1, unit="videos") as progress:
                for done, (path, entry) in enumerate(zip(paths, loader, strict=True), 1):
                    self.records[self._key(path)] = _to_record(entry, *stats[path])
                    progress.step(done)
                    if write and (begin := time.monotonic()) - saved > pause:
                        self._write()
                        saved = time.monotonic()
                        pause = max(_SAVE_EVERY, _SHARE * (saved - begin))
        finally:
            if write:
                self._write()

    def _write(self) -> None:
        """Write the whole file."""
        try:
            write_json({"rescalenet_video_index": VERSION, "videos": self.records}, self.path)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror}); set data.index=FILE") from None


Positive = Annotated[int, Field(ge=1, le=2**62)]
NotNegative = Annotated[int, Field(ge=0, le=2**62)]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]


class _Undecodable(pydantic.BaseModel):
    """Record of a video that cannot be decoded."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    bytes: int = Field(ge=0)
    changed: int
    decodable: Literal[False]
    failure: str


class _Decodable(pydantic.BaseModel):
    """Record of a video: the fields of ``VideoInfo``, with ``frames``, ``fps`` and ``duration`` for people."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    bytes: int = Field(ge=0)
    changed: int
    decodable: Literal[True]
    frames: int = Field(ge=1, le=MOST_FRAMES)
    fps: float = Field(ge=0)
    duration: float = Field(ge=0)
    width: Side
    height: Side
    seekable: bool
    time_base: tuple[Positive, Positive] = Field(strict=False)
    first: int = Field(ge=-(2**62), le=2**62)
    steps: list[Annotated[list[Positive], Field(min_length=2, max_length=4)]]
    keys: list[NotNegative]
    pixel_ratio: float = Field(1.0, ge=0.1, le=10)
    delay: float = Field(0.0, ge=0, le=LONGEST_DELAY)
    codec: str = Field("", max_length=64)
    notes: list[Note] = Field([], max_length=len(NOTES))

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if any(len(run) == 3 or (len(run) == 4 and not run[2] <= run[1] <= run[0]) for run in self.steps):
            raise ValueError("steps: must be of a step and a count, or of p, q, r and a count with r <= q <= p")
        if 1 + sum(run[-1] for run in self.steps) != self.frames:
            raise ValueError(f"steps: they are not of frames={self.frames}")
        if abs(self.first) + sum(run[0] * run[-1] for run in self.steps) > 2**62:
            raise ValueError("steps: the times are beyond 64 bits")
        if any(b <= a for a, b in pairwise(self.keys)) or (self.keys and self.keys[-1] >= self.frames):
            raise ValueError(f"keys: must rise and be below frames={self.frames}")
        return self


class _File(pydantic.BaseModel):
    """The whole file. Its records are checked when they are used."""

    model_config = ConfigDict(strict=True)

    rescalenet_video_index: int
    videos: dict[str, Any]


class _Probes(Dataset[Entry]):
    """Dataset whose items are the entries of videos, so that the processes of a DataLoader probe them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Entry:
        try:
            return Entry(probe(self.paths[number]))
        except DataError as error:
            return Entry(None, str(error))


def _outdated(record: Any, version: int) -> bool:
    """Return whether the rules of an earlier version may have given other times or errors.

    Version 1 could not decode all videos, and took the frames of some for evenly spaced. Until version 2, pictures
    before the first key frame counted, which may lack what they refer to.
    """
    if not isinstance(record, dict):
        return False
    keys = record.get("keys")
    late = isinstance(keys, list) and keys[:1] not in ([], [0])
    return (version < 3 and late) or (version == 1 and False in (record.get("decodable"), record.get("seekable")))


def _unchanged(entry: Any) -> Any:
    """Return the entry; the default collate function would convert it."""
    return entry


def _stat(path: Path) -> tuple[int, int]:
    """Return size in bytes and modification time in nanoseconds; zeros for a missing file."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _to_record(entry: Entry, size: int, changed: int) -> dict[str, Any]:
    """Return the JSON record of an entry.

    Args:
        entry: result of probing the video.
        size: size of the video file in bytes.
        changed: modification time of the video file in nanoseconds.
    """
    record: dict[str, Any] = {"bytes": size, "changed": changed, "decodable": entry.info is not None}
    if entry.info is None:
        return {**record, "failure": entry.failure}
    info = entry.info
    return {
        **record,
        "frames": info.frames,
        "fps": round(info.fps, 4),
        "duration": round(info.duration, 4),
        "width": info.width,
        "height": info.height,
        "seekable": info.seekable,
        "time_base": [info.time_base.numerator, info.time_base.denominator],
        "first": info.first,
        "steps": [list(run) for run in info.steps],
        "keys": list(info.keys),
        "pixel_ratio": info.pixel_ratio,
        "delay": info.delay,
        "codec": info.codec,
        "notes": list(info.notes),
    }


def _to_entry(record: _Decodable | _Undecodable) -> Entry:
    """Return the entry of a record."""
    if isinstance(record, _Undecodable):
        return Entry(None, record.failure)
    return Entry(
        VideoInfo(
            first=record.first,
            steps=tuple(cast(Run, tuple(run)) for run in record.steps),
            time_base=Fraction(*record.time_base),
            keys=tuple(record.keys),
            seekable=record.seekable,
            width=record.width,
            height=record.height,
            pixel_ratio=record.pixel_ratio,
            delay=record.delay,
            codec=record.codec,
            notes=tuple(record.notes),
        )
    )


def _read_file(path: Path) -> _File:
    """Return the content of an index file, whose records are not checked yet.

    Raises:
        DataError: another file.
    """
    try:
        return _File.model_validate(read_json(path, longest=LONGEST))
    except pydantic.ValidationError as error:
        reason = first_error(error, "an index")
    except ZooError as error:
        reason = str(error)
    raise DataError(f"{path}: not an index of videos ({reason}); remove it, or set data.index=FILE")
