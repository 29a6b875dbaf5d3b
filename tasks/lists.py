"""Lists of samples with their labels: CSV files with a header, and lines of 'path label'."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tasks.errors import DataError
from tasks.files import text_lines
from tasks.printing import brief, listed
from tasks.textfiles import read_text
from zoo.errors import one_line

PATH_COLUMNS = (
    *("path", "image", "image_path", "video", "video_path", "clip_path", "filename", "fname", "file", "file_name"),
    *("video_name", "image_name", "clip_name", "name"),
)
LONGEST_NUMBER = 20  # digits of a label that is a number; Python converts no text of thousands
LABEL_COLUMNS = ("label", "class", "category", "action", "label_name", "class_name", "tag", "target")


class Row(NamedTuple):
    """A sample of a list: the number of its line, its path as it is written, and its label."""

    line: int
    path: str
    label: str


def read_labels(file: Path) -> list[Row]:
    """Read a text file of 'path label' lines, or a CSV file with such columns; other columns are ignored.

    Without a header, the last field of a line is the label and everything before it the path. Fields are separated by
    commas, semicolons, tabs or spaces, and may be in quotes but between spaces.

    Args:
        file: path of the list.

    Raises:
        DataError: a missing or empty file, or a line without a path or a label.
    """
    # 1. Find the separator and the columns from the first line.
    lines = text_lines(file)
    separator = next((s for s in (",", "\t", ";") if s in lines[0][1]), None)
    header = [field.strip().strip('"').lower() for field in lines[0][1].split(separator)]
    path_column = next((header.index(name) for name in PATH_COLUMNS if name in header), None)
    label_column = next((header.index(name) for name in LABEL_COLUMNS if name in header), None)
    # 2. Read the path and the label of each line.
    rows = []
    if path_column is not None and label_column is not None:
        for number, line in lines[1:]:
            fields = _fields(line, separator or " ", f"{file}, line {number}")
            if len(fields) <= max(path_column, label_column):
                raise DataError(f"{file}, line {number}: has {len(fields)} fields, must have {len(header)}")
            rows.append(Row(number, fields[path_column].strip(), fields[label_column].strip()))
            if not rows[-1].path or not rows[-1].label:
                missing = "label" if rows[-1].path else "path"
                raise DataError(f"{file}, line {number}: the {missing} is empty")
    else:
        for number, line in lines:
            if separator and '"' in line:
                *parts, label = _fields(line.strip(), separator, f"{file}, line {number}")
                path = separator.join(parts)
            else:
                path, _, label = line.rstrip().rpartition(separator or " ")
            if not path.strip() or not label.strip():
                raise DataError(f"{file}, line {number}: must be 'path label', not {brief(line)}")
            rows.append(Row(number, path.strip(), label.strip()))
    if not rows:
        raise DataError(f"{file}: has a header and no rows")
    return rows


class Record(NamedTuple):
    """A row of a CSV file: the number of its first line, and its fields by the names of the columns in lower case."""

    line: int
    fields: dict[str, str]


def read_table(file: Path) -> list[Record]:
    """Read a CSV file with a header. Commas, tabs or semicolons separate the fields, which may be in quotes.

    Blanks around fields are no part of them; a field in quotes may have line breaks.

    Args:
        file: path of the file.

    Raises:
        DataError: a missing or empty file, one without rows, quotes that do not end, or a row of another length.
    """
    lines = text_lines(file)
    separator = next((s for s in (",", "\t", ";") if s in lines[0][1]), ",")
    text = io.StringIO(read_text(file), newline=None)  # with the line ends of any system
    reader = csv.reader(text, delimiter=separator, skipinitialspace=True, strict=True)
    records: list[Record] = []
    columns: list[str] = []
    line = 0  # that the row before ended in
    try:
        for row in reader:
            fields, begin, line = [field.strip() for field in row], line + 1, reader.line_num
            if not any(fields):
                continue
            if not columns:
                columns = [field.lower() for field in fields]
                if len(set(columns)) != len(columns):
                    raise DataError(f"{file}, line {begin}: two columns have one name; rename one")
            # Spreadsheets end rows with empty fields.
            elif len(fields) < len(columns) or any(fields[len(columns) :]):
                raise DataError(f"{file}, line {begin}: has {len(fields)} fields, must have {len(columns)}")
            else:
                records.append(Record(begin, dict(zip(columns, fields, strict=False))))
    except csv.Error as error:
        raise DataError(f"{file}, line {line + 1}: not CSV ({one_line(error)})") from None
    if not records:
        raise DataError(f"{file}: has a header and no rows")
    return records


def _fields(line: str, separator: str, place: str) -> list[str]:
    """Return the fields of a line; quotes may enclose one that has the separator."""
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise DataError(f"{place}: not CSV ({one_line(error)}): {line[:80]!r}") from None


def number_classes(labels: Sequence[str], classes: Sequence[str] | None) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the class names in order, and the number of each class by its name.

    Args:
        labels: labels of a list.
        classes: names of the classes in order; None: the labels, numbers in numerical order, names in alphabetical
            order.
    """
    if classes is None:
        found = set(labels)
        by_number = all(label.isdecimal() and len(label) < LONGEST_NUMBER for label in found)
        # 1 and 01 are two classes, whose order must not be that of a set, which differs between processes
        classes = sorted(found, key=lambda label: (int(label), label)) if by_number else sorted(found)
    return tuple(classes), {name: i for i, name in enumerate(classes)}


def class_number(numbers: dict[str, int], name: str, place: str) -> int:
    """Return the number of a class.

    Args:
        numbers: number of each class by its name.
        name: name of the class.
        place: file and line, with which the message begins.

    Raises:
        DataError: the class is unknown.
    """
    if name not in numbers:
        raise DataError(f"{place}: class {name!r} is not one of {listed([*numbers], 5)}")
    return numbers[name]
