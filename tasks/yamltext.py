"""YAML of configs: read without surprises, and written so that it is read back.

Values follow YAML 1.2's core schema: ``yes``, ``12:30`` and ``2026-01-31`` are text, ``1e-3`` is a number. A number
keeps how it was written, because a field may take it for text: a folder may be named ``007`` or ``1e3``.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import yaml

from tasks.errors import ConfigError
from zoo.errors import one_line

LONGEST = 2**18  # characters of a file
DEEPEST = 32  # nested mappings and lists
MOST = 10_000  # values, those behind aliases counted at each alias
LARGEST = 2**63  # integers, in absolute value

_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_LONGEST_NUMBER = 400  # characters; longer ones are text


class WrittenInt(int):
    """An integer whose text is not Python's, such as ``007`` or ``0x10``."""

    text: str


class WrittenFloat(float):
    """A number whose text is not Python's, such as ``1e-3`` or ``1.10``."""

    text: str


class Written:
    """Mark of values that stay as they were written: ``Annotated[Any, Written]``."""


def plain_scalar(text: str) -> Any:
    """Return the value of a scalar without quotes: None, a bool, a number, or the text itself.

    >>> [plain_scalar(text) for text in ("3", "1e-3", "0x10", "yes", "true", "12:30:45", "~")]
    [3, 0.001, 16, 'yes', True, '12:30:45', None]
    """
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _LONGEST_NUMBER:
        return text
    number: WrittenInt | WrittenFloat
    if _INTEGER.fullmatch(text):
        number = WrittenInt(text, 0) if text[:2] in ("0o", "0x") else WrittenInt(text)
    elif _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        number = WrittenFloat(text)
    else:
        return text
    number.text = text
    plain = int(number) if isinstance(number, int) else float(number)
    return plain if repr(plain) == text else number


