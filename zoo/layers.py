"""Convolutions and linear layers with the bias before the product.

y = W (x + b) (docs/method.md, M7): b has one value per *input* channel. ``zoo.calibrate`` initialises it from data to
minus the channel mean of x (M8). All biases are 1-D parameters, so the usual rule "no weight decay for ndim <= 1"
applies.

Every forward is a pure function of parameters and input: it has no counters, and no buffer but ``InputGain``'s.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo._moved import moved_names
from zoo.calibration import HasDataBias, sum_dtype, with_count
from zoo.errors import ZooError
from zoo.products import Geometry, Scale, biased_linear, biased_product, per_channel, per_filter, pooled
from zoo.trunk import ModuleScales, OnTrunk

Size = int | tuple[int, ...]


def _weight_scale(out_channels: int) -> nn.Parameter:
    """Return the factor on each filter of a converted net, (O,). It does not train by default.

    A step of SGD on the factor of BatchNorm's gamma / sigma moves the output 1 / sigma times as far as the same step on
    gamma, in each channel by another factor (docs/convert.md).
    """
    return nn.Parameter(torch.ones(out_channels), requires_grad=False)


class BiasedConvNd(HasDataBias):
    """Base of BiasedConv2d and BiasedConv3d, which also derive from torch's convolutions."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    weight_scale: nn.Parameter | None
    takes_factor = True  # forward(x, factor), with the factor multiplied into the weight
    pool: tuple[int, ...] = ()  # size of the windows whose means are the input (``zoo.products.biased_product``)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        *,
        post_bias: bool = False,
        weight_scale: bool = False,
        biased_padding: bool = False,
    ) -> None:
        if isinstance(padding, str):
            raise ZooError(f"padding={padding!r}: must be a number or a tuple of numbers; give the zeros at each side")
        torch_args: tuple[Any, ...] = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        super().__init__(*torch_args, bias=post_bias)
        self.pre_bias = nn.Parameter(torch.zeros(in_channels))
        self.weight_scale = _weight_scale(out_channels) if weight_scale else None
        self.geometry = Geometry(self.stride, self.padding, self.dilation, groups, biased_padding)

    def forward(self, x: Tensor, scale: Scale = None) -> Tensor:
        """Return scale * (weight_scale * W pad(x + pre_bias) + bias); see ``zoo.products.biased_product``.

        With ``biased_padding`` it is pad(x) + pre_bias.
        """
        batch = x if x.ndim == self.weight.ndim else x[None]
        out = biased_product(
            batch,
            self.weight,
            self.pre_bias,
            self.bias,
            self.geometry,
            scale=scale,
            weight_scale=self.weight_scale,
            input_scale=self.input_scale,
            pool=self.pool,
        )
        return out if batch is x else out[0]

    def calibration_input(self, x: Tensor) -> Tensor:
        return super().calibration_input(pooled(x, self.pool))


class RepeatsFrames(nn.Module):
    """Mixin of 3D convolutions that can pad a clip in time by repeating its first and last frame instead of zeros."""

    repeated = 0  # frames at each end
    padding: Any

    def repeat_frames(self) -> None:
        """Pad in time by repeated frames from now on."""
        self.repeated = self.padding[0]
        self.padding = (0, *self.padding[1:])

    def lengthened(self, x: Tensor) -> Tensor:
        """Repeat the first and last frame: (N, C, T, H, W) -> (N, C, T + 2 repeated, H, W)."""
        ends = self.repeated
        return nn.functional.pad(x, (0, 0, 0, 0, ends, ends), mode="replicate") if ends else x

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(self.lengthened(input), weight, bias)  # type: ignore[misc]


class Conv3d(RepeatsFrames, nn.Conv3d):
    """torch.nn.Conv3d that can repeat frames at the ends of a clip."""


class BiasedConv2d(BiasedConvNd, nn.Conv2d):
    """2D convolution of x + b: (N, I, H, W) -> (N, O, H', W').

    Parameters: ``weight`` (O, I/groups, kH, kW), ``pre_bias`` (I,), ``bias`` (O,) if ``post_bias``, and the factor
    ``weight_scale`` (O,) on the filters if ``weight_scale``.
    Arguments as torch.nn.Conv2d's, the padding in numbers. Zero padding is put around x + b, as in the reference, or
    with ``biased_padding`` around x.

    Raises:
        ZooError: for string paddings.
    """


class BiasedConv3d(BiasedConvNd, RepeatsFrames, nn.Conv3d):
    """3D convolution of x + b: (N, I, T, H, W) -> (N, O, T', H', W'). Otherwise as BiasedConv2d.

    Backward keeps a copy of the clip with its repeated frames (``repeat_frames``).

    Raises:
        ZooError: for string paddings.
    """

    def repeat_frames(self) -> None:
        super().repeat_frames()
        self.geometry = self.geometry._replace(padding=self.padding)

    def forward(self, x: Tensor, scale: Scale = None) -> Tensor:
        return super().forward(self.lengthened(x), scale)


class BiasedLinear(HasDataBias, nn.Linear):
    """Linear layer of x + b over the last dimension: (..., I) -> (..., O).

    Parameters: ``weight`` (O, I), ``pre_bias`` (I,), and ``bias`` (O,) if ``post_bias``.
    """

    channel_dim = -1

    def __init__(self, in_features: int, out_features: int, *, post_bias: bool = True) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias=post_bias)
        self.pre_bias = nn.Parameter(torch.zeros(in_features))

    def forward(self, x: Tensor, scale: Scale = None) -> Tensor:
        """Return scale * (W (x + pre_bias) + bias); see ``zoo.products.biased_linear``."""
        return biased_linear(x, self.weight, self.pre_bias, self.bias, scale=scale, input_scale=self.input_scale)


