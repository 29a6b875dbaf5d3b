"""Text files of users: UTF-8 with or without a byte order mark, and lists of names in them."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Collection
from pathlib import Path

from tasks.errors import DataError, UserError

LONGEST = 2**28  # bytes of a file; a list of a million names takes a tenth of it

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BREAKING = ("Cc", "Cs", "Zl", "Zp")  # categories of characters that no name has: controls, line separators


def read_text(path: Path, error: type[UserError] = DataError) -> str:
    """Return the text of a UTF-8 file without its byte order mark.

    Args:
        path: path of the file.
        error: class of the error to raise.

    Raises:
        UserError: a file that is missing, is no file, is too large, or has another encoding; the message names it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except OSError as reason:
        raise error(f"{path}: not a text file ({reason.strerror})") from None
    if len(content) > LONGEST:
        raise error(f"{path}: has more than {LONGEST} bytes; a text file of this kind has fewer")
    try:
        text, wrong = content.decode("utf-8-sig"), content.find(0)  # no text has a zero, but in UTF-16
    except UnicodeDecodeError as reason:
        text, wrong = "", reason.start
    if wrong >= 0:
        raise error(f"{path}: not a text file in UTF-8 ({_describe_encoding(content, wrong)})")
    return text


def _describe_encoding(content: bytes, wrong: int) -> str:
    """Return what bytes that are not UTF-8 seem to be, and how to convert them.

    Args:
        content: bytes of the file.
        wrong: number of the first byte that is not UTF-8.
    """
    begin = content[:1000]
    if begin.startswith(_UTF16) or begin[1::2].count(0) > len(begin) // 4 or begin[::2].count(0) > len(begin) // 4:
        return "it is UTF-16; convert it: iconv -f utf-16 -t utf-8"
    line = content.count(b"\n", 0, wrong) + 1
    if b"\0" in content:
        return f"line {line} has bytes that are no text"
    return f"line {line}; if it is Latin-1, convert it: iconv -f latin1 -t utf-8"


def read_names(path: Path, *, repeated: Collection[str] = ()) -> list[str]:
    """Return the names in a list, one on each line that is not empty. Lines end with LF or CRLF.

    Args:
        path: path of the list.
        repeated: names that may stand in it more than once.

    Raises:
        DataError: a file that ``read_text`` refuses, no name, a control character, or a name that stands twice.
    """
    lines: dict[str, int] = {}
    names = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        name = line.removesuffix("\r")
        if not name.strip():
            continue
        if any(unicodedata.category(character) in _BREAKING for character in name):
            raise DataError(f"{path}, line {number}: {name!r} has a control character; one name on each line")
        if name in lines and name not in repeated:
            raise DataError(f"{path}, line {number}: {name!r} stands in line {lines[name]} already; remove one")
        lines[name] = number
        names.append(name)
    if not names:
        raise DataError(f"{path}: is empty")
    return names
