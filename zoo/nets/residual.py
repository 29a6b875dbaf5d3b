"""Residual nets of any scheme for images and clips: the common code of ``resnet.py`` and ``resnet3d.py``.

A family decides which convolutions a stem and a block consist of. The blocks, the scales of the trunk
(``zoo.trunk``), the features, the head and the deployment form are written once, here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from zoo.arguments import flag, whole_number
from zoo.checkpointing import checkpointed
from zoo.errors import ZooError
from zoo.folding import Shift, Unscale, folded_activation, folded_conv, folded_linear, needed_shift, separated
from zoo.joins import Join
from zoo.layers import BiasedConvNd, StemConvNd
from zoo.nets.base import Backbone, FeatureLevel
from zoo.nets.regularization import BranchEnd, BranchRegularization
from zoo.nets.stacks import ConvStack
from zoo.options import free
from zoo.products import clipped_window, pooled
from zoo.schemes.base import Place
from zoo.schemes.vision import Extent, VisionScheme, dimensions
from zoo.trunk import ModuleScales, OnTrunk, TrunkBlock, TrunkScales, planned, set_input_scale


@dataclass(frozen=True, kw_only=True)
class Layout(BranchRegularization):
    """Base of the layouts of all residual families.

    Attributes:
        shortcut: shortcut of a stage's first block: avgpool = average pool then 1x1, conv = strided 1x1; None for
            the scheme's own (avgpool for rescale, conv for normalized nets).
        width: factor on all channel counts.
        global_pool: pooling before the classifier: avg, max, avgmax (their mean), or "" for the unpooled map, which
            requires 0 classes.
        drop_rate: dropout before the classifier.
        branch_drop_rate: channel dropout after each branch convolution of the last two stages.
    """

    # the options that every family has beside its own and ``shortcut``
    SHARED: ClassVar = ("width", "global_pool", "drop_rate", "branch_drop_rate", "drop_path_rate", "branch_noise")

    shortcut: Literal["avgpool", "conv"] | None = None
    width: float = 1.0
    global_pool: Literal["avg", "max", "avgmax", ""] = free("avg")
    drop_rate: float = free(0.0)
    branch_drop_rate: float = free(0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.width > 0:
            raise ZooError(f"option width={self.width}: must be > 0")
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
    """Return a pool of means over windows, whose output sizes are rounded up.

    A window that ends outside of the map averages the values inside.
    """
    if len(size) == 2:
        return nn.AvgPool2d((size[0], size[1]), ceil_mode=True, count_include_pad=False)
    return AvgPool3d(size)


class FramePool(nn.Module):
    """Max pool in time, with an incomplete window at the end: (N, C, T, H, W) -> (N, C, ceil(T/size), H, W)."""

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
        scheme: scheme of the net.
        in_channels: C.
        out_channels: O.
        stride: s.
        pooled: average over windows of the stride, then a 1x1 convolution; else a strided 1x1.
    """

    def __init__(self, scheme: VisionScheme, in_channels: int, out_channels: int, stride: Extent, pooled: bool) -> None:
        super().__init__()
        dims = dimensions(stride)
        window = (stride, stride) if isinstance(stride, int) else stride
        one: Extent = 1 if dims == 2 else (1, 1, 1)
        self.pool: nn.Module = nn.Identity()
        self.conv: Any = scheme.projection(in_channels, out_channels, stride=one if pooled else stride)
        if pooled and max(window) > 1:
            if isinstance(self.conv, BiasedConvNd):
                self.conv.pool = window  # the layer computes the means again in backward
            else:
                self.pool = average_pool(window)
        self.norm = scheme.norm(out_channels, dims)

    def forward(self, x: Tensor, join: Join) -> Tensor:
        return self.norm(join.projection(self.conv, self.pool(x)))

    def fold_(self, gain: float | Tensor, input_gain: float, input_shift: Shift) -> None:
        """Change this shortcut into its deployment form (``zoo.folding.folded_conv``)."""
        if isinstance(self.conv, BiasedConvNd) and self.conv.pool:
            self.pool = average_pool(self.conv.pool)
        self.conv, self.norm = folded_conv(
            self.conv, self.norm, gain=gain, input_gain=input_gain, input_shift=input_shift
        )


