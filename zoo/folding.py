"""The deployment form of a net: plain convolutions, ReLUs and additions, with the same outputs.

docs/method.md derives it ("Deployment form"). ReLUs are positively homogeneous, so every constant and multiplier is
multiplied into a weight. The bias before an unpadded product becomes that product's own bias (M9). The bias b before a
padded product, whose zeros lie around x + b, moves into the ReLU that makes x: relu(z) + b = max(z + b, b) (M12), and
the convolution before that adds b to its bias. The map between the two is *shifted* by b. BatchNorm is folded into its
convolution, as usual.
"""

from __future__ import annotations

import copy
import logging
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from zoo.arguments import instance_of
from zoo.baseline_layers import ScalarBiasConvNd, ScaledConvNd
from zoo.errors import ZooError
from zoo.layers import BiasedConvNd, BiasedProjections, Conv3d, RepeatsFrames, StemConvNd
from zoo.nets.base import Net
from zoo.precision import precise, precise_factor
from zoo.products import folded_bias, of_filters, per_filter, product_bias
from zoo.trunk import ModuleScales, OnTrunk

log = logging.getLogger("rescalenet")

Model = TypeVar("Model", bound=nn.Module)
Shift = Tensor | None


def fold(model: Model) -> Model:
    """Return a copy of the model for inference, with every net of the zoo inside it in deployment form.

    Its outputs equal the model's at every input size up to rounding. The copy is in eval mode, its parameters do not
    train, and it has no dropout. GroupNorm and LayerNorm depend on the data and stay; the log reports their number.
    Folding a folded net gives a copy of it.

    Args:
        model: net of the zoo, feature extractor, or any module that contains one.

    Raises:
        ZooError: a model without a net of the zoo.
    """
    instance_of(model, "fold", nn.Module)
    model = copy.deepcopy(model).eval()
    bodies = [part for part in model.modules() if isinstance(part, Net)]
    if not bodies:
        raise ZooError(f"fold: this {type(model).__name__} contains no net of the zoo")
    for body in bodies:
        if not body.folded:
            with torch.no_grad():
                body.fold_()
            body.folded = True
            body.requires_grad_(False)
            for kind in (nn.GroupNorm, nn.LayerNorm):
                if kept := sum(isinstance(part, kind) for part in body.modules()):
                    log.info("fold: %d %s layers stay, they depend on the data", kept, kind.__name__)
    return model


class ChannelMax(nn.Module):
    """max(x, b_c) for each channel c, in place (M12): the ReLU of a map that is shifted by b (C,)."""

    floor: Tensor

    def __init__(self, floor: Tensor) -> None:
        super().__init__()
        self.register_buffer("floor", floor)

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp_min_(self.floor.view(-1, *[1] * (x.ndim - 2)))


class ShiftedReLU(nn.Module):
    """relu(x) + b_c for each channel c: the ``ChannelMax`` of x + b in two steps, which both exist in int8.

    Args:
        shift: b, (C,).
        depthwise: whether b is the bias of a depthwise 1x1 convolution with the weight 1, instead of an addend.
    """

    shift: Tensor
    ones: Tensor

    def __init__(self, shift: Tensor, *, depthwise: bool = False) -> None:
        super().__init__()
        self.depthwise = depthwise
        self.register_buffer("shift", shift)
        self.register_buffer("ones", torch.ones_like(shift))

    def forward(self, x: Tensor) -> Tensor:
        dims, x = x.ndim - 2, x.relu()
        if not self.depthwise:
            return x + self.shift.view(-1, *[1] * dims)
        convolve = nn.functional.conv2d if dims == 2 else nn.functional.conv3d
        return convolve(x, self.ones.view(-1, 1, *[1] * dims), self.shift, groups=len(self.shift))


