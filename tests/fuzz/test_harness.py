"""The harness itself: it notices each thing that an input must not do, and valid artefacts do none of them."""

from __future__ import annotations

import json

import pytest

from tests.fuzz.artefacts import FOLDER, TASKS, picture, weights
from tests.fuzz.test_weights import IMAGES, uses

NOTICED = {
    "signal": "ended by SIGSEGV",
    "exit": "ended by exit status 3",
    "traceback": "RuntimeError: no error of the user",
    "lines": "exit status 1 without one last line",
    "escape": "control characters",
    "silent": "exit status 1 without one last line",
    "status": "^@misbehave: 3",
    "warning": "a traceback or warning",
    "write": "forbidden: open for writing .*neighbour/x",
    "elsewhere": "forbidden: open for writing /nowhere/x",
    "remove": "forbidden: os.rmdir .*neighbour",
    "change": "outside of out: .*work/a.txt was made, changed or removed",
    "read": "forbidden: read .*secret.txt",
    "program": "forbidden: os.system",
    "memory": "MiB of memory, must be <= 512",
    "address space": "RuntimeError: .*can't allocate memory",
    "time": "ended by SIG(XCPU|ALRM)",
}


@pytest.mark.parametrize("kind", NOTICED)
def test_what_no_input_may_do_is_noticed(harness, kind):
    with pytest.raises(pytest.fail.Exception, match=f"(?ms){NOTICED[kind]}"):
        harness.check({"a.txt": b"a"}, ["@misbehave", kind, "{box}"], seconds=1 if kind == "time" else 10)
    assert harness.check({}, ["list", "rescalenet20*"]) == [0]  # the next input has a new process


@pytest.mark.parametrize("kind", TASKS)
def test_valid_weights(harness, kind):
    commands = uses(harness.fixed)[kind]
    found = harness.check({**IMAGES, "w.safetensors": weights(kind)}, ["info", "w.safetensors"], *commands, seconds=30)
    # narrow nets have no counterpart in torchvision
    assert found[1:] == [int("torchvision" in command) for command in commands]


def test_valid_files(harness):
    fixed = harness.fixed
    corpus = {f"c/{path.name}": path.read_bytes() for path in (FOLDER / "corpus").iterdir()}
    objects = (fixed / "data/objects/instances.json").read_bytes()
    commands = [
        ["@index", f"{fixed}/video_index.json", f"{fixed}/videos"],
        ["@corpus", "c"],
        ["@coco", "o.json", f"{fixed}/data/objects/images", "masks"],
        ["@vocabulary", f"{fixed}/corpus/joint.model"],
        ["@prepare_corpus", f"{fixed}/data/text", f"{fixed}/weights/text.safetensors", "out/c"],
        ["train", "--print-config", f"{fixed}/runs/video/config.yaml"],
    ]
    assert harness.check({**corpus, "o.json": objects, "p.png": picture()}, *commands) == [0] * len(commands)
    assert json.loads((harness.box / "work/out/c/corpus.json").read_text())["pairs"]["train"] > 0
