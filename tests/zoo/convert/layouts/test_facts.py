"""What modules show and keys do not: read where our nets can have it, refused with the reason where not."""

import pytest
import torch
import torchvision
from torch import nn

import zoo
from tests.helpers.foreign import disturb, narrow, our_outputs, outputs, relative_error, torchvision_net
from zoo.convert import from_batchnorm
from zoo.convert.layouts.facts import module_facts


def timm_net(name, **options):
    return pytest.importorskip("timm").create_model(name, **options)


def meta(make):
    with torch.device("meta"):
        return make()


def changed(place, module, name="resnet50"):
    """torchvision's net with one module replaced."""
    net = meta(lambda: torchvision_net(name))
    parent, _, leaf = place.rpartition(".")
    setattr(net.get_submodule(parent), leaf, module)
    return net


class Swapped(nn.BatchNorm2d):
    """A BatchNorm with a forward of its own."""

    def forward(self, x):
        return x


REFUSED = {
    "blur": (lambda: meta(lambda: timm_net("resnetblur18")), "layer2.0.aa is anti-aliasing"),
    "average": (lambda: meta(lambda: timm_net("resnetaa50")), "layer2.0.aa is anti-aliasing"),
    "pools": (
        lambda: meta(lambda: timm_net("resnet18", replace_stem_pool=True)),
        "maxpool is Sequential.*must be a 3x3",
    ),
    "se": (lambda: meta(lambda: timm_net("seresnet18")), "layer1.0.se.fc1 is part of channel or spatial attention"),
    "gn": (lambda: meta(lambda: timm_net("resnet50_gn")), "bn1 is a norm that depends on the input"),
    "dilated": (lambda: meta(lambda: timm_net("resnet50", output_stride=16)), "layer4.1.conv2 is dilated"),
    "activation": (lambda: meta(lambda: timm_net("resnet18", act_layer="silu")), "act1 is a SiLU"),
    "max": (lambda: meta(lambda: timm_net("resnet18", global_pool="max")), "global_pool is a max pool"),
    "leaky": (lambda: changed("relu", nn.LeakyReLU()), "relu is a LeakyReLU.*must be ReLU"),
    "no pool": (lambda: changed("maxpool", nn.Identity()), "maxpool is Identity.*must be a 3x3 max pool"),
    "ceil": (lambda: changed("maxpool", nn.MaxPool2d(3, 2, 1, ceil_mode=True)), "maxpool is a max pool of another"),
    "reflect": (
        lambda: changed("conv1", nn.Conv2d(3, 64, 7, 2, 3, bias=False, padding_mode="reflect")),
        "conv1 is padded by 'reflect'",
    ),
    "unpadded": (lambda: changed("layer1.0.conv2", nn.Conv2d(64, 64, 3)), "layer1.0.conv2 is padded by other than"),
    "stem": (lambda: changed("conv1", nn.Conv2d(3, 64, 7, 1, 3)), r"strides are \[1\]; must be 2 in its first"),
    "stage": (
        lambda: changed("layer1.1.conv2", nn.Conv2d(64, 64, 3, 2, 1)),
        r"layer1.1 has strides \[1, 2, 1\]; a net of the zoo has a stride of 1 there",
    ),
    "shortcut": (
        lambda: changed("layer2.0.downsample.0", nn.Conv2d(256, 512, 1)),
        r"layer2.0.downsample has strides \[1\]; must be 2",
    ),
    "mixed": (lambda: mixed(), "some bottlenecks have their stride in the 1x1, others in the 3x3"),
    "eps": (lambda: changed("bn1", nn.BatchNorm2d(64, eps=1e-3)), "bn1 has eps 0.001, .* 1e-05; .* one eps"),
    "dtype": (lambda: changed("fc", nn.Linear(2048, 10).half()), "parameters of float16 and float32"),
    "forward": (lambda: changed("bn1", Swapped(64)), "bn1 is a module whose forward is not known"),
    "statistics": (
        lambda: changed("bn1", nn.BatchNorm2d(64, track_running_stats=False)),
        "bn1 is a BatchNorm without running statistics",
    ),
    "affine": (lambda: changed("bn1", nn.BatchNorm2d(64, affine=False)), "bn1 is a BatchNorm without scale and bias"),
    "vgg order": (lambda: changed("features.1", nn.Identity(), "vgg11"), "must be convolutions, each with a ReLU"),
    "vgg stride": (lambda: changed("features.0", nn.Conv2d(3, 64, 3, 2, 1), "vgg11"), "must have stride 1"),
    "vgg pool": (lambda: changed("avgpool", nn.AdaptiveAvgPool2d(1), "vgg11"), "adaptive average pool to 7x7"),
    "vgg max pool": (lambda: changed("features.2", nn.MaxPool2d(3, 2, 1), "vgg11"), "max pools must be 2x2"),
    "vgg head": (lambda: changed("classifier.1", nn.Identity(), "vgg11"), "classifier has Linear, Linear"),
}


