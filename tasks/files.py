"""Files by name: those that ship, inputs."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from tasks.errors import DataError, UserError
from tasks.outputs import is_result
from tasks.printing import printable
from tasks.textfiles import read_text
from zoo.errors import ZooError
from zoo.files import expand_path, is_address


def configs_dir() -> Path:
    """Return the folder of the configs that ship, in a checkout as in a wheel."""
    return Path(str(resources.files("zoo._configs").joinpath("README.md"))).parent


def pictures_dir() -> Path:
    """Return the folder of the pictures that the demo shows, in a checkout as in a wheel."""
    return Path(str(resources.files("tasks._pictures").joinpath("README.md"))).parent


def find_file(name: str, shipped: str | None = None) -> Path | None:
    """Find the file ``name``, or else the one that ships as ``shipped`` (by default ``name``) below ``configs/``."""
    for path in (Path(name), configs_dir() / (shipped or name).removeprefix("configs/")):
        if path.is_file():
            return path
    return None


def output_path(text: str | Path) -> Path:
    """Return the path of an output that the command line names, with ``~`` and variables replaced as in configs.

    A shell replaces them too, but not in ``--out=~/runs`` or between quotes, and no shell stands between a scheduler
    or an editor and the command.

    Raises:
        UserError: an empty path, as of an unset variable, or an unknown variable or user (``zoo.files.expand_path``).
    """
    try:
        return Path(expand_path(str(text)))
    except ZooError as error:
        raise UserError(str(error)) from None


def input_path(text: str | Path) -> Path:
    """Return the path of an input that the command line names: as ``output_path``, unless it exists as it is written.

    A shell gives the names of files as they are, which may have a dollar sign: ``rescalenet predict WEIGHTS *.png``.

    Raises:
        UserError: see ``output_path``.
    """
    return Path(text) if os.path.lexists(text) else output_path(text)


def name_or_path(text: str) -> str:
    """Return the name of a recipe, weights or an address as it is, and a path as ``input_path`` does.

    Raises:
        UserError: see ``output_path``.
    """
    return text if is_address(text) else str(input_path(text))


# Names, in lower case, of what systems and programs leave among a user's files; they count as hidden.
SYSTEM_NAMES = frozenset(
    [
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "icon\r",
        "__macosx",
        "@eadir",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    ]
)
SHOWN_ENDINGS = 5  # endings that the line about what is left out names


@dataclass(frozen=True)
class LeftOut:
    """Numbers of files and folders that a search left out, by reason.

    Attributes:
        hidden: files and folders whose name begins with a dot, and those of the system (``SYSTEM_NAMES``).
        endings: number of files of each other ending, in lower case; ``no ending`` for files without one.
        empty: files without content.
        links: links that lead nowhere, or back to a folder that they are in.
        unreadable: folders that may not be read.
        special: pipes, sockets and devices.
        outside: files beside the folders of the classes.
        results: pictures and videos that an earlier ``predict`` wrote (``tasks.outputs.is_result``).
    """

    hidden: int = 0
    endings: Mapping[str, int] = field(default_factory=dict)
    empty: int = 0
    links: int = 0
    unreadable: int = 0
    special: int = 0
    outside: int = 0
    results: int = 0

    def __add__(self, other: LeftOut) -> LeftOut:
        numbers = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "endings"}
        return LeftOut(endings=dict(Counter(self.endings) + Counter(other.endings)), **numbers)

    def __bool__(self) -> bool:
        return self != LeftOut()

    def __str__(self) -> str:
        """Return the counts in words: ``3 hidden, 2 with other endings (.txt, .heic)``."""
        endings = sorted(self.endings, key=lambda ending: (-self.endings[ending], ending))
        shown = ", ".join(printable(ending) for ending in endings[:SHOWN_ENDINGS])
        more = ", ..." if len(endings) > SHOWN_ENDINGS else ""
        other = sum(self.endings.values())
        parts = [
            (self.hidden, "hidden"),
            (other, f"with other endings ({shown}{more})" if other != 1 else f"with another ending ({shown})"),
            (self.empty, "empty"),
            (self.links, "links that lead nowhere or in a circle"),
            (self.unreadable, "folders that may not be read"),
            (self.special, "that are no ordinary files"),
            (self.outside, "beside the folders of the classes"),
            (self.results, "of earlier results"),
        ]
        return ", ".join(f"{number} {reason}" for number, reason in parts if number)


class Found(NamedTuple):
    """The files that a search found, and what it left out."""

    files: list[Path]
    left_out: LeftOut


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or one that systems leave behind."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def find_below(folder: Path, endings: Sequence[str], *, keep_empty: bool = False) -> Found:
    """Find the files with one of the endings in a folder and all folders below, linked ones too.

    Hidden files and folders are left out. The order is that of the folders' paths, then of the
    names: the files of a folder come before those of the folders in it.

    Args:
        folder: folder to search.
        endings: file endings in lower case, as ``.png``; files may have them in any case.
        keep_empty: whether files without content are found, for callers that name each file that cannot be read.
    """
    found: list[Path] = []
    counts: Counter[str] = Counter()
    others: Counter[str] = Counter()
    # Each folder, with the real paths of itself and of the folders that it is in: a link to one of them never ends.
    waiting: list[tuple[Path, frozenset[Path]]] = [(folder, _with_parents(folder))]
    while waiting:
        current, parents = waiting.pop()
        for entry, kind in _entries(current, counts):
            path = Path(entry.path)
            if kind == "folder":
                if Path(os.path.realpath(path)) in parents:
                    counts["links"] += 1
                else:
                    waiting.append((path, parents | _with_parents(path)))
            elif path.suffix.lower() not in endings:
                others[path.suffix.lower() or "no ending"] += 1
            elif not keep_empty and not entry.stat().st_size:
                counts["empty"] += 1
            else:
                found.append(path)
    return Found(sorted(found, key=lambda p: (str(p.parent), p.name)), LeftOut(endings=dict(others), **dict(counts)))


def _with_parents(folder: Path) -> frozenset[Path]:
    """Return the real paths of a folder and of all folders that it is in."""
    real = Path(os.path.realpath(folder))
    return frozenset([real, *real.parents])


def _entries(folder: Path, counts: Counter[str]) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yield the files and folders of a folder, each with ``file`` or ``folder``, and count what is left out.

    Args:
        folder: folder to list.
        counts: counter by the fields of ``LeftOut``, to which is added.
    """
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError:
        counts["unreadable"] += 1
        return
    for entry in entries:
        if is_hidden(entry.name):
            counts["hidden"] += 1
            continue
        try:  # the kind of what is no link is known from the listing
            kind = "folder" if entry.is_dir() else "file" if entry.is_file() else ""
        except OSError:  # a circle of links
            kind = ""
        if kind:
            yield entry, kind
        else:  # a link with no file at its end, or a pipe, which would be waited for
            counts["links" if entry.is_symlink() else "special"] += 1


