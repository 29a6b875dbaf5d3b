"""Lists of labelled videos: class folders, lists of paths and labels, official lists of public data sets."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pydantic

from tasks.errors import DataError
from tasks.files import LeftOut, class_files, find_below, find_files, text_lines
from tasks.lists import LABEL_COLUMNS, PATH_COLUMNS, Record, class_number, number_classes, read_labels, read_table
from tasks.printing import brief, listed
from tasks.progress import print_line
from tasks.video.containers import EXTENSIONS
from tasks.video.sampling import Segment
from zoo.errors import ZooError
from zoo.jsontext import first_error, read_json

BEGINS, ENDS = ("time_start", "start", "begin", "start_time"), ("time_end", "end", "stop", "end_time")
LONGEST = 2**28  # bytes of a JSON file
SHOWN = 5  # names in a line


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
    commas, tabs or spaces. A CSV file that also has columns for the begin and the end of a part (``BEGINS``, ``ENDS``),
    in seconds, lists these parts, whose names are PATH#t=BEGIN,END.

    Args:
        file: path of the list.
        root: folder to which the paths in the list are relative.
        classes: names of the classes in order; None: the labels of the list, numbers in numerical order, names in
            alphabetical order.

    Raises:
        DataError: a missing file, a line without a label, times that are no numbers, or a label that is not in
            ``classes``.
    """
    columns = [column.strip().strip('"').lower() for column in text_lines(file)[0][1].replace(";", ",").split(",")]
    begin, end, path, label = (_first(names, columns) for names in (BEGINS, ENDS, PATH_COLUMNS, LABEL_COLUMNS))
    if begin and end and path and label:
        table = [(row, row.fields[path], row.fields[label]) for row in read_table(file)]
        names, numbers = number_classes([label for _, _, label in table], classes)
        items = []
        for row, name, label in table:
            place = f"{file}, line {row.line}"
            segment = _segment(row, begin, end, place)
            number = class_number(numbers, label, place)
            items.append(Video(f"{name}#t={segment[0]:g},{segment[1]:g}", root / name, number, segment))
        return Videos(names, tuple(items))
    rows = read_labels(file)
    if len(rows) > 1 and not (root / rows[0].path).exists() and (root / rows[1].path).exists():
        raise DataError(
            f"{file}, line {rows[0].line}: {root / rows[0].path}: no such file; if this line is a header, call its "
            "columns path and label"
        )
    names, numbers = number_classes([row.label for row in rows], classes)
    items = [
        Video(row.path, root / row.path, class_number(numbers, row.label, f"{file}, line {row.line}")) for row in rows
    ]
    return Videos(names, tuple(items))


