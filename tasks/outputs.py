"""The folder of a command's results: made before any work, with names that never meet an input or earlier results."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.locks import reserve
from tasks.printing import printable
from tasks.progress import print_line
from zoo.files import atomic_write, encodable, write_json

LONGEST = 120  # bytes of a stem, short enough for endings and for the name of a temporary file within 255
_FORBIDDEN = re.compile(r'[<>:"/\\|?*]')
# what predictions write for people to look at, beside ``PREDICTIONS``
PREDICTIONS = "predictions.json"
CONTACT_SHEET = "contact_sheet.png"
DRAWN_ENDINGS = (".objects.png", ".timeline.png", ".annotated.mp4")
# names that Windows keeps for devices, with any ending
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}


def file_stem(name: str) -> str:
    """Return the begin of a file name that every file system takes and no shell mistakes, close to ``name``.

    Control characters, bytes that are not UTF-8 and characters that Windows forbids become ``_``, as do leading dots
    and hyphens. A name that Windows reserves gets ``_`` in front. A long name is cut.
    """
    shown = "".join("_" if printable(character) != character else character for character in name)
    stem = _FORBIDDEN.sub("_", shown).rstrip(". ")
    stem = re.sub(r"^[.-]+|^~", lambda found: "_" * len(found[0]), stem)
    stem = stem.encode()[:LONGEST].decode(errors="ignore").rstrip(". ")
    return f"_{stem}" if not stem or stem.partition(".")[0].lower() in _DEVICES else stem


def unique_stems(files: Sequence[Path]) -> list[str]:
    """Return a stem for the results of each file, different from all others also where case does not count.

    The first file of a name keeps it, further ones get ``_2``, ``_3`` and so on.
    """
    given = [file_stem(path.stem) for path in files]
    taken: set[str] = set()
    found: list[str | None] = []
    for stem in given:
        found.append(None if _key(stem) in taken else stem)
        taken.add(_key(stem))
    return [stem if stem is not None else _free(name, taken) for name, stem in zip(given, found, strict=True)]


def _key(stem: str) -> str:
    """Return what file systems compare that ignore case or the composition of characters."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())


def _free(stem: str, taken: set[str]) -> str:
    """Return the stem with the lowest number that is not taken, and take it."""
    for number in itertools.count(2):
        if _key(name := f"{stem}_{number}") not in taken:
            break
    taken.add(_key(name))
    return name


class OutputFolder:
    """The folder of a command's results.

    Args:
        path: folder, which is created if it does not exist.
        names: names of the files that the command writes for all inputs together.
        inputs: files that the command reads and never writes.
        overwrite: whether files with these names are replaced; earlier files with other names stay.

    Raises:
        UserError: the folder cannot be created or written, or has results of these names already.
    """

    def __init__(
        self, path: Path, names: Iterable[str], inputs: Iterable[Path] = (), *, overwrite: bool = False
    ) -> None:
        self.path, self.overwrite, self._inputs = path, overwrite, inputs
        # 1. Prove that the folder can be written, before anything is computed for it.
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            reason = "is a file" if isinstance(error, FileExistsError) else error.strerror
            raise UserError(f"{path}: cannot be written ({reason}); choose another folder with --out") from None
        # 2. Refuse what would replace an input or earlier results.
        for name in names:
            if self._is_input(path / name):
                raise UserError(f"{path / name}: is an input and would be replaced; choose another folder with --out")
            if not overwrite and (path / name).exists():
                raise UserError(
                    f"{path}: has earlier results ({name}); choose another folder with --out, or give --overwrite"
                )

    def stems(self, files: Sequence[Path], endings: Sequence[str]) -> list[str]:
        """Return the stem of each file's results.

        Args:
            files: inputs.
            endings: endings of the files that the command writes for an input. No stem with one of them is the name of
                an input, or of an earlier file unless earlier results are replaced.
        """
        stems = unique_stems(files)
        taken = {_key(stem) for stem in stems}
        return [stem if self._may_write(stem, endings) else self._free(stem, endings, taken) for stem in stems]

    def write_json(self, content: Any, name: str) -> None:
        """Write a JSON file of the folder."""
        write_json(content, self.path / name)

    def _free(self, stem: str, endings: Sequence[str], taken: set[str]) -> str:
        """Return the stem with the first number with which its files may be written, and take it."""
        while not self._may_write(found := _free(stem, taken), endings):
            continue
        return found

    def _may_write(self, stem: str, endings: Sequence[str]) -> bool:
        """Return whether no file of the stem is an input or an earlier result to keep."""
        paths = [self.path / f"{stem}{ending}" for ending in endings]
        return not any(self._is_input(path) or (not self.overwrite and os.path.lexists(path)) for path in paths)

    def _is_input(self, path: Path) -> bool:
        """Return whether a path is one of the inputs, by whatever name."""
        identity = _identity(path)
        return identity is not None and identity in self.inputs

    @functools.cached_property
    def inputs(self) -> frozenset[tuple[int, int]]:
        """What identifies the inputs, which is asked only where a file of the same name exists: there may be many."""
        return frozenset(identity for file in self._inputs if (identity := _identity(file)) is not None)


