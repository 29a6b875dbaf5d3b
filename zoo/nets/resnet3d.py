"""ResNets for video, written once for every scheme: clips (N, C, T, H, W) of any length and size.

R3D, MC3 and R(2+1)D: Tran et al. 2018 (arXiv:1711.11248), in torchvision's layouts. I3D and SlowOnly: Carreira and
Zisserman 2017 (arXiv:1705.07750), Wang et al. 2018 (arXiv:1711.07971) and Feichtenhofer et al. 2019
(arXiv:1812.03982), in the layouts of SlowFast's model zoo. With ``scheme="bn"`` they have the tensors of those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from zoo.layers import RepeatsFrames
from zoo.nets.residual import Conv, FramePool, Layout, ResidualNet, Stage
from zoo.schemes.vision import VisionScheme
from zoo.specs import ModelSpec, register_model


@dataclass(frozen=True)
class ResNet3dConfig(Layout):
    """A video ResNet's layout. ``create_model`` takes the fields named in ``OPTIONS``.

    Attributes:
        block: basic (two 3x3x3), factorised (each of them a 1x3x3 and a 3x1x1) or bottleneck (kx1x1, 1x3x3, 1x1x1).
        depths: blocks in each stage.
        temporal: kernel sizes in time of a stage's blocks, repeated as often as there are blocks. A basic block with
            1 has no stride in time either; bottlenecks never have one.
        stem: r3d = 3x7x7/(1,2,2); factorised = 1x7x7/(1,2,2) and 3x1x1; slow = 1x7x7/(1,2,2) and i3d = 5x7x7/(1,2,2),
            both followed by a max pool in space; cifar = 1x3x3.
        frame_pool: windows of a max pool in time after the first stage.
        base_channels: channels of the first stage; each further stage has twice as many.
        temporal_padding: padding in time before the first and after the last frame: zeros, or replicate for copies of
            those frames.
    """

    OPTIONS: ClassVar = ("shortcut", "temporal_padding", *Layout.SHARED)

    block: Literal["basic", "factorised", "bottleneck"]
    depths: tuple[int, ...]
    temporal: tuple[tuple[int, ...], ...]
    stem: Literal["r3d", "factorised", "slow", "i3d", "cifar"]
    frame_pool: int = 1
    base_channels: int = 64
    temporal_padding: Literal["zeros", "replicate"] = "zeros"

    def channels(self, count: int) -> int:
        """Return a channel count times ``width``."""
        return max(1, round(count * self.width))


def branch(config: ResNet3dConfig, in_channels: int, channels: int, stride: int, temporal: int) -> tuple[Conv, ...]:
    """Return the convolutions of a block's branch.

    Args:
        config: layout of the net.
        in_channels: channels of the trunk before the block.
        channels: channels of the stage, before ``width`` and a bottleneck's factor of 4.
        stride: stride of the block in space.
        temporal: kernel size in time.
    """
    out = config.channels(channels)
    if config.block == "bottleneck":
        return (
            Conv(out, (temporal, 1, 1), (1, 1, 1)),
            Conv(out, (1, 3, 3), (1, stride, stride)),
            Conv(config.channels(channels * 4), (1, 1, 1), (1, 1, 1)),
        )
    in_time = time_stride(config, stride, temporal)
    if config.block == "basic":
        kernel = (temporal, 3, 3)
        return Conv(out, kernel, (in_time, stride, stride)), Conv(out, kernel, (1, 1, 1))
    # as many parameters as the 3x3x3 would have (Tran et al., section 3.5); torchvision uses one number for both
    middle = (in_channels * out * 27) // (in_channels * 9 + 3 * out)
    return (
        Conv(middle, (1, 3, 3), (1, stride, stride)),
        Conv(out, (3, 1, 1), (in_time, 1, 1)),
        Conv(middle, (1, 3, 3), (1, 1, 1)),
        Conv(out, (3, 1, 1), (1, 1, 1)),
    )


def time_stride(config: ResNet3dConfig, stride: int, temporal: int) -> int:
    """Return a block's stride in time, given that in space."""
    return 1 if config.block == "bottleneck" or temporal == 1 else stride


