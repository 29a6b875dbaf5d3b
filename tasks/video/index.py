"""Index of a set of videos: a JSON file with the frame times of each, so that every video is probed only once."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from tasks.errors import DataError
from tasks.progress import Progress, print_line
from tasks.video.decode import VideoInfo, probe
from zoo.files import write_json

VERSION = 1
_SAVE_EVERY = 30.0  # seconds between two writes while videos are probed


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
    file is written every 30 seconds, so that an interruption loses little.

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
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                version, self.records = content["rescalenet_video_index"], dict(content["videos"])
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{path}: not an index of videos; remove it, or set data.index=FILE") from None
            if version != VERSION:
                self.records = {}

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
        return [_to_entry(self.records[self._key(path)], path) for path in paths]

    def _record(self, path: Path, stat: tuple[int, int]) -> dict[str, Any] | None:
        """Return the stored record of a video, None if there is no record or the video has changed since."""
        record = self.records.get(self._key(path))
        return record if record is not None and (record["bytes"], record["changed"]) == stat else None

    def _key(self, path: Path) -> str:
        """Return the path as stored in the file: relative to ``root`` if it is below it, absolute otherwise."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path.absolute())

    def _probe(self, paths: Sequence[Path], stats: dict[Path, tuple[int, int]], workers: int, write: bool) -> None:
        """Probe videos and store their records; see ``entries`` for the arguments."""
        loader: Any = DataLoader(
            _Probes(paths), batch_size=None, num_workers=min(workers, len(paths)), collate_fn=_unchanged
        )
        saved = time.monotonic()
        with Progress(len(paths), 0, 1, unit="videos") as progress:
            for done, (path, entry) in enumerate(zip(paths, loader, strict=True), 1):
                self.records[self._key(path)] = _to_record(entry, *stats[path])
                progress.step(done)
                if write and time.monotonic() - saved > _SAVE_EVERY:
                    self._write()
                    saved = time.monotonic()
        if write:
            self._write()

    def _write(self) -> None:
        """Write the whole file."""
        try:
            write_json({"rescalenet_video_index": VERSION, "videos": self.records}, self.path)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror}); set data.index=FILE") from None


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
    }


def _to_entry(record: dict[str, Any], path: Path) -> Entry:
    """Return the entry of a JSON record of the video ``path``.

    Raises:
        DataError: a record that is not one of ``_to_record``.
    """
    try:
        if not record["decodable"]:
            return Entry(None, record["failure"])
        info = VideoInfo(
            steps=tuple((step, count) for step, count in record["steps"]),
            time_base=Fraction(*record["time_base"]),
            keys=tuple(record["keys"]),
            **{name: record[name] for name in ("first", "seekable", "width", "height")},
        )
        if info.frames == record["frames"]:
            return Entry(info)
    except (KeyError, TypeError, ValueError):
        pass
    raise DataError(f"{path}: its entry in the index of videos is damaged; remove the index")
