"""The schemes of nets for images and clips.

A vision scheme makes the convolutions and linear layers (with their init), the norm after a convolution, the
activation, and the join of trunk and branch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import nn

from zoo import layers, norms
from zoo.errors import ZooError
from zoo.joins import InPlaceJoin, Join, RescaledJoin
from zoo.method import coefficients, he_normal_, init_factor
from zoo.norms import FrozenBatchNorm2d, FrozenBatchNorm3d
from zoo.schemes.base import Growth, Place, Scheme, register_scheme

Extent = int | tuple[int, int, int]  # a kernel or stride: one number for images, (time, height, width) for clips


def dimensions(extent: Extent) -> int:
    """Return the number of dimensions that an extent covers: 2 for images, 3 for clips."""
    return 2 if isinstance(extent, int) else 3


def pointwise(stride: Extent) -> Extent:
    """Return the kernel of a 1x1 convolution with as many dimensions as a stride."""
    return 1 if dimensions(stride) == 2 else (1, 1, 1)


def half(kernel: Extent) -> Extent:
    """Return the padding that keeps the size."""
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)


def he(layer: Any, **settings: Any) -> nn.Module:
    """Initialize a layer: its weight by ``he_normal_``, its ordinary bias, if it has one, with zeros."""
    he_normal_(layer.weight, **settings)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True)
class VisionScheme(Scheme):
    """Plain convolutions with He init and no normalization: the base of the others, and ``none`` itself.

    Attributes:
        post_bias: whether each layer before a norm, ReLU or sum has an ordinary bias too, as folded BatchNorm nets
            require.
    """

    name: ClassVar[str] = "none"
    registered: ClassVar[dict[str, type[VisionScheme]]] = {}
    default_shortcut: ClassVar[str] = "avgpool"
    conv_mode: ClassVar[str] = "fan_in"

    post_bias: bool = False

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Extent,
        *,
        stride: Extent = 1,
        groups: int = 1,
        place: Place | None = None,
        mode: str | None = None,
    ) -> nn.Module:
        """Return a convolution, padded by kernel_size // 2, before a ReLU or at the end of a branch.

        Args:
            place: place of the branch that it belongs to; None outside of branches.
            mode: fan of its init (``he_normal_``); None for the scheme's own.
        """
        conv = self._make_conv(in_channels, out_channels, kernel_size, stride, groups)
        factor = 1.0 if place is None else self.branch_factor(place)
        return he(conv, mode=mode or self.conv_mode, factor=factor)

    def projection(self, in_channels: int, out_channels: int, *, stride: Extent = 1) -> nn.Module:
        """Return the 1x1 convolution of a shortcut, with gain 1 (Kaiming with a = 1), as no ReLU of its own follows."""
        conv = self._make_conv(in_channels, out_channels, pointwise(stride), stride, 1)
        return he(conv, gain=self.gain_of_projection())

    def gain_of_projection(self) -> float:
        """Return the gain of the shortcut's 1x1 at init."""
        return 1.0

    def linear_conv(self, in_channels: int, out_channels: int, kernel_size: Extent) -> nn.Module:
        """Return a convolution between maps that no ReLU made, with gain 1, as in a pyramid."""
        conv = self.conv(in_channels, out_channels, kernel_size)
        he_normal_(conv.weight, gain=1.0)  # type: ignore[arg-type]
        return conv

    def stem(self, in_channels: int, out_channels: int, kernel_size: Extent, *, stride: Extent = 1) -> nn.Module:
        """Return a convolution at the net's entrance, before a norm (if any) and a ReLU."""
        return self.conv(in_channels, out_channels, kernel_size, stride=stride)

    def later_stem(self, in_channels: int, out_channels: int, kernel_size: Extent, *, stride: Extent = 1) -> nn.Module:
        """Return a convolution at the net's entrance whose input is not the image but another one's activation."""
        return self.stem(in_channels, out_channels, kernel_size, stride=stride)

    def first_conv(self, in_channels: int, out_channels: int, kernel_size: int, *, mode: str) -> nn.Module:
        """Return the first convolution of a net without a stem of its own (VGG)."""
        return self.conv(in_channels, out_channels, kernel_size, mode=mode)

    def norm(self, channels: int, dims: int = 2) -> nn.Module:
        """Return the norm after a convolution of ``dims`` dimensions; an Identity in schemes without normalization."""
        return nn.Identity()

    def activation(self) -> nn.Module:
        """Return the activation after a convolution and its norm."""
        return nn.ReLU(inplace=True)

    def trunk_activation(self) -> nn.Module:
        """Return the activation of the trunk, after the entrance and after each sum; an Identity in other orders."""
        return self.activation()

    def final_activation(self) -> nn.Module:
        """Return the activation of the last feature map, before the head reads it."""
        return nn.Identity()

    @property
    def projects_always(self) -> bool:
        """Whether every block has a projection shortcut, not only those that change the size or the channels."""
        return False

    def join(self, place: Place, channels: int) -> Join:
        return InPlaceJoin()

    def finish_branch_(self, layers: list[Any]) -> None:
        """Change the init of a branch, given all of its convolutions in order."""

    def hidden_linear(self, in_features: int, out_features: int, *, first: bool) -> nn.Module:
        """Return a linear layer before a ReLU (VGG's classifier); ``first`` is the one that the features enter."""
        return he(nn.Linear(in_features, out_features))

    def classifier(self, in_features: int, out_features: int, *, pooled: bool) -> nn.Module:
        """Return the last linear layer; if ``pooled``, ``head_bias`` has shifted its input already."""
        return he(nn.Linear(in_features, out_features), gain=1.0)

    def head_bias(self, channels: int) -> nn.Module:
        """Return the module between the last feature map and the classifier: (N, C, ...) -> the same shape."""
        return nn.Identity()

    def branch_factor(self, place: Place) -> float:
        """Return the factor on the He standard deviation of a branch's layers (docs/method.md, M6)."""
        return 1.0

    def _make_conv(self, in_channels: int, out_channels: int, kernel: Extent, stride: Extent, groups: int) -> Any:
        make: Any = nn.Conv2d if dimensions(kernel) == 2 else layers.Conv3d
        return make(in_channels, out_channels, kernel, stride, half(kernel), groups=groups, bias=self.post_bias)