def stem(config: ResNet3dConfig) -> list[Conv]:
    """Return the entrance convolutions."""
    out = config.channels(config.base_channels)
    if config.stem == "factorised":  # 45 channels between the two, torchvision's
        return [Conv(config.channels(45), (1, 7, 7), (1, 2, 2)), Conv(out, (3, 1, 1), (1, 1, 1))]
    if config.stem == "cifar":
        return [Conv(out, (1, 3, 3), (1, 1, 1))]
    frames = {"r3d": 3, "slow": 1, "i3d": 5}[config.stem]
    return [Conv(out, (frames, 7, 7), (1, 2, 2))]


class ResNet3d(ResidualNet):
    """A video ResNet of any scheme: clips (N, C, T, H, W). Feature levels as in ``ResidualNet``."""

    dims = 3

    def __init__(self, config: ResNet3dConfig, scheme: VisionScheme, num_classes: int, in_chans: int) -> None:
        super().__init__()
        stages = []
        channels = config.channels(config.base_channels)
        for i, (depth, kernels) in enumerate(zip(config.depths, config.temporal, strict=True)):
            stride, width = 2 if i > 0 else 1, config.base_channels * 2**i
            blocks: list[tuple[Conv, ...]] = []
            for j in range(depth):
                blocks.append(branch(config, channels, width, stride if j == 0 else 1, kernels[j % len(kernels)]))
                channels = blocks[-1][-1].channels
            pool: nn.Module | None = None
            if i == 0 and config.stem in ("slow", "i3d"):
                pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
            elif i == 1 and config.frame_pool > 1:
                pool = FramePool(config.frame_pool)
            drop_rate = config.branch_drop_rate if i >= len(config.depths) - 2 else 0.0
            strides = (time_stride(config, stride, kernels[0]), stride, stride)
            stages.append(Stage(tuple(blocks), strides, pool, drop_rate))
        self._build(config, scheme, stem(config), stages, num_classes, in_chans)
        if config.temporal_padding == "replicate":
            for module in self.modules():
                if isinstance(module, RepeatsFrames):
                    module.repeat_frames()


_R2PLUS1D, _SLOWFAST = "https://arxiv.org/abs/1711.11248", "https://arxiv.org/abs/1812.03982"
_I3D = "https://arxiv.org/abs/1711.07971"


def _register(name: str, config: ResNet3dConfig, size: int, frames: int, paper: str) -> None:
    register_model(
        ModelSpec(
            name=name,
            family=ResNet3d,
            layout=config,
            num_classes=400,
            input_size=size,
            min_size=16,
            paper=paper,
            frames=frames,
            input_kind="clips",
        )
    )


_TWO, _FULL, _NONE = (2, 2, 2, 2), ((3,), (3,), (3,), (3,)), (1,)
_register("rescale_r3d_18", ResNet3dConfig("basic", _TWO, _FULL, "r3d"), 112, 16, _R2PLUS1D)
_register("rescale_mc3_18", ResNet3dConfig("basic", _TWO, ((3,), _NONE, _NONE, _NONE), "r3d"), 112, 16, _R2PLUS1D)
_register("rescale_r2plus1d_18", ResNet3dConfig("factorised", _TWO, _FULL, "factorised"), 112, 16, _R2PLUS1D)
_register("rescale_r3d_10", ResNet3dConfig("basic", (1, 1, 1, 1), _FULL, "r3d", base_channels=24), 112, 16, _R2PLUS1D)
_register(
    "rescale_slowonly_r20_cifar",
    ResNet3dConfig("basic", (3, 3, 3), (_NONE, _NONE, (3,)), "cifar", base_channels=16),
    64,
    8,
    _SLOWFAST,
)
for _depth, _blocks in ((50, (3, 4, 6, 3)), (101, (3, 4, 23, 3))):
    _slow = ResNet3dConfig("bottleneck", _blocks, (_NONE, _NONE, (3,), (3,)), "slow")
    _register(f"rescale_slowonly_r{_depth}", _slow, 224, 8, _SLOWFAST)
    _i3d = ResNet3dConfig("bottleneck", _blocks, ((3,), (3, 1), (3, 1), (1, 3)), "i3d", frame_pool=2)
    _register(f"rescale_i3d_r{_depth}", _i3d, 224, 8, _I3D)
