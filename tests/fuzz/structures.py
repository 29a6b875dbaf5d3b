"""Strategies that start from a valid value or file, and change its structure: types, ranges, nesting, names, bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st


class Raw(str):
    """Text that is written into JSON or YAML as it is."""


class Pairs(list):
    """An object as a list of keys and values, in which keys may occur twice."""


# names that could lead a file out of its folder, or that file systems and terminals do not take
NAMES = (
    *(
        *("../neighbour/secret.txt", "{box}/neighbour/secret.txt", "../../etc", "/etc/passwd", "/", "..", "."),
        *("~", "a/../b"),
    ),
    *(
        *("", " ", "a\0b", "con", "NUL.txt", "-", "--help"),
        "a" * 300,
        "x/" * 600 + "y",
        "a\\b",
        "C:\\x",
        "$HOME",
        "$a$",
        "%s",
    ),
    *(
        *("a\nb", "a\rb", "\x1b[31mred", "\x9b31m", "\u202egnp", "\ud800", "é", "e\u0301", "日本", "😀"),
        *("\ufeffx", "a:b", "[/b]"),
    ),
)
TEXTS = (*NAMES, "x" * 10_000, "none", "null", "True", "1", "1e3", "nan", "{0.__class__}", "'; --", "<a>")
NUMBERS = (
    *(0, -1, 1, 2, 3, 7, 255, 256, 4096, 65_535, 10**6, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64),
    *(-(2**31), -(2**63), 10**30, -(10**30), 0.5, -0.5, -0.0, 1e-3, 1e-320, 1e10, 1e38, 1e39, 1e308, -1e308),
)
RAW = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400, "9" * 5000, "01", "1.", "+1", "'a'", "undefined")
NESTED = (
    Raw("[" * 40 + "]" * 40),
    Raw("[" * 3000 + "]" * 3000),
    Raw('{"a":' * 200 + "1" + "}" * 200),
    Raw("[" * 200_000),
)
VALUES = (
    None,
    True,
    False,
    *NUMBERS,
    *TEXTS,
    *map(Raw, RAW),
    *NESTED,
    [],
    {},
    [[]],
    [{}],
    {"": None},
    [None] * 50,
    [0] * 3,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to all values inside of a value."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += [(*path, key), *_paths(inner, (*path, key))]
    return found


def _at(value: Any, path: Sequence[Any]) -> Any:
    for key in path:
        value = value[key]
    return value


def _changed(draw: Callable[..., Any], value: Any, values: Sequence[Any]) -> Any:
    """Return the value with one change."""
    paths = _paths(value)
    if not paths:
        return copy.deepcopy(draw(st.sampled_from(values)))
    path = draw(st.sampled_from(paths))
    parent, key = _at(value, path[:-1]), path[-1]
    operation = draw(st.sampled_from(("set", "set", "set", "nudge", "drop", "twice", "wrap", "swap", "rename", "grow")))
    if operation == "set":
        parent[key] = copy.deepcopy(draw(st.sampled_from(values)))  # later changes must not reach ``values``
    elif operation == "nudge":  # a small change of the same type
        old = parent[key]
        if isinstance(old, bool) or old is None:
            parent[key] = not old
        elif isinstance(old, int | float):
            parent[key] = draw(st.sampled_from((old + 1, old - 1, -old, old * 1000, float(old), str(old), old + 0.5)))
        elif isinstance(old, str):
            parent[key] = draw(
                st.sampled_from((old + "x", old[:-1], old.upper(), f"../{old}", f"/{old}", [old], old * 40))
            )
        elif isinstance(old, list):
            parent[key] = draw(st.sampled_from((old[:-1], old * 2, old[::-1], dict(enumerate(map(str, old))))))
    elif operation == "drop":
        del parent[key]
    elif operation == "twice" and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    elif operation == "wrap":
        parent[key] = draw(st.sampled_from(([parent[key]], {"a": parent[key]}, str(parent[key])[:100])))
    elif operation == "swap":
        other = draw(st.sampled_from(paths))
        parent[key] = copy.deepcopy(_at(value, other))
    elif isinstance(parent, dict):
        name = draw(st.sampled_from((f"{key}s", *TEXTS, *(p[-1] for p in paths if isinstance(p[-1], str)))))
        new = parent.pop(key) if operation == "rename" else copy.deepcopy(draw(st.sampled_from(values)))
        parent[name] = new
    return value


@st.composite
def changed(draw: Callable[..., Any], valid: Any, values: Sequence[Any] = VALUES, most: int = 3) -> Any:
    """Draw a copy of a valid value of dicts, lists and plain values with one to ``most`` changes."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, most))):
        value = _changed(draw, value, values)
    return value


def dumps(value: Any) -> str:
    """Return JSON, with raw text and double keys where the value has them; it is YAML as well."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict | Pairs):
        pairs = value.items() if isinstance(value, dict) else value
        return "{" + ", ".join(f"{json.dumps(str(k))}: {dumps(v)}" for k, v in pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(dumps, value)) + "]"
    return json.dumps(value)


@st.composite
def json_files(draw: Callable[..., Any], valid: Any, values: Sequence[Any] = VALUES) -> bytes:
    """Draw the bytes of a JSON file whose structure, and sometimes whose bytes are changed."""
    value = draw(changed(valid, values))
    if isinstance(value, dict) and value and draw(st.integers(0, 9)) == 0:  # a key twice
        value = Pairs([*value.items(), draw(st.sampled_from(list(value.items())))])
    content = dumps(value).encode()
    return draw(damaged(content)) if draw(st.integers(0, 7)) == 0 else content


@st.composite
def damaged(draw: Callable[..., Any], content: bytes) -> bytes:
    """Draw a file that is cut, that has bits flipped, parts repeated or removed, or bytes put in."""
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    operation = draw(st.sampled_from(("cut", "flip", "flips", "repeat", "remove", "insert", "empty", "tail", "fill")))
    if operation == "cut":
        return content[:place]
    if operation in ("flip", "flips"):
        changed = bytearray(content)
        for _ in range(1 if operation == "flip" else draw(st.integers(2, 20))):
            if changed:
                changed[place] ^= 1 << draw(st.integers(0, 7))
                place = draw(st.integers(0, len(content) - 1))
        return bytes(changed)
    length = draw(st.integers(1, 64))
    if operation == "repeat":
        return content[: place + length] + content[place:]
    if operation == "remove":
        return content[:place] + content[place + length :]
    if operation == "insert":
        odd = (b"\0", b"\xff" * 8, b"\xef\xbb\xbf", b"\xc3", b"\r\n", b"\x1b[2J", b"%n", b"\xed\xa0\x80")
        return content[:place] + draw(st.sampled_from(odd)) + content[place:]
    if operation == "fill":
        return content[:place] + draw(st.sampled_from((b"\0", b"\xff"))) * length + content[place + length :]
    return b"" if operation == "empty" else content + draw(st.binary(max_size=64))


def mostly_valid(valid: bytes, invalid: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Draw a changed file, sometimes the valid one."""
    return st.one_of(invalid, invalid, invalid, st.just(valid))
