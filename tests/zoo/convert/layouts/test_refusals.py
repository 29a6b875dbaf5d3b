"""Checkpoints that no net of the zoo fits: each is refused with its reason."""

import re

import pytest
import torch
import torchvision

import zoo
from tests.helpers.foreign import narrow, torchvision_net
from zoo.convert import from_batchnorm
from zoo.convert.layouts import LAYOUTS


def timm_state(name, **options):
    """The state dict of timm's net, without values."""
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        return timm.create_model(name, **options).state_dict()


def read(state, name=None, **options):
    return next(layout for layout in LAYOUTS if layout.matches(state.keys())).read(state, name, options)


OF_TIMM = {
    "seresnet18": r"channel or spatial attention.*\(layer1.0.se.fc1.weight\)",
    "ecaresnet50d": r"channel or spatial attention.*\(layer1.0.se.conv.weight\)",
    "resnest14d": r"split or selective-kernel attention.*\(layer1.0.conv2.conv.weight\)",
    "skresnet18": r"split or selective-kernel attention.*\(layer1.0.conv1.paths.0.conv.weight\)",
    "res2net50_14w_8s": r"Res2Net blocks.*\(layer1.0.convs.0.weight\)",
    "resnetrs50": r"a convolution or blur pool in place of the stem's max pool \(maxpool.0.weight\)",
    "resnet50_gn": r"no running statistics \(GroupNorm or LayerNorm\)",
    "resnet50s": r"its deep stem has \[64, 64, 128\] channels; the zoo's has \[32, 32, 64\]",
    "resnet26t": r"its deep stem has \[24, 32, 64\] channels",
    "resnetv2_50": "its norms come before the convolutions",
    "resnetv2_50d_gn": "its norms come before the convolutions",
    "legacy_seresnet18": "squeeze-and-excitation",
    "test_resnet": r"basic blocks \(1, 1, 1, 1\), which no registered net is; register one",
    "vgg11_bn": "its hidden layers are convolutions.*convert torchvision's weights",
}


@pytest.mark.parametrize(("name", "reason"), OF_TIMM.items())
def test_nets_of_timm(name, reason):
    with pytest.raises(zoo.WeightsError, match=reason):
        read(timm_state(name))


def wide_shortcut():
    """A 3x3 convolution in a shortcut, as SENets have."""
    return timm_state("resnet50", down_kernel_size=3)


def without(*keys, name="resnet18"):
    with torch.device("meta"):
        state = torchvision_net(name).state_dict()
    for key in keys:
        del state[key]
    return state


def with_extra(key, shape, name="resnet18"):
    return without(name=name) | {key: torch.empty(shape, device="meta")}


CHANGED = {
    "shortcut": (wide_shortcut, {}, "its shortcut layer2.0.downsample.0.weight is no 1x1 convolution"),
    "stem": (lambda: with_extra("conv1.weight", (64, 3, 5, 5)), {}, "its stem is a 5x5 convolution; must be 7x7"),
    "missing": (lambda: without("layer2.0.bn1.bias"), {}, r"missing key 'layer2.0.bn1.bias', which rescalenet18"),
    "no bias": (lambda: without("fc.bias"), {}, "missing key 'fc.bias'"),
    "extra": (lambda: with_extra("aux.weight", (3, 3)), {}, "unexpected key 'aux.weight': rescalenet18.* has none"),
    "gap": (
        lambda: {k: v for k, v in without().items() if not k.startswith("layer2.0.")},
        {},
        "its blocks are not numbered layer1.0, layer1.1, ... without a gap",
    ),
    "shape": (
        lambda: with_extra("layer3.0.conv1.weight", (256, 64, 3, 3)),
        {},
        r"layer3.0.conv1.weight has shape \(256, 64, 3, 3\), in rescalenet18 .* it has \(256, 128, 3, 3\)",
    ),
    "name": (without, {"name": "rescalenet50"}, r"basic blocks \(2, 2, 2, 2\), which rescalenet50 is not"),
    "family": (without, {"name": "rescalevgg16"}, "which rescalevgg16 is not"),
    "width": (without, {"name": "rescalenet18", "width": 0.5}, "unexpected|has shape"),
    "shortcut option": (without, {"shortcut": "avgpool"}, "option shortcut='avgpool': it has 'conv'; leave it out"),
    "vgg depths": (
        lambda: without("features.3.weight", "features.3.bias", name="vgg11"),
        {},
        r"features.0 and features.6 are 6 modules apart; must be 2, or 3",
    ),
    "vgg name": (lambda: without(name="vgg11"), {"name": "rescalevgg16"}, "which rescalevgg16 is not"),
    "vgg head": (lambda: without("classifier.3.bias", name="vgg11"), {}, "missing key 'classifier.3.bias'"),
}


@pytest.mark.parametrize(("make", "options", "reason"), CHANGED.values(), ids=CHANGED)
def test_changed_checkpoints(make, options, reason):
    with pytest.raises(zoo.WeightsError, match=reason):
        read(make(), **{"name": None, **options})


@pytest.mark.parametrize("name", ["alexnet", "densenet121", "mobilenet_v2", "squeezenet1_0", "convnext_tiny"])
def test_other_nets_of_torchvision_match_no_layout(name):
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    with pytest.raises(zoo.WeightsError, match="not a known BatchNorm checkpoint"):
        from_batchnorm(state)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_any_tensor_that_is_missing_or_has_another_shape_is_refused(name):
    with torch.device("meta"):
        state = torchvision_net(name).state_dict()
        others = [torch.empty(()), torch.empty(3)]
    some = re.compile(r"(conv1|bn1|layer2\.0|fc|features\.[0-4]|classifier)\.(?!.*num_batches)")
    for key in filter(some.match, state):
        rest = {k: v for k, v in state.items() if k != key}
        for damaged in (rest, *(rest | {key: other} for other in others)):
            with pytest.raises(zoo.ZooError):
                from_batchnorm(damaged)


def test_old_checkpoints_without_counters_and_without_a_head():
    net = narrow(lambda: torchvision_net("resnet18"), 1 / 8)
    state = {key: value for key, value in net.state_dict().items() if "num_batches" not in key and "fc" not in key}
    imported = read(state)
    assert imported.config.num_classes == 0
    assert imported.state["stem.norm1.num_batches_tracked"] == 0
