"""JSON of unknown origin, read within bounds: finite numbers, limited depth, no key twice."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from zoo.errors import ZooError, one_line, reason_of

DEEPEST = 32  # nested objects and arrays
LARGEST = 2**63  # integers, in absolute value


def read_json(path: Path, *, longest: int, finite: bool = True) -> Any:
    """Return the value of a JSON file; see ``parse_json``.

    Args:
        path: path of the file.
        longest: largest number of bytes.
        finite: whether NaN and infinities are refused.

    Raises:
        ZooError: a file that is missing or too large, or text that ``parse_json`` refuses. The message lacks the path.
    """
    try:
        with path.open("rb") as file:
            content = file.read(longest + 1)
    except OSError as error:
        raise ZooError(error.strerror or type(error).__name__) from None
    if len(content) > longest:
        raise ZooError(f"more than {longest} bytes")
    try:
        return parse_json(content.decode("utf-8-sig"), finite=finite)
    except UnicodeDecodeError as error:
        raise ZooError(f"not UTF-8: {error.reason} at byte {error.start}") from None


def first_error(error: pydantic.ValidationError, what: str) -> str:
    """Return the first of pydantic's errors as ``key=value: what is allowed``, in one line.

    Args:
        error: errors of a value that does not fit its schema.
        what: description of the value, as "a header".
    """
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    message = "must be an object" if first["type"] == "model_type" else reason_of(first)
    if first["type"] == "missing":
        return one_line(f"{key}: is missing")
    if first["type"] == "extra_forbidden":
        return one_line(f"{key[:80]}: is no key of {what} that this version knows")
    return one_line(f"{key[:80]}={reprlib.repr(first['input'])}: {message}" if key else message)


def parse_json(text: str, *, finite: bool = True, most: int | None = None) -> Any:
    """Return the value of a JSON text whose numbers, depth and keys are within bounds.

    Args:
        text: the text.
        finite: whether NaN and infinities are refused.
        most: largest number of commas and opening brackets, which no text has fewer of than values: an empty object of
            two characters takes 64 bytes of memory. None for any number.

    Raises:
        ZooError: a text that is not JSON, or beyond the bounds.
    """
    if most is not None and (count := sum(map(text.count, ",[{"))) > most:
        raise ZooError(f"{count} commas and brackets: must be at most {most}")
    try:
        value = json.loads(
            text,
            parse_constant=_constant if finite else None,
            parse_float=_float if finite else None,
            parse_int=_integer,
            object_pairs_hook=unique_keys,
        )
    except RecursionError:
        raise ZooError(f"nested deeper than {DEEPEST} levels") from None
    except json.JSONDecodeError as error:
        raise ZooError(f"not JSON: {error}") from None
    for depth, _ in enumerate(_levels(value)):
        if depth > DEEPEST:
            raise ZooError(f"nested deeper than {DEEPEST} levels")
    return value


def count_values(value: Any) -> int:
    """Return the number of values in a value of JSON, itself among them."""
    return sum(map(len, _levels(value)))


def _levels(value: Any) -> Iterator[Sequence[Any]]:
    """Yield the values of each level of nesting: a function that calls itself would meet Python's limit."""
    level: Sequence[Any] = [value]
    while level:
        yield level
        level = [inner for outer in level for inner in _inside(outer)]


def _inside(value: Any) -> Sequence[Any]:
    """Return the values in an array or object; nothing for others."""
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()


def _constant(name: str) -> Any:
    raise ZooError(f"{name}: numbers must be finite")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ZooError(f"{reprlib.repr(digits)}: numbers must be finite")
    return value


def _integer(digits: str) -> int:
    if len(digits) > 20 or abs(value := int(digits)) > LARGEST:
        raise ZooError(f"{reprlib.repr(digits)}: integers must be at most 2**63")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, of which Python would keep the last of two equal keys; a hook of ``json.loads``.

    Raises:
        ZooError: a key that occurs twice.
    """
    value = dict(pairs)
    if len(value) != len(pairs):
        left = iter(value)  # the first key out of place is one that occurs before
        twice = next(key for key, _ in pairs if key != next(left, None))
        raise ZooError(f"key {reprlib.repr(twice)} occurs twice in one object")
    return value


def check_json(value: Any, key: str, depth: int = 0) -> None:
    """Check that JSON takes a value and gives it back: objects with text as keys, arrays, text, finite numbers.

    Args:
        value: value to check.
        key: path of keys to the value, for the message.
        depth: number of levels above it.

    Raises:
        ZooError: another value; the message names its key.
    """
    if depth > DEEPEST:
        raise ZooError(f"{key[:80]}: nested deeper than {DEEPEST} levels")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ZooError(f"{key}: key {name!r} has type {type(name).__name__}; the keys of an object are text")
            check_json(inner, f"{key}.{name}" if key else name, depth + 1)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            check_json(inner, f"{key}.{number}", depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ZooError(f"{key}={value}: numbers must be finite; leave it out, or give None")
    elif not (value is None or isinstance(value, str | int)):
        raise ZooError(
            f"{key} has type {type(value).__name__}: must be text, a number, True, False, None, or a list or dict of "
            "these; convert it"
        )
