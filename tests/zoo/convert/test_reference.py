"""Checkpoints of the authors' code: logits of their nets, from the fixture."""

import json
import zlib

import numpy as np
import pytest
import torch

import zoo
from tests.helpers.paths import shared
from tests.helpers.reference import LAYOUTS

NAMES = {"rescale50": "rescalenet50", "rescaleX50_32x4d": "rescalenext50_32x4d", "vgg16": "rescalevgg16"}


def fill(key, shape):
    """The fixture's deterministic values."""
    if key.endswith("count"):
        return torch.tensor(8)
    r = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF).standard_normal(int(np.prod(shape))).reshape(shape)
    if key.endswith(("_bias", "init_mean", ".bias")):
        r *= 0.1
    elif key.endswith("_scale"):
        r = 1 + 0.1 * r
    else:
        r *= np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(r))


@pytest.fixture(scope="module")
def cases():
    content = json.loads(shared("fixtures", "reference_logits.json").read_text())
    return {case["model"]: case for case in content["cases"]}


@pytest.mark.parametrize("model", ["rescale50", "rescaleX50_32x4d", pytest.param("vgg16", marks=pytest.mark.slow)])
def test_logits_of_the_reference(model, cases):
    case, shapes = cases[model], LAYOUTS[model]()
    assert len(shapes) == case["state_dict_keys"]
    assert set(case["first_keys"]) | set(case["last_keys"]) <= shapes.keys()
    net = zoo.convert.from_reference({key: fill(key, shape) for key, shape in shapes.items()}, NAMES[model])
    assert sum(p.numel() for p in net.parameters()) == case["num_parameters"]
    x = torch.from_numpy(np.random.RandomState(0).standard_normal(case["input_shape"]))
    with torch.no_grad():
        logits = net.eval()(x)
    expected = torch.tensor(case["logits"], dtype=torch.float64)
    assert (logits - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert not zoo.calibrate(net, [x]).calibrated  # the checkpoint supplied every bias


def test_conversion_errors():
    state = {key: torch.zeros(shape) for key, shape in LAYOUTS["rescale50"]().items()}
    prefixed = {f"module.{key}": value for key, value in state.items()}
    assert zoo.convert.from_reference(prefixed, "rescalenet50").config.options == {"first_index": 0}
    with pytest.raises(zoo.WeightsError, match=r"addbias1.init_mean is missing"):
        zoo.convert.from_reference({k: v for k, v in state.items() if k != "addbias1.init_mean"}, "rescalenet50")
    with pytest.raises(zoo.WeightsError, match="keys are missing"):
        zoo.convert.from_reference({k: v for k, v in state.items() if k != "conv1.weight"}, "rescalenet50")
    with pytest.raises(zoo.WeightsError, match=r"unexpected keys, the first 'extra.weight'"):
        zoo.convert.from_reference({**state, "extra.weight": torch.zeros(1)}, "rescalenet50")
    with pytest.raises(zoo.WeightsError, match="bias of the last layer is missing"):
        zoo.convert.from_reference({k: v for k, v in state.items() if k != "fc.bias"}, "rescalenet50")
    with pytest.raises(zoo.WeightsError, match="has shape"):
        zoo.convert.from_reference(state, "rescalenext50_32x4d")


# -- checkpoints of other code -----------------------------------------------------------------------


def small_state():
    """A state dict of the authors' ResNet-50 with 2 classes."""
    state = {key: torch.zeros(shape) for key, shape in LAYOUTS["rescale50"]().items()}
    state["fc.weight"], state["fc.bias"] = torch.ones(2, 2048), torch.tensor([3.0, 4.0])
    return state


def test_wrappers_and_prefixes_are_removed():
    state = small_state()
    for content in (
        {"state_dict": state, "epoch": 3},
        {"model": {f"_orig_mod.module.{key}": value for key, value in state.items()}},
        {"model": {"state_dict": {f"module.{key}": value for key, value in state.items()}}},
    ):
        assert zoo.convert.from_reference(content, "rescalenet50").fc.bias.tolist() == [3, 4]


OWN = zoo.create_model("rescalenet20_cifar", width=0.25).state_dict()
OTHERS = {
    "a net of the zoo": (OWN, "those of a net of this zoo.*zoo.save_weights"),
    "the same, wrapped": ({"model": OWN}, "those of a net of this zoo"),
    "torchvision": ({"conv1.weight": torch.ones(1), "bn1.running_mean": torch.ones(1)}, "zoo.convert.from_batchnorm"),
    "BatchNorm of the zoo": (zoo.create_model("rescalenet18", scheme="bn").state_dict(), "zoo.convert.from_batchnorm"),
    "random": ({"b": torch.ones(1), "a": torch.ones(1)}, r"no key ends in \._bias or \.init_mean.*the first is 'a'"),
    "a list": ([1, 2], "contains a list; must contain a state dict"),
    "a tensor": (torch.ones(3), "contains a Tensor; must"),
    "nothing": ({}, "contains no tensors but nothing"),
    "numbers": ({"a": 1, "b": torch.ones(1)}, r"no key ends in \._bias.*the first is 'b'"),
    "other keys": ({1: torch.ones(1)}, "its tensors have no names"),
    "itself inside": ({"model": {"model": {"model": {"model": {"model": {}}}}}}, "contains no tensors but 'model'"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_checkpoints_are_refused(kind):
    content, message = OTHERS[kind]
    with pytest.raises(zoo.WeightsError, match=message) as caught:
        zoo.convert.from_reference(content, "rescalenet50")
    assert str(caught.value).startswith("reference checkpoint: ")
    assert len(str(caught.value).splitlines()) == 1


def test_no_key_of_another_net_is_taken_over():
    state = small_state()
    with pytest.raises(zoo.WeightsError, match=r"1 unexpected keys, the first 'stem.conv1.bias', for rescalenet50"):
        zoo.convert.from_reference({**state, "stem.conv1.bias": torch.ones(64)}, "rescalenet50")
    with pytest.raises(zoo.WeightsError, match="is not in the authors' code"):
        zoo.convert.from_reference(state, "rescale_r3d_18")
    with pytest.raises(zoo.WeightsError, match="layer1.0._scale has 2 values, must be one"):
        zoo.convert.from_reference({**state, "layer1.0._scale": torch.ones(2)}, "rescalenet50")
    with pytest.raises(zoo.WeightsError, match="addbias1 has _bias and init_mean of different shapes"):
        zoo.convert.from_reference({**state, "addbias1.init_mean": torch.ones(3)}, "rescalenet50")
