"""Lists of labelled videos: class folders, path-label lists, Kinetics' CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import DataError
from tasks.files import find_files
from tasks.video.decode import EXTENSIONS
from tasks.video.sampling import Segment

_PATH_COLUMNS = ("path", "video", "video_path", "filename", "fname", "file", "file_name", "name")
_LABEL_COLUMNS = ("label", "class", "category", "action")


@dataclass(frozen=True)
class Video:
    """One labelled video.

    Attributes:
        name: what lists and reports call it.
        path: None where no file was found for it.
        segment: seconds that count, None for all of it.
    """

    name: str
    path: Path | None
    label: int
    segment: Segment = None


@dataclass(frozen=True)
class Videos:
    """Labelled videos and their class names."""

    classes: tuple[str, ...]
    items: tuple[Video, ...]

    def __len__(self) -> int:
        return len(self.items)

    def names(self) -> list[str]:
        return [video.name for video in self.items]

    def subset(self, names: Iterable[str], *, without: bool = False) -> Videos:
        """The videos of these names, or all others."""
        chosen = set(names)
        return Videos(self.classes, tuple(v for v in self.items if (v.name in chosen) != without))


def is_video(path: Path) -> bool:
    """Whether the ending is a video's, and the file not hidden."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def find_videos(paths: Sequence[str]) -> list[Path]:
    """The videos among the files and folders named; see ``tasks.files.find_files``."""
    return find_files(paths, EXTENSIONS, "videos")


def folder_videos(root: Path) -> Videos:
    """A folder of videos for each class, classes in alphabetical order; names are CLASS/FILE.

    Raises:
        DataError: no such folder, no classes, or a class without videos.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; one folder of videos for each class is expected there")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError(f"{root}: one folder of videos for each class is expected there")
    items = []
    for label, folder in enumerate(folders):
        files = sorted(p for p in folder.rglob("*") if is_video(p))
        if not files:
            raise DataError(f"{folder}: no videos in it; known endings: {' '.join(EXTENSIONS)}")
        items += [Video(str(p.relative_to(root)), p, label) for p in files]
    return Videos(tuple(folder.name for folder in folders), tuple(items))


def list_videos(file: Path, root: Path, classes: Sequence[str] | None = None) -> Videos:
    """A text file of 'path label' lines, or CSV with such columns; further columns are ignored.

    Without a header the last field of a line is the label and what is before it the path. Separators are commas, tabs
    or spaces.

    Args:
        root: folder of the videos.
        classes: in their order; by default the labels that occur, numbers in their order, names in alphabetical.

    Raises:
        DataError: no such file, a line without a label, or a label that is not one of ``classes``.
    """
    lines = _lines(file)
    separator = next((s for s in (",", "\t") if s in lines[0][1]), None)
    header = [field.strip().lower() for field in lines[0][1].split(separator)]
    path_column = next((header.index(name) for name in _PATH_COLUMNS if name in header), None)
    label_column = next((header.index(name) for name in _LABEL_COLUMNS if name in header), None)
    pairs = []
    if path_column is not None and label_column is not None:
        for number, line in lines[1:]:
            fields = next(csv.reader([line], delimiter=separator or " "))
            if len(fields) <= max(path_column, label_column):
                raise DataError(f"{file}, line {number}: {len(header)} fields are expected")
            pairs.append((number, fields[path_column].strip(), fields[label_column].strip()))
    else:
        for number, line in lines:
            path, _, label = line.rstrip().rpartition(separator or " ")
            if not path.strip() or not label.strip():
                raise DataError(f"{file}, line {number}: 'path label' is expected, not {line!r}")
            pairs.append((number, path.strip(), label.strip()))
    names, index = _classes([label for _, _, label in pairs], classes)
    items = []
    for number, path, label in pairs:
        if label not in index:
            raise DataError(f"{file}, line {number}: class {label!r} is not one of {', '.join(names[:5])}, ...")
        items.append(Video(path, root / path, index[label]))
    return Videos(names, tuple(items))


def kinetics_videos(file: Path, root: Path, classes: Sequence[str] | None = None) -> Videos:
    """Kinetics' CSV: label, youtube_id, time_start, time_end (seconds).

    A video is looked for anywhere below ``root``, as ID_START_END (six digits each, as the usual downloaders write) or
    as ID, of which only the time given counts. One that is not there stays in the list, without a path.

    Args:
        classes: as for ``list_videos``.

    Raises:
        DataError: no such file, columns that are missing, values that are no numbers, or an unknown class.
    """
    needed = ("label", "youtube_id", "time_start", "time_end")
    lines = _lines(file)
    rows = list(csv.DictReader(line for _, line in lines))
    missing = [name for name in needed if not rows or name not in rows[0]]
    if missing:
        raise DataError(f"{file}: columns {', '.join(needed)} are expected; {', '.join(missing)} missing")
    there: dict[str, Path] = {p.stem: p for p in sorted(root.rglob("*")) if is_video(p)}
    names, index = _classes([row["label"] for row in rows], classes)
    items = []
    for (number, _), row in zip(lines[1:], rows, strict=True):
        try:
            begin, end = float(row["time_start"]), float(row["time_end"])
        except (TypeError, ValueError):
            raise DataError(f"{file}, line {number}: time_start and time_end are seconds") from None
        if not 0 <= begin < end:
            raise DataError(f"{file}, line {number}: time_start={begin:g} is not before time_end={end:g}")
        if row["label"] not in index:
            raise DataError(f"{file}, line {number}: class {row['label']!r} is not one of {', '.join(names[:5])}, ...")
        trimmed = f"{row['youtube_id']}_{int(begin):06}_{int(end):06}"
        whole = there.get(row["youtube_id"])
        segment = None if trimmed in there or whole is None else (begin, end)
        items.append(Video(trimmed, there.get(trimmed, whole), index[row["label"]], segment))
    return Videos(names, tuple(items))


def _lines(file: Path) -> list[tuple[int, str]]:
    """Lines that are not empty, with their numbers."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise DataError(f"{file}: not a text file ({error})") from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise DataError(f"{file}: is empty")
    return lines


def _classes(labels: Sequence[str], classes: Sequence[str] | None) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names in order, and the number of each label."""
    if classes is None:
        found = set(labels)
        classes = sorted(found, key=int) if all(label.isdecimal() for label in found) else sorted(found)
    return tuple(classes), {name: i for i, name in enumerate(classes)}
