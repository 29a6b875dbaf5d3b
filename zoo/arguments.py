"""Checks of arguments at the door of the API: numbers as numpy and torch have them, and one line for anything else."""

from __future__ import annotations

import math
import operator
import os
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from zoo.errors import ZooError, one_line, suggestion
from zoo.files import expand_path

Kind = TypeVar("Kind")


def shown(value: Any) -> str:
    """Return a value as a message shows it: one line of limited length."""
    return one_line(reprlib.repr(value))


def whole_number(value: Any, name: str, least: int | None = 0, most: int = 2**31 - 1) -> int:
    """Return a whole number, of Python, numpy or torch, as Python's.

    Args:
        value: value that was given. Truth values and floats are no whole numbers.
        name: name of the argument, for the message.
        least: smallest number that is allowed; None for any whole number, of which the caller checks the range.
        most: largest number that is allowed.

    Raises:
        ZooError: anything else, or a number out of range.
    """
    try:
        number = None if is_flag(value) else operator.index(value)
    except (TypeError, RuntimeError):  # torch raises the latter for tensors of several numbers
        number = None
    if least is None and number is not None:
        return number
    if least is None:
        raise ZooError(f"{name}={shown(value)}: must be a whole number")
    if number is None or not least <= number <= most:
        raise ZooError(f"{name}={shown(value)}: must be a whole number from {least} to {most}")
    return number


def real_number(value: Any, name: str, least: float = 0.0) -> float:
    """Return a finite number as Python's.

    Args:
        value: value that was given. Truth values and texts are no numbers.
        name: name of the argument, for the message.
        least: smallest number that is allowed.

    Raises:
        ZooError: anything else, NaN, an infinity, or a smaller number.
    """
    try:
        number = math.nan if is_flag(value) or isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number >= least):
        limit = "" if least == -math.inf else f" >= {least:g}"
        raise ZooError(f"{name}={shown(value)}: must be a finite number{limit}")
    return number


def is_flag(value: Any) -> bool:
    """Return whether a value is True or False, of Python or numpy."""
    return isinstance(value, bool | np.bool_)


def flag(value: Any, name: str) -> bool:
    """Return True or False.

    Raises:
        ZooError: anything else.
    """
    if not is_flag(value):
        raise ZooError(f"{name}={shown(value)}: must be True or False")
    return bool(value)


def text(value: Any, name: str) -> str:
    """Return a text.

    Raises:
        ZooError: anything else.
    """
    if not isinstance(value, str):
        raise ZooError(f"{name}={shown(value)}: must be text, not {type(value).__name__}")
    return str(value)


def choice(value: Any, name: str, allowed: Iterable[str]) -> str:
    """Return one of several texts.

    Raises:
        ZooError: anything else, with near matches.
    """
    known = list(allowed)
    if text(value, name) not in known:
        raise ZooError(f"{name}={shown(value)}: unknown{suggestion(value, known)}")
    return value


def file_path(value: Any, name: str) -> Path:
    """Return the path of a file; in text, ``~`` and environment variables are replaced (``zoo.files.expand_path``).

    Raises:
        ZooError: neither text nor a path object, or an unknown variable.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(path := os.fspath(value), bytes):
        raise ZooError(f"{name}={shown(value)}: must be a path, as text or as a path object")
    return Path(expand_path(path) if isinstance(value, str) else path)


def instance_of(value: Any, name: str, kind: type[Kind] = nn.Module) -> Kind:  # type: ignore[assignment]
    """Return a model of a kind.

    Raises:
        ZooError: anything else.
    """
    if not isinstance(value, kind):
        raise ZooError(f"{name}: a {type(value).__name__} was given; must be a {kind.__name__}")
    return value


def as_python(value: Any) -> Any:
    """Return numbers and arrays of numpy, also in lists, tuples and dicts, as Python's; other values as they are."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: as_python(inner) for key, inner in value.items()}
    return type(value)(map(as_python, value)) if type(value) in (list, tuple) else value
