"""Nets without normalization layers in Flax NNX, for training and fine-tuning in JAX.

    from rescalenet_flax import load, save

    net, header = load("model.safetensors")     # a new net: net, header = create("rescalenet18", num_classes=10)
    logits = net(images)                        # (N, H, W, C); clips (N, T, H, W, C); tokens: net(source, target)
    save(net, header, "trained.safetensors")    # rescalenet-zoo loads it again: zoo.create_model(name, path)

Images are channels-last, as XLA's users expect. Parameters have the names and the layouts of the weights file, which
are those of PyTorch: a convolution's weight is (O, I/groups, *kernel). So gradients, the states of optimizers and files
correspond one to one in both frameworks, and XLA chooses the layout in memory.

The formulas are those of Shao, Hu, Wang, Xue, Raj, "Is normalization indispensable for training deep neural
networks?", NeurIPS 2020: y = W (x + b) with b = -mean(x) at init, which ``calibrate`` sets in a new net, and
x_k = alpha_k x_{k-1} + m_k / sqrt(c) F_k(x_{k-1}). M1, M2, ... are numbers in docs/method.md of rescalenet-zoo. Weight
decay acts on weights only (``parameter_groups``).

This file requires jax, flax, numpy and safetensors, and nothing else. Copy it into your project.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save as serialize

KEY = "rescalenet"  # entry of a weights file's header that describes the net
PAD = 1  # token of padding; 0 is <s>, 2 </s>, 3 unknown
Array = Any  # jax.Array


# -- variables ---------------------------------------------------------------------------------------


class DataBias(nnx.Param):
    """A bias that is initialised from data: minus a channel mean (M8)."""


class Multiplier(nnx.Param):
    """The learnable multiplier m_k of a branch (M5)."""


class Constant(nnx.Variable):
    """A tensor of the weights file that does not train."""


@dataclass(frozen=True)
class Init:
    """Initial values of parameters.

    Attributes:
        rngs: random numbers of dropout.
        numbers: random numbers of initial values, which numpy draws, because JAX would compile a program for each
            shape; None for zeros, where the values of a file follow.
    """

    rngs: nnx.Rngs
    numbers: np.random.Generator | None

    @classmethod
    def of(cls, seed: int, *, zeros: bool = False) -> Init:
        """Return initial values of a seed, or zeros."""
        return cls(nnx.Rngs(dropout=seed), None if zeros else np.random.default_rng(seed))

    def normal(self, shape: tuple[int, ...], std: float) -> np.ndarray:
        """Return normally distributed numbers with mean 0."""
        if self.numbers is None:
            return np.zeros(shape, np.float32)
        return np.float32(std) * self.numbers.standard_normal(shape, np.float32)

    def uniform(self, shape: tuple[int, ...], bound: float) -> np.ndarray:
        """Return numbers between -bound and bound."""
        if self.numbers is None:
            return np.zeros(shape, np.float32)
        return np.float32(bound) * (2 * self.numbers.random(shape, np.float32) - 1)

    def he(self, shape: tuple[int, ...], gain: float = 2**0.5, fan: str = "in") -> np.ndarray:
        """Return a weight (O, I/groups, *kernel) with standard deviation gain / sqrt(fan) (He et al. 2015)."""
        count = math.prod(shape[1:]) if fan == "in" else math.prod(shape) // shape[1]
        return self.normal(shape, gain / math.sqrt(count))

    def dropout(self, rate: float, shared: tuple[int, ...] = ()) -> nnx.Dropout:
        """Return dropout; the axes ``shared`` have one mask."""
        return nnx.Dropout(rate, broadcast_dims=shared, rngs=self.rngs if rate else None)


# -- biases from data --------------------------------------------------------------------------------

_KEEP: ContextVar[Any] = ContextVar("keep", default=None)  # positions that count in calibration; False: no calibration
_CALIBRATING: ContextVar[bool] = ContextVar("calibrating", default=False)


@contextmanager
def _only(keep: Array) -> Iterator[None]:
    """Restrict calibration to the positions (B, T) where ``keep`` is True."""
    token = _KEEP.set(keep)
    try:
        yield
    finally:
        _KEEP.reset(token)


def _see(bias: DataBias, x: Array) -> None:
    """Set a bias to minus the channel means of x (..., C), if the net is being calibrated."""
    if _CALIBRATING.get():
        keep = _KEEP.get()
        where = None if keep is None else keep[..., None]
        means = jnp.mean(x, axis=tuple(range(x.ndim - 1)), where=where)
        bias[...] = -jnp.tile(means, bias.size // means.size)


def calibrate(net: nnx.Module, *inputs: Array) -> None:
    """Set each bias from data to minus the mean of its layer's input (M8), in one forward in evaluation mode.

    Do this once for a new net, before the first step. Nets from files have these biases already.

    Args:
        net: net.
        inputs: one batch, as the net takes it: the more samples, the better the means. Padding does not count.
    """

    @nnx.jit
    def run(net: Any, *inputs: Array) -> None:
        net(*inputs)

    token = _CALIBRATING.set(True)
    try:
        run(nnx.view(net, deterministic=True, use_running_average=True, raise_if_not_found=False), *inputs)
    finally:
        _CALIBRATING.reset(token)


# -- layers ------------------------------------------------------------------------------------------


def average(x: Array, window: tuple[int, ...]) -> Array:
    """Average x (N, *positions, C) over windows; sizes are rounded up, and a window at the end may be incomplete."""
    ends = [(0, -size % step) for size, step in zip(x.shape[1:-1], window, strict=True)]
    return nnx.avg_pool(x, window, window, ends, count_include_pad=False).astype(x.dtype)  # also with jax_enable_x64


class Conv(nnx.Module):
    """A convolution: (N, *positions, I) -> (N, *positions, O), padded by kernel // 2.

    y = weight_scale * W pad(x + pre_bias) + bias (M7). The biases and ``weight_scale`` are optional.

    Args:
        init: initial values.
        weight: initial weight (O, I/groups, *kernel).
        stride: steps.
        groups: number of groups.
        pre_bias: whether a bias from data is added before the product.
        bias: whether a bias is added after it.
        from_data: whether the bias after it is initialised from data, as in a stem.
        weight_scale: whether a factor that does not train multiplies each filter, as in converted nets.
        biased_padding: whether ``pre_bias`` is added to the zeros around x too.
        pool: windows over which x is averaged first.
        repeats: whether clips are padded in time by their first and last frame.
    """

    def __init__(
        self,
        init: Init,
        weight: Array,
        stride: tuple[int, ...],
        *,
        groups: int = 1,
        pre_bias: bool = False,
        bias: bool = False,
        from_data: bool = False,
        weight_scale: bool = False,
        biased_padding: bool = False,
        pool: tuple[int, ...] = (),
        repeats: bool = False,
    ) -> None:
        outputs, inputs, *kernel = weight.shape
        self.weight = nnx.Param(weight)
        self.pre_bias = DataBias(jnp.zeros(inputs * groups)) if pre_bias else None
        self.bias = (DataBias if from_data else nnx.Param)(jnp.zeros(outputs)) if bias else None
        self.weight_scale = Constant(jnp.ones(outputs)) if weight_scale else None
        self.stride, self.groups, self.pool, self.from_data = stride, groups, pool, from_data
        self.padding = tuple((size // 2, size // 2) for size in kernel)
        self.repeats, self.biased_padding = repeats and kernel[0] > 1, biased_padding

    def __call__(self, x: Array) -> Array:
        padding = list(self.padding)
        if self.pool:
            x = average(x, self.pool)
        if self.pre_bias is not None:
            _see(self.pre_bias, x)
        if self.repeats:
            x = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0), (0, 0)), mode="edge")
            padding[0] = (0, 0)
        if self.pre_bias is not None:
            if self.biased_padding:
                x, padding = jnp.pad(x, [(0, 0), *padding, (0, 0)]), [(0, 0)] * len(padding)
            x = x + self.pre_bias
        weight = self.weight[...]
        if self.weight_scale is not None:
            weight = weight * self.weight_scale.reshape(-1, *[1] * (weight.ndim - 1))
        axes = "DHW"[-len(padding) :]
        y = jax.lax.conv_general_dilated(
            x,
            weight,
            self.stride,
            padding,
            dimension_numbers=(f"N{axes}C", f"OI{axes}", f"N{axes}C"),
            feature_group_count=self.groups,
        )
        if self.bias is not None:
            if self.from_data:
                _see(self.bias, y)
            y = y + self.bias
        return y


class Linear(nnx.Module):
    """A linear layer: (..., I) -> (..., O), y = W (x + pre_bias) + bias (M7). Both biases are optional.

    Args:
        weight: initial weight (O, I).
        pre_bias: whether a bias from data is added before the product.
        bias: initial bias after it; None for none.
        parts: sizes of several layers packed into one, each with a ``pre_bias`` of its own; () for one layer.
    """

    def __init__(self, weight: Array, pre_bias: bool, bias: Array | None, parts: tuple[int, ...] = ()) -> None:
        self.weight = nnx.Param(weight)
        self.pre_bias = DataBias(jnp.zeros(max(len(parts), 1) * weight.shape[1])) if pre_bias else None
        self.bias = None if bias is None else nnx.Param(bias)
        self.parts = parts

    def __call__(self, x: Array) -> Array:
        if self.pre_bias is None:
            y = x @ self.weight.T
        else:
            _see(self.pre_bias, x)
            biases = self.pre_bias.reshape(-1, x.shape[-1])
            weights = jnp.split(self.weight[...], list(np.cumsum(self.parts)[:-1]))
            y = jnp.concatenate([(x + b) @ w.T for b, w in zip(biases, weights, strict=True)], -1)
        return y if self.bias is None else y + self.bias


class Bias(nnx.Module):
    """x + bias over the last axis, the bias from data."""

    def __init__(self, channels: int) -> None:
        self.bias = DataBias(jnp.zeros(channels))

    def __call__(self, x: Array) -> Array:
        _see(self.bias, x)
        return x + self.bias


class BatchNorm(nnx.Module):
    """Batch normalization with PyTorch's statistics: the running variance is that of the sample, over N - 1."""

    def __init__(self, channels: int) -> None:
        self.weight, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.running_mean, self.running_var = nnx.BatchStat(jnp.zeros(channels)), nnx.BatchStat(jnp.ones(channels))
        self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.use_running_average = False

    def __call__(self, x: Array) -> Array:
        if self.use_running_average:
            mean, variance = self.running_mean[...], self.running_var[...]
        else:
            axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            mean, variance = x.mean(axes), x.var(axes)
            self.running_mean[...] += 0.1 * (jax.lax.stop_gradient(mean) - self.running_mean)
            unbiased = jax.lax.stop_gradient(variance) * (count / max(count - 1, 1))
            self.running_var[...] += 0.1 * (unbiased - self.running_var)
            self.num_batches_tracked[...] += 1
        return (x - mean) * (jax.lax.rsqrt(variance + 1e-5) * self.weight) + self.bias