@dataclass(frozen=True)
class VisionRescale(VisionScheme):
    """RescaleNet: a bias before each product, rescaled residual connections, a learnable multiplier.

    Attributes:
        multiplier: whether each branch has the learnable scalar m_k (docs/method.md, M5); if not, beta_k is used (M2).
            With ``"channel"`` each output channel of the branch has an m_k of its own (1 at init), an addition.
        c: constant of the decay; None for the number of branches L, as published.
        first_index: k of the first branch: 1 as published, 0 as in the authors' code.
        projection_gain: gain of the shortcuts' 1x1 at init: 1 as published. A stage's first block then keeps
            0.13-0.23 of E[x^2]; with 2 it keeps 0.49-0.76 and trains faster (docs/training.md).
        weight_scale: whether each convolution has a factor per output channel on its weight, which does not train by
            default. Nets converted from BatchNorm checkpoints have gamma / sigma there (docs/convert.md).
        biased_padding: whether a bias before a padded convolution is added to the padding too; published is that the
            zeros are put around x + b. What the bias adds is then the same at all positions, as in BatchNorm nets.
    """

    name: ClassVar[str] = "rescale"
    trunk_growth: ClassVar[Growth] = "stays"
    residual_options: ClassVar[tuple[str, ...]] = ("multiplier", "c", "first_index", "projection_gain")

    multiplier: bool | Literal["channel"] = True
    c: float | None = None
    first_index: int = 1
    projection_gain: float = 1.0
    weight_scale: bool = False
    biased_padding: bool = False

    def __post_init__(self) -> None:
        if self.c is not None and not self.c > 0:
            raise ZooError(f"option c={self.c}: must be > 0")
        if self.first_index not in (0, 1):
            raise ZooError(
                f"option first_index={self.first_index}: must be 1 (as published) or 0 (as in the authors' code)"
            )
        if not self.projection_gain > 0:
            raise ZooError(f"option projection_gain={self.projection_gain}: must be > 0")

    def gain_of_projection(self) -> float:
        return self.projection_gain

    def stem(self, in_channels: int, out_channels: int, kernel_size: Extent, *, stride: Extent = 1) -> nn.Module:
        make: Any = layers.StemConv2d if dimensions(kernel_size) == 2 else layers.StemConv3d
        padding, scaled = half(kernel_size), self.weight_scale
        return he(make(in_channels, out_channels, kernel_size, stride, padding, weight_scale=scaled))

    def first_conv(self, in_channels: int, out_channels: int, kernel_size: int, *, mode: str) -> nn.Module:
        if self.weight_scale:
            return self.stem(in_channels, out_channels, kernel_size)
        return VisionScheme(self.post_bias).conv(in_channels, out_channels, kernel_size, mode=mode)

    def join(self, place: Place, channels: int) -> RescaledJoin:
        k, c = self._index_and_constant(place)
        alpha, beta = coefficients(k, c)
        per_channel = channels if self.multiplier == "channel" else None
        weight = 1 / math.sqrt(c) if self.multiplier else beta
        return RescaledJoin(alpha, weight, bool(self.multiplier), channels=per_channel)

    def hidden_linear(self, in_features: int, out_features: int, *, first: bool) -> nn.Module:
        # As published without an ordinary bias; the first one's input has been shifted by head_bias.
        linear = (
            nn.Linear(in_features, out_features, bias=self.post_bias)
            if first
            else layers.BiasedLinear(in_features, out_features, post_bias=self.post_bias)
        )
        return he(linear)

    def classifier(self, in_features: int, out_features: int, *, pooled: bool) -> nn.Module:
        linear = nn.Linear(in_features, out_features) if pooled else layers.BiasedLinear(in_features, out_features)
        return he(linear, gain=1.0)

    def head_bias(self, channels: int) -> nn.Module:
        return layers.ChannelBias(channels)

    def branch_factor(self, place: Place) -> float:
        return init_factor(*self._index_and_constant(place), place.layers) if self.multiplier else 1.0

    def _index_and_constant(self, place: Place) -> tuple[int, float]:
        """Return k and c of the formulas (docs/method.md, M2)."""
        return place.index - 1 + self.first_index, float(place.total if self.c is None else self.c)

    def _make_conv(self, in_channels: int, out_channels: int, kernel: Extent, stride: Extent, groups: int) -> Any:
        make: Any = layers.BiasedConv2d if dimensions(kernel) == 2 else layers.BiasedConv3d
        optional = {
            "post_bias": self.post_bias,
            "weight_scale": self.weight_scale,
            "biased_padding": self.biased_padding,
        }
        return make(in_channels, out_channels, kernel, stride, half(kernel), groups=groups, **optional)


