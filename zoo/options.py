"""Options of nets: the options that may differ from those of the weights, and checks of given values."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pydantic

from zoo.arguments import as_python, shown
from zoo.errors import ZooError, one_line


def free(default: Any) -> Any:
    """Return a dataclass field for an option that no weight depends on, such as a dropout rate.

    Args:
        default: default value of the field.
    """
    return dataclasses.field(default=default, metadata={"free": True})


def free_options(owner: Any) -> set[str]:
    """Return the names of the fields of a dataclass, or of an instance, that ``free`` made."""
    return {field.name for field in dataclasses.fields(owner) if field.metadata.get("free")}


def checked(options: Mapping[str, Any], owner: Any, where: str) -> dict[str, Any]:
    """Return option values, checked against the type hints of the dataclass ``owner``.

    A value must have the type of its hint; as in JSON, lists are taken for tuples and whole numbers for floats.

    Args:
        options: values by name; every name is a field of ``owner``.
        owner: dataclass or instance of one.
        where: owner of the options, for messages.

    Raises:
        ZooError: a value of the wrong type.
    """
    hints = typing.get_type_hints(owner if isinstance(owner, type) else type(owner))
    converted = {}
    for key, value in options.items():
        try:
            text = json.dumps(as_python(value), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ZooError(f"{where}: option {key}={shown(value)}: {one_line(error)}") from None
        try:
            converted[key] = pydantic.TypeAdapter(hints[key]).validate_json(text, strict=True)
        except pydantic.ValidationError as error:
            # a hint with several alternatives has an error for each of them
            reasons = dict.fromkeys(each["msg"] for each in error.errors())
            raise ZooError(f"{where}: option {key}={shown(value)}: {' or '.join(reasons)}") from None
        for number in _numbers(converted[key]):
            if not abs(number) < 2**31:
                raise ZooError(f"{where}: option {key}={shown(value)}: must be below 2**31")
    return converted


def _numbers(value: Any) -> Iterator[float]:
    """Yield the numbers in a value."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)


def refuse_contradictions(
    asked: Mapping[str, Any], stored: Mapping[str, Any], free: Collection[str], weights: str
) -> None:
    """Check that the options asked for are those of the weights, except free ones.

    Args:
        asked: options that were given; names that ``stored`` lacks are not checked.
        stored: options of the weights, with the defaults of those that the weights do not name.
        free: names of the options that may differ.
        weights: name of the weights, for the message.

    Raises:
        ZooError: an option with another value than the weights'.
    """
    for key, value in asked.items():
        if key in stored and key not in free and plain(as_python(value)) != plain(stored[key]):
            raise ZooError(
                f"weights {weights} have option {key}={plain(stored[key])!r}, not {shown(value)}; leave it out"
            )


def plain(value: Any) -> Any:
    """Return the value with lists in place of tuples, as in JSON."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value