def _first(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """Return the first of the names that is a column; None if none is."""
    return next((name for name in names if name in columns), None)


def _segment(row: Record, begin: str, end: str, place: str) -> tuple[float, float]:
    """Return the part of a video that a row names, in seconds.

    Args:
        row: row of a table.
        begin, end: names of the columns.
        place: file and line, with which the message begins.

    Raises:
        DataError: times that are no finite numbers, or not in order.
    """
    try:
        times = float(row.fields[begin]), float(row.fields[end])
    except ValueError:
        raise DataError(f"{place}: {begin} and {end} must be numbers (seconds)") from None
    if not all(map(math.isfinite, times)):
        raise DataError(f"{place}: {begin}={times[0]:g} and {end}={times[1]:g} must be finite (seconds)")
    if not 0 <= times[0] < times[1]:
        raise DataError(f"{place}: {begin}={times[0]:g} must be >= 0 and < {end}={times[1]:g}")
    return times


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
    rows = read_table(file)
    if missing := [name for name in required if name not in rows[0].fields]:
        raise DataError(f"{file}: has no column {', '.join(missing)}; must have {', '.join(required)}")
    segments = [_segment(row, "time_start", "time_end", f"{file}, line {row.line}") for row in rows]
    trimmed = [
        f"{row.fields['youtube_id']}_{int(begin):06}_{int(end):06}"
        for row, (begin, end) in zip(rows, segments, strict=True)
    ]
    files = _by_stem(root, {*trimmed, *(row.fields["youtube_id"] for row in rows)})
    names, numbers = number_classes([row.fields["label"] for row in rows], classes)
    # 2. Match each row with a file.
    items = []
    for row, segment, name in zip(rows, segments, trimmed, strict=True):
        label = class_number(numbers, row.fields["label"], f"{file}, line {row.line}")
        whole = files.get(row.fields["youtube_id"])
        used = None if name in files or whole is None else segment
        items.append(Video(name, files.get(name, whole), label, used))
    return Videos(names, tuple(items))


def _by_stem(root: Path, listed_ids: Collection[str]) -> dict[str, Path]:
    """Return the videos below a folder by their names without ending, the first of each name.

    Args:
        root: folder.
        listed_ids: names that are looked for; it is reported which of them have several files.
    """
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(find_below(root, EXTENSIONS, keep_empty=True).files):
        files[path.stem].append(path)
    if several := [stem for stem, paths in files.items() if len(paths) > 1 and stem in listed_ids]:
        first = ", ".join(str(path.relative_to(root)) for path in files[several[0]])
        print_line(f"{root}: {len(several)} videos have several files, of which the first is read, e.g. {first}")
    return {stem: paths[0] for stem, paths in files.items()}


def ucf101_videos(file: Path, root: Path, classes: Sequence[str] | None = None) -> Videos:
    """Read an official list of UCF101: lines 'CLASS/FILE.avi NUMBER' (training) or 'CLASS/FILE.avi' (test).

    The class is the folder, its number that of ``classInd.txt`` beside the list, if it is there.

    Args:
        file: path of the list, as ``ucfTrainTestlist/trainlist01.txt``.
        root: folder of the videos, with a folder for each class, or all in it.
        classes: names of the classes in order; None: those of ``classInd.txt``, or the folders in alphabetical order.

    Raises:
        DataError: a missing file, another kind of line, a class that is unknown or has another number.
    """
    rows = []
    for number, line in text_lines(file):
        found = re.fullmatch(r"([^/\s][^/]*)/([^/]+?)(?:\s+(\d{1,9}))?", line.strip())
        if found is None:
            raise DataError(f"{file}, line {number}: must be 'CLASS/FILE.avi NUMBER', not {brief(line)}")
        rows.append((f"{file}, line {number}", found[1], found[2], found[3]))
    stated = _ucf101_classes(file.with_name(UCF101_CLASSES))
    names, numbers = number_classes([row[1] for row in rows], classes or stated)
    items = []
    for place, folder, name, label in rows:
        number = class_number(numbers, folder, place)
        if label is not None and stated and folder in stated and stated.index(folder) != int(label) - 1:
            raise DataError(f"{place}: class {folder!r} has number {label}, {UCF101_CLASSES} has another")
        items.append(Video(f"{folder}/{name}", _in_folder(root, folder, name), number))
    return Videos(names, tuple(items))


UCF101_CLASSES = "classInd.txt"


def _ucf101_classes(file: Path) -> list[str] | None:
    """Return the classes in the order of their numbers, from lines 'NUMBER CLASS'; None without the file."""
    if not file.is_file():
        return None
    pairs = [(number, line.split()) for number, line in text_lines(file)]
    for count, (number, fields) in enumerate(pairs, 1):
        if len(fields) != 2 or fields[0] != str(count):
            raise DataError(f"{file}, line {number}: must be '{count} CLASS'")
    return [fields[1] for _, fields in pairs]


def _in_folder(root: Path, folder: str, name: str) -> Path:
    """Return the path of a video in its class folder, or in the folder of all videos if it is there."""
    path = root / folder / name
    return root / name if not path.exists() and (root / name).is_file() else path


def hmdb51_videos(split: Path, root: Path, classes: Sequence[str] | None = None, *, test: bool = False) -> Videos:
    """Read an official split of HMDB51: files CLASS_test_splitN.txt of lines 'FILE.avi 1' (2: test, 0: neither).

    Args:
        split: folder of the files, and the number N: ``testTrainMulti_7030_splits/1``.
        root: folder of the videos, with a folder for each class, or all in it.
        classes: names of the classes in order; None: in alphabetical order.
        test: whether the test videos are returned, not those for training.

    Raises:
        DataError: no such files, another kind of line, or a class that is not in ``classes``.
    """
    ending = f"_test_split{split.name}.txt"
    files = sorted(split.parent.glob(f"*{ending}")) if split.name.isdecimal() else []
    if not files:
        raise DataError(f"{split}: no files CLASS{ending} in {split.parent}; must be the folder of them and 1, 2 or 3")
    names, numbers = number_classes([file.name.removesuffix(ending) for file in files], classes)
    items = []
    for file in files:
        folder = file.name.removesuffix(ending)
        label = class_number(numbers, folder, str(file))
        for number, line in text_lines(file):
            name, _, part = line.strip().rpartition(" ")
            if part not in ("0", "1", "2") or not name.strip() or "/" in name:
                raise DataError(f"{file}, line {number}: must be 'FILE.avi 0', 1 or 2, not {brief(line)}")
            if part == ("2" if test else "1"):
                items.append(Video(f"{folder}/{name.strip()}", _in_folder(root, folder, name.strip()), label))
    return Videos(names, tuple(items))


class _Something(pydantic.BaseModel):
    """A video of Something-Something; other keys are ignored."""

    model_config = pydantic.ConfigDict(strict=True)

    id: str = pydantic.Field(min_length=1, max_length=100)
    template: str = pydantic.Field(min_length=1, max_length=1000)


def something_videos(file: Path, root: Path, classes: Sequence[str] | None = None) -> Videos:
    """Read a JSON file of Something-Something: a list of objects with ``id`` and ``template``, the class.

    Args:
        file: path of the file, as ``something-something-v2-train.json``.
        root: folder of the videos, ID.webm or of another ending, in any folders.
        classes: names of the classes in order; None: in alphabetical order. Brackets of a template are no part of it.

    Raises:
        DataError: a missing file, another content (the official test file has no labels), or a class that is not in
            ``classes``.
    """
    try:
        rows = pydantic.TypeAdapter(list[_Something]).validate_python(read_json(file, longest=LONGEST))
    except pydantic.ValidationError as error:
        raise DataError(f"{file}: not a list of labelled videos ({first_error(error, 'a video')})") from None
    except ZooError as error:
        raise DataError(f"{file}: not a list of videos ({error})") from None
    if not rows:
        raise DataError(f"{file}: has no videos")
    labels = [row.template.replace("[", "").replace("]", "") for row in rows]
    files = _by_stem(root, {row.id for row in rows})
    names, numbers = number_classes(labels, classes)
    items = [
        Video(row.id, files.get(row.id), class_number(numbers, label, f"{file}, video {row.id!r}"))
        for row, label in zip(rows, labels, strict=True)
    ]
    return Videos(names, tuple(items))


def describe_lists(train: Videos, val: Videos, folder: Path) -> list[str]:
    """Return lines about lists that may not be what was meant: videos that are twice, of two classes, in both, in none.

    Args:
        train, val: videos of two lists; the same object if there is one list.
        folder: folder of the videos.
    """
    lines = []
    # 1. The same video twice.
    for name, videos in (("training", train), ("evaluation", val)):
        classes: dict[str, list[int]] = defaultdict(list)  # of each video
        for video in videos.items:
            classes[video.name].append(video.label)
        twice = sorted(name for name, labels in classes.items() if len(labels) > 1)
        several = sorted(name for name in twice if len(set(classes[name])) > 1)
        if twice:
            lines.append(f"{name} list: {len(twice)} videos stand in it more than once: {listed(twice, SHOWN)}")
        if several:
            lines.append(f"{name} list: {len(several)} videos have several classes: {listed(several, SHOWN)}")
        if train is val:
            break
    if train is not val and (both := sorted({*train.names()} & {*val.names()})):
        lines.append(
            f"{len(both)} videos are in both lists, so that the evaluation is of training videos: {listed(both, SHOWN)}"
        )
    # 2. Files that no list has.
    known = {video.path for videos in (train, val) for video in videos.items}
    unlisted = [path for path in find_below(folder, EXTENSIONS, keep_empty=True).files if path not in known]
    if unlisted:
        names = [str(path.relative_to(folder)) for path in unlisted]
        lines.append(f"{len(unlisted)} videos below {folder} are in no list: {listed(names, SHOWN)}")
    return lines
