"""YAML that is more than JSON: tags, anchors, odd scalars and keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.fuzz.structures import VALUES, Raw, changed, damaged, dumps

BOMB = "&a [x,x,x,x,x,x,x,x,x]"
for _name in "bcdefgh":
    BOMB = f"&{_name} [{', '.join([BOMB] + [f'*{chr(ord(_name) - 1)}'] * 8)}]"  # 9**8 values

SCALARS = (
    *("!!python/object/apply:os.system ['touch {box}/neighbour/x']", "!!python/name:os.system", "!!python/tuple [1]"),
    *("!!binary aGFsbG8=", "!!binary ????", "!!timestamp 2001-01-01", "!!int abc", "!!float abc", "!!set {a, b}"),
    *("!!omap [a: 1]", "!!pairs [a: 1]", "!!null x", "!foo bar", "!!str 1", "2001-01-01", "2001-99-99", "12:30:45"),
    *("0o17", "0x1F", "0b1", "1_000", "_1", ".nan", ".inf", "-.inf", "1e5", "1e999", "on", "no", "~", "190:20:30"),
    *("&a [*a]", "&a {a: *a}", "*nothing", "{[a]: 1}", "{{a: b}: 1}", "{? [a, b] : c}", "{<<: {a: 1}}", "{<<: 1}"),
    *("{1: 2, null: 3, true: 4, 1.5: 5}", "{a: 1, a: 2}", "[", "]", "{", "}", "'", '"', "@", "`", "%", "|", ">"),
    *("?", "a: b: c", "- a", "\t", "\x07", "\x85", "\u2028", "#", "a #b", BOMB, "---", "...", "%YAML 9.9\n---\na: 1"),
    *("[" * 500 + "]" * 500, "[" * 20_000, "{a: " * 500 + "}" * 500, "9" * 5000, "0." + "0" * 5000 + "1"),
)
YAML_VALUES = (*VALUES, *map(Raw, SCALARS * 2))


@st.composite
def yaml_files(draw: Callable[..., Any], valid: Any) -> bytes:
    """Draw the bytes of a YAML file with a changed structure."""
    value = draw(changed(valid, YAML_VALUES))
    content = dumps(value).encode("utf-8", "surrogatepass")
    form = draw(st.sampled_from(("flow", "flow", "flow", "block", "damaged", "encoded")))
    if form == "block":
        content = yaml.safe_dump(valid, sort_keys=False, allow_unicode=True).encode()
        lines = content.split(b"\n")
        place = draw(st.integers(0, len(lines) - 1))
        key = lines[place].split(b":")[0]
        text = draw(st.sampled_from(YAML_VALUES))
        lines[place] = key + b": " + (text if isinstance(text, Raw) else dumps(text)).encode("utf-8", "surrogatepass")
        return b"\n".join(lines)
    if form == "damaged":
        return draw(damaged(yaml.safe_dump(valid, sort_keys=False).encode()))
    if form == "encoded":
        text = content.decode("utf-8", "replace")
        return text.encode(draw(st.sampled_from(("utf-16", "utf-8-sig", "utf-32"))))
    return content


@st.composite
def overrides(draw: Callable[..., Any], keys: list[str]) -> str:
    """Draw a command line's ``section.key=value``."""
    key = draw(
        st.sampled_from((*keys, *keys, "", ".", "a..b", "task", "=", "train", "train.", "model.options.", "a.b.c.d"))
    )
    value = draw(st.sampled_from(YAML_VALUES))
    text = str(value) if isinstance(value, Raw) else dumps(value)
    text = text.replace("\0", "").encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return (draw(st.sampled_from((f"{key}={text}", f"{key}{text}", f"{key} = {text}", f"{key}="))) or "x")[:5000]
