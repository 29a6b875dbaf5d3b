"""Residual nets of any scheme, of images and of clips: what ``resnet.py`` and ``resnet3d.py`` share.

A family says which convolutions a stem and a block consist of; the blocks, the held trunk (docs/design.md), the
features, the head and the deployment form are written once, here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from zoo.calibration import HasDataBias
from zoo.errors import ZooError
from zoo.fold import Shift, Unscale, activation, folded_conv, needed_shift
from zoo.joins import RescaledAdd, ResidualAdd
from zoo.layers import _BiasedConvNd, _StemConvNd
from zoo.nets.base import Backbone, FeatureLevel
from zoo.options import free
from zoo.products import clipped_window, pooled
from zoo.schemes.vision import Branch, Extent, Scheme, dimensions


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the layouts of all residual families share.

    Attributes:
        shortcut: of a stage's first block: avgpool = average pool then 1x1, conv = strided 1x1; None for
            the scheme's own (avgpool for rescale, conv for normalized nets).
        width: factor on all channel counts.
        drop_rate: dropout before the classifier.
        branch_drop_rate: channel dropout after each branch convolution of the last two stages.
    """

    shortcut: Literal["avgpool", "conv"] | None = None
    width: float = 1.0
    drop_rate: float = free(0.0)
    branch_drop_rate: float = free(0.0)

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ZooError(f"option width={self.width}: must be greater than 0")
        for name in ("drop_rate", "branch_drop_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ZooError(f"option {name}={getattr(self, name)}: must be in [0, 1)")


@dataclass(frozen=True)
class Conv:
    """One convolution: output channels, kernel, stride and groups."""

    channels: int
    kernel: Extent
    stride: Extent = 1
    groups: int = 1


class AvgPool3d(nn.Module):
    """``average_pool`` of clips of any length and size: (N, C, T, H, W) -> the same over the window, rounded up."""

    def __init__(self, window: tuple[int, ...]) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        return pooled(x, self.window)

    def extra_repr(self) -> str:
        return str(self.window)


def average_pool(size: tuple[int, ...]) -> nn.Module:
    """Means over windows; those at the ends over what is there, so that odd sizes are rounded up as a 3x3/2 does."""
    if len(size) == 2:
        return nn.AvgPool2d((size[0], size[1]), ceil_mode=True, count_include_pad=False)
    return AvgPool3d(size)


class FramePool(nn.Module):
    """Max pool in time, an incomplete window at the end counts too: (N, C, T, H, W) -> (N, C, ceil(T/size), H, W)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.stride = (size, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        window = clipped_window((self.size, 1, 1), x)
        return nn.functional.max_pool3d(x, window, window, ceil_mode=True)

    def extra_repr(self) -> str:
        return str(self.size)


class Shortcut(nn.Module):
    """Projection shortcut of a stage's first block: (N, C, H, W) -> (N, O, ceil(H/s), ceil(W/s)); clips alike.

    Args:
        pooled: average over windows of the stride, then a 1x1 convolution; else a strided 1x1.
    """

    def __init__(self, scheme: Scheme, in_channels: int, out_channels: int, stride: Extent, pooled: bool) -> None:
        super().__init__()
        dims = dimensions(stride)
        window = (stride, stride) if isinstance(stride, int) else stride
        one: Extent = 1 if dims == 2 else (1, 1, 1)
        self.pool: nn.Module = nn.Identity()
        self.conv = scheme.projection(in_channels, out_channels, stride=one if pooled else stride)
        if pooled and max(window) > 1:
            if isinstance(self.conv, _BiasedConvNd):
                self.conv.pool = window  # the layer makes the means again in backward
            else:
                self.pool = average_pool(window)
        self.norm = scheme.norm(out_channels, dims)

    def forward(self, x: Tensor, join: ResidualAdd | RescaledAdd) -> Tensor:
        return self.norm(join.projection(self.conv, self.pool(x)))


class Block(nn.Module):
    """A residual block: convolutions conv1, norm1, act1, conv2, ..., and a ReLU after the add.

    Args:
        convs: of the branch; the product of their strides is the block's.
        stride: of the block.
        place: number of the branch, from 1, and how many the net has.
    """

    def __init__(
        self,
        scheme: Scheme,
        in_channels: int,
        convs: Sequence[Conv],
        stride: Extent,
        place: tuple[int, int],
        *,
        pooled_shortcut: bool,
        drop_rate: float,
    ) -> None:
        super().__init__()
        count, dims = len(convs), dimensions(stride)
        branch = Branch(*place, layers=count)
        channels = in_channels
        for i, conv in enumerate(convs, 1):
            layer = scheme.conv(
                channels, conv.channels, conv.kernel, stride=conv.stride, groups=conv.groups, branch=branch
            )
            self.add_module(f"conv{i}", layer)
            self.add_module(f"norm{i}", scheme.norm(conv.channels, dims))
            channels = conv.channels
        self.out_channels = channels
        self.branch_layers = tuple(f"conv{i}" for i in range(1, count + 1))
        self.inner = tuple((f"conv{i}", f"norm{i}", f"act{i}") for i in range(1, count))
        self.last = (f"conv{count}", f"norm{count}")
        dropout = nn.Dropout2d if dims == 2 else nn.Dropout3d
        self.drop: nn.Module = dropout(drop_rate) if drop_rate > 0 else nn.Identity()
        for _, _, act in self.inner:
            self.add_module(act, scheme.activation())
        self.act = scheme.activation()
        self.join: ResidualAdd | RescaledAdd = scheme.join(branch)
        strided = stride not in (1, (1, 1, 1))
        self.downsample = (
            Shortcut(scheme, in_channels, channels, stride, pooled_shortcut)
            if strided or in_channels != channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv, norm, act in self.inner:
            y = getattr(self, act)(self.drop(getattr(self, norm)(getattr(self, conv)(y))))
        conv, norm = self.last
        y = self.drop(getattr(self, norm)(self.join.product(getattr(self, conv), y)))
        if self.downsample is None:
            return self.act(self.join(x, y))
        return self.act(self.join(self.downsample(x, self.join), y, projected=True))

    def hold_trunk(self, after: float) -> float:
        """Let the output be ``after`` times the nominal one; returns the scale the input must have for that."""
        before = 1.0 if self.downsample is not None else self.join.alpha * after
        self.join.hold(before, after)
        for module in self.modules():
            if isinstance(module, HasDataBias):
                module.input_scale = before
        return before

    def fold_(self, input_shift: Shift, output_shift: Shift) -> None:
        """Deployment form; ``input_shift`` and ``output_shift`` are the shifts of input and output."""
        join = self.join
        shift = input_shift
        for i, (name, norm_name, act_name) in enumerate(self.inner):
            conv = getattr(self, name)
            out = needed_shift(getattr(self, self.branch_layers[i + 1]))
            folded, norm = folded_conv(conv, getattr(self, norm_name), input_shift=shift, output_shift=out)
            setattr(self, name, folded)
            setattr(self, norm_name, norm)
            setattr(self, act_name, activation(out, conv.weight))
            shift = out
        gain, branch_gain = (join.gain, join.branch_gain()) if isinstance(join, RescaledAdd) else (1.0, 1.0)
        end = output_shift
        if self.downsample is not None:
            shortcut = self.downsample
            if isinstance(shortcut.conv, _BiasedConvNd) and shortcut.conv.pool:
                shortcut.pool = average_pool(shortcut.conv.pool)
            shortcut.conv, shortcut.norm = folded_conv(shortcut.conv, shortcut.norm, gain=gain, input_shift=input_shift)
        elif input_shift is not None:
            end = -input_shift if end is None else end - input_shift
        name, norm_name = self.last
        conv = getattr(self, name)
        folded, norm = folded_conv(
            conv, getattr(self, norm_name), gain=branch_gain, input_shift=shift, output_shift=end
        )
        setattr(self, name, folded)
        setattr(self, norm_name, norm)
        self.act = activation(output_shift, conv.weight)
        self.join, self.drop = ResidualAdd(), nn.Identity()


class Stem(nn.Sequential):
    """Entrance convolutions with their norms and ReLUs, as conv1, norm1, act1, conv2, ..."""

    def __init__(self, scheme: Scheme, in_chans: int, convs: Sequence[Conv]) -> None:
        super().__init__()
        previous = in_chans
        for i, conv in enumerate(convs, 1):
            self.add_module(f"conv{i}", scheme.stem(previous, conv.channels, conv.kernel, stride=conv.stride))
            self.add_module(f"norm{i}", scheme.norm(conv.channels, dimensions(conv.kernel)))
            self.add_module(f"act{i}", scheme.activation())
            previous = conv.channels

    def hold_trunk(self, after: float) -> None:
        """Let the output be ``after`` times the nominal one."""
        last = [module for module in self if isinstance(module, _StemConvNd)][-1:]
        assert last or after == 1
        for conv in last:
            conv.output_scale = after

    def fold_(self, output_shift: Shift) -> None:
        """Deployment form; ``output_shift`` is the shift of the output."""
        count = len(self) // 3
        for i in range(1, count + 1):
            conv, out = self.get_submodule(f"conv{i}"), output_shift if i == count else None
            assert isinstance(conv, nn.Conv2d | nn.Conv3d)
            folded, norm = folded_conv(conv, self.get_submodule(f"norm{i}"), output_shift=out)
            setattr(self, f"conv{i}", folded)
            setattr(self, f"norm{i}", norm)
            setattr(self, f"act{i}", activation(out, conv.weight))


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        blocks: the convolutions of each block's branch.
        stride: of its first block; the others have none.
        pool: max pooling before it, or None.
        drop_rate: channel dropout after each of its branch convolutions.
    """

    blocks: tuple[tuple[Conv, ...], ...]
    stride: Extent
    pool: nn.Module | None
    drop_rate: float


def strides(extent: Extent) -> tuple[int, int]:
    """The steps in time and in space."""
    return (1, extent) if isinstance(extent, int) else (extent[0], extent[1])


class ResidualNet(Backbone):
    """A residual net of any scheme. Feature level 0 is the stem's output (before max pool), i the i-th stage's.

    Subclasses give their layout to ``_build``.
    """

    residual = True
    pooled = True

    def _build(
        self,
        layout: Layout,
        scheme: Scheme,
        stem: Sequence[Conv],
        stages: Sequence[Stage],
        num_classes: int,
        in_chans: int,
    ) -> None:
        """Make all modules."""
        pooled_shortcut = (layout.shortcut or scheme.default_shortcut) == "avgpool"
        self.scheme = scheme
        self.stem = Stem(scheme, in_chans, stem)
        self.pools = nn.ModuleList(stage.pool or nn.Identity() for stage in stages)  # before each stage
        channels = stem[-1].channels
        frames, reduction = 1, 1
        for conv in stem:
            frames, reduction = frames * strides(conv.stride)[0], reduction * strides(conv.stride)[1]
        levels = [FeatureLevel(channels, reduction, "stem", frames)]
        total = sum(len(stage.blocks) for stage in stages)
        index = 0
        self.stage_names = [f"layer{i + 1}" for i in range(len(stages))]
        self.to_features = nn.ModuleList()  # from what the net holds to the feature maps
        one: Extent = 1 if self.dims == 2 else (1, 1, 1)
        for name, stage in zip(self.stage_names, stages, strict=True):
            blocks: list[Block] = []
            for i, convs in enumerate(stage.blocks):
                index += 1
                block = Block(
                    scheme,
                    channels,
                    convs,
                    stage.stride if i == 0 else one,
                    (index, total),
                    pooled_shortcut=pooled_shortcut,
                    drop_rate=stage.drop_rate,
                )
                blocks.append(block)
                channels = block.out_channels
            scale = 1.0  # each stage ends at scale 1, so that the features are the nominal ones
            for block in reversed(blocks):
                scale = block.hold_trunk(scale)
            if index == len(blocks):  # the first stage
                self.stem.hold_trunk(scale)
                self.to_features.append(Unscale(scale))
            self.add_module(name, nn.Sequential(*blocks))
            self.to_features.append(Unscale())
            steps = [strides(stage.stride)]
            if stage.pool is not None:
                steps.append(strides(stage.pool.stride))  # type: ignore[arg-type]
            for in_time, in_space in steps:
                frames, reduction = frames * in_time, reduction * in_space
            levels.append(FeatureLevel(channels, reduction, name, frames))
        self.levels = tuple(levels)
        self.num_features = channels
        self.head_bias = scheme.head_bias(channels)
        self.drop: nn.Module = nn.Dropout(layout.drop_rate) if layout.drop_rate > 0 else nn.Identity()
        self.reset_classifier(num_classes)

    def forward_levels(self, x: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
        wanted = range(len(self.to_features)) if indices is None else indices
        x = self.stem(x)
        maps = [self.to_features[0](x)] if 0 in wanted else []
        for level, name in enumerate(self.stage_names, 1):
            x = getattr(self, name)(self.pools[level - 1](x))
            if level in wanted:
                maps.append(self.to_features[level](x))
        return maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        # The published bias before global pooling: pooling is linear, so it acts on the pooled features.
        x = self.drop(self.head_bias(x.mean(tuple(range(2, self.dims + 2)))))
        return x if pre_logits else self.fc(x)

    def truncate(self, level: int) -> None:
        for name in self.stage_names[level:]:
            delattr(self, name)
        self.stage_names = self.stage_names[:level]
        self.to_features, self.pools = self.to_features[: level + 1], self.pools[:level]
        self.head_bias, self.drop, self.fc, self.num_classes = nn.Identity(), nn.Identity(), nn.Identity(), 0

    def fold_(self) -> None:
        stages = [list(getattr(self, name)) for name in self.stage_names]
        blocks = [block for stage in stages for block in stage]
        shifts = [needed_shift(block.conv1) for block in blocks] + [None]  # before each block, and at the end
        self.stem.fold_(shifts[0])  # max pooling lets a shift through
        for block, input_shift, output_shift in zip(blocks, shifts[:-1], shifts[1:], strict=True):
            block.fold_(input_shift, output_shift)
        ends = [0]
        for stage in stages:
            ends.append(ends[-1] + len(stage))
        for level, end in enumerate(ends):
            exit = self.to_features[level]
            assert isinstance(exit, Unscale)
            exit.hold(shifts[end], next(self.parameters()))
        self.drop = nn.Identity()
