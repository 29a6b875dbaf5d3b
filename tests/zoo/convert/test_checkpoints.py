import collections
import logging
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import zoo.convert.unwrapping as unwrapping
from tests.helpers.pickles import python2
from zoo import WeightsError
from zoo.convert.checkpoints import read_checkpoint

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "norm.num_batches_tracked": torch.tensor(7)}


def same(found, expected=STATE):
    return list(found) == list(expected) and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("wrapper", [*unwrapping.WRAPPERS, None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("kind", ["pth", "pyth", "old", "pkl"])
def test_wrappers_and_prefixes(tmp_path, wrapper, prefix, kind):
    state = collections.OrderedDict((prefix + key, value) for key, value in STATE.items())
    extra = {"epoch": 3, "optimizer_state": {"state": {}, "param_groups": []}, "cfg": "NUM_GPUS: 8"}
    path = tmp_path / f"net.{'pth' if kind == 'old' else kind}"
    if kind == "pkl":
        state = {key: value.numpy() for key, value in state.items()}
    content = state if wrapper is None else {wrapper: state, **extra}
    if kind == "pkl":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind != "old")
    assert same(read_checkpoint(path))


def test_safetensors(tmp_path):
    save_file({f"module.{key}": value for key, value in STATE.items()}, tmp_path / "net.safetensors")
    assert same(read_checkpoint(tmp_path / "net.safetensors"), dict(sorted(STATE.items())))


def test_a_pkl_that_torch_wrote(tmp_path):
    torch.save({"model": STATE}, tmp_path / "net.pkl")
    assert same(read_checkpoint(tmp_path / "net.pkl"))


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"model": STATE}},
        {"state_dict": STATE, "best_acc1": torch.tensor(76.0)},  # PyTorch's ImageNet example
        {"net": STATE, "acc": torch.tensor(93.0), "epoch": 3},
        {"model": {"name": "resnet"}, "state_dict": STATE},
        {"model": STATE, "net": {"name": "resnet"}},
    ],
)
def test_what_is_beside_the_state_dict_does_not_matter(content):
    assert same(unwrapping.state_inside(content, "checkpoint"))


def test_caffe2(tmp_path, caplog):
    """Momentum is left out, and said so; the arrays of Python 2 may be written to."""
    blobs = {"conv1_w": np.ones((2, 3), "f4"), "conv1_w_momentum": np.ones((2, 3), "f4"), "lr": np.array(0.1)}
    (tmp_path / "net.pkl").write_bytes(python2(blobs, "blobs"))
    with caplog.at_level(logging.INFO, "rescalenet"):
        found = read_checkpoint(tmp_path / "net.pkl")
    assert list(found) == ["conv1_w", "lr"]
    assert found["conv1_w"].dtype == torch.float32
    assert caplog.messages == [f"{tmp_path / 'net.pkl'}: 1 entries are not weights and were left out"]
    found["conv1_w"].mul_(2)


def test_half_a_prefix_stays(tmp_path):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(state, tmp_path / "net.pth")
    assert list(read_checkpoint(tmp_path / "net.pth")) == ["module.a", "b"]


def test_a_checkpoint_that_contains_itself():
    content = dict(STATE)
    content["model"] = content
    assert same(unwrapping.state_inside(content, "checkpoint"))
    empty = {}
    empty.update(dict.fromkeys(unwrapping.WRAPPERS, empty))
    with pytest.raises(WeightsError, match="contains no tensors"):
        unwrapping.state_inside(empty, "checkpoint")


@pytest.mark.parametrize("array", [np.array(["x"]), np.ones(3)[::-1], np.ones(3, ">f4")])
def test_arrays_that_are_no_tensors(array):
    with pytest.raises(WeightsError, match="checkpoint: a is an array that is no tensor"):
        unwrapping.state_inside({"a": array}, "checkpoint")


class Runs:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (exec, (f"open({str(self.canary)!r}, 'w')",))


@pytest.mark.parametrize("new", [True, False])
def test_nothing_is_executed(tmp_path, new):
    canary, path = tmp_path / "canary", tmp_path / "net.pth"
    torch.save({"model": STATE, "x": Runs(canary)}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(WeightsError, match=r"net.pth: .*exec") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not canary.exists()


def expanded():
    return torch.ones(1).expand(10**12)


REFUSED = {
    "contains no tensors but 'epoch', 'ema'": {"epoch": 3, "ema": {"name": "resnet"}},
    "contains no tensors but 'epoch', 'model'": {"epoch": 3, "model": {"name": "resnet"}},
    "contains no tensors but nothing": {},
    "contains a list": [torch.ones(1)],
    "contains a Tensor": torch.ones(1),
    "contains model and state_dict": {"model": STATE, "state_dict": STATE},
    "a is a torch.sparse_coo": {"a": torch.eye(2).to_sparse()},
    "a is a torch.strided tensor on meta": {"a": torch.ones(2, device="meta")},
    "a of shape (1000000000000,) is complex or has fewer": {"a": expanded()},
    "a of shape (2,) is complex": {"a": torch.ones(2, dtype=torch.complex64)},
    "has more than 300 printable": {"a" * 301: torch.ones(1)},
    "has more than 300 printable ": {"a\x1b[31m": torch.ones(1)},
    "contains torch.nn.modules.linear.Linear": nn.Linear(2, 2),
}


@pytest.mark.parametrize(("reason", "content"), REFUSED.items(), ids=REFUSED)
def test_what_contains_no_state_dict(tmp_path, reason, content):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(tmp_path / "net.pth")
    assert reason.strip() in str(caught.value)
    assert str(tmp_path / "net.pth") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(unwrapping, "MOST_TENSORS", 1)
    torch.save(STATE, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="has 2 entries; a state dict may have 1"):
        read_checkpoint(tmp_path / "net.pth")


@pytest.mark.parametrize("suffix", ["pth", "pkl", "safetensors", "tar"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"PK\x03\x04" + bytes(50)])
def test_damaged_files(tmp_path, suffix, content):
    path = tmp_path / f"net.{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"net.{suffix}: not a") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        read_checkpoint(tmp_path / "net.pth")


def test_a_truncated_file(tmp_path):
    path = tmp_path / "net.pth"
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="net.pth: not a checkpoint that can be read safely"):
        read_checkpoint(path)