def separate_shifts(model: Model, *, depthwise: bool = False) -> Model:
    """Return a copy of a folded model for int8, in which every ``ChannelMax`` is a ReLU and the shift after it.

    Its outputs equal the model's at every input size up to rounding. Runtimes fuse the ReLU into the convolution, and
    they have both ways of adding a shift in int8. A maximum with one value a channel they compute in float, between two
    quantised convolutions. In float32 ``ChannelMax`` takes less time.

    Args:
        model: result of ``fold``, or a module that contains one.
        depthwise: whether shifts are biases of depthwise 1x1 convolutions, instead of addends.
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        parts: list[Any] = list(model.modules())
        for part in parts:
            if hasattr(part, "separate_shifts_"):
                part.separate_shifts_(depthwise)
    return model


def separated(conv: nn.Module, act: nn.Module, depthwise: bool) -> nn.Module:
    """Return the activation with its shift apart, and take the shift out of the bias of the convolution before it."""
    if not isinstance(act, ChannelMax):
        return act
    if conv.bias is None:  # one that would be zero
        conv.bias = nn.Parameter(torch.zeros_like(act.floor), requires_grad=False)
    assert isinstance(conv.bias, Tensor)
    conv.bias -= act.floor
    return ShiftedReLU(act.floor, depthwise=depthwise)


class Unscale(OnTrunk):
    """From the stored trunk, scale * x + shift, to the feature map x (N, C, ...) of the formulas. The shift is (C,)."""

    minus_shift: Tensor | None  # an addition is quantised where a subtraction is not

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0
        self.register_buffer("minus_shift", None)

    def set_scales(self, scales: ModuleScales) -> None:
        self.scale = scales.scale_in

    def set_shift(self, shift: Shift, like: Tensor) -> None:
        """Subtract this shift from now on, in the dtype and on the device of ``like``."""
        self.minus_shift = None if shift is None else -shift.to(like)

    def forward(self, x: Tensor) -> Tensor:
        if self.minus_shift is not None:
            x = x + self.minus_shift.view(-1, *[1] * (x.ndim - 2))
        return x if self.scale == 1 else x / self.scale


def bias_before(layer: Any) -> Tensor | None:
    """Return the bias that a layer adds to its input, one value for each input channel: float64 (I,), or None."""
    pre_bias = getattr(layer, "pre_bias", None)
    if pre_bias is None:
        return None
    return (precise(pre_bias) * getattr(layer, "input_scale", 1.0)).expand(layer.in_channels)


def needed_shift(layer: Any) -> Shift:
    """Return the shift that the previous layer adds for this one, or None if W b is part of this layer's own bias."""
    return bias_before(layer) if _bias_varies(layer) else None


def _bias_varies(layer: Any) -> bool:
    """Return whether a shift of a layer's input adds more inside than at the borders, where it is not on the zeros.

    A padded convolution of torch has no bias before the product, but its input may be shifted.
    """
    return layer.geometry.bias_varies if isinstance(layer, BiasedConvNd) else any(layer.padding)


def folded_activation(act: nn.Module, shift: Shift, like: Tensor) -> nn.Module:
    """Return the activation whose output is shifted, in the dtype and on the device of ``like``.

    Raises:
        ZooError: a shift, and an activation other than ReLU.
    """
    if shift is None:
        return act
    if not isinstance(act, nn.ReLU):
        raise ZooError(
            f"fold: a bias before a padded convolution cannot move into {type(act).__name__}; it can into a ReLU"
        )
    return ChannelMax(shift.to(like))


def folded_conv(
    conv: nn.Module,
    norm: nn.Module,
    *,
    gain: float | Tensor = 1.0,
    input_gain: float = 1.0,
    input_shift: Shift = None,
    output_shift: Shift = None,
) -> tuple[nn.Conv2d | nn.Conv3d, nn.Module]:
    """Return a plain convolution that computes a convolution and the norm after it.

    Args:
        conv: ``nn.Conv2d``, ``nn.Conv3d`` or one of the zoo's.
        norm: module after the convolution. A BatchNorm is folded, any other stays.
        gain: factor on the output, or one per output channel, (O,).
        input_gain: factor on the input, before its shift.
        input_shift: shift of the input, (I,).
        output_shift: shift that the output gets, (O,).

    Returns:
        The plain convolution, and the norm that remains.

    Raises:
        ZooError: a padded convolution whose input is shifted but that has no bias before the product (or the reverse),
            or an output shift behind a norm that stays.
    """
    assert isinstance(conv, nn.Conv2d | nn.Conv3d)
    # 1. factors and biases of the convolution
    weight, bias = _product_and_bias(conv, gain, input_shift)  # float64 (O, I/groups, *kernel) and (O,)
    weight = weight * input_gain
    # 2. the norm after it
    if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d | FrozenBatchNorm2d):
        weight, bias = _with_batch_norm(weight, bias, norm)
        norm = nn.Identity()
    # 3. the shift for the next layer, which a norm in between would change
    if output_shift is not None:
        if not isinstance(norm, nn.Identity):
            raise ZooError(
                f"fold: a shift cannot pass {type(norm).__name__}; use a scheme without a norm in this place"
            )
        bias = bias + output_shift
    return _plain_conv(conv, weight, bias), norm