class BiasedProjections(HasDataBias, nn.Linear):
    """Linear layers of the same input packed into one, each with a bias before it: (..., I) -> (..., sum of sizes).

    Parameters: ``weight`` (sum of sizes, I), ``pre_bias`` (number of sizes * I,), and ``bias`` if ``post_bias``.
    """

    channel_dim = -1

    def __init__(self, in_features: int, sizes: tuple[int, ...], *, post_bias: bool = True) -> None:
        nn.Linear.__init__(self, in_features, sum(sizes), bias=post_bias)
        self.pre_bias = nn.Parameter(torch.zeros(len(sizes) * in_features))
        self.sizes = sizes

    def forward(self, x: Tensor, scale: Scale = None) -> Tensor:
        """Return scale * (W_i (x + pre_bias_i) + bias_i) for each part i; see ``zoo.products.biased_linear``."""
        pre_bias = self.pre_bias.view(-1, self.in_features)
        return biased_linear(
            x, self.weight, pre_bias, self.bias, scale=scale, input_scale=self.input_scale, sections=self.sizes
        )

    @property
    def data_bias_channels(self) -> int:
        return self.in_features

    def calibrate_(self, means: Tensor) -> None:
        super().calibrate_(means.repeat(len(self.sizes)))


class FeatureBias(HasDataBias, OnTrunk):
    """x / input_scale + b over the last dimension, b (C,) initialised from data: (..., C) -> the same shape."""

    data_bias_name = "bias"
    channel_dim = -1

    def __init__(self, features: int, input_scale: float = 1.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(features))
        self.input_scale = input_scale

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.bias.to(x.dtype), x, alpha=1 / self.input_scale)

    def set_scales(self, scales: ModuleScales) -> None:
        self.input_scale = scales.scale_in

    def extra_repr(self) -> str:
        return str(self.bias.numel())


class StemConvNd(HasDataBias):
    """Base of StemConv2d and StemConv3d, which also derive from torch's convolutions."""

    output_scale = 1.0

    data_bias_name = "bias"
    weight: Any
    bias: Any
    weight_scale: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        *,
        weight_scale: bool = False,
    ) -> None:
        torch_args: tuple[Any, ...] = (in_channels, out_channels, kernel_size, stride, padding)
        super().__init__(*torch_args, bias=True)
        nn.init.zeros_(self.bias)
        self.weight_scale = _weight_scale(out_channels) if weight_scale else None

    def _kernel(self, scale: float) -> Tensor:
        """Return the weight times a number and the factor on each filter."""
        if self.weight_scale is None:
            return self.weight * scale
        return self.weight * per_filter(self.weight_scale * scale, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.output_scale
        if scale == 1 and self.weight_scale is None:
            return super().forward(x)
        return self._conv_forward(x, self._kernel(scale), self.bias * scale)  # type: ignore[operator]

    def calibration_input(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self._kernel(1.0), None)  # type: ignore[operator]


class StemConv2d(StemConvNd, nn.Conv2d):
    """Convolution whose ordinary ``bias`` (O,) is initialised from data: its output has zero channel means.

    The published net puts a bias between the stem convolution and its ReLU. As the bias of the convolution it costs no
    pass over the activations. The output is multiplied by ``output_scale``, the scale at which the trunk begins.
    ``weight_scale`` (O,), if there is one, multiplies the filters.
    """


class StemConv3d(StemConvNd, RepeatsFrames, nn.Conv3d):
    """StemConv2d for clips (N, I, T, H, W)."""


class ChannelBias(HasDataBias):
    """x + b with b (C,) initialised from data: (N, C, ...) -> the same shape."""

    data_bias_name = "bias"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + per_channel(self.bias, x)

    def extra_repr(self) -> str:
        return str(self.bias.numel())


class InputGain(HasDataBias):
    """1 / sqrt(E[x^2]) of a feature map x (docs/method.md, M15): x (N, C, ...) -> 0-D tensor.

    Calibration measures it once; training does not change it.

    The feature levels of a net without normalization differ by orders of magnitude in power at init. The layer that
    reads a level multiplies its *weights* by this gain: the level arrives with power 1, without a pass over the map.
    """

    data_bias_name = "gain"
    gain: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain

    def calibration_sums(self, x: Tensor) -> Tensor:
        return with_count(x.to(sum_dtype(x.device)).square().sum()[None], x.numel())

    def calibrate_(self, means: Tensor) -> None:
        if not means > 0:
            raise ZooError("calibrate: a feature level is zero everywhere, so it has no gain; calibrate on real inputs")
        self.gain.copy_(means[0].rsqrt())


class GainedConv(nn.Module):
    """A convolution of gain * x, with the gain in its weights: (N, C, h, w) -> (N, O, h', w').

    The gain multiplies the biases of a layer that takes a factor too, so that its output has the factor.

    Args:
        conv: 2D convolution without a norm or activation of its own: torch's, or one that takes a factor.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.gain = conv, InputGain()

    def forward(self, x: Tensor) -> Tensor:
        gain = self.gain(x)
        if getattr(self.conv, "takes_factor", False):
            return self.conv(x, gain)
        return self.conv._conv_forward(x, self.conv.weight * gain, self.conv.bias)


__getattr__ = moved_names(
    __name__,
    {
        "Calibrated": "zoo.calibration:HasDataBias",
        "ResidualAdd": "zoo.joins:InPlaceJoin",
        "RescaledAdd": "zoo.joins:RescaledJoin",
        "he_normal_": "zoo.method:he_normal_",
    },
)
