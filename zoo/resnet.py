"""ResNets for ImageNet and CIFAR, written once for every scheme.

He et al. 2015 (arXiv:1512.03385), with the stride of a bottleneck in its 3x3 (``stride_in_1x1=False``,
torchvision's layout); Xie et al. 2017 (ResNeXt); Zagoruyko and Komodakis 2016 (Wide ResNet). With
``scheme="bn"`` they equal torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from zoo.backbone import Backbone, FeatureLevel
from zoo.errors import ZooError
from zoo.fold import Nominal, Shift, activation, folded_conv, needed_shift
from zoo.layers import BiasedConv2d, Calibrated, RescaledAdd, ResidualAdd, StemConv2d
from zoo.registry import ModelSpec, register_model
from zoo.schemes import Branch, Scheme


@dataclass(frozen=True)
class ResNetConfig:
    """A ResNet's layout. The fields named in ``OPTIONS`` may be given to ``create_model``.

    Attributes:
        block: basic (two 3x3) or bottleneck (1x1, 3x3, 1x1).
        depths: blocks in each stage.
        base_channels: width of the first stage; doubles with each stage.
        groups, width_per_group: as in torchvision's ResNet.
        stem: conv7 = 7x7/2 and max pool; deep = three 3x3 (the first /2) and max pool; cifar = one 3x3.
        shortcut: of a stage's first block: avgpool = average pool then 1x1, conv = strided 1x1; None for
            the scheme's own (avgpool for rescale, conv for normalized nets).
        stride_in_1x1: stride in a bottleneck's first 1x1 instead of its 3x3 (the original, Caffe's and detectron2's).
        width: factor on all channel counts.
        drop_rate: dropout before the classifier.
        branch_drop_rate: channel dropout after each branch convolution of the last two stages.
    """

    OPTIONS: ClassVar = ("stem", "shortcut", "stride_in_1x1", "width", "drop_rate", "branch_drop_rate")

    block: Literal["basic", "bottleneck"]
    depths: tuple[int, ...]
    base_channels: int = 64
    groups: int = 1
    width_per_group: int = 64
    stem: Literal["conv7", "deep", "cifar"] = "conv7"
    shortcut: Literal["avgpool", "conv"] | None = None
    stride_in_1x1: bool = False
    width: float = 1.0
    drop_rate: float = 0.0
    branch_drop_rate: float = 0.0

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ZooError(f"option width={self.width}: must be greater than 0")
        for name in ("drop_rate", "branch_drop_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ZooError(f"option {name}={getattr(self, name)}: must be in [0, 1)")
        if self.stride_in_1x1 and self.block != "bottleneck":
            raise ZooError("option stride_in_1x1: only bottleneck nets have a 1x1 to stride")

    def channels(self, count: int) -> int:
        """A channel count times ``width``, kept a multiple of the groups."""
        return max(1, round(count * self.width / self.groups)) * self.groups


def average_pool(size: int) -> nn.AvgPool2d:
    """Means over windows; those at the ends over what is there, so that odd sizes are rounded up as a 3x3/2 does."""
    return nn.AvgPool2d(size, ceil_mode=True, count_include_pad=False)


class Shortcut(nn.Module):
    """Projection shortcut of a stage's first block: (N, C, H, W) -> (N, O, ceil(H/s), ceil(W/s))."""

    def __init__(self, scheme: Scheme, config: ResNetConfig, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        pooled = (config.shortcut or scheme.default_shortcut) == "avgpool"
        self.pool: nn.Module = nn.Identity()
        self.conv = scheme.projection(in_channels, out_channels, stride=1 if pooled else stride)
        if pooled and stride > 1:
            if isinstance(self.conv, BiasedConv2d):
                self.conv.pool = (stride, stride)  # the layer makes the means again in backward
            else:
                self.pool = average_pool(stride)
        self.norm = scheme.norm(out_channels)

    def forward(self, x: Tensor, join: ResidualAdd | RescaledAdd) -> Tensor:
        return self.norm(join.projection(self.conv, self.pool(x)))


class Block(nn.Module):
    """A residual block with two (basic) or three (bottleneck) convolutions and ReLU after the add."""

    branch_layers: tuple[str, ...]

    def __init__(
        self,
        scheme: Scheme,
        config: ResNetConfig,
        in_channels: int,
        channels: int,
        stride: int,
        place: tuple[int, int],
        drop_rate: float,
    ) -> None:
        super().__init__()
        bottleneck = config.block == "bottleneck"
        self.out_channels = config.channels(channels * (4 if bottleneck else 1))
        branch = Branch(*place, layers=3 if bottleneck else 2)
        if bottleneck:
            inner = config.channels(channels * config.width_per_group // 64 * config.groups)
            strides = (stride, 1) if config.stride_in_1x1 else (1, stride)
            self.conv1 = scheme.conv(in_channels, inner, 1, stride=strides[0], branch=branch)
            self.norm1 = scheme.norm(inner)
            self.conv2 = scheme.conv(inner, inner, 3, stride=strides[1], groups=config.groups, branch=branch)
            self.norm2 = scheme.norm(inner)
            self.conv3 = scheme.conv(inner, self.out_channels, 1, branch=branch)
            self.norm3 = scheme.norm(self.out_channels)
            self.branch_layers = ("conv1", "conv2", "conv3")
        else:
            self.conv1 = scheme.conv(in_channels, self.out_channels, 3, stride=stride, branch=branch)
            self.norm1 = scheme.norm(self.out_channels)
            self.conv2 = scheme.conv(self.out_channels, self.out_channels, 3, branch=branch)
            self.norm2 = scheme.norm(self.out_channels)
            self.branch_layers = ("conv1", "conv2")
        self.bottleneck = bottleneck
        self.drop: nn.Module = nn.Dropout2d(drop_rate) if drop_rate > 0 else nn.Identity()
        self.act1 = scheme.activation()
        self.act2 = scheme.activation() if bottleneck else nn.Identity()
        self.act = scheme.activation()
        self.join: ResidualAdd | RescaledAdd = scheme.join(branch)
        self.downsample = (
            Shortcut(scheme, config, in_channels, self.out_channels, stride)
            if stride > 1 or in_channels != self.out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.drop(self.norm1(self.conv1(x))))
        if self.bottleneck:
            y = self.act2(self.drop(self.norm2(self.conv2(y))))
            y = self.drop(self.norm3(self.join.product(self.conv3, y)))
        else:
            y = self.drop(self.norm2(self.join.product(self.conv2, y)))
        if self.downsample is None:
            return self.act(self.join(x, y))
        return self.act(self.join(self.downsample(x, self.join), y, projected=True))

    def hold_trunk(self, after: float) -> float:
        """Let the output be ``after`` times the nominal one; returns the scale the input must have for that."""
        before = 1.0 if self.downsample is not None else self.join.alpha * after
        self.join.hold(before, after)
        for module in self.modules():
            if isinstance(module, Calibrated):
                module.input_scale = before
        return before

    def fold_(self, arriving: Shift, leaving: Shift) -> None:
        """Deployment form; ``arriving`` and ``leaving`` are the shifts of input and output."""
        join, last = self.join, self.branch_layers[-1]
        norms = {name: name.replace("conv", "norm") for name in self.branch_layers}
        shift = arriving
        for name, following in zip(self.branch_layers[:-1], self.branch_layers[1:], strict=True):
            conv = getattr(self, name)
            out = needed_shift(getattr(self, following))
            folded, norm = folded_conv(conv, getattr(self, norms[name]), arriving=shift, leaving=out)
            setattr(self, name, folded)
            setattr(self, norms[name], norm)
            setattr(self, name.replace("conv", "act"), activation(out, conv.weight))
            shift = out
        gain, branch_gain = (join.gain, join.branch_gain()) if isinstance(join, RescaledAdd) else (1.0, 1.0)
        end = leaving
        if self.downsample is not None:
            shortcut = self.downsample
            if isinstance(shortcut.conv, BiasedConv2d) and shortcut.conv.pool:
                shortcut.pool = average_pool(shortcut.conv.pool[0])
            shortcut.conv, shortcut.norm = folded_conv(shortcut.conv, shortcut.norm, gain=gain, arriving=arriving)
        elif arriving is not None:
            end = -arriving if end is None else end - arriving
        conv = getattr(self, last)
        folded, norm = folded_conv(conv, getattr(self, norms[last]), gain=branch_gain, arriving=shift, leaving=end)
        setattr(self, last, folded)
        setattr(self, norms[last], norm)
        self.act = activation(leaving, conv.weight)
        self.join, self.drop = ResidualAdd(), nn.Identity()


class Stem(nn.Sequential):
    """Entrance convolutions with their norms and ReLUs, as conv1, norm1, act1, conv2, ..."""

    def __init__(self, scheme: Scheme, config: ResNetConfig, in_chans: int) -> None:
        super().__init__()
        out = config.channels(config.base_channels)
        half = config.channels(config.base_channels // 2)
        plans = {"conv7": [(out, 7, 2)], "cifar": [(out, 3, 1)], "deep": [(half, 3, 2), (half, 3, 1), (out, 3, 1)]}
        previous = in_chans
        for i, (channels, kernel, stride) in enumerate(plans[config.stem], 1):
            self.add_module(f"conv{i}", scheme.stem(previous, channels, kernel, stride=stride))
            self.add_module(f"norm{i}", scheme.norm(channels))
            self.add_module(f"act{i}", scheme.activation())
            previous = channels

    def hold_trunk(self, after: float) -> None:
        """Let the output be ``after`` times the nominal one."""
        last = [module for module in self if isinstance(module, StemConv2d)][-1:]
        assert last or after == 1
        for conv in last:
            conv.output_scale = after

    def fold_(self, leaving: Shift) -> None:
        """Deployment form; ``leaving`` is the shift of the output."""
        count = len(self) // 3
        for i in range(1, count + 1):
            conv, out = self.get_submodule(f"conv{i}"), leaving if i == count else None
            assert isinstance(conv, nn.Conv2d)
            folded, norm = folded_conv(conv, self.get_submodule(f"norm{i}"), leaving=out)
            setattr(self, f"conv{i}", folded)
            setattr(self, f"norm{i}", norm)
            setattr(self, f"act{i}", activation(out, conv.weight))


class ResNet(Backbone):
    """A ResNet of any scheme. Feature level 0 is the stem's output (before max pool), i the i-th stage's."""

    residual = True
    pooled = True

    def __init__(self, config: ResNetConfig, scheme: Scheme, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.scheme = scheme
        self.stem = Stem(scheme, config, in_chans)
        small = config.stem == "cifar"
        self.pool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        channels = config.channels(config.base_channels)
        reduction = 1 if small else 2
        levels = [FeatureLevel(channels, reduction, "stem")]
        reduction *= 1 if small else 2
        total = sum(config.depths)
        index = 0
        self.stage_names = [f"layer{i + 1}" for i in range(len(config.depths))]
        self.exits = nn.ModuleList()  # from what the net holds to the feature maps
        for stage, depth in enumerate(config.depths):
            drop_rate = config.branch_drop_rate if stage >= len(config.depths) - 2 else 0.0
            blocks: list[Block] = []
            for i in range(depth):
                index += 1
                stride = 2 if stage > 0 and i == 0 else 1
                width = config.base_channels * 2**stage
                blocks.append(Block(scheme, config, channels, width, stride, (index, total), drop_rate))
                channels = blocks[-1].out_channels
            reduction *= 2 if stage > 0 else 1
            scale = 1.0  # each stage ends at scale 1, so that the features are the nominal ones
            for block in reversed(blocks):
                scale = block.hold_trunk(scale)
            if stage == 0:
                self.stem.hold_trunk(scale)
                self.exits.append(Nominal(scale))
            self.add_module(self.stage_names[stage], nn.Sequential(*blocks))
            self.exits.append(Nominal())
            levels.append(FeatureLevel(channels, reduction, self.stage_names[stage]))
        self.levels = tuple(levels)
        self.num_features = channels
        self.head_bias = scheme.head_bias(channels)
        self.drop: nn.Module = nn.Dropout(config.drop_rate) if config.drop_rate > 0 else nn.Identity()
        self.reset_classifier(num_classes)

    def forward_levels(self, x: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
        wanted = range(len(self.exits)) if indices is None else indices
        x = self.stem(x)
        maps = [self.exits[0](x)] if 0 in wanted else []
        x = self.pool(x)
        for level, name in enumerate(self.stage_names, 1):
            x = getattr(self, name)(x)
            if level in wanted:
                maps.append(self.exits[level](x))
        return maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        # The published bias before global pooling: pooling is linear, so it acts on the pooled features.
        x = self.drop(self.head_bias(x.mean((2, 3))))
        return x if pre_logits else self.fc(x)

    def truncate(self, level: int) -> None:
        for name in self.stage_names[level:]:
            delattr(self, name)
        self.stage_names = self.stage_names[:level]
        self.exits = self.exits[: level + 1]
        if level == 0:
            self.pool = nn.Identity()
        self.head_bias, self.drop, self.fc, self.num_classes = nn.Identity(), nn.Identity(), nn.Identity(), 0

    def fold_(self) -> None:
        stages = [list(getattr(self, name)) for name in self.stage_names]
        blocks = [block for stage in stages for block in stage]
        shifts = [needed_shift(block.conv1) for block in blocks] + [None]  # before each block, and at the end
        self.stem.fold_(shifts[0])
        for block, arriving, leaving in zip(blocks, shifts[:-1], shifts[1:], strict=True):
            block.fold_(arriving, leaving)
        ends = [0]
        for stage in stages:
            ends.append(ends[-1] + len(stage))
        for level, end in enumerate(ends):
            exit = self.exits[level]
            assert isinstance(exit, Nominal)
            exit.hold(shifts[end], next(self.parameters()))
        self.drop = nn.Identity()


_PAPER = "https://arxiv.org/abs/1512.03385"


def _imagenet(name: str, block: Literal["basic", "bottleneck"], depths: tuple[int, ...], **extra: int) -> None:
    register_model(ModelSpec(name, ResNet, ResNetConfig(block, depths, **extra), 1000, 224, 32, _PAPER))  # type: ignore[arg-type]


def _cifar(depth: int) -> None:
    blocks = (depth - 2) // 6
    config = ResNetConfig("basic", (blocks,) * 3, base_channels=16, stem="cifar")
    register_model(ModelSpec(f"rescalenet{depth}_cifar", ResNet, config, 10, 32, 8, _PAPER))


_imagenet("rescalenet18", "basic", (2, 2, 2, 2))
_imagenet("rescalenet34", "basic", (3, 4, 6, 3))
_imagenet("rescalenet50", "bottleneck", (3, 4, 6, 3))
_imagenet("rescalenet101", "bottleneck", (3, 4, 23, 3))
_imagenet("rescalenet152", "bottleneck", (3, 8, 36, 3))
_imagenet("rescalenet200", "bottleneck", (3, 24, 36, 3))
_imagenet("rescale_wide_resnet50_2", "bottleneck", (3, 4, 6, 3), width_per_group=128)
_imagenet("rescale_wide_resnet101_2", "bottleneck", (3, 4, 23, 3), width_per_group=128)
_imagenet("rescalenext50_32x4d", "bottleneck", (3, 4, 6, 3), groups=32, width_per_group=4)
_imagenet("rescalenext101_32x8d", "bottleneck", (3, 4, 23, 3), groups=32, width_per_group=8)
for _depth in (20, 32, 44, 56, 110):
    _cifar(_depth)