class LayerNorm(nnx.Module):
    """Layer normalization over the last axis."""

    def __init__(self, channels: int) -> None:
        self.weight, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Array) -> Array:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * self.weight + self.bias


# -- the residual connection -------------------------------------------------------------------------


class Noise(nnx.Module):
    """Adds normally distributed numbers in training (M16)."""

    def __init__(self, init: Init, std: float) -> None:
        self.std, self.deterministic, self.rngs = std, False, init.rngs["dropout"].fork()

    def __call__(self, x: Array) -> Array:
        return x if self.deterministic else x + self.std * jax.random.normal(self.rngs(), x.shape, x.dtype)


class Join(nnx.Module):
    """The residual connection: alpha_k x + m_k / sqrt(c) F(x) (M5), or x + F(x) in nets with norms.

    Args:
        init: random numbers.
        options: options of the net.
        k, count: number of the branch in its stack, from 1, and number of all branches.
        c: constant of the decay; None for a plain sum.
        channels: channels of the trunk.
        axes: axes of a feature map between the first and the last.
        norm: whether a branch begins with layer normalization.
    """

    def __init__(
        self,
        init: Init,
        options: Any,
        k: int,
        count: int,
        c: float | None,
        channels: int,
        axes: tuple[int, ...],
        norm: bool = False,
    ) -> None:
        self.alpha = self.weight = 1.0
        if c is not None:
            index = k - 1 + getattr(options, "first_index", 1)
            self.alpha = math.sqrt((index - 1 + c) / (index + c))
            self.weight = 1 / math.sqrt(c if options.multiplier else index + c)
        ones = jnp.ones(channels if options.multiplier == "channel" else ())
        self.multiplier = Multiplier(ones) if c is not None and options.multiplier else None
        self.norm = LayerNorm(channels) if norm else None
        self.noise = Noise(init, options.branch_noise) if options.branch_noise else None
        rate = options.drop_path_rate * k / count
        self.drop_path = init.dropout(rate, axes) if rate else None

    def enter(self, trunk: Array) -> Array:
        """Return the input of the branch."""
        return trunk if self.norm is None else self.norm(trunk)

    def __call__(self, trunk: Array, branch: Array) -> Array:
        branch = branch * self.weight
        if self.multiplier is not None:
            branch = branch * self.multiplier
        for regularization in (self.noise, self.drop_path):
            if regularization is not None:
                branch = regularization(branch)
        return self.alpha * trunk + branch


