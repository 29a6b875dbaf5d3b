"""The header of a weights file: one schema, by which files are read and written.

The entry ``rescalenet`` of the safetensors header is a JSON object with ``config``, ``transform``, ``classes`` and
``meta``. A file may come from anywhere, so that nothing in it is used before it has passed these checks.
"""

from __future__ import annotations

import dataclasses
import json
import reprlib
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pydantic
from pydantic import AfterValidator, ConfigDict, FailFast, Field

from zoo.errors import WeightsError, ZooError, one_line
from zoo.files import safe_name
from zoo.jsontext import check_json, count_values, first_error, parse_json
from zoo.nets.base import ModelConfig
from zoo.transforms import AnyTransform, read_transform

HEADER_KEY = "rescalenet"
LONGEST = 2**26  # characters of the entry, and bytes of the whole header; a vocabulary takes up to a few million
MOST_VALUES = 2**22  # in the entry, counted as ``parse_json`` counts; a million class names have a few million commas
MOST_OTHERS = 2**18  # values beside the class names; pydantic keeps a kilobyte for each key that it does not know

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
    """JSON form of the whole entry. The transform is an object of one of several kinds (``read_transform``).

    The first class name that is not valid ends the check: pydantic keeps a kilobyte for each error.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    config: _Config
    transform: dict[str, Any]
    classes: Annotated[list[Annotated[str, Field(max_length=1000)]], FailFast()]
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
        reason = first_error(error, "a header")
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
        check_json(entry, "")
        text = json.dumps(entry, allow_nan=False)
        _read(text)
    except pydantic.ValidationError as error:
        reason = first_error(error, "a header")
    except ZooError as error:
        reason = one_line(error)
    else:
        return text
    raise ZooError(f"{path}: cannot be written: {reason}")


def _read(text: str) -> Header:
    """Return the content of an entry; see ``read_header`` for its errors."""
    if len(text) > LONGEST:
        raise ZooError(f"{len(text)} characters: must be at most {LONGEST}")
    content = parse_json(text, most=MOST_VALUES)
    others = content if not isinstance(content, dict) else {k: v for k, v in content.items() if k != "classes"}
    if (count := count_values(others)) > MOST_OTHERS:
        raise ZooError(f"{count} values beside the class names: must be at most {MOST_OTHERS}")
    entry = _Entry.model_validate(content)
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