class Block(ConvStack, TrunkBlock):
    """A residual block: convolutions conv1, norm1, act1, conv2, ..., and the trunk's activation after the add.

    Args:
        scheme: scheme of the net.
        in_channels: channels of the trunk before the block.
        convs: convolutions of the branch; the product of their strides is the block's stride.
        stride: stride of the block.
        place: place of the branch in the net.
        pooled_shortcut: whether a projection shortcut averages before its 1x1.
        drop_rate: rate of the channel dropout after each convolution.
        branch_end: regularization between the branch and the join, or None.
    """

    def __init__(
        self,
        scheme: VisionScheme,
        in_channels: int,
        convs: Sequence[Conv],
        stride: Extent,
        place: Place,
        *,
        pooled_shortcut: bool,
        drop_rate: float,
        branch_end: BranchEnd | None = None,
    ) -> None:
        super().__init__()
        dims = dimensions(stride)
        # the branch; its last activation is the one after the add
        channels = in_channels
        for i, conv in enumerate(convs, 1):
            layer = scheme.conv(
                channels, conv.channels, conv.kernel, stride=conv.stride, groups=conv.groups, place=place
            )
            act = scheme.activation() if i < len(convs) else None
            self.add_layer(layer, scheme.norm(conv.channels, dims), act)
            channels = conv.channels
        self.out_channels = channels
        dropout = nn.Dropout2d if dims == 2 else nn.Dropout3d
        self.drop: nn.Module = dropout(drop_rate) if drop_rate > 0 else nn.Identity()
        self.branch_end = branch_end
        self.act = scheme.trunk_activation()
        self.join = scheme.join(place, channels)
        scheme.finish_branch_(self.branch_layers())
        self.init_factor = scheme.branch_factor(place)  # on the He standard deviation of the branch's weights
        # the shortcut
        strided = stride not in (1, (1, 1, 1))
        self.downsample = (
            Shortcut(scheme, in_channels, channels, stride, pooled_shortcut)
            if strided or in_channels != channels or scheme.projects_always
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        *inner, (last_conv, last_norm, _) = self.layers()
        entered = y = self.join.enter(x)
        for conv, norm, act in inner:
            y = act(self.drop(norm(conv(y))))
        y = self.drop(last_norm(self.join.product(last_conv, y)))
        if self.branch_end is not None:
            y = self.branch_end(y)
        if self.downsample is None:
            return self.act(self.join(x, y))
        return self.act(self.join(self.downsample(entered, self.join), y, projected=True))

    def branch_layers(self) -> list[nn.Module]:
        return [layer.conv for layer in self.layers()]

    def set_scales(self, scales: ModuleScales) -> None:
        self.join.set_scales(scales.scale_in, scales.scale_out)
        for conv in self.branch_layers():
            set_input_scale(conv, scales.scale_in)
        if self.branch_end is not None:
            self.branch_end.set_scale(scales.scale_out)
        if self.downsample is not None:
            set_input_scale(self.downsample.conv, scales.scale_in)

    def output_scales(self, scales: ModuleScales) -> dict[str, float]:
        # ``drop`` is called after each convolution, at the scales of all of them
        kinds = ("conv", "norm", "act")
        inner = {f"{kind}{i}": scales.scale_in for i in range(1, self.depth) for kind in kinds}
        added = [f"conv{self.depth}", f"norm{self.depth}", "act"]
        added += [name for name, _ in self.join.named_modules(prefix="join")]
        if self.branch_end is not None:
            added += [name for name, _ in self.branch_end.named_modules(prefix="branch_end")]
        if self.downsample is not None:
            inner["downsample.pool"] = scales.scale_in
            added += ["downsample", "downsample.conv", "downsample.norm"]
        return inner | dict.fromkeys(added, scales.scale_out)

    def fold_(self, input_shift: Shift, output_shift: Shift) -> None:
        """Change this block into its deployment form.

        Args:
            input_shift: shift of the block's input, (in_channels,).
            output_shift: shift that the block's output gets, (out_channels,).
        """
        convs = self.branch_layers()
        folded = self.join.fold(convs[-1])
        if input_shift is not None and not self.join.passes_shift:
            raise ZooError(f"fold: a shift cannot pass {type(self.join).__name__}; use a scheme without a bias there")
        # inner layers: each adds the shift that the next one needs
        shift = input_shift
        for number, following in enumerate(convs[1:], 1):
            needed = needed_shift(following)
            gain = folded.entrance if number == 1 else 1.0
            self.fold_layer_(number, input_gain=gain, input_shift=shift, output_shift=needed)
            shift = needed
        # the sum must have output_shift: an identity shortcut has input_shift, so the branch adds the difference
        branch_shift = output_shift
        if self.downsample is not None:
            self.downsample.fold_(folded.projection, folded.entrance, input_shift)
        elif input_shift is not None:
            branch_shift = -input_shift if output_shift is None else output_shift - input_shift
        gain = folded.entrance if self.depth == 1 else 1.0
        self.fold_layer_(self.depth, gain=folded.product, input_gain=gain, input_shift=shift, output_shift=branch_shift)
        self.act = folded_activation(self.act, output_shift, self.layers()[-1].conv.weight)
        self.join, self.drop, self.branch_end = folded.join, nn.Identity(), None

    def separate_shifts_(self, depthwise: bool) -> None:
        super().separate_shifts_(depthwise)
        self.act = separated(self.layers()[-1].conv, self.act, depthwise)


class Stem(ConvStack, nn.Sequential, OnTrunk):
    """Entrance convolutions with their norms and activations, as conv1, norm1, act1, conv2, ..."""

    def __init__(self, scheme: VisionScheme, in_chans: int, convs: Sequence[Conv]) -> None:
        super().__init__()
        previous = in_chans
        for number, conv in enumerate(convs, 1):
            make = scheme.stem if number == 1 else scheme.later_stem
            layer = make(previous, conv.channels, conv.kernel, stride=conv.stride)
            act = scheme.activation() if number < len(convs) else scheme.trunk_activation()
            self.add_layer(layer, scheme.norm(conv.channels, dimensions(conv.kernel)), act)
            previous = conv.channels

    def set_scales(self, scales: ModuleScales) -> None:
        conv = self.layers()[-1].conv
        if isinstance(conv, StemConvNd):
            conv.output_scale = scales.scale_out
        elif scales.scale_out != 1:
            raise ZooError(
                f"{type(conv).__name__} has no output_scale; the stem of this trunk must end in StemConv2d or 3d"
            )

    def output_scales(self, scales: ModuleScales) -> dict[str, float]:
        names = [f"{kind}{i}" for i in range(1, self.depth + 1) for kind in ("conv", "norm", "act")]
        return dict.fromkeys(names[:-3], 1.0) | dict.fromkeys(names[-3:], scales.scale_out)

    def fold_(self, output_shift: Shift) -> None:
        """Change this stem into its deployment form; ``output_shift`` is the shift that its output gets."""
        needed = [needed_shift(layer.conv) for layer in self.layers()[1:]]  # before the second convolution, ...
        shifts = [None, *needed, output_shift]
        for number, (input_shift, shift) in enumerate(itertools.pairwise(shifts), 1):
            self.fold_layer_(number, input_shift=input_shift, output_shift=shift)


@dataclass(frozen=True)
class Stage:
    """Plan of one stage.

    Attributes:
        blocks: convolutions of each block's branch.
        stride: stride of the first block; the others have none.
        pool: max pooling before the stage, or None.
        drop_rate: rate of the channel dropout after each branch convolution.
    """

    blocks: tuple[tuple[Conv, ...], ...]
    stride: Extent
    pool: nn.Module | None
    drop_rate: float


def strides(extent: Extent) -> tuple[int, int]:
    """Return the steps in time and in space."""
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
        scheme: VisionScheme,
        stem: Sequence[Conv],
        stages: Sequence[Stage],
        num_classes: int,
        in_chans: int,
    ) -> None:
        """Make all modules, in the order of the forward.

        Args:
            layout: layout of the net.
            scheme: scheme of the net.
            stem: convolutions of the entrance.
            stages: plans of the stages.
            num_classes: number of classes; 0 for no last layer.
            in_chans: number of input channels.
        """
        # the entrance, and what surrounds the stages
        self.scheme = scheme
        self.stem = Stem(scheme, in_chans, stem)
        self.pools = nn.ModuleList(stage.pool or nn.Identity() for stage in stages)  # before each stage
        self.to_features = nn.ModuleList(Unscale() for _ in range(len(stages) + 1))  # from the trunk to each level
        # the stages layer1, layer2, ...
        pooled_shortcut = (layout.shortcut or scheme.default_shortcut) == "avgpool"
        one: Extent = 1 if self.dims == 2 else (1, 1, 1)
        total = sum(len(stage.blocks) for stage in stages)
        index, added, channels = 0, 0, stem[-1].channels
        for number, stage in enumerate(stages, 1):
            blocks: list[Block] = []
            for convs in stage.blocks:
                index += 1  # k of the formulas counts through the whole net
                place = Place(index, total, len(convs), added=added)
                block = Block(
                    scheme,
                    channels,
                    convs,
                    one if blocks else stage.stride,
                    place,
                    pooled_shortcut=pooled_shortcut,
                    drop_rate=stage.drop_rate,
                    branch_end=layout.branch_end(place),
                )
                blocks.append(block)
                channels, added = block.out_channels, 1 if block.downsample is not None else added + 1
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        # feature levels and scales of the trunk, which follow from stem and stages
        self.levels = _feature_levels(stem, stages)
        self.trunk_scales = self._plan_scales()
        self.trunk_scales.apply(self)
        # the head
        self.num_features = channels
        self.final_act = scheme.final_activation()
        self.head_bias = scheme.head_bias(channels)
        self.drop: nn.Module = nn.Dropout(layout.drop_rate) if layout.drop_rate > 0 else nn.Identity()
        self.reset_classifier(num_classes, layout.global_pool)

    def stages(self) -> list[Any]:
        """Return the stages layer1, layer2, ..., each a Sequential of blocks."""
        return [getattr(self, f"layer{number}") for number in range(1, len(self.pools) + 1)]

    def _plan_scales(self) -> TrunkScales:
        """Return the scales of all stages (docs/method.md, M10).

        Each stage ends at 1, so that its feature map is that of the formulas.
        """
        stages = []
        for number, blocks in enumerate(self.stages(), 1):
            plan = [
                planned(f"layer{number}.{i}", block, projected=block.downsample is not None)
                for i, block in enumerate(blocks)
            ]
            stages.append(TrunkScales.ending_at_one(plan))
        # a first stage without a projection begins at another scale: the stem multiplies by it, feature level 0 divides
        first = stages[0].first
        scales = TrunkScales().with_end("stem", 1.0, first).with_end("to_features.0", first, 1.0)
        scales = scales.with_end("pools.0", first, first)
        for stage in stages:
            scales += stage
        return scales

    def forward_levels(self, x: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
        selected = range(len(self.to_features)) if indices is None else indices
        x = self.stem(x)
        maps = [self.to_features[0](x)] if 0 in selected else []
        for level, (pool, stage) in enumerate(zip(self.pools, self.stages(), strict=True), 1):
            if level > max(selected):
                break
            x = pool(x)
            if self.grad_checkpointing:
                for block in stage:
                    x = checkpointed(block, x)
            else:
                x = stage(x)
            if level in selected:
                maps.append(self.to_features[level](x))
        return maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        # a truncated net returns the map itself
        return super().forward_head(x if self.headless else self.final_act(x), pre_logits)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem", "blocks": r"^layer(\d+)" if flag(coarse, "coarse") else r"^layer(\d+)\.(\d+)"}

    def truncate(self, level: int) -> None:
        level = whole_number(level, "truncate: level", 0, len(self.levels) - 1)
        for number in range(level + 1, len(self.pools) + 1):
            delattr(self, f"layer{number}")
        self.to_features, self.pools = self.to_features[: level + 1], self.pools[:level]
        self.drop_head(level)
        self.trunk_scales = self.trunk_scales.within(name for name, _ in self.named_modules())

    def fold_(self) -> None:
        stages = [list(stage) for stage in self.stages()]
        blocks = [block for stage in stages for block in stage]
        shifts = [*(needed_shift(block.conv1) for block in blocks), None]  # before each block, and at the end
        self.stem.fold_(shifts[0])  # max pooling commutes with a shift
        for block, input_shift, output_shift in zip(blocks, shifts[:-1], shifts[1:], strict=True):
            block.fold_(input_shift, output_shift)
        # the shift for the next block is subtracted from each feature level
        end = 0
        for to_features, stage in zip(self.to_features, [*stages, []], strict=True):
            assert isinstance(to_features, Unscale)
            to_features.set_shift(shifts[end], next(self.parameters()))
            end += len(stage)
        self.drop, self.fc = nn.Identity(), folded_linear(self.fc)


def _feature_levels(stem: Sequence[Conv], stages: Sequence[Stage]) -> tuple[FeatureLevel, ...]:
    """Return the feature levels of a net with these convolutions."""
    frames, reduction = 1, 1
    for conv in stem:
        frames, reduction = frames * strides(conv.stride)[0], reduction * strides(conv.stride)[1]
    levels = [FeatureLevel(stem[-1].channels, reduction, "stem", frames)]
    for number, stage in enumerate(stages, 1):
        steps = [strides(stage.stride)]
        if stage.pool is not None:
            steps.append(strides(stage.pool.stride))  # type: ignore[arg-type]
        for in_time, in_space in steps:
            frames, reduction = frames * in_time, reduction * in_space
        levels.append(FeatureLevel(stage.blocks[-1][-1].channels, reduction, f"layer{number}", frames))
    return tuple(levels)