def as_number(value: Any) -> Any:
    """Return a value in which all numbers are plain Python numbers.

    Raises:
        ValueError: an integer beyond 64 bits.
    """
    if isinstance(value, dict):
        return {key: as_number(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_number(inner) for inner in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if isinstance(value, float):
        return float(value)
    if abs(value) > LARGEST:
        raise ValueError("integers must be at most 2**63")
    return int(value)


def fit(value: Any, annotation: Any, sections: type, key: str) -> Any:
    """Return a value of a file as a field takes it: a number for text as its text, every other number as a number.

    Args:
        value: value of a YAML file or an override.
        annotation: annotation of the field.
        sections: base class of sections, whose fields do this themselves.
        key: name of the field, for messages.

    Raises:
        ValueError: an integer beyond 64 bits in a field that is not for text, or true or false in one for a number.
    """
    choices = list(_alternatives(annotation))
    if Written in choices:
        return value
    if isinstance(value, dict):
        if any(isinstance(choice, type) and issubclass(choice, sections) for choice in choices):
            return value
        inner = next((get_args(choice)[1] for choice in choices if get_origin(choice) is dict), Any)
        return {name: fit(each, inner, sections, key) for name, each in value.items()}
    if isinstance(value, list | tuple):
        parts = next((get_args(choice) for choice in choices if get_origin(choice) in (list, tuple)), (Any,))
        same = len(parts) == 1 or parts[-1] is ...
        return [
            fit(each, parts[0] if same else parts[i] if i < len(parts) else Any, sections, key)
            for i, each in enumerate(value)
        ]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and str in choices and not {int, float} & {*choices}:
        return value.text if isinstance(value, WrittenInt | WrittenFloat) else repr(value)
    if isinstance(value, bool) and {int, float} & {*choices} and not {bool, Any} & {*choices}:
        raise ValueError(f"{key}: must be a number, not {str(value).lower()}")  # pydantic takes true for 1
    try:
        return as_number(value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the types of an annotation's union, without their metadata, and ``Written`` where that has it."""
    if get_origin(annotation) is Annotated:
        inner, *rest = get_args(annotation)
        yield from (each for each in rest if each is Written)
        yield from _alternatives(inner)
    elif get_args(annotation) and get_origin(annotation) not in (dict, list, tuple, Literal):
        for each in get_args(annotation):
            yield from _alternatives(each)
    else:
        yield annotation


# -- reading -----------------------------------------------------------------------------------------


class _Node(NamedTuple):
    """A value with what is needed to bound it.

    Attributes:
        value: the value.
        size: number of values in it, itself included.
        height: number of levels below it.
    """

    value: Any
    size: int = 1
    height: int = 0


class _Open:
    """A mapping or list whose end has not been read.

    Attributes:
        anchor: name by which aliases refer to it, if any.
        line: line of its beginning.
        keys: keys of a mapping with their lines; None for a list.
        items: items, or the values of the keys.
        key: key whose value comes next; None if a key comes next.
    """

    def __init__(self, event: Any) -> None:
        self.anchor, self.line = event.anchor, event.start_mark.line + 1
        self.keys: dict[str, int] | None = {} if isinstance(event, yaml.MappingStartEvent) else None
        self.items: list[_Node] = []
        self.key: str | None = None

    def node(self) -> _Node:
        """Return the finished value."""
        content: Any = [each.value for each in self.items]
        if self.keys is not None:
            content = dict(zip(self.keys, content, strict=True))
            if "<<" in content:
                content = self._merged(content)
        return _Node(content, 1 + sum(n.size for n in self.items), 1 + max((n.height for n in self.items), default=0))

    def _merged(self, content: dict[str, Any]) -> dict[str, Any]:
        """Return a mapping with the keys of those under ``<<`` that it lacks itself."""
        given = content.pop("<<")
        merged: dict[str, Any] = {}
        for each in given if isinstance(given, list) else [given]:
            if not isinstance(each, dict):
                raise yaml.MarkedYAMLError(problem=f"<< of the mapping in line {self.line}: must be a mapping")
            merged = {**each, **merged}
        return {**merged, **content}


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML text, of which nothing is built but mappings, lists, text, numbers, bools and None.

    Args:
        text: text of the file.
        source: name of the file, for messages.

    Raises:
        ConfigError: text that is not YAML or beyond the bounds, a key that stands twice or is not text, a tag.
    """
    if len(text) > LONGEST:
        raise ConfigError(f"{source}: has {len(text)} characters, a config at most {LONGEST}")
    try:
        return _build(text, source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{line}: not valid YAML: {one_line(error.problem or str(error.context))}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML: {one_line(error)}") from None


def _build(text: str, source: str) -> Any:
    """Return the value of a YAML text from the parser's events; see ``parse_yaml``."""
    stack: list[_Open] = []
    anchors: dict[str, _Node | None] = {}  # None: its end has not been read
    total, documents, root = 0, 0, _Node(None)

    def refuse(event: Any, reason: str) -> ConfigError:
        return ConfigError(f"{source}, line {event.start_mark.line + 1}: {reason}")

    events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
    for event in events:
        # 1. Take the next value, or go into or out of a mapping or list.
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise refuse(event, "a second document begins; leave one")
            continue
        if getattr(event, "tag", None) is not None:
            raise refuse(event, f"tag {reprlib.repr(event.tag)}: tags are not allowed; leave it out")
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            if stack and stack[-1].keys is not None and stack[-1].key is None:
                raise refuse(event, "a key must be text, not a mapping or list")
            if len(stack) >= DEEPEST:
                raise refuse(event, f"nested deeper than {DEEPEST} levels")
            stack.append(_Open(event))
            if event.anchor:
                anchors[event.anchor] = None
            continue
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            anchor, node = stack[-1].anchor, stack.pop().node()
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise refuse(event, f"*{event.anchor} refers to no &{event.anchor} above it; quote it if it is text")
            known = anchors[event.anchor]
            if known is None:
                raise refuse(event, f"*{event.anchor} is inside of the value that it refers to")
            anchor, node = None, known
        elif isinstance(event, yaml.ScalarEvent):
            anchor, node = event.anchor, _Node(plain_scalar(event.value) if event.implicit[0] else event.value)
        else:
            continue
        if anchor:
            anchors[anchor] = node
        # 2. Bound it, with all that aliases repeat.
        total += node.size if isinstance(event, yaml.AliasEvent) else 1
        if total > MOST or len(stack) + node.height > DEEPEST:
            bound = f"more than {MOST} values" if total > MOST else f"nested deeper than {DEEPEST} levels"
            raise refuse(event, f"{bound}, those behind aliases included")
        # 3. Put it into its place.
        if not stack:
            root = node
        elif stack[-1].keys is None or stack[-1].key is not None:
            stack[-1].items.append(node)
            stack[-1].key = None
        else:
            _take_key(stack[-1], event, node.value, refuse)
    return root.value


def _take_key(mapping: _Open, event: Any, key: Any, refuse: Any) -> None:
    """Note a key whose value comes next."""
    assert mapping.keys is not None
    line = event.start_mark.line + 1
    if not isinstance(key, str):
        raise refuse(event, f"key {event.value if hasattr(event, 'value') else key}: must be text; quote it")
    if key in mapping.keys:
        raise refuse(event, f"key {key!r} stands in line {mapping.keys[key]} already; remove one")
    mapping.keys[key] = line
    mapping.key = key


def parse_value(text: str) -> Any:
    """Return the value of the right side of ``key=value``.

    A value in brackets, braces or quotes is YAML. Any other is a number, a bool, null, or text that is taken whole:
    ``#``, ``: `` and what begins with ``*``, ``&``, ``@``, ``%`` or ``!`` have no meaning.

    Raises:
        ConfigError: no value, or brackets, braces or quotes that are not YAML, or that more text follows.
    """
    stripped = text.strip()
    if not stripped:
        raise ConfigError("has no value; leave it out, or write null for none")
    if stripped[0] not in "[{\"'":
        value = plain_scalar(stripped)
        return text if value is stripped and text != stripped else value
    value = parse_yaml(stripped, "the value")
    if rest := stripped[_end_of_value(stripped) :].strip():  # such as a comment, which would be lost
        raise ConfigError(f"{reprlib.repr(rest)} follows the value; quote the whole, as in 'key=\"...\"'")
    return value


def _end_of_value(text: str) -> int:
    """Return the index at which the first value of a YAML text ends."""
    level = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level == 0 and isinstance(event, yaml.ScalarEvent | yaml.CollectionEndEvent):
            end: Any = event.end_mark
            return int(end.index)
    return len(text)


# -- writing -----------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Writes numbers as they were written, and quotes text that YAML 1.1 or 1.2 would take for something else."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(f"^(?:{_INTEGER.pattern})$"), list("-+0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT.pattern})$"), list("-+.0123456789"))
_Dumper.add_representer(WrittenInt, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:int", value.text))
_Dumper.add_representer(
    WrittenFloat, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:float", value.text)
)


def dump_yaml(content: Any, **style: Any) -> str:
    """Return a value as YAML, keys in their order; ``style`` are options of ``yaml.dump``."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, **{"allow_unicode": True, **style})
