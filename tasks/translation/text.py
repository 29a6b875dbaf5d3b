"""Reading of text: plain lines, WMT's .sgm and .xml, tab-separated pairs, each also compressed (.gz).

Lines end at line feeds only. ``str.splitlines`` would split at further characters, which occur inside of sentences.
"""

from __future__ import annotations

import gzip
import html
import re
import zlib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import IO, NamedTuple
from xml.etree import ElementTree

from tasks.errors import DataError
from tasks.textfiles import LATIN1, describe_other, wide_encoding
from zoo.errors import one_line


class Pair(NamedTuple):
    """A sentence and its translation.

    Attributes:
        source: sentence in the source language.
        target: sentence in the target language.
    """

    source: str
    target: str


def _open(path: Path) -> gzip.GzipFile | IO[bytes]:
    """Open a file for reading bytes, decompressed if its name ends with .gz."""
    try:
        return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def kind_of(path: Path) -> str:
    """Return the ending that defines the format, in lower case: that before .gz if there is one."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file, without line feeds and carriage returns at their ends.

    Raises:
        DataError: a missing file, damaged compression, or text that is not UTF-8; the message names file and line.
    """
    with _open(path) as file:
        yield from decode_lines(file, str(path))


def decode_lines(file: gzip.GzipFile | IO[bytes], name: str) -> Iterator[str]:
    """Yield the lines of an open file as ``read_lines`` does.

    Args:
        file: file opened for reading bytes.
        name: name of the file in messages.
    """
    number, begin = 0, b""
    try:
        for number, raw in enumerate(file, 1):
            if number == 1:
                begin = raw
                if wide_encoding(begin) is not None:
                    raise DataError(f"{name}: not UTF-8; {describe_other(begin)}")
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            yield raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}, line {number}: not UTF-8 ({error.reason} at byte {error.start + 1}); "
            f"{describe_other(begin) or LATIN1}"
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{name}, after line {number}: damaged ({one_line(error)}); get it again") from None


_SEGMENT = re.compile(r"<seg[^>]*>(.*?)</seg>", re.DOTALL | re.IGNORECASE)


def read_segments(path: Path, language: str) -> Iterator[str]:
    """Yield the sentences of a file: its lines, or the segments of WMT's .sgm and .xml.

    Args:
        path: path of the file.
        language: code of the language to read from an .xml file, which contains the source and its references; if
            there are several references, the first is read.
    """
    kind = kind_of(path)
    if kind == ".sgm":
        text = "\n".join(read_lines(path))
        for match in _SEGMENT.finditer(text):
            yield " ".join(html.unescape(match[1]).split())
    elif kind == ".xml":
        yield from _xml_segments(path, language)
    else:
        yield from read_lines(path)


def _xml_segments(path: Path, language: str) -> Iterator[str]:
    """Yield the segments of WMT's format since 2021: <doc><src lang><p><seg id>, <ref lang translator>."""
    try:
        with _open(path) as file:
            root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not XML ({one_line(error)})") from None
    for number, document in enumerate(root.iter("doc"), 1):
        texts = [node for tag in ("src", "ref") for node in document.iter(tag)]
        chosen = next((node for node in texts if node.get("lang") == language), None)
        if chosen is None:
            found = ", ".join(sorted({str(node.get("lang")) for node in texts}))
            raise DataError(f"{path}: document {number} has no text in {language!r}, only in {found}")
        for segment in chosen.iter("seg"):
            yield " ".join("".join(segment.itertext()).split())


def read_pairs(source: Path, target: Path, languages: tuple[str, str]) -> Iterator[Pair]:
    """Yield the pairs of two files, line by line, or those of one .tsv file.

    Args:
        source: path of the source file.
        target: path of the target file; the same path for a .tsv or .xml file.
        languages: codes of the source and the target language.

    Raises:
        DataError: a file that ``read_lines`` refuses, unequal numbers of lines, or a .tsv line without two columns.
    """
    if source == target and kind_of(source) == ".tsv":
        for number, line in enumerate(read_lines(source), 1):
            columns = line.split("\t")
            if len(columns) < 2:
                raise DataError(f"{source}, line {number}: has no tab; source and target must be in two columns")
            yield Pair(columns[0], columns[1])
        return
    count = 0
    lines = zip_longest(read_segments(source, languages[0]), read_segments(target, languages[1]))
    for count, (left, right) in enumerate(lines, 1):
        if left is None or right is None:
            short, long = (source, target) if left is None else (target, source)
            more = count + sum(1 for _ in lines)
            raise DataError(
                f"{short} has {count - 1} lines, {long} {more}: line {count} has no counterpart; "
                "parallel files must have equal numbers of lines"
            )
        yield Pair(left, right)