def is_result(path: Path) -> bool:
    """Return whether a picture or video is one that ``rescalenet predict`` wrote into its folder of results."""
    named = path.name == CONTACT_SHEET or path.name.endswith(DRAWN_ENDINGS)
    return named and path.with_name(PREDICTIONS).is_file()


class Entries:
    """A list of JSON that is kept on the disk until its file is complete: those of 20,000 pictures take gigabytes.

    Args:
        folder: folder of the file; the entries take space there, in a file that is gone when the process ends.

    Attributes:
        count: number of entries.
    """

    def __init__(self, folder: Path) -> None:
        self.count = 0
        self._file = tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8")  # noqa: SIM115  (open until the end)

    def add(self, entry: Any) -> None:
        """Add an entry."""
        self._file.write(",\n" if self.count else "\n")
        self._file.write(encodable(json.dumps(entry, ensure_ascii=False), escape="\\\\"))
        self.count += 1

    def write(self, path: Path, content: Mapping[str, Any] | None = None, key: str = "") -> None:
        """Write the file, completely or not at all: the list alone, or an object that has it. It takes no entries then.

        Args:
            path: JSON file to write.
            content: other entries of the object; None: the list is not in an object.
            key: name of the list in the object.
        """

        def write(temporary: Path) -> None:
            self._file.seek(0)
            with temporary.open("w", encoding="utf-8") as file:
                if content is not None:
                    others = json.dumps({**content, key: []}, indent=1, ensure_ascii=False)
                    file.write(encodable(others.removesuffix("[]\n}"), escape="\\\\"))
                file.write("[")
                shutil.copyfileobj(self._file, file)
                file.write("\n]\n" if content is None else "\n]\n}\n")

        with self._file:
            atomic_write(path, write)


def require_outside(out: Path, source: Path) -> None:
    """Refuse a folder of results inside the folder of the inputs: the next command would take the results for inputs.

    Args:
        out: folder of results.
        source: file or folder of inputs.

    Raises:
        UserError: ``out`` is ``source`` or below it.
    """
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--out {out}: is inside {source}, whose files are the inputs; choose another folder")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what identifies a file under all of its names; None for a file that does not exist."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def next_folder(path: Path) -> Path:
    """Return the folder, or the one with the lowest number behind its name that is not there or is empty.

    It is reserved for this process: the folder of a command stays empty until its results are complete, and another
    command that began meanwhile would replace them.
    """
    for candidate in itertools.chain([path], (path.with_name(f"{path.name}_{n}") for n in itertools.count(2))):
        free = not candidate.exists() or (candidate.is_dir() and not any(candidate.iterdir()))
        if free and reserve(candidate):
            return candidate
    raise AssertionError("there is always a next number")


def check_target(path: Path, *, overwrite: bool, source: Path | None = None) -> None:
    """Check that a file or folder can be written, without changing what is there.

    Args:
        path: file or folder.
        overwrite: whether something of this name may be replaced.
        source: file that the content comes from, which is never replaced.

    Raises:
        UserError: the source, an existing file, a folder with files in it, or a place that cannot be written.
    """
    if source is not None and _identity(path) is not None and _identity(path) == _identity(source):
        raise UserError(f"{path}: is the input and would be replaced; choose another name")
    used = any(path.iterdir()) if path.is_dir() else os.path.lexists(path)
    if used and not overwrite:
        raise UserError(f"{path}: exists; choose another name, or give --overwrite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another name") from None


def try_to_draw(draw: Callable[[], object], what: str | Path) -> None:
    """Draw a picture or report of results that are complete without it: what fails costs a line.

    Args:
        draw: function that writes the file.
        what: file or description for the line.
    """
    try:
        draw()
    except Exception as error:  # of fonts, of drawing, of a full disk: the results are on the screen already
        reason = " ".join(str(error).split()) or type(error).__name__
        print_line(f"{what}: cannot be drawn ({reason}); the results are complete without it")