def mixed():
    net = changed("layer2.0.conv1", nn.Conv2d(256, 128, 1, 2))
    net.layer2[0].conv2.stride = (1, 1)
    return net


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_refusals(make, reason):
    with pytest.raises(zoo.WeightsError, match=reason) as caught:
        module_facts(make())
    assert "\n" not in str(caught.value)


def test_facts_of_plain_nets():
    assert module_facts(meta(lambda: torchvision_net("resnet50"))) == {"eps": 1e-5}
    assert module_facts(meta(lambda: torchvision_net("vgg11"))) == {}
    assert module_facts(meta(lambda: torchvision_net("vgg11_bn"))) == {"eps": 1e-5}
    assert module_facts(meta(lambda: torchvision.models.video.r2plus1d_18())) == {"eps": 1e-5}
    assert module_facts(meta(lambda: timm_net("resnet50d", drop_path_rate=0.1, drop_block_rate=0.1))) == {"eps": 1e-5}


def narrow_resnet50():
    return narrow(lambda: torchvision_net("resnet50"), 1 / 8)


def test_eps_of_the_module_is_used():
    net = narrow_resnet50()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1
    disturb(net)
    x = torch.randn(2, 3, 33, 49, dtype=torch.float64)
    for ours, theirs in zip(our_outputs(from_batchnorm(net), x), outputs(net, x), strict=True):
        assert relative_error(ours, theirs) <= 1e-10
    with torch.no_grad():  # a state dict has none: 1e-5 is assumed
        assert relative_error(from_batchnorm(net.state_dict())(x), net(x)) > 1e-3
        assert relative_error(from_batchnorm(net.state_dict(), eps=0.1)(x), net(x)) <= 1e-10
        assert relative_error(from_batchnorm(net, eps=1e-5)(x), net(x)) > 1e-3  # an eps that is given counts


def test_strides_in_the_1x1_are_found():
    """Caffe's and detectron2's placement: equal outputs at odd sizes."""
    net = narrow_resnet50()
    for stage in (net.layer2, net.layer3, net.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    disturb(net)
    converted = from_batchnorm(net)
    assert converted.config.options["stride_in_1x1"] is True
    x = torch.randn(2, 3, 65, 49, dtype=torch.float64)
    for ours, theirs in zip(our_outputs(converted, x), outputs(net, x), strict=True):
        assert relative_error(ours, theirs) <= 1e-10
    # the keys do not show it
    by_option = from_batchnorm(net.state_dict(), stride_in_1x1=True)
    assert torch.equal(by_option(x), converted(x))
    with pytest.raises(zoo.ZooError, match="stride_in_1x1=False: the net given has stride_in_1x1=True"):
        from_batchnorm(net, stride_in_1x1=False)


def test_a_small_stem_is_found():
    """A 3x3 convolution without stride or pool, as for CIFAR."""
    net = narrow(lambda: torchvision_net("resnet18"), 1 / 8)
    net.conv1, net.maxpool = nn.Conv2d(3, 8, 3, 1, 1, bias=False).double(), nn.Identity()
    disturb(net)
    x = torch.randn(2, 3, 17, 19, dtype=torch.float64)
    converted = from_batchnorm(net)
    assert converted.config.options["stem"] == "cifar"
    for ours, theirs in zip(our_outputs(converted, x), outputs(net, x), strict=True):
        assert relative_error(ours, theirs) <= 1e-10
    with pytest.raises(zoo.WeightsError, match="give stem='cifar'"):
        from_batchnorm(net.state_dict())
    assert torch.equal(from_batchnorm(net.state_dict(), stem="cifar")(x), converted(x))
