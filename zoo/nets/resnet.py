"""ResNets for ImageNet and CIFAR, written once for every scheme.

He et al. 2015 (arXiv:1512.03385), with the stride of a bottleneck in its 3x3 (``stride_in_1x1=False``,
torchvision's layout); Xie et al. 2017 (ResNeXt); Zagoruyko and Komodakis 2016 (Wide ResNet). With
``scheme="bn"`` they equal torchvision's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from zoo.errors import ZooError
from zoo.nets.residual import Conv, Layout, ResidualNet, Stage
from zoo.schemes.vision import VisionScheme
from zoo.specs import ModelSpec, register_model


@dataclass(frozen=True)
class ResNetConfig(Layout):
    """A ResNet's layout. ``create_model`` takes the fields named in ``OPTIONS``.

    Attributes:
        block: basic (two 3x3) or bottleneck (1x1, 3x3, 1x1).
        depths: blocks in each stage.
        base_channels: channels of the first stage; each further stage has twice as many.
        groups: groups of a bottleneck's 3x3.
        width_per_group: channels of each of these groups in the first stage; 64 and one group for plain ResNets.
        stem: conv7 = 7x7/2 and max pool; deep = three 3x3 (the first /2) and max pool; cifar = one 3x3.
        stride_in_1x1: stride in a bottleneck's first 1x1 instead of its 3x3 (the original, Caffe's and detectron2's).
    """

    OPTIONS: ClassVar = ("stem", "shortcut", "stride_in_1x1", *Layout.SHARED)

    block: Literal["basic", "bottleneck"]
    depths: tuple[int, ...]
    base_channels: int = 64
    groups: int = 1
    width_per_group: int = 64
    stem: Literal["conv7", "deep", "cifar"] = "conv7"
    stride_in_1x1: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride_in_1x1 and self.block != "bottleneck":
            raise ZooError(
                f"option stride_in_1x1={self.stride_in_1x1}: requires bottleneck blocks, not {self.block}; leave it out"
            )

    def channels(self, count: int) -> int:
        """Return a channel count times ``width``, kept a multiple of the groups."""
        return max(1, round(count * self.width / self.groups)) * self.groups


def branch(config: ResNetConfig, channels: int, stride: int) -> tuple[Conv, ...]:
    """Return the convolutions of a block's branch: two 3x3 (basic), or 1x1, 3x3, 1x1 (bottleneck)."""
    if config.block == "basic":
        out = config.channels(channels)
        return Conv(out, 3, stride), Conv(out, 3)
    inner = config.channels(channels * config.width_per_group // 64 * config.groups)
    first, second = (stride, 1) if config.stride_in_1x1 else (1, stride)
    return (
        Conv(inner, 1, first),
        Conv(inner, 3, second, config.groups),
        Conv(config.channels(channels * 4), 1),
    )


def stem(config: ResNetConfig) -> list[Conv]:
    """Return the entrance convolutions."""
    out, half = config.channels(config.base_channels), config.channels(config.base_channels // 2)
    if config.stem == "conv7":
        return [Conv(out, 7, 2)]
    return [Conv(out, 3)] if config.stem == "cifar" else [Conv(half, 3, 2), Conv(half, 3), Conv(out, 3)]


class ResNet(ResidualNet):
    """A ResNet of any scheme: images (N, C, H, W). Feature levels as in ``ResidualNet``."""

    def __init__(self, config: ResNetConfig, scheme: VisionScheme, num_classes: int, in_chans: int) -> None:
        super().__init__()
        stages = []
        for i, depth in enumerate(config.depths):
            stride = 2 if i > 0 else 1
            width = config.base_channels * 2**i
            blocks = tuple(branch(config, width, stride if j == 0 else 1) for j in range(depth))
            pool = nn.MaxPool2d(3, 2, 1) if i == 0 and config.stem != "cifar" else None
            drop_rate = config.branch_drop_rate if i >= len(config.depths) - 2 else 0.0
            stages.append(Stage(blocks, stride, pool, drop_rate))
        self._build(config, scheme, stem(config), stages, num_classes, in_chans)


_PAPER = "https://arxiv.org/abs/1512.03385"


def _imagenet(name: str, block: Literal["basic", "bottleneck"], depths: tuple[int, ...], **extra: int) -> None:
    layout = ResNetConfig(block, depths, **extra)  # type: ignore[arg-type]
    register_model(
        ModelSpec(name=name, family=ResNet, layout=layout, num_classes=1000, input_size=224, min_size=32, paper=_PAPER)
    )


def _cifar(depth: int) -> None:
    blocks = (depth - 2) // 6
    name, layout = f"rescalenet{depth}_cifar", ResNetConfig("basic", (blocks,) * 3, base_channels=16, stem="cifar")
    register_model(
        ModelSpec(name=name, family=ResNet, layout=layout, num_classes=10, input_size=32, min_size=8, paper=_PAPER)
    )


_imagenet("rescalenet18", "basic", (2, 2, 2, 2))
_imagenet("rescalenet34", "basic", (3, 4, 6, 3))
_imagenet("rescalenet26", "bottleneck", (2, 2, 2, 2))
_imagenet("rescalenet50", "bottleneck", (3, 4, 6, 3))
_imagenet("rescalenet101", "bottleneck", (3, 4, 23, 3))
_imagenet("rescalenet152", "bottleneck", (3, 8, 36, 3))
_imagenet("rescalenet200", "bottleneck", (3, 24, 36, 3))
_imagenet("rescale_wide_resnet50_2", "bottleneck", (3, 4, 6, 3), width_per_group=128)
_imagenet("rescale_wide_resnet101_2", "bottleneck", (3, 4, 23, 3), width_per_group=128)
_imagenet("rescalenext50_32x4d", "bottleneck", (3, 4, 6, 3), groups=32, width_per_group=4)
for _width in (4, 8, 16, 32):
    _imagenet(f"rescalenext101_32x{_width}d", "bottleneck", (3, 4, 23, 3), groups=32, width_per_group=_width)
_imagenet("rescalenext101_64x4d", "bottleneck", (3, 4, 23, 3), groups=64, width_per_group=4)
for _depth in (20, 32, 44, 56, 110):
    _cifar(_depth)