def branch_gain(options: Any, k: int, c: float | None, layers: int) -> float:
    """Return f_k, the factor on the standard deviation of a branch's weights at init (M6)."""
    if c is None or not options.multiplier:
        return 1.0
    return ((k - 1 + getattr(options, "first_index", 1) + c) / c) ** (-1 / (2 * layers))


# -- nets of images and clips ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class VisionOptions:
    """Options of all nets of images and clips, with their defaults; docs/method.md of rescalenet-zoo describes them.

    ``scheme`` is ``rescale``, or ``bn`` for batch normalization after each convolution, the baseline.
    """

    scheme: str = "rescale"
    num_classes: int = 0
    in_chans: int = 3
    dims: int = 2
    width: float = 1.0
    global_pool: str = "avg"
    drop_rate: float = 0.0
    post_bias: bool = False
    multiplier: bool | str = True
    c: float | None = None
    first_index: int = 1
    projection_gain: float = 1.0
    weight_scale: bool = False
    biased_padding: bool = False

    schemes: ClassVar = ("rescale", "bn")

    @property
    def rescaled(self) -> bool:
        """Whether the net has no normalization layers."""
        return self.scheme == "rescale"

    def conv(
        self,
        init: Init,
        inputs: int,
        outputs: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        gain: float = 2**0.5,
        *,
        groups: int = 1,
        fan: str = "",
        pool: tuple[int, ...] = (),
        stem: bool = False,
        plain: bool = False,
    ) -> Conv:
        """Return a convolution.

        Args:
            init: initial values.
            inputs, outputs: channels.
            kernel, stride: extent and steps.
            gain: factor on the standard deviation at init.
            groups: number of groups.
            fan: fan of the init; the scheme's own if it is empty.
            pool: windows that are averaged first.
            stem: whether the bias from data follows the product.
            plain: whether there is no bias from data.
        """
        fan = fan or ("in" if self.rescaled else "out")
        weight = init.he((outputs, inputs // groups, *kernel), gain, fan)
        repeats = getattr(self, "temporal_padding", "zeros") == "replicate"
        if not self.rescaled or plain:
            return Conv(init, weight, stride, groups=groups, bias=self.post_bias, repeats=repeats)
        if stem:
            return Conv(
                init, weight, stride, bias=True, from_data=True, weight_scale=self.weight_scale, repeats=repeats
            )
        return Conv(
            init,
            weight,
            stride,
            groups=groups,
            pre_bias=True,
            bias=self.post_bias,
            weight_scale=self.weight_scale,
            biased_padding=self.biased_padding,
            pool=pool,
            repeats=repeats,
        )

    def linear(self, init: Init, inputs: int, outputs: int, *, pre_bias: bool) -> Linear:
        """Return the last layer."""
        if self.rescaled:
            return Linear(init.he((outputs, inputs), 1.0), pre_bias, jnp.zeros(outputs))
        bound = inputs**-0.5
        return Linear(init.uniform((outputs, inputs), bound), False, init.uniform((outputs,), bound))


class Layers(nnx.Module):
    """Convolutions with their norms: conv1, norm1, conv2, ..."""

    depth = 0

    def add(self, conv: Conv, norm: BatchNorm | None) -> None:
        """Append a layer."""
        self.depth += 1
        setattr(self, f"conv{self.depth}", conv)
        setattr(self, f"norm{self.depth}", norm)

    def product(self, number: int, x: Array) -> Array:
        """Return the output of a convolution and its norm."""
        norm = getattr(self, f"norm{number}")
        x = getattr(self, f"conv{number}")(x)
        return x if norm is None else norm(x)

    def __call__(self, x: Array) -> Array:
        for number in range(1, self.depth + 1):
            x = nnx.relu(self.product(number, x))
        return x


def norm(options: VisionOptions, channels: int) -> BatchNorm | None:
    """Return the norm after a convolution; None in nets without."""
    return None if options.rescaled else BatchNorm(channels)


class Shortcut(nnx.Module):
    """The projection shortcut of a stage's first block: an average and a 1x1 convolution, or a strided 1x1."""

    def __init__(self, init: Init, options: Any, inputs: int, outputs: int, stride: tuple[int, ...]) -> None:
        pooled = (options.shortcut or ("avgpool" if options.rescaled else "conv")) == "avgpool"
        one = (1,) * len(stride)
        window = stride if pooled and max(stride) > 1 else ()
        gain = options.projection_gain if options.rescaled else 1.0
        step = one if pooled else stride
        self.conv = options.conv(init, inputs, outputs, one, step, gain, fan="in", pool=window)
        self.pool = () if options.rescaled else window  # which a convolution with a bias before it computes itself
        self.norm = norm(options, outputs)

    def __call__(self, x: Array) -> Array:
        x = self.conv(average(x, self.pool) if self.pool else x)
        return x if self.norm is None else self.norm(x)


class Block(Layers):
    """A residual block: relu(join(shortcut(x), branch(x)))."""

    def __init__(
        self,
        init: Init,
        options: Any,
        inputs: int,
        convs: Sequence[ConvPlan],
        stride: tuple[int, ...],
        k: int,
        count: int,
        drop_rate: float,
    ) -> None:
        c = None if not options.rescaled else float(count if options.c is None else options.c)
        gain = branch_gain(options, k, c, len(convs)) * 2**0.5
        channels = inputs
        for conv in convs:
            layer = options.conv(init, channels, conv.channels, conv.kernel, conv.stride, gain, groups=conv.groups)
            self.add(layer, norm(options, conv.channels))
            channels = conv.channels
        axes = tuple(range(1, options.dims + 1))
        self.drop = init.dropout(drop_rate, axes) if drop_rate else None  # of whole channels
        self.join = Join(init, options, k, count, c, channels, (*axes, options.dims + 1))
        projects = max(stride) > 1 or inputs != channels
        self.downsample = Shortcut(init, options, inputs, channels, stride) if projects else None

    def __call__(self, x: Array) -> Array:
        y = x
        for number in range(1, self.depth + 1):
            y = self.product(number, y)
            y = y if self.drop is None else self.drop(y)
            y = nnx.relu(y) if number < self.depth else y
        return nnx.relu(self.join(x if self.downsample is None else self.downsample(x), y))


@dataclass(frozen=True)
class ConvPlan:
    """One convolution: output channels, kernel, stride and groups."""

    channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int = 1


class VisionNet(nnx.Module):
    """Base of the nets for images (N, H, W, C) and clips (N, T, H, W, C): -> logits, or features without classes.

    Subclasses set ``head_bias``, ``drop`` and ``fc``; None for none.
    """

    head_bias: Any
    drop: Any
    fc: Any

    def __init__(self, init: Init, options: VisionOptions) -> None:
        self.global_pool = options.global_pool

    def feature_maps(self, x: Array) -> list[Array]:
        """Return the maps (N, *positions, C) of all levels, finest first."""
        raise NotImplementedError

    def _pooled(self, x: Array) -> Array:
        """Return a map (N, *positions, C) pooled over all positions, with the bias before the last layer."""
        axes = tuple(range(1, x.ndim - 1))
        if self.global_pool:
            mean, largest = x.mean(axes), x.max(axes)
            x = {"avg": mean, "max": largest, "avgmax": (mean + largest) / 2}[self.global_pool]
        x = x if self.head_bias is None else self.head_bias(x)
        return x if self.drop is None else self.drop(x)

    def __call__(self, x: Array) -> Array:
        x = self._pooled(self.feature_maps(x)[-1])
        return x if self.fc is None else self.fc(x)


@dataclass(frozen=True, kw_only=True)
class ResNetOptions(VisionOptions):
    """Options of the ResNets; ``temporal``, ``frame_pool`` and ``temporal_padding`` are those of nets of clips."""

    block: str  # basic, bottleneck or factorised
    depths: tuple[int, ...]
    base_channels: int = 64
    groups: int = 1
    width_per_group: int = 64
    stem: str = "conv7"
    stride_in_1x1: bool = False
    shortcut: str | None = None
    branch_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    branch_noise: float = 0.0
    temporal: tuple[tuple[int, ...], ...] = ()
    frame_pool: int = 1
    temporal_padding: str = "zeros"

    def channels(self, count: int) -> int:
        """Return a number of channels times ``width``, a multiple of the groups."""
        return max(1, round(count * self.width / self.groups)) * self.groups

    def stem_plan(self) -> list[ConvPlan]:
        """Return the convolutions of the entrance."""
        out, half = self.channels(self.base_channels), self.channels(self.base_channels // 2)
        if self.dims == 2:
            return {
                "conv7": [ConvPlan(out, (7, 7), (2, 2))],
                "cifar": [ConvPlan(out, (3, 3), (1, 1))],
                "deep": [
                    ConvPlan(half, (3, 3), (2, 2)),
                    ConvPlan(half, (3, 3), (1, 1)),
                    ConvPlan(out, (3, 3), (1, 1)),
                ],
            }[self.stem]
        if self.stem == "factorised":
            return [
                ConvPlan(self.channels(45), (1, 7, 7), (1, 2, 2)),
                ConvPlan(out, (3, 1, 1), (1, 1, 1)),
            ]
        if self.stem == "cifar":
            return [ConvPlan(out, (1, 3, 3), (1, 1, 1))]
        return [ConvPlan(out, ({"r3d": 3, "slow": 1, "i3d": 5}[self.stem], 7, 7), (1, 2, 2))]

    def branch_plan(self, inputs: int, channels: int, stride: int, temporal: int) -> list[ConvPlan]:
        """Return the convolutions of a block's branch.

        Args:
            inputs: channels of the trunk before the block.
            channels: channels of the stage, before ``width`` and a bottleneck's factor of 4.
            stride: stride in space.
            temporal: size of the kernels in time; 0 for images.
        """
        out, last = self.channels(channels), self.channels(channels * 4)
        if not temporal:
            if self.block == "basic":
                return [ConvPlan(out, (3, 3), (stride, stride)), ConvPlan(out, (3, 3), (1, 1))]
            inner = self.channels(channels * self.width_per_group // 64 * self.groups)
            first, second = (stride, 1) if self.stride_in_1x1 else (1, stride)
            return [
                ConvPlan(inner, (1, 1), (first, first)),
                ConvPlan(inner, (3, 3), (second, second), self.groups),
                ConvPlan(last, (1, 1), (1, 1)),
            ]
        one, in_space, in_time = (1, 1, 1), (1, stride, stride), self.time_stride(stride, temporal)
        if self.block == "bottleneck":
            return [
                ConvPlan(out, (temporal, 1, 1), one),
                ConvPlan(out, (1, 3, 3), in_space),
                ConvPlan(last, one, one),
            ]
        if self.block == "basic":
            kernel = (temporal, 3, 3)
            return [ConvPlan(out, kernel, (in_time, stride, stride)), ConvPlan(out, kernel, one)]
        # as many parameters as a 3x3x3 has (Tran et al. 2018, section 3.5)
        middle = (inputs * out * 27) // (inputs * 9 + 3 * out)
        return [
            ConvPlan(middle, (1, 3, 3), in_space),
            ConvPlan(out, (3, 1, 1), (in_time, 1, 1)),
            ConvPlan(middle, (1, 3, 3), one),
            ConvPlan(out, (3, 1, 1), one),
        ]

    def time_stride(self, stride: int, temporal: int) -> int:
        """Return a block's stride in time, given that in space."""
        return 1 if self.block == "bottleneck" or temporal == 1 else stride


class ResNet(VisionNet):
    """A ResNet of images or clips: stem, layer1, layer2, ..., head. The first map is the stem's output."""

    def __init__(self, init: Init, options: ResNetOptions) -> None:
        super().__init__(init, options)
        self.dims, self.count, self.frame_pool = options.dims, len(options.depths), options.frame_pool
        self.pools = options.stem in ("conv7", "deep", "slow", "i3d")  # a max pool in space follows the stem
        # the entrance
        self.stem = Layers()
        channels = options.in_chans
        for conv in options.stem_plan():
            layer = options.conv(init, channels, conv.channels, conv.kernel, conv.stride, stem=True)
            self.stem.add(layer, norm(options, conv.channels))
            channels = conv.channels
        # the stages; k counts the blocks of all of them
        k, total = 0, sum(options.depths)
        for i, depth in enumerate(options.depths):
            blocks = []
            for j in range(depth):
                k += 1
                stride = 2 if i > 0 and j == 0 else 1
                kernels = options.temporal[i] if options.temporal else (0,)
                temporal = kernels[j % len(kernels)]
                plan = options.branch_plan(channels, options.base_channels * 2**i, stride, temporal)
                steps = (stride,) * 2 if self.dims == 2 else (options.time_stride(stride, temporal), stride, stride)
                drop_rate = options.branch_drop_rate if i >= self.count - 2 else 0.0
                blocks.append(Block(init, options, channels, plan, steps, k, total, drop_rate))
                channels = plan[-1].channels
            setattr(self, f"layer{i + 1}", nnx.List(blocks))
        # the head
        self.head_bias = Bias(channels) if options.rescaled else None
        self.drop = init.dropout(options.drop_rate) if options.drop_rate else None
        self.fc = options.linear(init, channels, options.num_classes, pre_bias=False) if options.num_classes else None

    def feature_maps(self, x: Array) -> list[Array]:
        x = self.stem(x)
        maps = [x]
        for number in range(1, self.count + 1):
            if number == 1 and self.pools:
                in_time = [(0, 0)] * (self.dims - 2)
                window, steps = (1,) * len(in_time) + (3, 3), (1,) * len(in_time) + (2, 2)
                x = nnx.max_pool(x, window, steps, [*in_time, (1, 1), (1, 1)])
            elif number == 2 and self.frame_pool > 1:
                window, end = (self.frame_pool, 1, 1), (0, -x.shape[1] % self.frame_pool)
                x = nnx.max_pool(x, window, window, [end, (0, 0), (0, 0)])
            for block in getattr(self, f"layer{number}"):
                x = block(x)
            maps.append(x)
        return maps


@dataclass(frozen=True, kw_only=True)
class VGGOptions(VisionOptions):
    """Options of the VGG nets: convolutions before each max pool."""

    depths: tuple[int, ...]
    drop_rate: float = 0.5


class VGG(VisionNet):
    """A VGG: stage1, stage2, ..., with max pools between them, and a classifier of three linear layers."""

    def __init__(self, init: Init, options: VGGOptions) -> None:
        super().__init__(init, options)
        self.count = len(options.depths)
        channels = options.in_chans
        for i, depth in enumerate(options.depths):
            stage, outputs = Layers(), max(1, round(min(64 * 2**i, 512) * options.width))
            for j in range(depth):
                first = i == j == 0  # no bias from data is before the first convolution
                stem = first and options.weight_scale
                fan = "in" if stem else "out"
                layer = options.conv(
                    init, channels, outputs, (3, 3), (1, 1), fan=fan, stem=stem, plain=first and not stem
                )
                stage.add(layer, norm(options, outputs))
                channels = outputs
            setattr(self, f"stage{i + 1}", stage)
        # the classifier; the bias of the last map is that of its first layer
        hidden = max(1, round(4096 * options.width))
        bias = jnp.zeros(hidden) if options.post_bias or not options.rescaled else None
        self.head_bias, self.drop = Bias(channels) if options.rescaled else None, None
        self.hidden = nnx.Dict(
            {
                "0": Linear(init.he((hidden, channels * 49)), False, bias),
                "3": Linear(init.he((hidden, hidden)), options.rescaled, bias),
            }
        )
        self.hidden_drop = nnx.List([init.dropout(options.drop_rate) for _ in self.hidden])
        self.fc = options.linear(init, hidden, options.num_classes, pre_bias=True) if options.num_classes else None

    def feature_maps(self, x: Array) -> list[Array]:
        maps = []
        for number in range(1, self.count + 1):
            x = getattr(self, f"stage{number}")(x)
            maps.append(x)
            x = nnx.max_pool(x, (2, 2), (2, 2))
        return [*maps, x]

    def __call__(self, x: Array) -> Array:
        x = self.feature_maps(x)[-1]
        x = x if self.head_bias is None else self.head_bias(x)
        if not self.global_pool:
            return x
        # means over 7 x 7 windows, in the file's order: channels, then positions
        rows, columns = _windows(x.shape[1], 7), _windows(x.shape[2], 7)
        x = jnp.einsum("nhwc,ph,qw->ncpq", x, rows, columns).reshape(len(x), -1)
        for layer, drop in zip(self.hidden.values(), self.hidden_drop, strict=True):
            x = drop(nnx.relu(layer(x)))
        return x if self.fc is None else self.fc(x)


def _windows(size: int, count: int) -> np.ndarray:
    """Return the means over windows that cover an axis, as in an adaptive average pool: a matrix (count, size)."""
    matrix = np.zeros((count, size), np.float32)
    for i in range(count):
        start, end = i * size // count, -(-(i + 1) * size // count)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


# -- Transformers ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TransformerOptions:
    """Options of the Transformers. ``scheme`` is ``rescale``, or ``pre_ln`` for layer normalization, the baseline."""

    scheme: str = "rescale"
    dim: int
    hidden: int
    heads: int
    encoder_layers: int = 6
    decoder_layers: int = 6
    activation: str = "relu"
    drop_rate: float = 0.1
    attention_drop_rate: float = 0.0
    hidden_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    branch_noise: float = 0.0
    share: str = "all"
    source_vocabulary: int = 32000
    target_vocabulary: int = 32000
    max_length: int = 1024
    multiplier: bool | str = True
    encoder_c: float | None = None
    decoder_c: float | None = None
    post_bias: bool = False

    schemes: ClassVar = ("rescale", "pre_ln")

    @property
    def rescaled(self) -> bool:
        """Whether the net has no normalization layers."""
        return self.scheme == "rescale"


class Branch(nnx.Module):
    """Base of the residual branches of a Transformer."""

    def __init__(self, init: Init, options: TransformerOptions, k: int, stack: str) -> None:
        count = 2 * options.encoder_layers if stack == "encoder" else 3 * options.decoder_layers
        c = options.encoder_c if stack == "encoder" else options.decoder_c
        c = float(count if c is None else c) if options.rescaled else None
        self.join = Join(init, options, k, count, c, options.dim, (1, 2), norm=not options.rescaled)
        self.drop = init.dropout(options.drop_rate)
        self.gain = branch_gain(options, k, c, 2)  # not used after init

    def linear(self, init: Init, options: TransformerOptions, roles: Sequence[str], inputs: int, size: int) -> Linear:
        """Return a layer that computes all ``roles``, each with ``size`` outputs."""
        weights = []
        for role in roles:
            bound = math.sqrt(6 / (inputs + size))  # Xavier's
            if options.rescaled and role not in ("query", "key"):
                weights.append(init.he((size, inputs), self.gain * (2**0.5 if role == "hidden" else 1.0)))
            elif options.rescaled or role in ("output", "hidden", "shrink"):
                weights.append(init.uniform((size, inputs), bound))
            else:
                weights.append(init.uniform((size, inputs), bound / math.sqrt(2)))
        bias = jnp.zeros(len(roles) * size) if options.post_bias or not options.rescaled else None
        # queries have a bias before the product of their own, keys and values share one
        parts = (size, 2 * size) if len(roles) == 3 and options.rescaled else ()
        return Linear(np.concatenate(weights), options.rescaled, bias, parts)


class Attention(Branch):
    """Self-attention, or attention of the target to the source (``cross``)."""

    def __init__(self, init: Init, options: TransformerOptions, k: int, stack: str, *, cross: bool = False) -> None:
        super().__init__(init, options, k, stack)
        self.heads, self.cross, dim = options.heads, cross, options.dim
        if cross:
            self.query = self.linear(init, options, ("query",), dim, dim)
            self.key_value = self.linear(init, options, ("key", "value"), dim, dim)
        else:
            self.qkv = self.linear(init, options, ("query", "key", "value"), dim, dim)
        self.out = self.linear(init, options, ("output",), dim, dim)
        self.attention_drop = init.dropout(options.attention_drop_rate)

    def remember(self, source: Array) -> tuple[Array, Array]:
        """Return the keys and values (B, S, d) of the encoder's output (B, S, d)."""
        key, value = jnp.split(self.key_value(source), 2, -1)
        return key, value

    def __call__(self, x: Array, mask: Array, memory: tuple[Array, Array] | None = None) -> Array:
        """Return the next trunk.

        Args:
            x: trunk (B, T, d).
            mask: whether a position is seen, (B or 1, T or 1, S).
            memory: keys and values of the source, of a cross-attention.
        """
        entered = self.join.enter(x)
        q, k, v = (self.query(entered), *memory) if memory else jnp.split(self.qkv(entered), 3, -1)
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in (q, k, v))  # (B, T or S, H, d / H)
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
        weights = nnx.softmax(jnp.where(mask[:, None], scores, -jnp.inf))
        y = jnp.einsum("bhts,bshd->bthd", self.attention_drop(weights), v)
        return self.join(x, self.drop(self.out(y.reshape(x.shape))))


class FeedForward(Branch):
    """Two linear layers with an activation between them."""

    def __init__(self, init: Init, options: TransformerOptions, k: int, stack: str) -> None:
        super().__init__(init, options, k, stack)
        self.hidden = self.linear(init, options, ("hidden",), options.dim, options.hidden)
        self.shrink = self.linear(init, options, ("shrink",), options.hidden, options.dim)
        self.activation, self.hidden_drop = options.activation, init.dropout(options.hidden_drop_rate)

    def __call__(self, x: Array) -> Array:
        h = self.hidden(self.join.enter(x))
        h = nnx.relu(h) if self.activation == "relu" else nnx.gelu(h, approximate=False)
        return self.join(x, self.drop(self.shrink(self.hidden_drop(h))))


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward branches."""

    def __init__(self, init: Init, options: TransformerOptions, number: int) -> None:
        self.self_attn = Attention(init, options, 2 * number + 1, "encoder")
        self.ffn = FeedForward(init, options, 2 * number + 2, "encoder")


class DecoderLayer(nnx.Module):
    """Self-attention, cross-attention and feed-forward branches."""

    def __init__(self, init: Init, options: TransformerOptions, number: int) -> None:
        self.self_attn = Attention(init, options, 3 * number + 1, "decoder")
        self.cross_attn = Attention(init, options, 3 * number + 2, "decoder", cross=True)
        self.ffn = FeedForward(init, options, 3 * number + 3, "decoder")


class Embedding(nnx.Module):
    """Embeddings times sqrt(d), plus sinusoids, then dropout: tokens (B, T) -> (B, T, d)."""

    def __init__(self, init: Init, vocabulary: int, options: TransformerOptions) -> None:
        self.weight = nnx.Param(init.normal((vocabulary, options.dim), options.dim**-0.5))
        self.drop, self.max_length = init.dropout(options.drop_rate), options.max_length

    def __call__(self, tokens: Array) -> Array:
        if tokens.shape[1] > self.max_length:
            raise ValueError(f"a sentence of {tokens.shape[1]} tokens: must be <= {self.max_length} tokens")
        dim = self.weight.shape[1]
        return self.drop(math.sqrt(dim) * self.weight[tokens] + sinusoids(tokens.shape[1], dim))


def sinusoids(length: int, dim: int) -> np.ndarray:
    """Return fairseq's positions (length, dim): sines, then cosines, of geometrically spaced frequencies."""
    half = dim // 2
    frequencies = np.exp(np.arange(half) * -(math.log(10000) / max(half - 1, 1)))
    angles = (np.arange(length) + PAD + 1)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles), np.zeros((length, dim % 2))], 1).astype(np.float32)


