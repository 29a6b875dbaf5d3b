"""Checkpoints of the authors' code: logits of their nets, from the fixture."""

import json
import zlib

import numpy as np
import pytest
import torch
from conftest import shared

import zoo

NAMES = {"rescale50": "rescalenet50", "rescaleX50_32x4d": "rescalenext50_32x4d", "vgg16": "rescalevgg16"}


def resnet_layout(depths, groups, width_per_group, classes):
    """Shapes of the reference's state dict, written from the fixture's description and not from our nets."""
    shapes = {"conv1.weight": (64, 3, 7, 7), **bias("addbias1", (1, 64, 1, 1))}
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        inner = width * width_per_group // 64 * groups
        for i in range(depth):
            block = f"layer{stage + 1}.{i}"
            shapes[f"{block}._scale"] = (1,)
            shapes[f"{block}.conv1.weight"] = (inner, channels, 1, 1)
            shapes[f"{block}.conv2.weight"] = (inner, inner // groups, 3, 3)
            shapes[f"{block}.conv3.weight"] = (4 * width, inner, 1, 1)
            for n, c in ((1, channels), (2, inner), (3, inner)):
                shapes |= bias(f"{block}.addbias{n}", (1, c, 1, 1))
            if i == 0:
                shapes |= bias(f"{block}.downsample.1", (1, channels, 1, 1))
                shapes[f"{block}.downsample.2.weight"] = (4 * width, channels, 1, 1)
            channels = 4 * width
    return {**shapes, **bias("addbias2", (1, channels, 1, 1)), "fc.weight": (classes, channels), "fc.bias": (classes,)}


def bias(name, shape):
    return {f"{name}._bias": shape, f"{name}.count": (), f"{name}.init_mean": shape}


def vgg_layout(plan, classes):
    shapes, position, channels = {}, 0, 3
    for step in plan:
        if step == "pool":
            position += 1
            continue
        if position:
            shapes |= bias(f"features.{position}", (1, channels, 1, 1))
            position += 1
        shapes[f"features.{position}.weight"] = (step, channels, 3, 3)
        position, channels = position + 2, step
    shapes |= bias(f"features.{position}", (1, channels, 1, 1))
    shapes |= {"classifier.0.weight": (4096, 25088), **bias("classifier.3", (1, 4096))}
    shapes |= {"classifier.4.weight": (4096, 4096), **bias("classifier.7", (1, 4096))}
    return {**shapes, "classifier.8.weight": (classes, 4096), "classifier.8.bias": (classes,)}


VGG16 = [64, 64, "pool", 128, 128, "pool"] + [256] * 3 + ["pool"] + [512] * 3 + ["pool"] + [512] * 3 + ["pool"]
LAYOUTS = {
    "rescale50": lambda: resnet_layout((3, 4, 6, 3), 1, 64, 10),
    "rescaleX50_32x4d": lambda: resnet_layout((3, 4, 6, 3), 32, 4, 10),
    "vgg16": lambda: vgg_layout(VGG16, 10),
}


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
