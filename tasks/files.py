"""Files by name: those that ship, inputs to read one by one, names of results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from tasks.errors import DataError, UserError
from tasks.progress import Progress, print_line
from tasks.textfiles import read_text

Content = TypeVar("Content")


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


def find_files(paths: Sequence[str], endings: Sequence[str], what: str) -> list[Path]:
    """Find the given files, and those with one of the endings below the given folders, in order.

    Args:
        paths: files and folders.
        endings: file endings in lower case, as ``.png``.
        what: plural noun of the files, for messages.

    Raises:
        UserError: no path is given.
        DataError: a path does not exist, or there are no files.
    """
    if not paths:
        raise UserError("no input: give pictures or videos, or folders of them")
    found: list[Path] = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in endings and not p.name.startswith("."))
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    if not found:
        raise DataError(f"no {what} in {', '.join(paths)}; known endings: {' '.join(endings)}")
    return found


def text_lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a UTF-8 text file that are not empty, with their numbers from 1.

    Raises:
        DataError: a file that is missing, empty or not UTF-8 (``tasks.textfiles.read_text``).
    """
    # not splitlines, which also splits at characters that a name may have
    lines = [(i, line.removesuffix("\r")) for i, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: is empty")
    return lines


class Opened(NamedTuple, Generic[Content]):
    """A file that could be read.

    Attributes:
        path: path of the file.
        stem: name without ending for its results, different from those of all files before it.
        content: content of the file, as ``read`` returned it.
    """

    path: Path
    stem: str
    content: Content


def read_each(
    files: Sequence[Path],
    read: Callable[[Path], Content],
    failed: dict[str, str],
    *,
    unit: str = "images",
    quiet_up_to: int = 4,
) -> Iterator[Opened[Content]]:
    """Yield the files that can be read, in order.

    Args:
        files: paths to read.
        read: function from a path to its content; raises ``DataError`` where it cannot be read.
        failed: mapping from file to reason, to which the files that cannot be read are added.
        unit: plural noun of the progress display.
        quiet_up_to: number of files without a progress display.
    """
    stems: set[str] = set()
    with Progress(len(files), 0, 1, unit=unit, enabled=len(files) > quiet_up_to) as progress:
        for number, path in enumerate(files, 1):
            try:
                content = read(path)
            except DataError as error:
                failed[str(path)] = str(error)
            else:
                stem = path.stem
                while stem in stems:
                    stem = f"{stem}_{number}"
                stems.add(stem)
                yield Opened(path, stem, content)  # the rate includes the caller's work on the file
            progress.step(number)


def report_unread(failed: Mapping[str, str], total: int) -> None:
    """Print the reason for each file that could not be read, and their number.

    Args:
        failed: mapping from file to reason.
        total: number of files that were to be read.
    """
    for reason in failed.values():
        print_line(f"skipped: {reason}")
    if failed:
        print_line(f"{len(failed)} of {total} files could not be read")