class Transformer(nnx.Module):
    """An encoder-decoder Transformer: source (B, S) and target tokens (B, T) -> logits of the next token (B, T, V).

    Sentences are padded at the end with ``PAD``; a target begins with </s>.
    """

    def __init__(self, init: Init, options: TransformerOptions) -> None:
        vocabularies, shared = (options.source_vocabulary, options.target_vocabulary), options.share
        self.encoder_embedding = Embedding(init, vocabularies[0], options)
        self.decoder_embedding = None if shared == "all" else Embedding(init, vocabularies[1], options)
        self.encoder = nnx.List([EncoderLayer(init, options, i) for i in range(options.encoder_layers)])
        self.decoder = nnx.List([DecoderLayer(init, options, i) for i in range(options.decoder_layers)])
        self.encoder_end = None if options.rescaled else LayerNorm(options.dim)
        self.decoder_end = Bias(options.dim) if options.rescaled else LayerNorm(options.dim)
        matrix = init.normal((vocabularies[1], options.dim), options.dim**-0.5) if shared == "none" else None
        self.projection = None if matrix is None else Linear(matrix, False, None)

    def encode(self, source: Array) -> list[tuple[Array, Array]]:
        """Return the keys and values (B, S, d) of the source for each layer of the decoder."""
        seen = source != PAD
        x = self.encoder_embedding(source)
        with _only(seen):
            for layer in self.encoder:
                x = layer.ffn(layer.self_attn(x, seen[:, None]))
            x = x if self.encoder_end is None else self.encoder_end(x)
            return [layer.cross_attn.remember(x) for layer in self.decoder]

    def decode(self, target: Array, memory: Sequence[tuple[Array, Array]], seen: Array) -> Array:
        """Return logits (B, T, V).

        Args:
            target: tokens (B, T).
            memory: result of ``encode``.
            seen: whether a source token is no padding, (B, S).
        """
        embedding = self.encoder_embedding if self.decoder_embedding is None else self.decoder_embedding
        x = embedding(target)
        causal = jnp.tril(jnp.ones((1, target.shape[1], target.shape[1]), bool))
        with _only(target != PAD):
            for layer, keys_values in zip(self.decoder, memory, strict=True):
                x = layer.self_attn(x, causal)
                x = layer.ffn(layer.cross_attn(x, seen[:, None], keys_values))
            x = self.decoder_end(x)
        return x @ (embedding if self.projection is None else self.projection).weight.T

    def __call__(self, source: Array, target: Array) -> Array:
        return self.decode(target, self.encode(source), source != PAD)


