"""Image nets that are compared with each other: ours, those of torchvision and timm, and RescaleNet without fusions.

The keys of JSON results have their first names: "rival" is any net of a comparison, "floor" the net of bare
convolutions without normalization.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

import zoo
from zoo.convert import from_batchnorm
from zoo.joins import Join, RescaledJoin
from zoo.layers import BiasedConvNd
from zoo.nets.base import Backbone
from zoo.nets.residual import Block
from zoo.products import per_channel, pooled

# our name, torchvision's name, and timm's name of the normalizer-free ResNet of the same layout
NETS = {
    "18": ("rescalenet18", "resnet18", None),
    "50": ("rescalenet50", "resnet50", "nf_resnet50"),
    "101": ("rescalenet101", "resnet101", "nf_resnet101"),
    "x50": ("rescalenext50_32x4d", "resnext50_32x4d", None),
}


class NaiveConv(nn.Module):
    """A convolution with a bias that is added to the activations before it; the join applies the scales.

    Args:
        layer: convolution to replace.
    """

    def __init__(self, layer: BiasedConvNd) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, scale: object = None) -> Tensor:
        layer = self.layer
        x = pooled(x, layer.pool)  # (N, C, *sizes)
        return layer._conv_forward(x + per_channel(layer.pre_bias, x), layer.weight, layer.bias)  # type: ignore[operator]


class NaiveJoin(Join):
    """The formula alpha x + m/sqrt(c) F(x) on the activations, without fused operations.

    Args:
        join: join to replace.
    """

    def __init__(self, join: RescaledJoin) -> None:
        super().__init__()
        self.alpha, self.scale, self.multiplier = join.alpha, join.scale, join.multiplier

    def forward(self, trunk: Tensor, branch: Tensor, projected: bool = False) -> Tensor:
        multiplier = 1.0 if self.multiplier is None else self.multiplier
        return self.alpha * trunk + multiplier * self.scale * branch


def naive(model: Backbone) -> nn.Module:
    """Return a copy of a RescaleNet that computes the formulas of the paper one operation after the other."""
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
    """Return functions that build the nets by name.

    ``floor`` is the net of bare convolutions with our average-pool shortcut, ``floor_conv`` the same with torchvision's
    strided shortcut, as in ``rescale_conv`` and ``gained``, the form of converted BatchNorm nets.

    Args:
        net: key of ``NETS``.
    """
    ours, theirs, nf = NETS[net]
    made: dict[str, Callable[[], nn.Module]] = {
        "floor": functools.partial(zoo.create_model, ours, scheme="none"),
        "floor_conv": functools.partial(zoo.create_model, ours, scheme="none", shortcut="conv"),
        "rescale": functools.partial(zoo.create_model, ours),
        "rescale_conv": functools.partial(zoo.create_model, ours, shortcut="conv"),
        "gained": lambda: from_batchnorm(zoo.create_model(ours, scheme="bn")),
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
    """Return a net of timm, which is an optional package."""
    try:
        import timm
    except ImportError:
        raise SystemExit(f"{name} requires timm; pip install 'rescalenet-zoo[bench]'") from None
    return timm.create_model(name)


def build(net: str, variant: str) -> nn.Module:
    """Return a new net; all nets have the same seed.

    Args:
        net: key of ``NETS``.
        variant: key of ``builders``.
    """
    torch.manual_seed(0)
    return builders(net)[variant]()
