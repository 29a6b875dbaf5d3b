"""Image files of a set, in a folder or a zip file, found by the names that an annotation file gives them."""

from __future__ import annotations

import lzma
import os
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tasks.errors import DataError
from tasks.files import SYSTEM_NAMES
from tasks.images import EXTENSIONS
from zoo.errors import one_line

LARGEST_FILE = 2**29  # bytes of an image file: more than 16-bit RGB of the largest picture that is decoded
LOOKED_AT = 20_000  # files below a folder among which a missing one is looked for
# what zipfile and its decompressors raise for members that are damaged, encrypted or of an unknown method
_UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)
_UTF8, _ENCRYPTED = 0x800, 0x1  # flags of a member of a zip file
# encodings of names in zip files that do not name theirs; Python takes these names for cp437
_ENCODINGS = ("utf-8", "cp850", "cp1252", "cp1251", "cp866", "gbk", "cp932", "euc-kr")
_JUNK = SYSTEM_NAMES | {".ds_store"}
_DRIVE = re.compile(r"[A-Za-z]:(?=/)")


class Place(NamedTuple):
    """Where an image is.

    Attributes:
        path: path below the folder, or name of the member of the zip file.
        shortened: whether leading folders of the image's name were left out to find it.
    """

    path: str
    shortened: bool