# -- nets by name ------------------------------------------------------------------------------------

_TWO, _FOUR, _DEEP = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3)
_BOTTLENECKS: dict[str, dict[str, Any]] = {
    "rescalenet26": {"depths": _TWO},
    "rescalenet50": {"depths": _FOUR},
    "rescalenet101": {"depths": _DEEP},
    "rescalenet152": {"depths": (3, 8, 36, 3)},
    "rescalenet200": {"depths": (3, 24, 36, 3)},
    "rescale_wide_resnet50_2": {"depths": _FOUR, "width_per_group": 128},
    "rescale_wide_resnet101_2": {"depths": _DEEP, "width_per_group": 128},
    "rescalenext50_32x4d": {"depths": _FOUR, "groups": 32, "width_per_group": 4},
    "rescalenext101_32x4d": {"depths": _DEEP, "groups": 32, "width_per_group": 4},
    "rescalenext101_32x8d": {"depths": _DEEP, "groups": 32, "width_per_group": 8},
    "rescalenext101_32x16d": {"depths": _DEEP, "groups": 32, "width_per_group": 16},
    "rescalenext101_32x32d": {"depths": _DEEP, "groups": 32, "width_per_group": 32},
    "rescalenext101_64x4d": {"depths": _DEEP, "groups": 64, "width_per_group": 4},
}
_CLIPS: dict[str, dict[str, Any]] = {
    "rescale_r3d_18": {"block": "basic", "depths": _TWO, "temporal": ((3,),) * 4, "stem": "r3d"},
    "rescale_mc3_18": {"block": "basic", "depths": _TWO, "temporal": ((3,), (1,), (1,), (1,)), "stem": "r3d"},
    "rescale_r2plus1d_18": {"block": "factorised", "depths": _TWO, "temporal": ((3,),) * 4, "stem": "factorised"},
    "rescale_r3d_10": {
        "block": "basic",
        "depths": (1, 1, 1, 1),
        "temporal": ((3,),) * 4,
        "stem": "r3d",
        "base_channels": 24,
    },
    "rescale_slowonly_r20_cifar": {
        "block": "basic",
        "depths": (3, 3, 3),
        "temporal": ((1,), (1,), (3,)),
        "stem": "cifar",
        "base_channels": 16,
    },
}
for _name, _depths in {"50": _FOUR, "101": _DEEP}.items():
    _CLIPS[f"rescale_slowonly_r{_name}"] = {
        "block": "bottleneck",
        "depths": _depths,
        "temporal": ((1,), (1,), (3,), (3,)),
        "stem": "slow",
    }
    _CLIPS[f"rescale_i3d_r{_name}"] = {
        "block": "bottleneck",
        "depths": _depths,
        "temporal": ((3,), (3, 1), (3, 1), (1, 3)),
        "stem": "i3d",
        "frame_pool": 2,
    }

