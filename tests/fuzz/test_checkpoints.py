"""Checkpoints of other projects: state dicts of all shapes, wrappers, programs in pickles, of fairseq."""

from __future__ import annotations

import argparse
import functools
import pickle

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors
from torch import nn
from torchvision.models import resnet18

import zoo
from tests.fuzz.artefacts import FOLDER
from tests.fuzz.harness import FAST
from tests.fuzz.pickles import PROGRAMS
from tests.fuzz.structures import NAMES, changed, damaged
from tests.fuzz.test_runs import PLAIN, saved
from tests.helpers.pickles import python2
from zoo.export.fairseq import export_fairseq

ENDINGS = (".pth", ".pt", ".pkl", ".pyth", ".safetensors")


@functools.cache
def state():
    """The state dict of a ResNet-18 in torchvision's names, of a sixteenth of its width."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in resnet18(num_classes=3).state_dict().items()}
    found = {}
    for key, shape in shapes.items():
        sizes = [size // 16 if size >= 64 else size for size in shape]
        found[key] = torch.rand(sizes) if sizes else torch.tensor(1)
    return found


def _odd(tensor):
    """Tensors that may take a tensor's place."""
    plain = (tensor[None], tensor.double(), tensor.half(), tensor.to(torch.int8), tensor.bool(), tensor + 1j)
    views = (tensor.expand(2**22, *tensor.shape), tensor.t() if tensor.ndim == 2 else tensor.reshape(-1), tensor[:0])
    values = (tensor * float("nan"), tensor * 1e38 * 1e38, torch.zeros_like(tensor), -tensor.abs() - 1)
    kinds = (
        nn.Parameter(tensor.float()),
        tensor.to_sparse(),
        torch.empty(1, device="meta"),
        tensor.tolist(),
        tensor.numpy(),
    )
    return (*plain, *views, *values, *kinds)


@st.composite
def states(draw):
    """A state dict with odd tensors and names, whole or wrapped."""
    content = dict(state())
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(content, key=str)))
        operation = draw(st.sampled_from(("drop", "odd", "rename", "add", "layers")))
        if operation == "drop":
            del content[name]
        elif operation == "odd" and name in state() and state()[name].is_floating_point():
            content[name] = draw(st.sampled_from(_odd(state()[name])))
        elif operation == "rename":
            content[draw(st.sampled_from((f"module.{name}", f"_orig_mod.{name}", name * 20, 3, *NAMES)))] = content.pop(
                name
            )
        elif operation == "add":
            content[draw(st.sampled_from((f"{name}.x", "layer1.99999999.conv1.weight", *NAMES)))] = torch.zeros(2)
        else:
            content[name.replace("layer1.0", f"layer1.{draw(st.sampled_from((9, 10**6, 10**18, '-1')))}")] = content[
                name
            ]
    for key in draw(st.lists(st.sampled_from(("model", "state_dict", "net", "x", "blobs")), max_size=5)):
        content = {key: content, **draw(st.sampled_from(({}, {"epoch": 3}, {"args": argparse.Namespace(a=1)})))}
    return content


def _bytes(content, ending):
    """A file of this ending; a pickle where the format does not take the content."""
    try:
        if ending == ".safetensors":
            return save_safetensors(content)
        if ending == ".pkl":
            arrays = {key: value.numpy() for key, value in content.items()}
            if sum(array.nbytes for array in arrays.values()) > 2**26:  # an expanded view is written whole
                raise ValueError("too large")
            return python2(arrays) if len(content) % 2 else pickle.dumps(arrays)
        return saved(content)
    except Exception:  # what the writer refuses is no input of the reader
        return pickle.dumps({str(key): 1 for key in content})


@st.composite
def checkpoints(draw):
    """A checkpoint's name and bytes."""
    ending = draw(st.sampled_from(ENDINGS))
    form = draw(st.sampled_from(("state", "state", "structure", "bytes", "program")))
    if form == "program":
        return f"x{ending}", draw(st.sampled_from(PROGRAMS))
    if form == "structure":
        few = {key: state()[key] for key in sorted(state())[:4]}
        return f"x{ending}", saved(draw(changed({"model": few, "epoch": 1, "args": {"a": [1]}}, PLAIN)))
    content = _bytes(draw(states()), ending)
    return f"x{ending}", draw(damaged(content)) if form == "bytes" else content


def test_checkpoints(harness, fuzz):
    def run(case):
        (name, content), options = case
        command = ["convert", name, "out/o.safetensors", *options]
        harness.check({name: content, "classes.txt": b"a\nb\nc\n"}, command, ["info", name])

    options = st.sampled_from(
        ([], [], ["--name", "rescalenet18"], ["--classes", "classes.txt"], ["--option", "width=0.0625"])
    )
    fuzz(st.tuples(checkpoints(), options), run, FAST // 4)


MODEL = (FOLDER / "corpus/joint.model").read_bytes()
ARGS = {
    "arch": "transformer",
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_embed_dim": 8,
    "decoder_embed_dim": 8,
    "encoder_ffn_embed_dim": 16,
    "decoder_ffn_embed_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "share_all_embeddings": True,
    "max_source_positions": 20,
    "max_target_positions": 20,
}


@pytest.fixture(scope="module")
def fairseq(tmp_path_factory):
    """A checkpoint of fairseq and its dictionary, as the export writes them."""

    entry = zoo.get_weights(str(FOLDER / "weights/text.safetensors"))
    folder = tmp_path_factory.mktemp("fairseq") / "f"
    export_fairseq(entry, folder)
    checkpoint = next(folder.glob("*.pt"))
    return torch.load(checkpoint, weights_only=False), next(folder.glob("dict.*")).read_bytes()


@st.composite
def fairseq_files(draw, content, dictionary):
    """A checkpoint of fairseq, a dictionary and a sentencepiece model, of which one is changed."""
    files = {"c.pt": saved(content), "dict.txt": dictionary, "s.model": MODEL}
    name = draw(st.sampled_from(("c.pt", "c.pt", "c.pt", "dict.txt", "s.model")))
    if name != "c.pt":
        files[name] = draw(damaged(files[name]))
        return files
    form = draw(st.sampled_from(("structure", "structure", "bytes", "program", "keys")))
    if form == "structure":
        files[name] = saved(draw(changed(content, PLAIN)))
    elif form == "bytes":
        files[name] = draw(damaged(files[name]))
    elif form == "program":
        files[name] = draw(st.sampled_from(PROGRAMS))
    else:
        model = dict(content["model"])
        key = draw(st.sampled_from(sorted(model)))
        other = draw(
            st.sampled_from((key.replace(".0.", ".99999999."), key.replace(".0.", ".-1."), f"{key}.x", *NAMES))
        )
        model[other] = model[key]
        files[name] = saved({**content, "model": model})
    return files


def test_fairseq(harness, fuzz, fairseq):
    command = [
        *("convert-fairseq", "c.pt", "en-de", "out/o.safetensors", "--dictionary", "dict.txt"),
        *("--sentencepiece", "s.model"),
    ]

    def run(files):
        harness.check(files, command)

    fuzz(fairseq_files(*fairseq), run, FAST // 4)
