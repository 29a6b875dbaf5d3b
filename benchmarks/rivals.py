"""The nets that are measured against each other, by scheme: ours, torchvision's, timm's, and RescaleNet written out."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

import zoo
from zoo.joins import Join, RescaledJoin
from zoo.layers import BiasedConvNd
from zoo.nets.base import Backbone
from zoo.nets.residual import Block
from zoo.products import per_channel, pooled

# our name, torchvision's, timm's normalizer-free ResNet of the same layout
NETS = {
    "18": ("rescalenet18", "resnet18", None),
    "50": ("rescalenet50", "resnet50", "nf_resnet50"),
    "101": ("rescalenet101", "resnet101", "nf_resnet101"),
    "x50": ("rescalenext50_32x4d", "resnext50_32x4d", None),
}


class NaiveConv(nn.Module):
    """The bias added to the activations, then the convolution; scales are left to the join."""

    def __init__(self, layer: BiasedConvNd) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, scale: object = None) -> Tensor:
        layer = self.layer
        x = pooled(x, layer.pool)
        return layer._conv_forward(x + per_channel(layer.pre_bias, x), layer.weight, layer.bias)  # type: ignore[operator]


class NaiveJoin(Join):
    """alpha x + m/sqrt(c) F(x) on the activations, as the formula reads."""

    def __init__(self, join: RescaledJoin) -> None:
        super().__init__()
        self.alpha, self.scale, self.multiplier = join.alpha, join.scale, join.multiplier

    def forward(self, trunk: Tensor, branch: Tensor, projected: bool = False) -> Tensor:
        multiplier = 1.0 if self.multiplier is None else self.multiplier
        return self.alpha * trunk + multiplier * self.scale * branch


def naive(model: Backbone) -> nn.Module:
    """A copy of a RescaleNet that computes what the paper writes, operation by operation."""
    model = copy.deepcopy(model)
    model.trunk_scales = model.trunk_scales.unscaled()
    model.trunk_scales.apply(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, BiasedConvNd):
            model.set_submodule(name, NaiveConv(module))
        elif isinstance(module, Block) and isinstance(module.join, RescaledJoin):
            module.join = NaiveJoin(module.join)
    return model


def builders(net: str) -> dict[str, Callable[[], nn.Module]]:
    """Rival name -> how to build it; ``floor`` has the bare convolutions and no norm.

    ``floor`` has our average-pool shortcut, ``floor_conv`` torchvision's strided one.
    """
    ours, theirs, nf = NETS[net]
    made: dict[str, Callable[[], nn.Module]] = {
        "floor": functools.partial(zoo.create_model, ours, scheme="none"),
        "floor_conv": functools.partial(zoo.create_model, ours, scheme="none", shortcut="conv"),
        "rescale": functools.partial(zoo.create_model, ours),
        "naive": lambda: naive(zoo.create_model(ours)),
        "bn": functools.partial(torchvision.models.get_model, theirs),
        "frozen_bn": functools.partial(
            torchvision.models.get_model, theirs, norm_layer=torchvision.ops.FrozenBatchNorm2d
        ),
        "gn": functools.partial(torchvision.models.get_model, theirs, norm_layer=functools.partial(nn.GroupNorm, 32)),
    }
    if nf is not None:
        made["nf"] = functools.partial(_timm, nf)
    return made


def _timm(name: str) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise SystemExit(f"the rival {name} is timm's: pip install 'rescalenet-zoo[bench]'") from None
    return timm.create_model(name)


def build(net: str, rival: str) -> nn.Module:
    """A fresh net; the same seed for each."""
    torch.manual_seed(0)
    return builders(net)[rival]()
