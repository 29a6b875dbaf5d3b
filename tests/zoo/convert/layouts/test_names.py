"""Nets of torchvision and timm, read into our nets: equal outputs and features for every name that is claimed."""

import pytest
import torch

import zoo
from tests.helpers.foreign import (
    TIMM,
    TORCHVISION,
    disturb,
    narrow,
    our_outputs,
    outputs,
    relative_error,
    torchvision_net,
)
from zoo.convert import from_batchnorm
from zoo.convert.layouts import LAYOUTS
from zoo.nets.base import ModelConfig
from zoo.registry import build_model
from zoo.sources import tables
from zoo.specs import get_spec
from zoo.states import load_state


def read(state, name=None, **options):
    """What the first layout that matches reads."""
    return next(layout for layout in LAYOUTS if layout.matches(state.keys())).read(state, name, options)


def bn_net(imported, dtype=torch.float64):
    """Our net of the same architecture as the checkpoint."""
    net = build_model(imported.config).to(dtype)
    load_state(net, imported.state, "test")
    return net.eval()


def timm_net(name):
    return pytest.importorskip("timm").create_model(name, num_classes=10)


SAME = [name for name in TIMM if TIMM[name] == TORCHVISION.get(name)]  # the same tensors in both
NAMES = [pytest.param(torchvision_net, name, *ours, id=f"torchvision-{name}") for name, ours in TORCHVISION.items()]
NAMES += [
    pytest.param(timm_net, name, *ours, id=f"timm-{name}", marks=[pytest.mark.slow] if name in SAME else [])
    for name, ours in TIMM.items()
]
claimed = pytest.mark.parametrize(("make", "theirs", "ours", "options"), NAMES)


@pytest.mark.parametrize(("table", "claims"), [(tables.TORCHVISION, TORCHVISION), (tables.TIMM, TIMM)])
def test_weights_by_name_are_of_claimed_nets(table, claims):
    images = {ours: theirs for ours, theirs in table.items() if zoo.model_info(ours).input_kind == "images"}
    assert {theirs: ours for ours, row in images.items() for theirs in row}.items() <= {
        theirs: ours for theirs, (ours, _) in claims.items()
    }.items()
    without_weights = {"resnet200"}  # timm publishes none
    assert {theirs for row in images.values() for theirs in row} == claims.keys() - without_weights


@pytest.mark.parametrize("name", SAME)
def test_plain_nets_of_timm_have_the_tensors_of_torchvision(name):
    with torch.device("meta"):
        states = [timm_net(name).state_dict(), torchvision_net(name).state_dict()]
    assert len({tuple((key, value.shape) for key, value in state.items()) for state in states}) == 1


def agree(ours, theirs, tolerance):
    """Logits and feature maps are equal up to this part of each tensor's largest value."""
    for mine, original in zip(ours, theirs, strict=True):
        assert relative_error(mine, original) <= tolerance


def images(height, width):
    """Two random images of different contrast and brightness."""
    return torch.stack([torch.randn(3, height, width), 2 * torch.randn(3, height, width) + 1])


def narrowing(ours):
    """A small width for one of our nets, and its groups: its first stage then still begins with a projection."""
    if "vgg" in ours:
        return 1 / 16, 1
    groups = get_spec(ours).layout.groups
    return {1: 1 / 8, 32: 3 / 16, 64: 3 / 8}[groups], groups


@claimed
def test_narrow_nets_are_equal(make, theirs, ours, options):
    """A narrow copy of the net, awkward statistics, an odd size: our net computes the same, to rounding."""
    width, groups = narrowing(ours)
    net = disturb(narrow(lambda: make(theirs), width, groups))
    imported = read(net.state_dict())
    scheme = "bn" if "resn" in theirs or "bn" in theirs else "none"
    assert imported.config == ModelConfig(ours, scheme, 10, 3, {**options, "width": width})
    x = images(33, 49).double()
    expected = outputs(net, x)
    agree(our_outputs(bn_net(imported), x), expected, 1e-12)
    agree(our_outputs(from_batchnorm(net), x), expected, 1e-10)
    if make is torchvision_net:
        single = from_batchnorm(net.float())
        agree([y.double() for y in our_outputs(single, x.float())], expected, 3e-6)


@pytest.mark.slow
@claimed
def test_full_nets_are_equal(make, theirs, ours, options):
    net = disturb(make(theirs))
    x = images(65, 97)
    expected = outputs(net, x)
    converted = from_batchnorm(net)
    assert converted.config.name == ours
    assert options.items() <= converted.config.options.items()
    del net
    agree(our_outputs(converted, x), expected, 3e-6)
