"""Weights files: their header, and their tensors."""

from __future__ import annotations

import json
import math
import struct

import pytest
from hypothesis import strategies as st

from tests.fuzz.artefacts import TASKS, joined, parts, picture, weights
from tests.fuzz.harness import FAST
from tests.fuzz.structures import NAMES, VALUES, changed, damaged, dumps

FILES = {"w.safetensors": b""}
IMAGES = {f"set/{name}/0.png": picture() for name in ("a", "b", "ç")}


def uses(fixed):
    """What is done with the weights of each kind, as commands without the dear ones."""
    predict, out = ["predict", "w.safetensors"], ["--out", "out/o"]
    image = [[*predict, "set", *out], ["eval", "w.safetensors", "set", *out]]
    image += [["export", "w.safetensors", "--to", "torchvision", "--out", "out/x"]]
    return {
        "image": image,
        "image_bn": image,
        "detection": [[*predict, "set", *out]],
        "video": [[*predict, f"{fixed}/videos/val/down/0.mp4", "--clips", "1", *out]],
        "text": [[*predict, "one two", *out], ["export", "w.safetensors", "--to", "fairseq", "--out", "out/f"]],
    }


@st.composite
def headers(draw, kind):
    """A weights file whose entry, or whose table of tensors is changed."""
    header, body = parts(weights(kind))
    entry = json.loads(header["__metadata__"]["rescalenet"])
    where = draw(st.sampled_from(("entry", "entry", "entry", "config", "transform", "text", "table", "file")))
    if where == "table":
        table = draw(changed(header, VALUES))
        return joined(dumps(table).encode("utf-8", "surrogatepass"), body)
    if where in ("config", "transform"):
        entry[where] = draw(changed(entry[where]))
    elif where == "entry":
        entry = draw(changed(entry))
    text = dumps(entry)
    if where == "text":
        text = draw(damaged(text.encode())).decode("utf-8", "replace")
    header["__metadata__"]["rescalenet"] = text
    return joined(json.dumps(header).encode(), body)


SIZES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E8M0": 1, "I64": 8, "U8": 1, "BOOL": 1, "C64": 8}
# mostly numbers: NaN and infinities are refused when a file is loaded
FLOATS = (math.nan, math.inf, *2 * (3e38, -3e38, 6e4, 1e-40, 1e30, -1.0, 0.0, 1.0))


def _filled(draw, dtype, data):
    """The bytes of a tensor with other values: all of them, or a few."""
    size, code = SIZES.get(dtype, 1), {"F16": "<e", "F32": "<f", "F64": "<d"}.get(dtype)
    if code is None:
        value = draw(st.binary(min_size=size, max_size=size))
    else:
        number = draw(st.sampled_from(FLOATS))
        value = struct.pack(code, number if dtype != "F16" or not 1e5 < abs(number) < math.inf else 6e4)
    count = len(data) // len(value)
    if draw(st.booleans()):
        return value * count
    content = bytearray(data)
    for place in draw(st.lists(st.integers(0, max(count - 1, 0)), max_size=3)):
        content[place * size : (place + 1) * size] = value
    return bytes(content[: len(data)])


def _change(draw, tensors):
    """Change one tensor, or exchange, leave out or add one. A tensor is its type, shape and bytes."""
    key = draw(st.sampled_from(sorted(tensors)))
    dtype, shape, data = tensors[key]
    operation = draw(st.sampled_from(("fill", "fill", "fill", "fill", "dtype", "shape", "swap", "drop", "rename")))
    if operation == "fill":
        tensors[key] = dtype, shape, _filled(draw, dtype, data)
    elif operation == "dtype":
        other = draw(st.sampled_from(sorted(SIZES)))
        length = math.prod(shape) * SIZES[other]
        tensors[key] = other, shape, (data * (length // max(len(data), 1) + 1))[:length]
    elif operation == "shape":
        other = draw(st.sampled_from((shape[::-1], [*shape, 1], [1, *shape], shape[1:], [math.prod(shape)])))
        length = math.prod(other) * SIZES.get(dtype, 8)
        tensors[key] = dtype, other, (data * (length // max(len(data), 1) + 1))[:length]
    elif operation == "swap":
        other = draw(st.sampled_from([k for k in sorted(tensors) if tensors[k][:2] == (dtype, shape)]))
        tensors[key], tensors[other] = tensors[other], tensors[key]
    else:
        del tensors[key]
        if operation == "rename":
            tensors[draw(st.sampled_from((f"{key}s", key.upper(), *NAMES)))] = dtype, shape, data


@st.composite
def tensors(draw, kind):
    """A weights file that is complete, with other tensors: most of them build a net, which runs."""
    header, body = parts(weights(kind))
    about = header.pop("__metadata__")
    found = {key: (t["dtype"], t["shape"], body[slice(*t["data_offsets"])]) for key, t in header.items()}
    for _ in range(draw(st.integers(1, 3))):
        if found:
            _change(draw, found)
    table, start = {"__metadata__": about}, 0
    for key, (dtype, shape, data) in found.items():
        table[key] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + len(data)]}
        start += len(data)
    return joined(json.dumps(table).encode(), b"".join(data for _, _, data in found.values()))


@st.composite
def bodies(draw, kind):
    """A weights file with other bytes: of a tensor in four of five, else anywhere."""
    if draw(st.integers(0, 4)):
        return draw(tensors(kind))
    return draw(damaged(weights(kind)))


def _run(harness, kind, rare):
    """What runs one file: always ``info``, and one use in one of ``rare``."""
    commands = uses(harness.fixed)[kind]

    def run(case):
        content, number = case
        chosen = [commands[number]] if number < len(commands) else []
        harness.check({**IMAGES, "w.safetensors": content}, ["info", "w.safetensors"], *chosen)

    return run, st.integers(0, rare * len(commands) - 1)


@pytest.mark.parametrize("kind", TASKS)
def test_headers(harness, fuzz, kind):
    run, numbers = _run(harness, kind, 3)
    fuzz(st.tuples(headers(kind), numbers), run, FAST // len(TASKS))


@pytest.mark.parametrize("kind", TASKS)
def test_bodies(harness, fuzz, kind):
    run, numbers = _run(harness, kind, 1)
    fuzz(st.tuples(bodies(kind), numbers), run, FAST // 2 // len(TASKS))