class ImageFiles:
    """Image files in a folder or a zip file, by the file names of an annotation file.

    Annotation tools write names as their own system has them. A name may have backslashes, be an absolute path, or
    begin with folders that are not there (``upload/3/a.png``, ``C:/photos/a.png``): leading folders are left out until
    a file is found. A file outside of the folder is never read. In a zip file, the folders that all members are in may
    be left out, names may be in any usual encoding, and what a Mac adds (``__MACOSX``, ``._a.png``) is no image.

    Args:
        path: path of the folder, or of the zip file with or without .zip.

    Raises:
        DataError: a path that does not exist or is another file, or a damaged zip file.
    """

    def __init__(self, path: Path) -> None:
        zipped = path if path.suffix.lower() == ".zip" else path.with_name(path.name + ".zip")
        self.path = path if path.is_dir() else zipped
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        self._members: dict[str, str] | None = None
        if path.is_dir():
            return
        if not zipped.is_file():
            if path.is_file():
                raise DataError(f"{path}: is a file; must be the folder or the zip file of the images")
            raise DataError(f"{path}: no such folder, and no zip file {zipped.name} beside it")
        self._members = _members(self._zip().infolist())

    def _zip(self) -> zipfile.ZipFile:
        """Return the open zip file of this process; processes that share a file handle would move its position."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = os.getpid(), zipfile.ZipFile(self.path)
            except _UNREADABLE as error:
                raise DataError(f"{self.path}: not a complete zip file ({one_line(error)})") from None
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __contains__(self, name: str) -> bool:
        return self.locate(name) is not None

    def label(self, name: str) -> str:
        """Return the name of an image in messages."""
        return f"{self.path}/{name}"

    def locate(self, name: str) -> Place | None:
        """Return where the image of a name is; None if it is missing."""
        inner = self._below(name)
        parts = parts_of(inner)
        if ".." in parts:
            return None
        if self._members is None and inner == name and self._has(name):
            return Place(name, False)  # backslashes may be part of a name
        for first in range(len(parts)):
            tail = "/".join(parts[first:])
            for form in dict.fromkeys((tail, unicodedata.normalize("NFC", tail), unicodedata.normalize("NFD", tail))):
                if self._members is None and self._has(form):
                    return Place(form, first > 0)
                if self._members is not None and form in self._members:
                    return Place(self._members[form], first > 0)
        return None

    def _below(self, name: str) -> str:
        """Return the part of an absolute path that is below the folder; another name as it is."""
        if self._members is None and os.path.isabs(name):
            for folder in (os.path.abspath(self.path), os.path.realpath(self.path)):
                if name.startswith(folder + os.sep):
                    return name[len(folder) + 1 :]
        return name

    def _has(self, inner: str) -> bool:
        return not os.path.isabs(inner) and os.path.isfile(os.path.join(self.path, inner))

    def elsewhere(self, name: str) -> str | None:
        """Return the path of a file that has the last part of a missing image's name; None if there is none."""
        last = (parts_of(name) or [""])[-1]
        if self._members is not None:
            return next((member for key, member in self._members.items() if key.rpartition("/")[2] == last), None)
        return next((path for path in islice(_walk(self.path), LOOKED_AT) if os.path.basename(path) == last), None)

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            DataError: a file that is missing, too large for an image or the memory, or damaged or encrypted in its
                zip file.
        """
        place = self.locate(name)
        if place is None:
            raise DataError(f"{self.label(name)}: no such file")
        try:
            info = None if self._members is None else self._zip().getinfo(place.path)
            size = (self.path / place.path).stat().st_size if info is None else info.file_size
            if size > LARGEST_FILE:
                raise DataError(f"{self.label(name)}: {size} bytes, an image must have at most {LARGEST_FILE}")
            if info is None:
                return (self.path / place.path).read_bytes()
            if info.flag_bits & _ENCRYPTED:
                raise DataError(f"{self.label(name)}: is encrypted; unpack the zip file, and give the folder")
            return self._zip().read(info)
        except (KeyError, FileNotFoundError):
            raise DataError(f"{self.label(name)}: no such file") from None
        except MemoryError:  # a member packed by LZMA states the size of its dictionary, up to 4 GiB
            raise DataError(
                f"{self.label(name)}: needs more memory than there is; unpack the zip file, and give the folder"
            ) from None
        except _UNREADABLE as error:
            raise DataError(f"{self.label(name)}: cannot be read ({one_line(error)})") from None


def parts_of(name: str) -> list[str]:
    """Return the parts of a name that may be a path of any system, without its root."""
    return [part for part in _DRIVE.sub("", name.replace("\\", "/"), count=1).split("/") if part not in ("", ".")]


def _members(infos: list[zipfile.ZipInfo]) -> dict[str, str]:
    """Return the names of the members of a zip file by the names that images may have."""
    found: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for info in infos:
        parts = parts_of(info.filename)
        junk = not parts or parts[-1].startswith("._") or any(part.lower() in _JUNK for part in parts)
        if junk or info.filename.endswith(("/", "\\")):
            continue
        found["/".join(parts)] = info.filename
        if not info.flag_bits & _UTF8 and not info.filename.isascii():
            for name in _other_readings(info.filename):
                aliases.setdefault("/".join(parts_of(name)), info.filename)
    for names in (found, aliases):
        _add_without_top(names)
    both = {**aliases, **found}
    return {**{unicodedata.normalize("NFC", key): name for key, name in both.items()}, **both}


def _other_readings(name: str) -> Iterator[str]:
    """Yield what a name is in other encodings than the one that Python takes for granted."""
    try:
        raw = name.encode("cp437")
    except UnicodeEncodeError:
        return
    for encoding in _ENCODINGS:
        try:
            yield raw.decode(encoding)
        except UnicodeDecodeError:
            continue


def _add_without_top(names: dict[str, str]) -> None:
    """Add the names without the folders that all images are in; beside these there may be other files."""
    short = {key: name for key, name in names.items() if key.lower().endswith(EXTENSIONS)}
    while short and len({key.partition("/")[0] for key in short}) == 1 and all("/" in key for key in short):
        short = {key.partition("/")[2]: name for key, name in short.items()}
        for key, name in short.items():
            names.setdefault(key, name)


def _walk(folder: Path) -> Iterator[str]:
    """Yield the paths of all files below a folder, without linked folders."""
    for current, _, files in os.walk(folder):
        for name in files:
            yield os.path.join(current, name)
