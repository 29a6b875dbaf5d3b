"""Layers of the schemes that RescaleNet is compared with: scalar biases (Fixup) and standardized weights (NF-ResNets).

All convolutions here take a factor on their output, ``layer(x, scale)``, which is multiplied into the weight: a branch
with a multiplier costs no pass over its activations.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers import Conv3d, RepeatsFrames
from zoo.products import Geometry, Scale, biased_product, per_filter

STANDARDIZATION_EPS = 1e-5  # added to the variance of a filter, as in timm's NF-ResNets
RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))  # 1 / std(relu(x)) for x ~ N(0, 1) (docs/method.md, M17)


class HasScalarBias(nn.Module):
    """Mixin of the modules with biases that are one number each, a parameter group of ``zoo.param_groups``."""

    def scalar_biases(self) -> dict[str, nn.Parameter]:
        """Return the scalar biases by name."""
        named: dict[str, Any] = {name: getattr(self, name, None) for name in ("pre_bias", "bias")}
        return {name: bias for name, bias in named.items() if bias is not None and bias.ndim == 0}


class ScaledConvNd(nn.Module):
    """Base of ScaledConv2d and ScaledConv3d, which also derive from torch's convolutions."""

    takes_factor = True
    weight: Tensor
    bias: Tensor | None

    def kernel(self) -> Tensor:
        """Return the filters that the product uses, (O, I/groups, *kernel)."""
        return self.weight

    def forward(self, x: Tensor, scale: Scale = None) -> Tensor:
        """Return scale * (W x + bias)."""
        kernel, bias = self.kernel(), self.bias
        if scale is not None:
            kernel, bias = kernel * scale, None if bias is None else bias * scale
        return self._conv_forward(x, kernel, bias)  # type: ignore[operator]


class ScaledConv2d(ScaledConvNd, nn.Conv2d):
    """torch.nn.Conv2d with a factor on the output: (N, I, H, W) -> (N, O, H', W')."""


class ScaledConv3d(ScaledConvNd, Conv3d):
    """torch.nn.Conv3d with a factor on the output, which can repeat frames: (N, I, T, H, W) -> (N, O, T', H', W')."""


class StandardizedConvNd(ScaledConvNd):
    """Base of StandardizedConv2d and StandardizedConv3d, which also derive from torch's convolutions."""

    gain: Tensor
    out_channels: int

    def __init__(self, *torch_args: Any, factor: float = 1.0, **torch_options: Any) -> None:
        super().__init__(*torch_args, **torch_options)
        self.gain = nn.Parameter(torch.ones(self.out_channels))
        self.factor = factor

    def kernel(self) -> Tensor:
        """Return gain * factor * (W - mean) / sqrt(fan_in (var + eps)), with mean and variance of each filter.

        The filter of a channel has mean 0 and the sum of squares (gain * factor)^2 (1 - eps / (var + eps)), so that
        uncorrelated inputs of variance v have an output of variance (gain * factor)^2 v (docs/method.md, M17; Brock et
        al. 2021, arXiv:2101.08692).
        """
        rows = self.weight.flatten(1)  # (O, fan_in)
        standardized = F.layer_norm(rows, rows.shape[1:], eps=STANDARDIZATION_EPS).view_as(self.weight)
        return standardized * per_filter(self.gain * (self.factor * rows.shape[1] ** -0.5), self.weight)


class StandardizedConv2d(StandardizedConvNd, nn.Conv2d):
    """2D convolution with scaled weight standardization and a learnable gain: (N, I, H, W) -> (N, O, H', W').

    Parameters: ``weight`` (O, I/groups, kH, kW), ``gain`` (O,), and ``bias`` (O,) if ``bias``. Arguments as
    torch.nn.Conv2d's; ``factor`` is the gain of the activation that makes the input, 1 for inputs that no activation
    makes.
    """


class StandardizedConv3d(StandardizedConvNd, Conv3d):
    """3D convolution with scaled weight standardization: (N, I, T, H, W) -> (N, O, T', H', W').

    Otherwise as StandardizedConv2d.
    """


class ScalarBiasConvNd(HasScalarBias):
    """Base of ScalarBiasConv2d and ScalarBiasConv3d, which also derive from torch's convolutions."""

    takes_factor = True
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    groups: int
    in_channels: int
    out_channels: int

    def __init__(self, *torch_args: Any, before: bool = True, after: bool = True, **torch_options: Any) -> None:
        super().__init__(*torch_args, bias=False, **torch_options)
        self.pre_bias = nn.Parameter(torch.zeros(())) if before else None
        if after:
            self.bias = nn.Parameter(torch.zeros(()))
        self.geometry = Geometry(self.stride, self.padding, self.dilation, self.groups)

    def forward(self, x: Tensor, scale: Scale = None) -> Tensor:
        """Return scale * W pad(x + pre_bias) + bias: the bias after the product is not multiplied."""
        weight = self.weight if scale is None else self.weight * scale
        bias = None if self.bias is None else self.bias.repeat(self.out_channels)
        if self.pre_bias is None:
            return self._conv_forward(x, weight, bias)  # type: ignore[operator]
        return biased_product(x, weight, self.pre_bias.repeat(self.in_channels), bias, self.geometry)


class ScalarBiasConv2d(ScalarBiasConvNd, nn.Conv2d):
    """2D convolution with one number before and one after it: (N, I, H, W) -> (N, O, H', W').

    Parameters: ``weight`` (O, I/groups, kH, kW), the numbers ``pre_bias`` if ``before`` and ``bias`` if ``after``.
    Arguments as torch.nn.Conv2d's. The zeros of the padding are put around x + pre_bias.
    """


class ScalarBiasConv3d(ScalarBiasConvNd, RepeatsFrames, nn.Conv3d):
    """3D convolution with one number before and one after it: (N, I, T, H, W) -> (N, O, T', H', W').

    Otherwise as ScalarBiasConv2d.
    """

    def repeat_frames(self) -> None:
        super().repeat_frames()
        self.geometry = self.geometry._replace(padding=self.padding)

    def forward(self, x: Tensor, scale: Scale = None) -> Tensor:
        # without a bias before it, the convolution of the base repeats the frames itself
        return super().forward(x if self.pre_bias is None else self.lengthened(x), scale)


class ScalarBiasLinear(HasScalarBias, nn.Linear):
    """Linear layer of x + b with one number b before it: (..., I) -> (..., O).

    Parameters: ``weight`` (O, I), ``bias`` (O,) and the number ``pre_bias``.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        nn.Linear.__init__(self, in_features, out_features)
        self.pre_bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.pre_bias)
