"""Weights files: their header, and their tensors."""

from __future__ import annotations

import json

import pytest
from hypothesis import strategies as st

from tests.fuzz.artefacts import TASKS, joined, parts, picture, weights
from tests.fuzz.harness import FAST
from tests.fuzz.structures import VALUES, changed, damaged, dumps

FILES = {"w.safetensors": b""}
IMAGES = {f"set/{name}/0.png": picture() for name in ("a", "b", "ç")}


def uses(fixed):
    """What is done with the weights of each kind, as commands without the dear ones."""
    predict, out = ["predict", "w.safetensors"], ["--out", "out/o"]
    image = [[*predict, "set", *out], ["eval", "w.safetensors", "set", *out]]
    image += [["export", "w.safetensors", "--to", "torchvision", "--out", "out/x.pth"]]
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


@st.composite
def bodies(draw, kind):
    """A weights file with other bytes of tensors, also not finite ones."""
    content = weights(kind)
    start = 8 + int.from_bytes(content[:8], "little")
    if draw(st.booleans()):
        return content[:start] + draw(damaged(content[start:]))
    return draw(damaged(content))


def _run(harness, kind):
    """What runs one file: always ``info``, and one use in one of three."""
    commands = uses(harness.fixed)[kind]

    def run(case):
        content, number = case
        chosen = [commands[number]] if number < len(commands) else []
        harness.check({**IMAGES, "w.safetensors": content}, ["info", "w.safetensors"], *chosen)

    return run, st.integers(0, 3 * len(commands) - 1)


@pytest.mark.parametrize("kind", TASKS)
def test_headers(harness, fuzz, kind):
    run, numbers = _run(harness, kind)
    fuzz(st.tuples(headers(kind), numbers), run, FAST // len(TASKS))


@pytest.mark.parametrize("kind", TASKS)
def test_bodies(harness, fuzz, kind):
    run, numbers = _run(harness, kind)
    fuzz(st.tuples(bodies(kind), numbers), run, FAST // 2 // len(TASKS))
