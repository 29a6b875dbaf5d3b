"""Lists of labelled videos, from class folders, lists of paths and labels, or CSV files of Kinetics."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tasks.errors import DataError
from tasks.files import LeftOut, class_files, find_below, find_files, text_lines
from tasks.lists import class_number, number_classes, read_labels
from tasks.progress import print_line
from tasks.video.decode import EXTENSIONS
from tasks.video.sampling import Segment


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
        left_out: counts of the files that the search for the videos left out.
    """

    classes: tuple[str, ...]
    items: tuple[Video, ...]
    left_out: LeftOut = field(default_factory=LeftOut)

    def __len__(self) -> int:
        return len(self.items)

    def names(self) -> list[str]:
        """Return the names of all videos."""
        return [video.name for video in self.items]

    def subset(self, names: Iterable[str], *, without: bool = False) -> Videos:
        """Return the videos with these names, or with ``without`` all other videos."""
        chosen = set(names)
        return Videos(self.classes, tuple(v for v in self.items if (v.name in chosen) != without), self.left_out)


def find_videos(paths: Sequence[str]) -> list[Path]:
    """Find the videos among the given files and folders (``tasks.files.find_files``), and print what was left out."""
    found = find_files(paths, EXTENSIONS, "videos")
    if found.left_out:
        print_line(f"left out: {found.left_out}")
    return found.files


def folder_videos(root: Path) -> Videos:
    """Find the videos of class folders; the classes are in alphabetical order, the names are CLASS/FILE.

    Args:
        root: folder with one folder of videos for each class.

    Raises:
        DataError: a missing folder, no class folder, or a class folder without videos.
    """
    classes, files, left_out = class_files(root, EXTENSIONS, "videos", keep_empty=True)
    items = [
        Video(str(path.relative_to(root)), path, label) for label, found in enumerate(files) for path in sorted(found)
    ]
    return Videos(classes, tuple(items), left_out)


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
    rows = read_labels(file)
    names, numbers = number_classes([row.label for row in rows], classes)
    items = [
        Video(row.path, root / row.path, class_number(numbers, row.label, f"{file}, line {row.line}")) for row in rows
    ]
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
    files: dict[str, Path] = {p.stem: p for p in sorted(find_below(root, EXTENSIONS, keep_empty=True).files)}
    names, numbers = number_classes([row["label"] for row in rows], classes)
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
        label = class_number(numbers, row["label"], place)
        trimmed = f"{row['youtube_id']}_{int(begin):06}_{int(end):06}"
        whole = files.get(row["youtube_id"])
        segment = None if trimmed in files or whole is None else (begin, end)
        items.append(Video(trimmed, files.get(trimmed, whole), label, segment))
    return Videos(names, tuple(items))