# The class of each net and its options.
NETS: dict[str, tuple[Callable[[Init, Any], nnx.Module], Any]] = {
    "rescalenet18": (ResNet, ResNetOptions(block="basic", depths=_TWO, num_classes=1000)),
    "rescalenet34": (ResNet, ResNetOptions(block="basic", depths=_FOUR, num_classes=1000)),
}
for _name, _layout in _BOTTLENECKS.items():
    NETS[_name] = (ResNet, ResNetOptions(block="bottleneck", num_classes=1000, **_layout))
for _depth in (20, 32, 44, 56, 110):
    _layout = {"block": "basic", "depths": ((_depth - 2) // 6,) * 3, "base_channels": 16, "stem": "cifar"}
    NETS[f"rescalenet{_depth}_cifar"] = (ResNet, ResNetOptions(num_classes=10, **_layout))
for _name, _layout in _CLIPS.items():
    NETS[_name] = (ResNet, ResNetOptions(dims=3, num_classes=400, **_layout))
for _count, _convs in {"11": (1, 1, 2, 2, 2), "13": (2,) * 5, "16": (2, 2, 3, 3, 3), "19": (2, 2, 4, 4, 4)}.items():
    NETS[f"rescalevgg{_count}"] = (VGG, VGGOptions(depths=_convs, num_classes=1000))
_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 128, "hidden": 256, "heads": 4, "encoder_layers": 4, "decoder_layers": 4, "drop_rate": 0.3},
    "small": {"dim": 512, "hidden": 1024, "heads": 4, "drop_rate": 0.3},
    "base": {"dim": 512, "hidden": 2048, "heads": 8, "drop_rate": 0.1},
    "big": {"dim": 1024, "hidden": 4096, "heads": 16, "drop_rate": 0.3},
}
for _name, _layout in _TRANSFORMERS.items():
    NETS[f"rescale_transformer_{_name}"] = (Transformer, TransformerOptions(**_layout))


