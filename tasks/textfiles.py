"""Text files of users: UTF-8 with or without a byte order mark, and lists of names in them."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Collection
from pathlib import Path

from tasks.errors import DataError, UserError
from tasks.printing import brief

LONGEST = 2**28  # bytes of a file; a list of a million names takes a tenth of it

# Advice where nothing is recognised.
UNKNOWN = "convert it from its encoding, as in iconv -f ENCODING -t utf-8 (latin1 for Latin-1)"
_BEGIN = 1000  # bytes from which an encoding is guessed
# Marks of encodings with several bytes for each character; that of UTF-32 begins like that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What decompresses files that begin with these bytes.
_COMPRESSED = {
    b"\x1f\x8b": "gzip -dc",
    b"BZh": "bzip2 -dc",
    b"\xfd7zXZ\0": "xz -dc",
    b"\x28\xb5\x2f\xfd": "zstd -dc",
    b"PK\x03\x04": "unzip -p",
}
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
        line = content.count(b"\n", 0, wrong) + 1
        unknown = f"line {line} has bytes that are no text" if b"\0" in content else f"line {line}; {UNKNOWN}"
        raise error(f"{path}: not a text file in UTF-8 ({describe_other(content) or unknown})")
    return text


def describe_other(begin: bytes) -> str | None:
    """Return what a file that is not UTF-8 is by its first bytes, and how to convert it; None if that is unknown.

    Args:
        begin: content, or the first line.
    """
    if (wide := wide_encoding(begin)) is not None:
        return f"it is {wide[:6].upper()}; convert it: iconv -f {wide} -t utf-8"
    command = next((command for mark, command in _COMPRESSED.items() if begin.startswith(mark)), None)
    return None if command is None else f"it is compressed; decompress it: {command}"


def wide_encoding(begin: bytes) -> str | None:
    """Return the name of the encoding of a text that has several bytes for each character; None for other texts.

    Without a mark at the beginning, such a text can be valid UTF-8 with many zeros.

    Args:
        begin: content, or the first line.
    """
    begin = begin[:_BEGIN]
    for mark, name in _MARKS.items():
        if begin.startswith(mark):
            return name
    if 0 not in begin:  # as every line feed, blank and digit of such a text has
        return None
    for name in ("utf-32le", "utf-32be"):
        if _is_text(begin, name):
            return name
    high_bytes = {"utf-16le": begin[1::2], "utf-16be": begin[:-1:2]}
    for name, high in high_bytes.items():
        if high.count(0) > len(begin) // 4:  # Latin script
            return name
    if _is_text(begin.replace(b"\0", b""), "utf-8"):  # with zeros in it
        return None
    if _decode(begin, "utf-8") is not None:  # UTF-16 by chance only: most letters of an alphabet share a high byte
        high_bytes = {
            name: high for name, high in high_bytes.items() if max(map(high.count, high), default=0) > len(high) // 2
        }
    return next((name for name in high_bytes if _is_text(begin, name)), None)


def _decode(begin: bytes, encoding: str) -> str | None:
    """Return the begin of a text, which may end within a character; None for bytes that the encoding does not have."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(begin)
    except UnicodeDecodeError:
        return None


def _is_text(begin: bytes, encoding: str) -> bool:
    """Return whether the begin of a text has characters in an encoding, all known.

    Control characters other than the ends of lines and tabs are none of text.
    """
    if not (text := _decode(begin, encoding)):
        return False
    categories = (unicodedata.category(character) for character in text if character not in "\t\r\n")
    return all(category[0] != "C" or category == "Cf" for category in categories)


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
            raise DataError(f"{path}, line {number}: {brief(name)} has a control character; one name on each line")
        if name in lines and name not in repeated:
            raise DataError(f"{path}, line {number}: {brief(name)} stands in line {lines[name]} already; remove one")
        lines[name] = number
        names.append(name)
    if not names:
        raise DataError(f"{path}: is empty")
    return names
