"""Text for terminals: names from files of unknown origin are escaped, results have one of three formats."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import typer

from tasks.errors import UserError
from zoo.files import encodable

Format = Literal["text", "json", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)

# what moves the cursor, changes colours, ends a line or turns the direction of writing
_CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_HIDDEN = re.compile(f"[{_CONTROLS}]")
_HIDDEN_IN_LINES = re.compile(f"(?![\n\t])[{_CONTROLS}]")


def printable(text: str, *, lines: bool = False) -> str:
    r"""Return a text that a terminal shows as it is, with backslash escapes for what it would act on.

    Control characters become ``\n``, ``\x1b`` and so on, bytes of a file name that are not UTF-8 become ``\xe9``.

    Args:
        text: text that may contain names of files and classes.
        lines: whether line breaks and tabs stay.
    """
    hidden = _HIDDEN_IN_LINES if lines else _HIDDEN
    return hidden.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), encodable(text))


def brief(text: str, limit: int = 200) -> str:
    """Return the representation of a text for a message, of its first characters only where it is longer.

    >>> brief("abcdef", 3)
    "'abc'..."
    """
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}..."


def listed(names: Sequence[str], limit: int) -> str:
    """Return names for a line: at most ``limit`` of them, and how many follow.

    >>> listed(["ant", "bee", "cat"], 2)
    'ant, bee and 1 more'
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def print_out(text: str) -> None:
    """Print a result of one or more lines on stdout, see ``printable``."""
    typer.echo(printable(text, lines=True))


def json_line(content: Any) -> str:
    """Return JSON on one line: control characters are JSON's escapes, numbers that are not finite are null."""
    text = encodable(json.dumps(finite(content), ensure_ascii=False), escape="\\\\")
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def finite(content: Any) -> Any:
    """Return content with None for the numbers that JSON does not have."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def checked_format(name: str) -> Format:
    """Return the format of that name.

    Raises:
        UserError: there is no such format.
    """
    for known in FORMATS:
        if name == known:
            return known
    raise UserError(f"--format {name}: must be one of {', '.join(FORMATS)}")


class Results:
    """Results on stdout, one after the other: lines of text, of JSON, or of CSV under a header.

    Args:
        format: format of the results.
        columns: columns of CSV.
    """

    def __init__(self, format: Format, columns: Sequence[str]) -> None:
        self.format, self.columns = format, tuple(columns)
        if format == "csv":
            self._write_row(self.columns)

    def add(self, text: str, content: Mapping[str, Any], rows: Sequence[Sequence[Any]]) -> None:
        """Print a result.

        Args:
            text: line for people.
            content: object of JSON.
            rows: rows of CSV.
        """
        if self.format == "text":
            print_out(text)
        elif self.format == "json":
            typer.echo(json_line(content))
        else:
            for row in rows:
                self._write_row(row)
        sys.stdout.flush()

    def _write_row(self, row: Sequence[Any]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow([printable(v) if isinstance(v, str) else v for v in row])
        typer.echo(line.getvalue())