def options_of(config: Mapping[str, Any]) -> Any:
    """Return all options of a net, given its config in the header of a weights file.

    Raises:
        ValueError: a net, a scheme or an option that this file does not have.
    """
    if config["name"] not in NETS:
        raise ValueError(f"unknown net {config['name']!r}: this file has {', '.join(sorted(NETS))}")
    _, options = NETS[config["name"]]
    if config["scheme"] not in options.schemes:
        raise ValueError(f"scheme {config['scheme']!r}: this file has {' and '.join(options.schemes)}")
    given = {"scheme": config["scheme"], **config["options"]}
    if not isinstance(options, TransformerOptions):
        given |= {"num_classes": config["num_classes"], "in_chans": config["in_chans"]}
    if unknown := sorted(given.keys() - {field.name for field in fields(options)}):
        raise ValueError(f"{config['name']}: unknown option {unknown[0]!r}")
    return replace(options, **given)


def build(config: Mapping[str, Any], init: Init) -> Any:
    """Return a new net from its config, in training mode."""
    options = options_of(config)
    return NETS[config["name"]][0](init, options)


def create(
    name: str,
    scheme: str = "rescale",
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    seed: int = 0,
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """Return a new net with random weights, in training mode, and its header for ``save``. Calibrate it next.

    Args:
        name: name of the net, a key of ``NETS``.
        scheme: ``rescale``, or the baseline: ``bn``, of Transformers ``pre_ln``.
        num_classes: number of classes; None for the net's own.
        in_chans: channels of the input.
        seed: seed of the random numbers.
        options: other options of the net.

    Raises:
        ValueError: a net, a scheme or an option that this file does not have.
    """
    config: dict[str, Any] = {"name": name, "scheme": scheme, "num_classes": 0, "in_chans": 0, "options": options}
    if not isinstance(options_of(config), TransformerOptions):
        own = NETS[name][1].num_classes
        config |= {"num_classes": own if num_classes is None else num_classes, "in_chans": in_chans}
    classes = [str(i) for i in range(config["num_classes"])]
    net = build(config, Init.of(seed))
    for variable in variables(net).values():
        variable.set_value(jnp.asarray(variable[...]))
    return net, {"config": config, "transform": None, "classes": classes, "meta": {}}


# -- files -------------------------------------------------------------------------------------------


def read_header(path: str | Path) -> dict[str, Any]:
    """Return what a weights file states of its net: ``config``, ``transform``, ``classes`` and ``meta``.

    Raises:
        ValueError: a file without this entry.
    """
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    if KEY not in metadata:
        raise ValueError(f"{path}: its header has no {KEY!r} entry")
    return json.loads(metadata[KEY])


def variables(net: nnx.Module) -> dict[str, nnx.Variable]:
    """Return the parameters, statistics and constants of a net by their names in the weights file."""
    state = nnx.to_flat_state(nnx.state(net, (nnx.Param, nnx.BatchStat, Constant)))
    return {".".join(map(str, path)): variable for path, variable in state}


def load(
    path: str | Path, *, classes: Sequence[str] | None = None, seed: int = 0, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Return the net of a weights file, in training mode (``net.eval()`` ends it), and the file's header.

    Args:
        path: file that ``save``, ``zoo.save_weights`` or ``rescalenet export --to jax`` wrote.
        classes: names of other classes, for which the net gets a new last layer; None for the file's.
        seed: seed of dropout and of a new last layer.
        options: options that may differ from the file's, such as ``drop_rate`` and ``drop_path_rate``.

    Raises:
        ValueError: a file that is not such a file, or a net that this file of source code does not have.
    """
    header = read_header(path)
    config = header["config"] = {**header["config"], "options": {**header["config"]["options"], **options}}
    if classes is not None:
        header["classes"], config["num_classes"] = list(classes), len(classes)
    net = build(config, Init.of(seed, zeros=True))
    own = variables(net)
    with safe_open(path, framework="numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if classes is not None and net.fc is not None:  # a bias before the new last layer stays, as its input does
        fresh = variables(build(config, Init.of(seed)))
        found |= {name: np.asarray(fresh[name][...]) for name in ("fc.weight", "fc.bias")}
    if different := sorted(own.keys() ^ found.keys()):
        raise ValueError(f"{path}: {different[0]} is {'missing' if different[0] in own else 'not of this net'}")
    for name, variable in own.items():
        value = found[name]
        if value.shape != variable.shape:
            raise ValueError(f"{path}: {name} has shape {value.shape}, the net {variable.shape}")
        variable.set_value(jnp.asarray(value, jnp.int32 if value.dtype.kind == "i" else jnp.float32))
    return net, header


def save(net: nnx.Module, header: Mapping[str, Any], path: str | Path) -> None:
    """Write a net as a weights file, which ``load`` and ``zoo.create_model`` read.

    Args:
        net: net.
        header: header that ``load`` or ``create`` returned. For ``zoo.create_model`` it must have the entry
            ``transform``, the description of the input.
        path: file to write.
    """
    tensors = {}
    for name, variable in variables(net).items():
        value = np.asarray(variable[...])
        # BatchNorm of PyTorch counts in int64
        tensors[name] = np.array(value, np.int64 if value.dtype.kind == "i" else np.float32, order="C")
    content = serialize(tensors, metadata={KEY: json.dumps(dict(header)), "format": "pt"})
    temporary = Path(path).with_suffix(".part")  # so that an interruption leaves no half of a file
    temporary.write_bytes(content)
    temporary.replace(path)


def standardised(images: np.ndarray, header: Mapping[str, Any]) -> np.ndarray:
    """Return uint8 images or clips (..., RGB) as the net takes them: float32, standardised as the header states.

    Raises:
        ValueError: a header without ``transform``, the description of the input.
    """
    transform = header.get("transform")
    if not transform:
        raise ValueError("the header has no 'transform': standardise the images as the net's data were")
    images = images[..., ::-1] if transform.get("channel_order", "rgb").lower() == "bgr" else images
    return (images / np.float32(255) - np.float32(transform["mean"])) / np.float32(transform["std"])


# -- optimizers --------------------------------------------------------------------------------------


def parameter_groups(net: nnx.Module) -> Callable[[Any], Any]:
    """Return a function from a tree of the net's parameters to a tree of their groups, as optax's masks take it.

    The groups are ``weights`` (which take weight decay), ``data_biases`` and ``multipliers`` (which may have a smaller
    learning rate) and ``others``.
    """
    groups = {}
    for name, variable in variables(net).items():
        kinds = {DataBias: "data_biases", Multiplier: "multipliers"}
        groups[name] = kinds.get(type(variable), "weights" if variable.ndim > 1 else "others")

    def group(path: Sequence[Any], _: Any) -> str:
        keys = [str(getattr(key, "key", getattr(key, "idx", ""))) for key in path]
        return groups[".".join(key for key in keys if key)]

    return lambda tree: jax.tree_util.tree_map_with_path(group, tree)
