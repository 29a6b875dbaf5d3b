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
from zoo.convert.layouts import LAYOUTS
from zoo.nets.base import ModelConfig
from zoo.registry import build_model
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


NAMES = [(torchvision_net, name, *ours) for name, ours in TORCHVISION.items()]
NAMES += [(timm_net, name, *ours) for name, ours in TIMM.items()]
claimed = pytest.mark.parametrize(
    ("make", "theirs", "ours", "options"), NAMES, ids=[f"{make.__name__[:-4]}-{name}" for make, name, *_ in NAMES]
)


def narrowing(ours):
    """A small width for one of our nets, and its groups: its first stage then still begins with a projection."""
    if "vgg" in ours:
        return 1 / 16, 1
    groups = get_spec(ours).layout.groups
    return {1: 1 / 8, 32: 1 / 4, 64: 1 / 2}[groups], groups


@claimed
def test_narrow_nets_are_equal(make, theirs, ours, options):
    """A narrow copy of the net, awkward statistics, an odd size: our net computes the same, to rounding."""
    width, groups = narrowing(ours)
    net = disturb(narrow(lambda: make(theirs), width, groups))
    imported = read(net.state_dict())
    scheme = "bn" if "resn" in theirs or "bn" in theirs else "none"
    assert imported.config == ModelConfig(ours, scheme, 10, 3, {**options, "width": width})
    x = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    for mine, original in zip(our_outputs(bn_net(imported), x), outputs(net, x), strict=True):
        assert relative_error(mine, original) <= 1e-12