def _product_and_bias(conv: nn.Conv2d | nn.Conv3d, gain: float | Tensor, input_shift: Shift) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution with all its factors, for an input with this shift."""
    # factors: of the branch or shortcut, of the scaled trunk, of a stem
    gain = precise_factor(gain)
    weight = precise(conv.kernel() if isinstance(conv, ScaledConvNd) else conv.weight)
    weight = weight * of_filters(gain, weight)
    if (weight_scale := getattr(conv, "weight_scale", None)) is not None:
        weight = weight * per_filter(precise(weight_scale), weight)
    bias = weight.new_zeros(conv.out_channels)
    if conv.bias is not None:
        factor = 1.0 if isinstance(conv, ScalarBiasConvNd) else gain * getattr(conv, "input_scale", 1.0)
        bias += precise(conv.bias) * factor
    if isinstance(conv, StemConvNd):
        weight, bias = weight * conv.output_scale, bias * conv.output_scale
    # the bias before the product
    before = bias_before(conv)
    if _bias_varies(conv):
        if (input_shift is None) != (before is None):
            raise ZooError(
                "fold: the input of a padded convolution must be shifted by its bias before the product; a stem, or "
                "the layer after a module that no shift can pass, must have its bias after the product"
            )
        return weight, bias
    if any(conv.padding) and input_shift is not None:
        raise ZooError("fold: the input of a padded convolution with biased_padding must not be shifted")
    # M9: the product of what the input lacks, which is the bias before the product minus the shift it has
    missing = weight.new_zeros(conv.in_channels)
    if before is not None:
        missing += before
    if input_shift is not None:
        missing -= input_shift
    bias += product_bias(weight, missing, conv.groups)
    return weight, bias


def _with_batch_norm(weight: Tensor, bias: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution with the BatchNorm after it folded in."""
    mean, variance = (precise(norm.get_buffer(f"running_{name}")) for name in ("mean", "var"))
    scale: Any = norm.weight
    shift: Any = norm.bias
    factor = precise(scale) / (variance + norm.eps).sqrt()  # type: ignore[operator]
    return weight * factor.view(-1, *[1] * (weight.ndim - 1)), (bias - mean) * factor + precise(shift)


def _plain_conv(conv: nn.Conv2d | nn.Conv3d, weight: Tensor, bias: Tensor) -> nn.Conv2d | nn.Conv3d:
    """Return a plain convolution like ``conv`` with this weight and bias; no bias if it is 0.

    Geometry, dtype, device and memory format are those of ``conv``.
    """
    make: Any = nn.Conv2d if isinstance(conv, nn.Conv2d) else Conv3d
    plain = make(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        bias=bool(bias.any()) or conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    if isinstance(conv, RepeatsFrames):
        plain.repeated = conv.repeated
    layout = torch.channels_last if isinstance(conv, nn.Conv2d) else torch.channels_last_3d
    plain.weight.data = weight.to(conv.weight)
    if conv.weight.is_contiguous(memory_format=layout):
        plain.weight.data = plain.weight.data.contiguous(memory_format=layout)
    if plain.bias is not None:
        plain.bias.data = bias.to(conv.weight)
    return plain


def folded_linear(linear: nn.Module, *, gain: float | Tensor = 1.0, missing: Shift = None) -> nn.Module:
    """Return a plain linear layer that computes this one; return a module that is no linear layer as it is.

    Args:
        linear: linear layer, or the Identity of a net without a head.
        gain: factor on the output, or one per output channel, (O,).
        missing: bias (I,) that another module used to add to the input and no longer adds.
    """
    if not isinstance(linear, nn.Linear):
        return linear
    gain, weight = precise_factor(gain), precise(linear.weight)
    bias = weight.new_zeros(weight.shape[0]) if linear.bias is None else precise(linear.bias)
    # the bias before the product, at the scale of the input
    if isinstance(linear, BiasedProjections):
        pre_bias = precise(linear.pre_bias).view(-1, linear.in_features)
        bias = bias + folded_bias(weight, pre_bias, linear.sizes)
    elif (before := getattr(linear, "pre_bias", None)) is not None:
        bias = bias + weight @ precise(before).expand(linear.in_features)
    bias = bias * getattr(linear, "input_scale", 1.0)
    if missing is not None:
        bias = bias + weight @ missing
    plain = nn.Linear(linear.in_features, linear.out_features, device=linear.weight.device, dtype=linear.weight.dtype)
    plain.weight.data = (weight * of_filters(gain, weight)).to(linear.weight)
    plain.bias.data = (bias * gain).to(linear.weight)
    return plain
