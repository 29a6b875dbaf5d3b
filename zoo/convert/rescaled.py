"""From a net with BatchNorm to a net without normalization that has the same outputs (docs/method.md, M13).

Evaluated with its running statistics, BatchNorm is a factor g = gamma / sqrt(variance + eps) and a bias
b = beta - g mean for each channel, so a convolution and its norm are g W * x + b. The rescaled residual connections
need other scales of the trunk. ReLUs are positively homogeneous, so those scales are multiplied into g, b and the
multipliers of the branches.

The origin of the BatchNorm net does not matter here: ``zoo.convert.layouts`` reads foreign checkpoints into nets of the
zoo with ``scheme="bn"``.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from zoo.arguments import instance_of
from zoo.building import WithoutInit
from zoo.calibration import HasDataBias
from zoo.errors import ZooError
from zoo.layers import StemConvNd
from zoo.nets.base import Backbone, ModelConfig
from zoo.nets.residual import Block, ResidualNet
from zoo.nets.vgg import VGG
from zoo.options import free_options
from zoo.precision import precise
from zoo.products import per_filter
from zoo.registry import build_model
from zoo.specs import get_spec

log = logging.getLogger("rescalenet")

Form = Literal["gained", "folded", "balanced"]
FORMS: tuple[Form, ...] = ("gained", "folded", "balanced")
SCHEME_OPTIONS = ("multiplier", "c", "first_index")  # of the result, that a conversion may choose
SOURCE_SCHEMES = ("bn", "frozen_bn", "none")

# A variance below the smallest normal float32 is flushed to zero by some devices, and gamma / sigma overflows.
SMALLEST_VARIANCE = torch.finfo(torch.float32).tiny
LARGEST_SCALE = 2.0**14  # of a weight_scale: half precision ends at 65504


def rescaled(net: Backbone, form: Form = "gained", **options: Any) -> Backbone:
    """Return a net of scheme ``rescale`` with the outputs and features of a BatchNorm net in eval mode.

    Feature level 0 of nets whose first stage has no projection (basic blocks) is the original's times a constant, the
    scale at which the rescaled trunk begins.

    Args:
        net: net of the zoo of scheme ``bn``, ``frozen_bn`` or ``none``; it is not changed.
        form: ``gained`` keeps W as it is, with g as the factor ``weight_scale`` of each filter; ``folded`` multiplies g
            and every scale into W; ``balanced`` is folded, with each weight of a branch at the norm of its init and
            the rest in the branch's multiplier.
        options: options of the result that differ from the net's (``c``, ``first_index``, dropout rates).

    Raises:
        ZooError: another scheme or form, or values that are not finite.
    """
    # check
    if form not in FORMS:
        raise ZooError(f"form={form!r}: must be one of {', '.join(FORMS)}")
    if instance_of(net, "rescaled", Backbone).folded or net.scheme.name not in SOURCE_SCHEMES:
        kind = "a folded net" if net.folded else f"a net of scheme {net.scheme.name!r}"
        raise ZooError(f"{net.config.name}: {kind} has no BatchNorm to convert; give one of scheme bn or frozen_bn")
    for key, value in net.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ZooError(f"{net.config.name}: {key} has values that are not finite; the checkpoint is damaged")
    # an empty net of the other scheme
    with WithoutInit():
        new = build_model(_config(net, form, options))
        assert isinstance(new, Backbone)
        if net.headless or len(net.levels) < len(new.levels):  # stages or head were dropped
            pool = new.global_pool
            new.truncate(len(net.levels) - 1)
            if not net.headless:
                new.reset_classifier(net.num_classes, pool)
    like = next(net.parameters())
    new.to(like.device, like.dtype).train(net.training)
    # its parameters
    with torch.no_grad():
        if isinstance(net, ResidualNet) and isinstance(new, ResidualNet):
            _convert_residual(net, new, form)
        elif isinstance(net, VGG) and isinstance(new, VGG):
            _convert_vgg(net, new)
        else:
            raise ZooError(f"{net.config.name}: nets of the class {type(net).__name__} have no conversion")
    for module in new.modules():
        if isinstance(module, HasDataBias):
            module.calibrated = True
    return new


def _config(net: Backbone, form: Form, options: dict[str, Any]) -> ModelConfig:
    """Return the config of the converted net: the architecture is that of ``net``, spelled out."""
    config = net.config
    spec = get_spec(config.name)
    own = {key: value for key, value in config.options.items() if key in spec.layout.OPTIONS}
    if isinstance(net, ResidualNet):
        own["shortcut"] = own.get("shortcut") or spec.layout.shortcut or net.scheme.default_shortcut
    allowed = set(SCHEME_OPTIONS) | free_options(spec.layout)
    if other := sorted(set(options) - allowed):
        raise ZooError(
            f"option {other[0]!r}: the checkpoint decides it; options of a conversion: {', '.join(sorted(allowed))}"
        )
    # biased_padding: data can set the biases before products without a change of the outputs (zoo.convert.centering)
    forms = {"post_bias": True, "biased_padding": True, **({"weight_scale": True} if form == "gained" else {})}
    return ModelConfig(config.name, "rescale", config.num_classes, config.in_chans, {**own, **forms, **options})


# -- one convolution ---------------------------------------------------------------------------------


class Affine(NamedTuple):
    """A convolution and its norm as g W * x + b: the filters W in float64, g (O,) and b (O,)."""

    weight: Tensor
    gain: Tensor
    bias: Tensor


def affine(conv: Any, norm: nn.Module, name: str = "norm") -> Affine:
    """Return a convolution and the BatchNorm after it, with its running statistics, as one affine map.

    A channel whose variance plus eps is below ``SMALLEST_VARIANCE`` gets g = 0: it is a constant, namely the original's
    output at the channel's mean, or at any input if all its weights are 0. The log counts these channels.

    Args:
        conv: convolution or linear layer.
        norm: BatchNorm or FrozenBatchNorm2d, or Identity.
        name: name of the norm, for the log.

    Raises:
        ZooError: another norm, or a variance plus eps below 0.
    """
    weight = precise(conv.weight)
    bias = weight.new_zeros(weight.shape[0]) if conv.bias is None else precise(conv.bias)
    if isinstance(norm, nn.Identity):
        return Affine(weight, torch.ones_like(bias), bias)
    if not isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d | FrozenBatchNorm2d):
        raise ZooError(f"{name}: {type(norm).__name__} depends on the data of each batch; only BatchNorm converts")
    gamma: Any = norm.weight
    beta: Any = norm.bias
    gamma = torch.ones_like(bias) if gamma is None else precise(gamma)
    beta = torch.zeros_like(bias) if beta is None else precise(beta)
    mean, variance = (precise(norm.get_buffer(f"running_{kind}")) for kind in ("mean", "var"))
    variance = variance + norm.eps
    if (variance < 0).any():
        raise ZooError(f"{name}: a running variance plus eps is {float(variance.min()):.2g}; the checkpoint is damaged")
    dead = variance < SMALLEST_VARIANCE
    # beta + (bias + W x - mean) gain; of a variance of 0 a finite gain, which is replaced below
    gain = gamma / variance.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    shifted = beta + (bias - mean) * gain
    if not dead.any():
        return Affine(weight, gain, shifted)
    # a filter of zeros gives the same at any input; others are cut off at their mean
    exact = ~weight.flatten(1).any(1) & (shifted.abs() <= torch.finfo(torch.float16).max)
    log.info("%s: %d channels with a variance below %.2g are constants", name, int(dead.sum()), SMALLEST_VARIANCE)
    if cut := int((dead & ~exact).sum()):
        log.warning(
            "%s: %d of the channels with a variance below %.2g have a filter that is not zero; they become constants, "
            "so that outputs differ from the original's (docs/convert.md, Channels that are off)",
            name,
            cut,
            SMALLEST_VARIANCE,
        )
    return Affine(weight, gain.masked_fill(dead, 0.0), torch.where(dead & ~exact, beta, shifted))


def transfer(
    conv: Any, norm: nn.Module, new: Any, *, scale: float = 1.0, bias_scale: float = 1.0, name: str = ""
) -> None:
    """Give a layer the outputs of a convolution and its norm: scale * g W * x + bias_scale * b.

    The factor scale * g goes into ``weight_scale`` if the layer has one, else into its weight.

    Args:
        conv: convolution or linear layer.
        norm: BatchNorm, FrozenBatchNorm2d or Identity after it.
        new: layer of the same shape, with a bias.
        scale: factor on the weight.
        bias_scale: factor on the bias.
        name: name of the layer, for messages.

    Raises:
        ZooError: a norm that does not convert.
    """
    weight, gain, bias = affine(conv, norm, name or "norm")
    gain = gain * scale
    if getattr(new, "weight_scale", None) is None:
        weight = weight * per_filter(gain, weight)
    else:
        # a factor beyond half precision leaves a power of two in W, which rounds nothing
        excess = gain.abs().clamp_min(LARGEST_SCALE).div(LARGEST_SCALE).log2().ceil().exp2()
        weight, gain = weight * per_filter(excess, weight), gain / excess
        if count := int((excess > 1).sum()):
            log.info("%s: %d factors above %g moved into the weights", name, count, LARGEST_SCALE)
        new.weight_scale.copy_(gain)
    new.weight.copy_(weight)
    if new.bias is None:
        raise ZooError(f"{name}: {type(new).__name__} has no bias for that of the norm")
    new.bias.copy_(bias * bias_scale)


# -- nets --------------------------------------------------------------------------------------------


def _convert_residual(old: ResidualNet, new: ResidualNet, form: Form) -> None:
    """Set the parameters of a residual net.

    The trunk that the new net stores is the old one: in the formulas it is x' = s x, with s_k = alpha_k s_{k-1}, and
    the new net stores t x' with t_{k-1} = alpha_k t_k (``zoo.trunk``), so that t s is 1 at every block.
    """
    for i, (theirs, ours) in enumerate(zip(old.stem.layers(), new.stem.layers(), strict=True), 1):
        scale = 1 / ours.conv.output_scale
        transfer(theirs.conv, theirs.norm, ours.conv, scale=scale, bias_scale=scale, name=f"stem.norm{i}")
    for number, (their_stage, our_stage) in enumerate(zip(old.stages(), new.stages(), strict=True), 1):
        for i, (their_block, our_block) in enumerate(zip(their_stage, our_stage, strict=True)):
            _convert_block(their_block, our_block, form, f"layer{number}.{i}")
    _copy_linear(old.fc, new.fc)


def _convert_block(old: Block, new: Block, form: Form, name: str) -> None:
    """Set the parameters of a block whose input and output are those of the old block.

    Let the block store its input at the scale t (``input_scale``), so that a layer computes S (g W * x + t b). The
    outputs of the inner layers are t times the old ones; that of the last layer and of the shortcut are the old ones.
    """
    join: Any = new.join
    layers = list(zip(old.layers(), new.layers(), strict=True))
    stored = layers[0][1].conv.input_scale  # t
    # the branch: the first layer multiplies by t, the last one's weight is that of the join
    rest = 1 / (join.scale * join.scale_out)  # sqrt(c) s_k: what m_k has to be if the last layer is the old one
    carried = rest if form == "folded" or join.multiplier is None else 1.0
    for i, (theirs, ours) in enumerate(layers, 1):
        last = carried if i == len(layers) else 1.0
        scale = last * stored if i == 1 else last
        transfer(theirs.conv, theirs.norm, ours.conv, scale=scale, bias_scale=last, name=f"{name}.norm{i}")
    if join.multiplier is not None:
        join.multiplier.fill_(rest / carried)
        if form == "balanced":
            join.multiplier.mul_(_balance([ours.conv for _, ours in layers], new))
    # the shortcut
    if old.downsample is not None and new.downsample is not None:
        scale = 1 / join.shortcut_weight
        conv, norm, into = old.downsample.conv, old.downsample.norm, new.downsample.conv
        transfer(conv, norm, into, scale=scale, bias_scale=scale / stored, name=f"{name}.downsample.norm")


def _balance(layers: list[Any], block: Block) -> float:
    """Divide each weight of a branch so that its norm is that of its init, and return the product of the divisors.

    ReLUs are positively homogeneous, so the bias of a layer is divided by the product up to it. A weight of zeros
    stays.
    """
    total = 1.0
    for layer in layers:
        at_init = block.init_factor * math.sqrt(2 / layer.weight[0].numel()) * math.sqrt(layer.weight.numel())
        ratio = float(torch.linalg.vector_norm(precise(layer.weight))) / at_init
        if ratio > 0:
            layer.weight.div_(ratio)
            total *= ratio
        layer.bias.div_(total)
    return total


def _convert_vgg(old: VGG, new: VGG) -> None:
    """Set the parameters of a VGG net."""
    for number, (their_stage, our_stage) in enumerate(zip(old.stages(), new.stages(), strict=True), 1):
        for i, (theirs, ours) in enumerate(zip(their_stage.layers(), our_stage.layers(), strict=True), 1):
            if isinstance(ours.conv, StemConvNd):
                assert ours.conv.output_scale == 1
            transfer(theirs.conv, theirs.norm, ours.conv, name=f"stage{number}.norm{i}")
    if isinstance(old.hidden, nn.Sequential) and isinstance(new.hidden, nn.Sequential):  # none in truncated nets
        for theirs, ours in zip(old.hidden, new.hidden, strict=True):
            _copy_linear(theirs, ours)
    _copy_linear(old.fc, new.fc)


def _copy_linear(old: nn.Module, new: nn.Module) -> None:
    """Copy a linear layer; its bias before the product stays 0. Other modules have nothing to copy."""
    if isinstance(old, nn.Linear) and isinstance(new, nn.Linear):
        new.weight.copy_(old.weight)
        assert new.bias is not None
        new.bias.copy_(old.bias)
