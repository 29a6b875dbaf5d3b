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
