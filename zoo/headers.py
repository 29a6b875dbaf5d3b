"""The header of a weights file: one schema, by which files are read and written.

The entry ``rescalenet`` of the safetensors header is a JSON object with ``config``, ``transform``, ``classes`` and
``meta``. A file may come from anywhere, so that nothing in it is used before it has passed these checks.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pydantic
from pydantic import AfterValidator, ConfigDict, Field

from zoo.errors import WeightsError, ZooError, one_line, reason_of
from zoo.files import safe_name
from zoo.nets.base import ModelConfig
from zoo.transforms import AnyTransform, read_transform

HEADER_KEY = "rescalenet"
LONGEST = 2**26  # characters of the entry, and bytes of the whole header; a vocabulary takes up to a few million
DEEPEST = 32  # nested objects and arrays
LARGEST = 2**63  # integers, in absolute value

_Name = Annotated[str, AfterValidator(lambda name: safe_name(name, "name"))]


class _Config(pydantic.BaseModel):
    """JSON form of ``ModelConfig``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: _Name
    scheme: _Name
    num_classes: int = Field(ge=0, le=1_000_000)
    in_chans: int = Field(ge=0, le=10_000)
    options: dict[str, Any]


class _Entry(pydantic.BaseModel):
    """JSON form of the whole entry. The transform is an object of one of several kinds (``read_transform``)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    config: _Config
    transform: dict[str, Any]
    classes: list[Annotated[str, Field(max_length=1000)]]
    meta: dict[str, Any]


class Header(NamedTuple):
    """The content of a header.

    Attributes:
        config: model, scheme, options, classes and input channels.
        transform: input that the model expects.
        classes: class names in order of the logits, as many as the model has classes.
        meta: everything else, as JSON.
    """

    config: ModelConfig
    transform: AnyTransform
    classes: tuple[str, ...]
    meta: dict[str, Any]


def read_header(text: str, path: Path) -> Header:
    """Return the content of a header's entry.

    Args:
        text: JSON text of the entry.
        path: path of the file, for messages.

    Raises:
        WeightsError: text that is not such an entry; the message names the key and what is allowed.
    """
    try:
        return _read(text)
    except pydantic.ValidationError as error:
        reason = first_error(error)
    except (ZooError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        reason = one_line(error)  # of a transform that another package registers
    raise WeightsError(f"{path}: its {HEADER_KEY!r} header entry is not valid ({reason})")


def write_header(header: Header, path: Path) -> str:
    """Return the JSON text of a header, which ``read_header`` reads.

    Args:
        header: the content.
        path: path of the file, for messages.

    Raises:
        ZooError: content that JSON does not take or that ``read_header`` would refuse; the message names the key.
    """
    entry = {
        "config": dataclasses.asdict(header.config),
        "transform": {"kind": header.transform.kind, **dataclasses.asdict(header.transform)},
        "classes": list(header.classes),
        "meta": header.meta,
    }
    try:
        _check_json(entry, "")
        text = json.dumps(entry, allow_nan=False)
        _read(text)
    except pydantic.ValidationError as error:
        reason = first_error(error)
    except ZooError as error:
        reason = one_line(error)
    else:
        return text
    raise ZooError(f"{path}: cannot be written: {reason}")


def first_error(error: pydantic.ValidationError) -> str:
    """Return the first of pydantic's errors as ``key=value: what is allowed``, in one line."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    message = reason_of(first)
    if first["type"] == "missing":
        return one_line(f"{key}: is missing")
    if first["type"] == "extra_forbidden":
        return one_line(f"{key[:80]}: is no key of a header that this version knows")
    return one_line(f"{key[:80]}={reprlib.repr(first['input'])}: {message}" if key else message)


def _read(text: str) -> Header:
    """Return the content of an entry; see ``read_header`` for its errors."""
    if len(text) > LONGEST:
        raise ZooError(f"{len(text)} characters: must be at most {LONGEST}")
    entry = _Entry.model_validate(_parse(text))
    config = ModelConfig(**entry.config.model_dump())
    transform, classes = read_transform(entry.transform), tuple(entry.classes)
    # what must agree with each other
    if len(classes) != config.num_classes:
        raise ZooError(f"classes: {len(classes)} names for config.num_classes={config.num_classes}")
    for name in classes:
        if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in name):
            raise ZooError(f"classes: {reprlib.repr(name)} has a control character")
    mean = getattr(transform, "mean", None)
    if isinstance(mean, tuple) and len(mean) != config.in_chans:
        raise ZooError(f"transform.mean has {len(mean)} values for config.in_chans={config.in_chans}")
    return Header(config, transform, classes, entry.meta)


def _parse(text: str) -> Any:
    """Return the value of a JSON text whose numbers, depth and keys are within bounds.

    Raises:
        ZooError: a text that is not JSON, or beyond the bounds.
    """
    try:
        value = json.loads(
            text,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_integer,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise ZooError(f"nested deeper than {DEEPEST} levels") from None
    except json.JSONDecodeError as error:
        raise ZooError(f"not JSON: {error}") from None
    # level by level, as a function that calls itself would meet Python's limit
    level, depth = [value], 0
    while level := [inner for outer in level for inner in _inside(outer)]:
        depth += 1
        if depth > DEEPEST:
            raise ZooError(f"nested deeper than {DEEPEST} levels")
    return value


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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ZooError(f"key {reprlib.repr(twice)} occurs twice in one object")
    return value


def _check_json(value: Any, key: str, depth: int = 0) -> None:
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
            _check_json(inner, f"{key}.{name}" if key else name, depth + 1)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _check_json(inner, f"{key}.{number}", depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ZooError(f"{key}={value}: numbers must be finite; leave it out, or give None")
    elif not (value is None or isinstance(value, str | int)):
        raise ZooError(
            f"{key} has type {type(value).__name__}: must be text, a number, True, False, None, or a list or dict of "
            "these; convert it"
        )
