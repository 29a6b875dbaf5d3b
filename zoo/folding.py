"""The deployment form of a net: plain convolutions, ReLUs and additions, with the same outputs.

METHOD of RescaleNet gives it for free: ReLUs are positively homogeneous, so every constant and multiplier goes into
a weight; the bias before an unpadded product becomes that product's own bias. The bias b before a padded product,
whose zeros go around x + b, moves into the ReLU that makes x: relu(z) + b = max(z + b, b), with z + b from the
bias of the convolution before. BatchNorm goes into its convolution, as usual.
"""

from __future__ import annotations

import copy
import logging
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from zoo.errors import ZooError
from zoo.layers import BiasedLinear, BiasedProjections, Conv3d, _BiasedConvNd, _RepeatsFrames, _StemConvNd
from zoo.nets.base import Net
from zoo.products import folded_bias, product_bias

log = logging.getLogger("rescalenet")

Model = TypeVar("Model", bound=nn.Module)
Shift = Tensor | None


def fold(model: Model) -> Model:
    """A copy of the model for inference, with every net of the zoo inside it in deployment form.

    Equal outputs at every input size up to rounding, in eval mode, without gradients: its parameters do not train, and
    its dropout is gone. GroupNorm and LayerNorm depend on the data and stay; the log says how many did. A folded net is
    folded once: folding it again gives a copy.

    Args:
        model: a net of the zoo, a feature extractor, or any module that holds some.

    Raises:
        ZooError: there is no net of the zoo in it.
    """
    model = copy.deepcopy(model).eval()
    bodies = [module for module in model.modules() if isinstance(module, Net)]
    if not bodies:
        raise ZooError(f"fold: there is no net of the zoo in this {type(model).__name__}")
    for body in bodies:
        if not body.folded:
            with torch.no_grad():
                body.fold_()
            body.folded = True
            body.requires_grad_(False)
            for kind in (nn.GroupNorm, nn.LayerNorm):
                if kept := sum(isinstance(module, kind) for module in body.modules()):
                    log.info("fold: %d %s layers stay, they depend on the data", kept, kind.__name__)
    return model


class ChannelMax(nn.Module):
    """max(x, floor_c) for each channel c, in place: the ReLU of a map that is shifted by ``floor`` (C,)."""

    floor: Tensor

    def __init__(self, floor: Tensor) -> None:
        super().__init__()
        self.register_buffer("floor", floor)

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp_min_(self.floor.view(-1, *[1] * (x.ndim - 2)))


class Unscale(nn.Module):
    """The nominal feature map (N, C, ...) of one that the net holds as scale * x + shift (C,)."""

    shift: Tensor | None

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("shift", None)

    def hold(self, shift: Shift, like: Tensor) -> None:
        """Let the map that comes be shifted."""
        self.shift = None if shift is None else shift.to(like)

    def forward(self, x: Tensor) -> Tensor:
        if self.shift is not None:
            x = x - self.shift.view(-1, *[1] * (x.ndim - 2))
        return x if self.scale == 1 else x / self.scale


def needed_shift(layer: nn.Module) -> Shift:
    """What must have been added to a layer's input when it arrives: float64 (I,), or None."""
    if isinstance(layer, _BiasedConvNd) and any(layer.padding):
        return layer.pre_bias.double() * layer.input_scale
    return None


def activation(shift: Shift, like: Tensor) -> nn.Module:
    """The ReLU whose output is shifted."""
    return nn.ReLU(inplace=True) if shift is None else ChannelMax(shift.to(like))


def folded_conv(
    conv: nn.Module,
    norm: nn.Module,
    *,
    gain: float | Tensor = 1.0,
    input_shift: Shift = None,
    output_shift: Shift = None,
) -> tuple[nn.Conv2d | nn.Conv3d, nn.Module]:
    """A convolution with what follows it, and with all that can be folded in it.

    Args:
        conv: ``nn.Conv2d``, ``nn.Conv3d`` or one of ours.
        norm: what follows: a BatchNorm, which is folded, or something that stays.
        gain: factor on the output.
        input_shift: shift of the input that arrives, (I,).
        output_shift: shift that the output shall have, (O,).

    Returns:
        The plain convolution, and what is left of the norm.

    Raises:
        ZooError: a shift that a padded convolution does not want, or one that would have to go through a norm.
    """
    assert isinstance(conv, nn.Conv2d | nn.Conv3d)
    weight = conv.weight.double() * gain
    beta = weight.new_zeros(weight.shape[0])
    if conv.bias is not None:
        beta += conv.bias.double() * gain * getattr(conv, "input_scale", 1.0)
    if isinstance(conv, _StemConvNd):
        weight, beta = weight * conv.output_scale, beta * conv.output_scale
    unpadded = not any(conv.padding)
    if unpadded:
        missing = weight.new_zeros(conv.in_channels)
        if isinstance(conv, _BiasedConvNd):
            missing += conv.pre_bias.double() * conv.input_scale
        if input_shift is not None:
            missing -= input_shift
        beta += product_bias(weight, missing, conv.groups)
    elif input_shift is not None and not isinstance(conv, _BiasedConvNd):
        raise ZooError("fold: a shifted map arrives at a padded convolution without a bias before it")
    if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d | FrozenBatchNorm2d):
        mean, variance = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
        factor = norm.weight.double() / (variance + norm.eps).sqrt()
        weight = weight * factor.view(-1, *[1] * (weight.ndim - 1))
        beta = (beta - mean) * factor + norm.bias.double()
        norm = nn.Identity()
    if output_shift is not None:
        if not isinstance(norm, nn.Identity):
            raise ZooError(f"fold: a shift cannot go through {type(norm).__name__}")
        beta = beta + output_shift
    make: Any = nn.Conv2d if isinstance(conv, nn.Conv2d) else Conv3d
    plain = make(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        bias=bool(beta.any()) or conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    if isinstance(conv, _RepeatsFrames):
        plain.repeated = conv.repeated
    layout = torch.channels_last if isinstance(conv, nn.Conv2d) else torch.channels_last_3d
    plain.weight.data = weight.to(conv.weight.dtype)
    if conv.weight.is_contiguous(memory_format=layout):
        plain.weight.data = plain.weight.data.contiguous(memory_format=layout)
    if plain.bias is not None:
        plain.bias.data = beta.to(conv.weight.dtype)
    return plain, norm


def folded_linear(linear: nn.Module, *, gain: float | Tensor = 1.0, missing: Shift = None) -> nn.Module:
    """A plain linear layer.

    Args:
        gain: factor on the output.
        missing: (I,), what was added to its input before and is not any more.
    """
    if not isinstance(linear, nn.Linear):
        return linear  # no head
    weight = linear.weight.double()
    beta = weight.new_zeros(weight.shape[0]) if linear.bias is None else linear.bias.double()
    if isinstance(linear, BiasedProjections):
        pre_bias = linear.pre_bias.double().view(-1, linear.in_features)
        beta = beta + folded_bias(weight, pre_bias, linear.sizes)
    elif isinstance(linear, BiasedLinear):
        beta = beta + weight @ linear.pre_bias.double()
    beta = beta * getattr(linear, "input_scale", 1.0)
    if missing is not None:
        beta = beta + weight @ missing
    plain = nn.Linear(linear.in_features, linear.out_features, device=weight.device, dtype=linear.weight.dtype)
    plain.weight.data = (weight * gain).to(linear.weight.dtype)
    plain.bias.data = (beta * gain).to(linear.weight.dtype)
    return plain
