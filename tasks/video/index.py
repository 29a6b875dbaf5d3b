"""What is known of each video of a set, kept in one JSON file so that it is found out once."""

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
_SAVE_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class Entry:
    """A video's ``info``, or the reason (``failure``) why there is none."""

    info: VideoInfo | None
    failure: str = ""


class Index:
    """The file, and the entries of a set's videos.

    An entry is used again while its file has the same size and time of change. The file is written as a whole, now
    and then while it is being made, so an interruption loses little.

    Args:
        path: of the JSON file; made if it is not there.
        root: paths in it are relative to this folder.

    Raises:
        DataError: the file is something else.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root = path, root
        self.known: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                version, self.known = content["rescalenet_video_index"], dict(content["videos"])
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{path}: not an index of videos; remove it, or set data.index=FILE") from None
            if version != VERSION:
                self.known = {}

    def entries(self, paths: Sequence[Path], *, workers: int = 0, write: bool = True) -> list[Entry]:
        """What is known of each file, found out where it is not known yet.

        Args:
            workers: processes that look into files.
            write: keep what was found out.
        """
        stats = {path: _stat(path) for path in paths}
        new = [path for path, stat in stats.items() if self._record(path, stat) is None]
        if new:
            print_line(f"{self.path}: looking into {len(new)} of {len(stats)} videos")
            self._look_into(new, stats, workers, write)
        found = []
        for path in paths:
            record = self._record(path, stats[path])
            assert record is not None
            found.append(_to_entry(record, path))
        return found

    def _record(self, path: Path, stat: tuple[int, int]) -> dict[str, Any] | None:
        record = self.known.get(self._key(path))
        return record if record is not None and (record["bytes"], record["changed"]) == stat else None

    def _key(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path.absolute())

    def _look_into(self, paths: Sequence[Path], stats: dict[Path, tuple[int, int]], workers: int, write: bool) -> None:
        loader: Any = DataLoader(
            _Probes(paths), batch_size=None, num_workers=min(workers, len(paths)), collate_fn=_as_it_is
        )
        saved = time.monotonic()
        with Progress(len(paths), 0, 1, unit="videos") as progress:
            for done, (path, entry) in enumerate(zip(paths, loader, strict=True), 1):
                self.known[self._key(path)] = _to_record(entry, *stats[path])
                progress.step(done)
                if write and time.monotonic() - saved > _SAVE_EVERY:
                    self._write()
                    saved = time.monotonic()
        if write:
            self._write()

    def _write(self) -> None:
        try:
            write_json({"rescalenet_video_index": VERSION, "videos": self.known}, self.path)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror}); set data.index=FILE") from None


class _Probes(Dataset[Entry]):
    """Entries by number, for a DataLoader's processes."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Entry:
        try:
            return Entry(probe(self.paths[number]))
        except DataError as error:
            return Entry(None, str(error))


def _as_it_is(entry: Any) -> Any:
    return entry


def _stat(path: Path) -> tuple[int, int]:
    """Size and time of change; zeros for a file that is not there."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _to_record(entry: Entry, size: int, changed: int) -> dict[str, Any]:
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
    try:
        if not record["decodable"]:
            return Entry(None, record["failure"])
        info = VideoInfo(
            record["first"],
            tuple((step, count) for step, count in record["steps"]),
            Fraction(*record["time_base"]),
            tuple(record["keys"]),
            record["seekable"],
            record["width"],
            record["height"],
        )
        if info.frames == record["frames"]:
            return Entry(info)
    except (KeyError, TypeError, ValueError):
        pass
    raise DataError(f"{path}: its entry in the index of videos is damaged; remove the index")
