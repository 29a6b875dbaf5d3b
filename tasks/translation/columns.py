"""Pairs in the columns of one file (.tsv): which column is the source, which the target, and quoted fields."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from tasks.errors import DataError
from tasks.printing import brief
from tasks.progress import print_line
from tasks.translation.languages import language_of
from tasks.translation.lines import kind_of, read_lines

Columns = tuple[str, str]  # the columns of source and target: their numbers, from 1, or their names in the first line

_LOOKED_AT = 1000  # lines from which is decided whether fields are quoted
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')  # a field as writers of CSV quote it
# Words for the sides in headers, and words that may stand beside them or beside a language.
_SIDES = {
    "source": {"source", "src", "original"},
    "target": {"target", "tgt", "trg", "translation", "reference", "ref"},
}
_PLAIN = {"text", "sentence", "sentences", "segment", "segments", "string"}
_REMEDY = "name source and target in data.corpus.columns (eval: --columns), by number or by name, such as 2,3"


def has_columns(name: str) -> bool:
    """Return whether a file of this name has pairs in columns."""
    return kind_of(Path(name)) == ".tsv"


def checked_columns(names: Sequence[str]) -> Columns:
    """Return the columns of source and target.

    Args:
        names: numbers or names of the columns.

    Raises:
        ValueError: not two different columns.
    """
    found = [name.strip() for name in names]
    if len(found) != 2 or not all(found) or found[0] == found[1]:
        raise ValueError("must be two different columns, of source and target, by number or by name")
    return found[0], found[1]


def read_columns(path: Path, languages: tuple[str, str], columns: Columns | None = None) -> Iterator[tuple[str, str]]:
    """Yield source and target of each line of a file whose columns are separated by tabs.

    A first line that names both languages, or source and target, is a header. Without one, and without ``columns``, the
    file must have two columns, of which the first is the source. Quotation marks of CSV are removed where all marks of
    the first lines are such.

    Args:
        path: path of the file.
        languages: codes of the source and the target language.
        columns: columns of source and target; None: those that the header names, or the first two.

    Raises:
        DataError: a file that ``read_lines`` refuses, columns that are not there or not known, or a line with another
            number of columns than the first.
    """
    lines = read_lines(path)
    begin = [line.split("\t") for line in islice(lines, _LOOKED_AT)]
    if not begin:
        return
    # 1. Find the columns, and whether the first line is their header.
    first = [_unquoted(cell).strip() for cell in begin[0]]
    named = _named(first, languages)
    chosen, header = _chosen(path, first, languages, columns, named)
    if header or columns is not None:
        sides = (f"{side} ({code}) is column {n + 1}" for side, code, n in zip(_SIDES, languages, chosen, strict=True))
        print_line(f"{path}: {', '.join(sides)}{'; its first line is a header' if header else ''}")
    # 2. Find out whether fields are quoted.
    quoted = _is_quoted((row[n] for row in begin for n in chosen if n < len(row)), begin[0] if header else ())
    if quoted:
        print_line(f"{path}: its fields are quoted as in CSV; the quotation marks are removed")
    # 3. Read the lines.
    rows = chain(begin, (line.split("\t") for line in lines))
    for number, row in enumerate(rows, 1):
        if len(row) != len(first):
            have = "has no tab" if len(row) == 1 else f"has {len(row)} columns"
            raise DataError(
                f"{path}, line {number}: {have}, the first line {len(first)} columns; a line must have one pair, and "
                "tabs stand between columns alone"
            )
        if header and number == 1:
            continue
        source, target = (row[n] for n in chosen)
        if quoted:
            source, target = _unquoted(source), _unquoted(target)
        yield source, target


def _chosen(
    path: Path,
    first: Sequence[str],
    languages: tuple[str, str],
    columns: Columns | None,
    named: tuple[int, int] | None,
) -> tuple[tuple[int, int], bool]:
    """Return the indices of the columns of source and target, and whether the first line is a header.

    Args:
        path: path of the file, for messages.
        first: fields of the first line.
        languages: codes of the source and the target language.
        columns: columns that were asked for.
        named: indices of the columns that the first line names.
    """
    if columns is not None:
        found = [_column(path, first, column) for column in columns]
        if found[0] == found[1]:
            raise DataError(f"{path}: columns {' and '.join(columns)} are the same; source and target are in two")
        by_name = not all(map(str.isdecimal, columns))
        return (found[0], found[1]), by_name or named is not None
    if named is not None:
        return named, True
    if len(first) == 2:
        return (0, 1), False
    if len(first) == 1:
        raise DataError(f"{path}, line 1: has no tab; source and target must be in two columns")
    raise DataError(
        f"{path}: has {len(first)} columns, and its first line ({brief(' | '.join(first), 80)}) does not name "
        f"{' and '.join(languages)}; {_REMEDY}"
    )


def _column(path: Path, first: Sequence[str], column: str) -> int:
    """Return the index of a column that is named by its number or by a field of the first line."""
    if column.isdecimal():
        if 1 <= int(column) <= len(first):
            return int(column) - 1
        raise DataError(f"{path}: column {column}: must be 1 to {len(first)}, the number of its columns")
    found = [n for n, cell in enumerate(first) if cell.casefold() == column.casefold()]
    if len(found) != 1:
        have = "several columns of this name" if found else "no such name"
        raise DataError(
            f"{path}: column {column!r}: {have} in its first line ({brief(' | '.join(first), 80)}); give numbers"
        )
    return found[0]


def _named(first: Sequence[str], languages: tuple[str, str]) -> tuple[int, int] | None:
    """Return the indices of source and target if fields of the first line name them, each once; None otherwise.

    >>> _named(["id", "de", "en"], ("en", "de"))
    (2, 1)
    """
    exact = [[n for n, cell in enumerate(first) if cell.casefold() == code.casefold()] for code in languages]
    other = [
        [n for n, cell in enumerate(first) if _names(cell, words, language)]
        for words, language in zip(_SIDES.values(), languages, strict=True)
    ]
    for source, target in (exact, other):
        if len(source) == len(target) == 1 and source != target:
            return source[0], target[0]
    return None


def _names(cell: str, words: set[str], language: str) -> bool:
    """Return whether a field of a header names a language or its side, as "en", "eng_Latn", "English", "src_text"."""
    parts = [part for part in re.split(r"[\s_-]+", cell.casefold()) if part not in _PLAIN]
    if len(parts) == 1 and parts[0] in words:
        return True
    code = len(parts) == 1 or (len(parts) == 2 and re.fullmatch(r"\w+[_-]\w{2,4}", cell) is not None)
    return code and language_of(parts[0]) == language_of(language)


def _is_quoted(fields: Iterable[str], header: Sequence[str]) -> bool:
    """Return whether a writer of CSV quoted fields: all that have quotation marks, and marks within are doubled.

    Text that is no CSV may have fields in quotation marks too, so that a doubled mark or a quoted header is required.

    Args:
        fields: fields of the text.
        header: fields of the header.
    """
    marked = [field for field in fields if '"' in field]
    doubled = any('""' in field[1:-1] for field in marked)
    return all(map(_QUOTED.fullmatch, marked)) and (doubled or (header != () and all(map(_QUOTED.fullmatch, header))))


def _unquoted(field: str) -> str:
    """Return a field without the quotation marks of CSV."""
    found = _QUOTED.fullmatch(field)
    return found[1].replace('""', '"') if found else field
