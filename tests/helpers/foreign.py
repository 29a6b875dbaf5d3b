"""Nets of torchvision and timm, made narrow, with statistics that trained nets have and awkward ones."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

Claims = dict[str, tuple[str, dict[str, object]]]

# name of torchvision's or timm's net -> ours, and the options of our net besides the width
_B, _C, _D = {"shortcut": "conv"}, {"shortcut": "conv", "stem": "deep"}, {"shortcut": "avgpool", "stem": "deep"}
TORCHVISION: Claims = {
    **{f"resnet{depth}": (f"rescalenet{depth}", _B) for depth in (18, 34, 50, 101, 152)},
    **{f"resnext{size}": (f"rescalenext{size}", _B) for size in ("50_32x4d", "101_32x8d", "101_64x4d")},
    **{f"wide_resnet{depth}_2": (f"rescale_wide_resnet{depth}_2", _B) for depth in (50, 101)},
    **{f"vgg{depth}_bn": (f"rescalevgg{depth}", {"post_bias": True}) for depth in (11, 13, 16, 19)},
    **{f"vgg{depth}": (f"rescalevgg{depth}", {"post_bias": True}) for depth in (11, 13, 16, 19)},
}
TIMM: Claims = {
    **{f"resnet{depth}": (f"rescalenet{depth}", _B) for depth in (18, 26, 34, 50, 101, 152, 200)},
    **{f"resnet{depth}c": (f"rescalenet{depth}", _C) for depth in (50, 101, 152)},
    **{f"resnet{depth}d": (f"rescalenet{depth}", _D) for depth in (18, 26, 34, 50, 101, 152, 200)},
    **{f"resnext101_{size}d": (f"rescalenext101_{size}d", _B) for size in ("32x4", "32x8", "32x16", "32x32", "64x4")},
    **{f"wide_resnet{depth}_2": (f"rescale_wide_resnet{depth}_2", _B) for depth in (50, 101)},
    "resnext50_32x4d": ("rescalenext50_32x4d", _B),
    "resnext50d_32x4d": ("rescalenext50_32x4d", _D),
}


def torchvision_net(name: str) -> nn.Module:
    """A net of torchvision with 10 classes."""
    return torchvision.models.get_model(name, num_classes=10)


def narrow(
    make: Callable[[], nn.Module], width: float, groups: int = 1, dtype: torch.dtype = torch.float64
) -> nn.Module:
    """A net with a part of the channels, rounded as the zoo does; ``make`` gives it in full.

    The full net is made without memory; each of its layers is replaced by a narrow one.
    """
    with torch.device("meta"):
        net = make()
    classes = [m.out_features for m in net.modules() if isinstance(m, nn.Linear)][-1]

    def channels(count: int) -> int:
        return count if count in (3, classes) else max(1, round(count * width / groups)) * groups

    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d):
            fresh: nn.Module = nn.Conv2d(
                channels(module.in_channels),
                channels(module.out_channels),
                module.kernel_size,
                module.stride,
                module.padding,
                module.dilation,
                module.groups,
                module.bias is not None,
            )
        elif isinstance(module, nn.BatchNorm2d):
            fresh = nn.BatchNorm2d(channels(module.num_features), module.eps)
        elif isinstance(module, nn.Linear):
            fresh = nn.Linear(channels(module.in_features), channels(module.out_features))
        else:
            continue
        if fresh.weight.ndim > 1:
            nn.init.kaiming_normal_(fresh.weight)
        parent, _, leaf = name.rpartition(".")
        setattr(net.get_submodule(parent), leaf, fresh)
    return net.to(dtype)


def disturb(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm random statistics and scales, some of them awkward, and put the net into eval mode.

    In each norm: scales of both signs; some scales 0 or denormal (in float32); some variances 0 or denormal, with a
    small scale, as dead channels of trained nets have.
    """
    random = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            n = module.num_features

            def draw(low: float, high: float, n: int = n) -> Tensor:
                return torch.empty(n, dtype=torch.float64).uniform_(low, high, generator=random)

            weight = draw(0.3, 1.2) * (draw(-1, 3).sign())
            variance, kind = draw(0.3, 2.0), draw(0, 1)
            weight[kind < 0.1], weight[(kind > 0.1) & (kind < 0.15)] = 0.0, 1e-41
            dead = kind > 0.9
            variance[dead] = draw(0, 1).lt(0.5).double().mul(1e-41)[dead]
            weight[dead] *= 1e-3
            with torch.no_grad():
                module.weight.copy_(weight)
                module.bias.copy_(draw(-0.3, 0.5))
                module.running_mean.copy_(draw(-0.5, 0.5))
                module.running_var.copy_(variance)
                module.num_batches_tracked.fill_(7)
    return net.eval()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value."""
    assert ours.shape == theirs.shape
    assert theirs.isfinite().all()
    assert theirs.abs().max() > 0
    return float((ours - theirs).abs().max() / theirs.abs().max())


def outputs(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Logits of a ResNet or VGG, and its feature maps: of layer1, ..., or before each max pool and after the last."""
    pools = [i for i, module in enumerate(getattr(net, "features", [])) if isinstance(module, nn.MaxPool2d)]
    if pools:
        places = [f"features.{i - 1}" for i in pools] + [f"features.{pools[-1]}"]
    else:
        places = sorted(name for name, _ in net.named_children() if re.fullmatch(r"layer\d", name))
    maps: dict[str, Tensor] = {}
    hooks = [
        net.get_submodule(place).register_forward_hook(lambda _m, _i, out, place=place: maps.__setitem__(place, out))
        for place in places
    ]
    with torch.no_grad():
        logits = net(x)
    for hook in hooks:
        hook.remove()
    assert (logits[0] - logits[1]).abs().max() > 1e-3 * logits.abs().max()  # the input matters
    return [logits, *(maps[place] for place in places)]


def our_outputs(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The same of a net of the zoo."""
    levels = range(len(net.levels))[0 if "stage1" in dict(net.named_children()) else 1 :]
    with torch.no_grad():
        return [net(x), *net.forward_levels(x, tuple(levels))]
