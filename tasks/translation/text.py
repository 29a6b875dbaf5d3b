"""Parallel text: pairs of lines, tab-separated pairs, and sentences with ids (``documents.py``)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from tasks.errors import DataError
from tasks.translation.columns import Columns, has_columns, read_columns
from tasks.translation.documents import paired, read_documents
from tasks.translation.lines import kind_of, read_lines

STRUCTURED = (".sgm", ".sgml", ".xml", ".tmx")  # endings of files whose sentences have ids


class Pair(NamedTuple):
    """A sentence and its translation.

    Attributes:
        source: sentence in the source language.
        target: sentence in the target language.
    """

    source: str
    target: str


def read_segments(path: Path, language: str) -> Iterator[str]:
    """Yield the sentences of a file: its lines, or the segments in a language of .sgm, .xml and .tmx.

    Args:
        path: path of the file.
        language: code of the language to read from a file with several; if there are several references, the first is
            read.

    Raises:
        DataError: a file that ``read_lines`` or ``read_documents`` refuses, or a .tsv file with several columns.
    """
    if kind_of(path) not in STRUCTURED:
        columned = has_columns(path.name)
        for line in read_lines(path):
            if columned and "\t" in line:
                raise DataError(f"{path}: has several columns; write the sentences alone to a file: cut -f1 {path}")
            yield line
        return
    yield from read_documents(path).chosen(language, source=True)[0].segments.values()


def read_pairs(
    source: Path, target: Path, languages: tuple[str, str], columns: Columns | None = None
) -> Iterator[Pair]:
    """Yield the pairs of two files, line by line, or those of one file.

    Args:
        source: path of the source file.
        target: path of the target file; the same path for a .tsv, .xml or .tmx file.
        languages: codes of the source and the target language.
        columns: columns of a .tsv file; see ``tasks.translation.columns.read_columns``.

    Raises:
        DataError: a file that ``read_lines`` or ``read_columns`` refuses, unequal numbers of lines, or segments that
            cannot be paired (``tasks.translation.documents.paired``).
    """
    if kind_of(source) in STRUCTURED and kind_of(target) in STRUCTURED:
        yield from (
            Pair(text, next(r for r in references if r is not None))
            for text, references in paired(source, target, languages)
        )
        return
    if source == target and has_columns(source.name):
        yield from (Pair(*pair) for pair in read_columns(source, languages, columns))
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
