"""Lists of labelled videos, from class folders, lists of paths and labels, or CSV files of Kinetics."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import DataError
from tasks.files import find_files, text_lines
from tasks.video.decode import EXTENSIONS
from tasks.video.sampling import Segment

_PATH_COLUMNS = ("path", "video", "video_path", "filename", "fname", "file", "file_name", "name")
_LABEL_COLUMNS = ("label", "class", "category", "action")


@dataclass(frozen=True)
class Video:
    """One labelled video.

    Attributes:
        name: name of the video in lists and reports.
        path: path of the file; None if there is no file.
        label: number of the class.
        segment: begin and end in seconds of the part to use; None: the whole video.
    """

    name: str
    path: Path | None
    label: int
    segment: Segment = None


@dataclass(frozen=True)
class Videos:
    """Labelled videos.

    Attributes:
        classes: names of the classes, in the order of the labels.
        items: videos in the order of their list.
    """

    classes: tuple[str, ...]
    items: tuple[Video, ...]

    def __len__(self) -> int:
        return len(self.items)

    def names(self) -> list[str]:
        """Return the names of all videos."""
        return [video.name for video in self.items]

    def subset(self, names: Iterable[str], *, without: bool = False) -> Videos:
        """Return the videos with these names, or with ``without`` all other videos."""
        chosen = set(names)
        return Videos(self.classes, tuple(v for v in self.items if (v.name in chosen) != without))


def is_video(path: Path) -> bool:
    """Return whether the file name ends like that of a video and is not hidden."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def find_videos(paths: Sequence[str]) -> list[Path]:
    """Return the videos among the given files and folders; see ``tasks.files.find_files``."""
    return find_files(paths, EXTENSIONS, "videos")


def folder_videos(root: Path) -> Videos:
    """Find the videos of class folders; the classes are in alphabetical order, the names are CLASS/FILE.

    Args:
        root: folder with one folder of videos for each class.

    Raises:
        DataError: a missing folder, no class folder, or a class folder without videos.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; it must contain one folder of videos for each class")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError(f"{root}: contains no folder; it must contain one folder of videos for each class")
    items = []
    for label, folder in enumerate(folders):
        files = sorted(p for p in folder.rglob("*") if is_video(p))
        if not files:
            raise DataError(f"{folder}: contains no videos; known endings: {' '.join(EXTENSIONS)}")
        items += [Video(str(p.relative_to(root)), p, label) for p in files]
    return Videos(tuple(folder.name for folder in folders), tuple(items))


def list_videos(file: Path, root: Path, classes: Sequence[str] | None = None) -> Videos:
    """Read a text file of 'path label' lines, or a CSV file with such columns; other columns are ignored.

    Without a header, the last field of a line is the label and everything before it the path. Fields are separated by
    commas, tabs or spaces.

    Args:
        file: path of the list.
        root: folder to which the paths in the list are relative.
        classes: names of the classes in order; None: the labels of the list, numbers in numerical order, names in
            alphabetical order.

    Raises:
        DataError: a missing file, a line without a label, or a label that is not in ``classes``.
    """
    # 1. Find the separator and the columns from the first line.
    lines = text_lines(file)
    separator = next((s for s in (",", "\t") if s in lines[0][1]), None)
    header = [field.strip().lower() for field in lines[0][1].split(separator)]
    path_column = next((header.index(name) for name in _PATH_COLUMNS if name in header), None)
    label_column = next((header.index(name) for name in _LABEL_COLUMNS if name in header), None)
    # 2. Read the path and the label of each line.
    rows = []  # (line number, path, label)
    if path_column is not None and label_column is not None:
        for number, line in lines[1:]:
            fields = next(csv.reader([line], delimiter=separator or " "))
            if len(fields) <= max(path_column, label_column):
                raise DataError(f"{file}, line {number}: has {len(fields)} fields, must have {len(header)}")
            rows.append((number, fields[path_column].strip(), fields[label_column].strip()))
    else:
        for number, line in lines:
            path, _, label = line.rstrip().rpartition(separator or " ")
            if not path.strip() or not label.strip():
                raise DataError(f"{file}, line {number}: must be 'path label', not {line!r}")
            rows.append((number, path.strip(), label.strip()))
    # 3. Number the classes.
    names, numbers = _classes([label for _, _, label in rows], classes)
    items = [Video(path, root / path, _label(numbers, label, f"{file}, line {n}")) for n, path, label in rows]
    return Videos(names, tuple(items))


def kinetics_videos(file: Path, root: Path, classes: Sequence[str] | None = None) -> Videos:
    """Read a CSV file of Kinetics with the columns label, youtube_id, time_start and time_end (seconds).

    The file of a video may be anywhere below ``root``. It is called ID_START_END (six digits each, as the common
    download scripts name them), or ID, of which only the given segment is used. A video without a file stays in the
    list with ``path`` None.

    Args:
        file: path of the CSV file.
        root: folder of the videos.
        classes: names of the classes in order; None: as in ``list_videos``.

    Raises:
        DataError: a missing file, missing columns, times that are not numbers, or a label that is not in ``classes``.
    """
    # 1. Read the rows and find the files.
    required = ("label", "youtube_id", "time_start", "time_end")
    lines = text_lines(file)
    rows = list(csv.DictReader(line for _, line in lines))
    missing = [name for name in required if not rows or name not in rows[0]]
    if missing:
        raise DataError(f"{file}: has no column {', '.join(missing)}; must have {', '.join(required)}")
    files: dict[str, Path] = {p.stem: p for p in sorted(root.rglob("*")) if is_video(p)}
    names, numbers = _classes([row["label"] for row in rows], classes)
    # 2. Check each row and match it with a file.
    items = []
    for (number, _), row in zip(lines[1:], rows, strict=True):
        place = f"{file}, line {number}"
        try:
            begin, end = float(row["time_start"]), float(row["time_end"])
        except (TypeError, ValueError):
            raise DataError(f"{place}: time_start and time_end must be numbers (seconds)") from None
        if not 0 <= begin < end:
            raise DataError(f"{place}: time_start={begin:g} must be >= 0 and < time_end={end:g}")
        label = _label(numbers, row["label"], place)
        trimmed = f"{row['youtube_id']}_{int(begin):06}_{int(end):06}"
        whole = files.get(row["youtube_id"])
        segment = None if trimmed in files or whole is None else (begin, end)
        items.append(Video(trimmed, files.get(trimmed, whole), label, segment))
    return Videos(names, tuple(items))


def _classes(labels: Sequence[str], classes: Sequence[str] | None) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the class names in order, and the number of each class by its name."""
    if classes is None:
        found = set(labels)
        classes = sorted(found, key=int) if all(label.isdecimal() for label in found) else sorted(found)
    return tuple(classes), {name: i for i, name in enumerate(classes)}


def _label(numbers: dict[str, int], name: str, place: str) -> int:
    """Return the number of a class; ``place`` begins the message if the class is unknown."""
    if name not in numbers:
        raise DataError(f"{place}: class {name!r} is not one of {', '.join([*numbers][:5])}, ...")
    return numbers[name]
