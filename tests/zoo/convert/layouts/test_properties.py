"""Random small BatchNorm nets of timm's ResNet and torchvision's VGG class, converted: equal outputs and features."""

import contextlib

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.vgg import VGG as TorchvisionVGG
from torchvision.models.vgg import make_layers

from tests.helpers.foreign import disturb, narrow, our_outputs, outputs, relative_error
from zoo.convert import from_batchnorm
from zoo.convert.rescaled import FORMS
from zoo.nets.resnet import ResNet, ResNetConfig
from zoo.nets.vgg import VGG, VGGConfig
from zoo.specs import MODELS, ModelSpec, register_model

# an example costs half a second: no search for smaller ones
random_nets = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
other_nets = settings(random_nets, max_examples=100, derandomize=False)  # others in every run


@contextlib.contextmanager
def registered(family, layout):
    """The only registered net is one with this layout."""
    before = dict(MODELS)
    MODELS.clear()
    register_model(
        ModelSpec(name="random", family=family, layout=layout, num_classes=10, input_size=64, min_size=8, paper="")
    )
    try:
        yield
    finally:
        MODELS.clear()
        MODELS.update(before)


def agree(net, seed, size, form):
    """The converted net's outputs and features are the original's, in float64.

    Nets whose few channels are all off are left out, because their outputs do not depend on the input.
    """
    disturb(net, seed)
    x = torch.randn(2, net_channels(net), *size, dtype=torch.float64)
    x[1] = 2 * x[1] + 1
    with torch.no_grad():
        logits = net(x)
    assume((logits[0] - logits[1]).abs().max() > 1e-3 * logits.abs().max())
    right = outputs(net, x)
    assume(all(theirs.any() for theirs in right))
    for ours, theirs in zip(our_outputs(from_batchnorm(net, form=form), x), right, strict=True):
        assert relative_error(ours, theirs) <= 1e-10


def net_channels(net):
    return next(module.in_channels for module in net.modules() if isinstance(module, nn.Conv2d))


sizes = st.tuples(st.integers(33, 70), st.integers(33, 70))


of_resnets = given(
    bottleneck=st.booleans(),
    depths=st.lists(st.integers(1, 2), min_size=4, max_size=4),
    groups=st.sampled_from([1, 1, 2, 4]),
    wide=st.sampled_from([64, 128]),
    deep=st.booleans(),
    pooled=st.booleans(),
    in_1x1=st.booleans(),
    biased=st.booleans(),
    width=st.sampled_from([1 / 16, 1 / 8, 3 / 16]),
    size=sizes,
    seed=st.integers(0, 1000),
    form=st.sampled_from(FORMS),
)


def resnets_agree(bottleneck, depths, groups, wide, deep, pooled, in_1x1, biased, width, size, seed, form):
    models = pytest.importorskip("timm.models.resnet")
    block = models.Bottleneck if bottleneck else models.BasicBlock
    groups, per_group = (groups, wide // groups) if bottleneck else (1, 64)
    net = narrow(
        lambda: models.ResNet(
            block,
            depths,
            num_classes=10,
            cardinality=groups,
            base_width=per_group,
            stem_type="deep" if deep else "",
            stem_width=32 if deep else 64,
            avg_down=pooled,
        ),
        width,
        groups,
    )
    in_1x1 = in_1x1 and bottleneck
    for number in (2, 3, 4) if in_1x1 else ():
        first = net.get_submodule(f"layer{number}.0")
        first.conv1.stride, first.conv2.stride = (2, 2), (1, 1)
    for conv in [module for module in net.modules() if isinstance(module, nn.Conv2d)] if biased else ():
        conv.bias = nn.Parameter(torch.randn(conv.out_channels, dtype=torch.float64))
    kind = "bottleneck" if bottleneck else "basic"
    with registered(ResNet, ResNetConfig(kind, tuple(depths), groups=groups, width_per_group=per_group)):
        agree(net, seed, size, form)
        options = from_batchnorm(net).config.options
    assert options["shortcut"] == ("avgpool" if pooled else "conv")
    assert options.get("stem", "conv7") == ("deep" if deep else "conv7")
    assert options.get("stride_in_1x1", False) == in_1x1


test_resnets = random_nets(of_resnets(resnets_agree))
test_other_resnets = pytest.mark.slow(other_nets(of_resnets(resnets_agree)))


of_vggs = given(
    depths=st.lists(st.integers(1, 2), min_size=1, max_size=4),
    normalized=st.booleans(),
    biased=st.booleans(),
    width=st.sampled_from([1 / 32, 1 / 16]),
    size=sizes,
    seed=st.integers(0, 1000),
    form=st.sampled_from(FORMS),
)


def vggs_agree(depths, normalized, biased, width, size, seed, form):
    """With BatchNorm after convolutions with a bias or without, and without BatchNorm."""

    def make():
        plan = []
        for number, depth in enumerate(depths):
            plan += [*[64 * 2**number] * depth, "M"]
        net = TorchvisionVGG(make_layers(plan, batch_norm=normalized), 10, init_weights=False)
        net.classifier[0] = nn.Linear(plan[-2] * 49, 4096)
        return net

    net = narrow(make, width)
    for conv in [module for module in net.features if isinstance(module, nn.Conv2d)]:
        if normalized and not biased:
            conv.bias = None
        else:
            nn.init.normal_(conv.bias, std=0.3)
    with registered(VGG, VGGConfig(tuple(depths))):
        agree(net, seed, size, form)


test_vggs = random_nets(of_vggs(vggs_agree))
test_other_vggs = pytest.mark.slow(other_nets(of_vggs(vggs_agree)))
