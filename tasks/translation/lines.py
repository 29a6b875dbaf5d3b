"""Lines of text files, which may be compressed.

Lines end at line feeds only. ``str.splitlines`` would split at further characters, which occur inside of sentences.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from tasks.errors import DataError
from tasks.textfiles import UNKNOWN, describe_other, wide_encoding
from zoo.errors import one_line

LONGEST_LINE = 2**24  # bytes; a line of more is not one of text
_BEGIN = 1000  # bytes at the beginning by which other encodings are recognised


def _open_zst(path: Path) -> IO[bytes]:
    """Open a file of Zstandard, which Python has from 3.14 on, and its backport before."""
    for module in ("compression.zstd", "backports.zstd"):
        try:
            found: IO[bytes] = importlib.import_module(module).open(path, "rb")
        except ImportError:
            continue
        return found
    raise DataError(f"{path}: requires backports.zstd (pip install 'rescalenet-zoo[zstd]'); or decompress it: zstd -d")


_OPEN: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zst}
COMPRESSED = tuple(_OPEN)  # endings of compressed files
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, OSError)


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading bytes, decompressed if its name ends with one of ``COMPRESSED``.

    Raises:
        DataError: a missing file, or one that needs a package.
    """
    try:
        opened: IO[bytes] = _OPEN.get(path.suffix.lower(), lambda path: path.open("rb"))(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    return opened


def damage(path: str, after: str, error: BaseException) -> DataError:
    """Return the error about a file that cannot be decompressed."""
    if isinstance(error, MemoryError):  # a file of LZMA states the size of its dictionary, up to 4 GiB
        return DataError(
            f"{path}, {after}: needs more memory than there is to be decompressed; get it again, or as .gz"
        )
    kind = type(error).__name__
    if "zst" in kind.lower() or isinstance(error, _DAMAGED):
        return DataError(f"{path}, {after}: damaged ({one_line(error)}); get it again")
    raise error


def kind_of(path: Path) -> str:
    """Return the ending that defines the format, in lower case: that before the one of a compressed file."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSED else path).suffix.lower()


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file, without line feeds and carriage returns at their ends.

    Raises:
        DataError: a missing file, damaged compression, a line that is too long, or text that is not UTF-8; the message
            names file and line.
    """
    with open_bytes(path) as file:
        yield from decode_lines(file, str(path))


def decode_lines(file: IO[bytes], name: str) -> Iterator[str]:
    """Yield the lines of an open file as ``read_lines`` does.

    Args:
        file: file opened for reading bytes.
        name: name of the file in messages.
    """
    number, begin = 0, b""
    while True:
        try:
            raw = file.readline(LONGEST_LINE + 1)
        except Exception as error:  # each library of compressed files has errors of its own
            raise damage(name, f"after line {number}", error) from None
        if not raw:
            return
        number += 1
        if len(raw) > LONGEST_LINE:
            raise DataError(f"{name}, line {number}: has more than {LONGEST_LINE} bytes; one sentence on each line")
        if len(begin) < _BEGIN:  # line feeds that belong to wider characters may end a line early
            begin += raw
            if (number == 1 or b"\0" in raw) and wide_encoding(begin) is not None:
                raise DataError(f"{name}: not UTF-8; {describe_other(begin)}")
        if number == 1:
            if raw[:-1].count(b"\r") > 1 and not raw.endswith(b"\n"):
                raise DataError(f"{name}: its lines end with carriage returns; convert it: tr '\\r' '\\n'")
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}, line {number}: not UTF-8 ({error.reason} at byte {error.start + 1}); "
                f"{describe_other(begin) or UNKNOWN}"
            ) from None
        yield text.rstrip("\r\n")