def find_files(paths: Sequence[str], endings: Sequence[str], what: str) -> Found:
    """Find the given files, and those with one of the endings below the given folders, in order.

    A file that is given by its own name is found whatever its ending. See ``find_below`` for folders, of which the
    results of earlier predictions are left out: drawn copies of the inputs are no inputs.

    Args:
        paths: files and folders.
        endings: file endings in lower case, as ``.png``.
        what: plural noun of the files, for messages.

    Raises:
        UserError: no path is given, or one with an unknown variable or user (``input_path``).
        DataError: a path does not exist, or there are no files.
    """
    if not paths:
        raise UserError("no input: give pictures or videos, or folders of them")
    found: list[Path] = []
    left_out = LeftOut()
    for path in map(input_path, paths):
        if path.is_dir():
            files, more = find_below(path, endings, keep_empty=True)
            inputs = [file for file in files if not is_result(file)]
            found += inputs
            left_out += more + LeftOut(results=len(files) - len(inputs))
        elif path.is_file():
            found.append(path)
        elif path.exists():
            raise DataError(f"{path}: is a pipe or a device, in which no place can be sought; save it to a file first")
        else:
            raise DataError(f"{path}: no such file or folder")
    if not found:
        where = f"{', '.join(paths)}{_left_out_note(left_out)}"
        raise DataError(f"no {what} in {where}; known endings: {' '.join(endings)}")
    return Found(found, left_out)


def class_files(
    root: Path, endings: Sequence[str], what: str, *, keep_empty: bool = False
) -> tuple[tuple[str, ...], list[list[Path]], LeftOut]:
    """Find the files of class folders: one folder a class, in alphabetical order, hidden ones left out.

    Args:
        root: folder with one folder for each class.
        endings: file endings in lower case, as ``.png``.
        what: plural noun of the files, for messages.
        keep_empty: whether files without content are found.

    Returns:
        Names of the classes, the files of each, and what was left out.

    Raises:
        DataError: there is no such folder, no folder of a class in it, or a class has no files.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; it must contain one folder of {what} for each class")
    counts: Counter[str] = Counter()
    entries = list(_entries(root, counts))
    if counts["unreadable"]:
        raise DataError(f"{root}: may not be read; change its permissions")
    folders = [Path(entry.path) for entry, kind in entries if kind == "folder"]
    circles = [path for path in folders if Path(os.path.realpath(path)) in _with_parents(root)]
    counts["links"] += len(circles)
    folders = [path for path in folders if path not in circles]
    beside = [Path(entry.path) for entry, kind in entries if kind == "file"]
    if not folders:
        own = sum(path.suffix.lower() in endings for path in beside)
        note = f" ({own} {what} are in it without one)" if own else ""
        raise DataError(f"{root}: contains no folder; it must contain one folder of {what} for each class{note}")
    # The files of each class.
    files: list[list[Path]] = []
    left_out = LeftOut(hidden=counts["hidden"], links=counts["links"], special=counts["special"], outside=len(beside))
    for folder in folders:
        found, more = find_below(folder, endings, keep_empty=keep_empty)
        if not found:
            raise DataError(
                f"{folder}: contains no {what}{_left_out_note(more)}; known endings: {' '.join(endings)}; remove the "
                "folder or fill it"
            )
        files.append(found)
        left_out += more
    return tuple(folder.name for folder in folders), files, left_out


def _left_out_note(left_out: LeftOut) -> str:
    return f" (left out: {left_out})" if left_out else ""


def text_lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a UTF-8 text file that are not empty, with their numbers from 1.

    A byte order mark, and the line ends of Windows, are no part of the lines.

    Raises:
        DataError: a file that is missing, empty or not UTF-8 (``tasks.textfiles.read_text``).
    """
    # not splitlines, which also splits at characters that a name may have
    lines = [(i, line) for i, line in enumerate(re.split(r"\r\n|\r|\n", read_text(path)), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: is empty")
    return lines
