"""Folders of runs: config, log and training state, which --resume and fit-loss read."""

from __future__ import annotations

import io
import json
import zipfile
from collections import OrderedDict

import torch
import yaml
from hypothesis import strategies as st

from tests.fuzz.artefacts import FOLDER
from tests.fuzz.harness import FAST
from tests.fuzz.pickles import PROGRAMS
from tests.fuzz.structures import NUMBERS, TEXTS, changed, damaged
from tests.fuzz.yamls import yaml_files

RUN = FOLDER / "runs/classification"
FILES = {str(path.relative_to(RUN)): path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
STATE = torch.load(RUN / "checkpoints/last.pt", weights_only=True)
PLAIN = (
    None,
    True,
    *NUMBERS,
    *TEXTS,
    [],
    {},
    [[]],
    {"a": 1},
    b"x",
    torch.zeros(0),
    torch.zeros(2, 3),
    float("nan"),
    (),
)


def saved(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@st.composite
def states(draw):
    """A training state with a changed structure, other tensors, damaged bytes, or a program in place of its pickle."""
    form = draw(st.sampled_from(("structure", "structure", "position", "tensor", "bytes", "program")))
    content = FILES["checkpoints/last.pt"]
    if form == "structure":
        return saved(draw(changed(STATE, PLAIN, most=2)))
    if form == "position":
        return saved({**STATE, "position": draw(changed(STATE["position"], PLAIN, most=2))})
    if form == "tensor":
        model = OrderedDict(STATE["model"])
        name = draw(st.sampled_from(sorted(model)))
        tensor = model[name]
        others = (
            tensor.double(),
            tensor.half(),
            tensor.int(),
            tensor[None],
            tensor * float("nan"),
            tensor.flatten()[:1],
        )
        more = (tensor.to_sparse(), tensor.expand(2**20, *tensor.shape), tensor.bool(), tensor + 1j, tensor.reshape(-1))
        model[name] = draw(st.sampled_from((*others, *more)))
        return saved({**STATE, "model": model})
    if form == "bytes":
        return draw(damaged(content))
    program = draw(st.sampled_from(PROGRAMS))
    if draw(st.booleans()):
        return program
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, program if name.endswith("data.pkl") else old.read(name))
    return buffer.getvalue()


@st.composite
def logs(draw):
    """A log with changed, damaged, doubled or foreign lines."""
    lines = FILES["log.jsonl"].splitlines(keepends=True)
    place = draw(st.integers(0, len(lines) - 1))
    record = draw(changed(json.loads(lines[place]), (None, True, [], {}, *TEXTS, *NUMBERS)))
    lines[place] = json.dumps(record).encode() + b"\n"
    content = b"".join(lines)
    return draw(damaged(content)) if draw(st.booleans()) else content


@st.composite
def runs(draw):
    """A run's folder of which a file is changed or missing."""
    name = draw(st.sampled_from(("checkpoints/last.pt", "checkpoints/last.pt", *sorted(FILES))))
    config = yaml.safe_load(FILES["config.yaml"])
    strategies = {"checkpoints/last.pt": states(), "log.jsonl": logs(), "config.yaml": yaml_files(config)}
    content = draw(strategies.get(name, damaged(FILES[name])))
    files = {**FILES, name: content}
    if draw(st.integers(0, 9)) == 0:
        del files[name]
    return files


def test_resume(harness, fuzz):
    data = f"{harness.fixed}/data/images".encode()

    def run(files):
        inputs = {f"runs/classification/{name}": content for name, content in files.items()}
        if "config.yaml" in files:
            stored = files["config.yaml"].replace(b"data/images", data)
            inputs["runs/classification/config.yaml"] = stored
        inputs["c.yaml"] = FILES["config.yaml"].replace(b"data/images", data)
        harness.check(inputs, ["train", "c.yaml", "--resume"], writable=("runs",), seconds=30)

    fuzz(runs(), run, FAST // 40)


SIGNALS = {
    "event": "signals",
    "step": 2,
    "epoch": 0,
    "layers": [{"name": "conv1", "kind": "product", "gradient_norm": 0.5, "bias_offset": None, "post_bias": False}],
    "sums": [{"name": "layer1.0", "power": 1.0, "ratio": 0.1, "correlation": -0.2}],
    "activations": [{"name": "act1", "channels": 4, "positive": 1, "negative": 0}],
}


@st.composite
def logs_with_signals(draw):
    """A log with a changed record of signals among its lines, or a changed log."""
    if draw(st.booleans()):
        return draw(logs())
    record = draw(changed(SIGNALS, (None, True, [], {}, *TEXTS, *NUMBERS), most=2))
    line = json.dumps(record).encode() + b"\n"
    return draw(st.sampled_from((line + FILES["log.jsonl"], FILES["log.jsonl"] + line + line)))


def test_dynamics(harness, fuzz):
    fuzz(logs_with_signals(), lambda content: harness.check({"a.jsonl": content}, ["@dynamics", "a.jsonl"]), FAST)


def test_diagnose_of_a_log(harness, fuzz):
    def run(content):
        harness.check({"a.jsonl": content}, ["diagnose", "a.jsonl", "--out", "out/d"], writable=("out",), seconds=60)

    fuzz(logs_with_signals(), run, FAST // 40)


def test_fit_loss(harness, fuzz):
    data = f"{harness.fixed}/data/images".encode()

    def run(files):
        inputs = {f"r/{name}": content for name, content in files.items()}
        if "config.yaml" in files:
            inputs["r/config.yaml"] = files["config.yaml"].replace(b"data/images", data)
        harness.check(inputs, ["fit-loss", "r", "--batches", "1"], writable=("r",), seconds=20)

    fuzz(runs(), run, FAST // 10)