class _Normalized(VisionScheme):
    """A normalization after each convolution: torchvision's layout and init."""

    normalized: ClassVar[bool] = True
    trunk_growth: ClassVar[Growth] = "grows"
    default_shortcut: ClassVar[str] = "conv"
    conv_mode: ClassVar[str] = "fan_out"

    def classifier(self, in_features: int, out_features: int, *, pooled: bool) -> nn.Module:
        return nn.Linear(in_features, out_features)


@dataclass(frozen=True)
class BatchNorm(_Normalized):
    """Batch normalization, the baseline (Ioffe and Szegedy 2015)."""

    name: ClassVar[str] = "bn"

    def norm(self, channels: int, dims: int = 2) -> nn.Module:
        return nn.BatchNorm2d(channels) if dims == 2 else nn.BatchNorm3d(channels)


@dataclass(frozen=True)
class FrozenBatchNorm(_Normalized):
    """Batch normalization with statistics and affine fixed at those of the weights: fine-tuning only."""

    name: ClassVar[str] = "frozen_bn"
    needs_weights: ClassVar[bool] = True

    def norm(self, channels: int, dims: int = 2) -> nn.Module:
        return FrozenBatchNorm2d(channels) if dims == 2 else FrozenBatchNorm3d(channels)


@dataclass(frozen=True)
class GroupNorm(_Normalized):
    """Group normalization (Wu and He 2018).

    Attributes:
        gn_groups: largest number of groups; a layer takes its greatest common divisor with the channels.
    """

    name: ClassVar[str] = "gn"

    gn_groups: int = 32

    def __post_init__(self) -> None:
        if self.gn_groups < 1:
            raise ZooError(f"option gn_groups={self.gn_groups}: must be >= 1")

    def norm(self, channels: int, dims: int = 2) -> nn.Module:
        return norms.GroupNorm(math.gcd(self.gn_groups, channels), channels)


for _cls in (VisionRescale, BatchNorm, FrozenBatchNorm, GroupNorm, VisionScheme):
    register_scheme(_cls)
VISION_SCHEMES: MappingProxyType[str, type[VisionScheme]] = MappingProxyType(VisionScheme.registered)
SCHEMES = VISION_SCHEMES  # name of version 0.1.0
