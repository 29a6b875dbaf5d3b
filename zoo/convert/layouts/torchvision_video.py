"""torchvision's video ResNets: r3d_18, mc3_18 and r2plus1d_18."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from zoo.convert.layouts.base import Imported, Layout
from zoo.convert.layouts.clips import ClipArchitecture, classes, kernel
from zoo.errors import WeightsError
from zoo.transforms import VideoTransform

NAME = "torchvision video ResNet"

# KINETICS400_V1 is evaluated on clips of 16 frames at 15 a second; torchvision resizes to 128x171 whatever the shape
TRANSFORM = VideoTransform(
    frames=16,
    interval=1,
    fps=15,
    size=112,
    resize=128,
    mean=(0.43216, 0.394666, 0.37645),
    std=(0.22803, 0.22145, 0.216989),
)

# our modules -> theirs: a Sequential of a convolution, or of the two of a factorised one, and a norm
_STEM = {"conv1": "0", "norm1": "1", "conv2": "3", "norm2": "4"}
_BASIC = {"conv1": "conv1.0", "norm1": "conv1.1", "conv2": "conv2.0", "norm2": "conv2.1"}
_FACTORISED = {
    "conv1": "conv1.0.0",
    "norm1": "conv1.0.1",
    "conv2": "conv1.0.3",
    "norm2": "conv1.1",
    "conv3": "conv2.0.0",
    "norm3": "conv2.0.1",
    "conv4": "conv2.0.3",
    "norm4": "conv2.1",
}
_SHORTCUT = {"downsample.conv": "downsample.0", "downsample.norm": "downsample.1"}


def matches(keys: Collection[str]) -> bool:
    """Return whether keys are of a video ResNet of torchvision."""
    return "stem.0.weight" in keys and any(key.startswith("layer1.0.conv1.0.") for key in keys)


def foreign_key(key: str, factorised: bool) -> str:
    """Return torchvision's key of one of our keys.

    Args:
        key: key of our net.
        factorised: whether the net's blocks are (2+1)D.
    """
    module, _, leaf = key.rpartition(".")
    if module.startswith("stem."):
        return f"stem.{_STEM[module.removeprefix('stem.')]}.{leaf}"
    if match := re.fullmatch(r"(layer\d+\.\d+)\.(.+)", module):
        names = _SHORTCUT | (_FACTORISED if factorised else _BASIC)
        return f"{match[1]}.{names[match[2]]}.{leaf}"
    return key


def read(state: Mapping[str, Tensor], name: str | None, options: Mapping[str, Any]) -> Imported:
    """Return a checkpoint of a video ResNet of torchvision in the keys of our ``bn`` net.

    Args:
        state: state dict of the checkpoint.
        name: name of our net; None to find it.
        options: options of our net.

    Raises:
        WeightsError: a checkpoint that no net of the zoo fits, with the reason.
    """
    if "layer1.0.conv3.0.weight" in state:
        raise WeightsError(f"{NAME} checkpoint: it has bottlenecks, which none of torchvision's published nets has")
    factorised = "layer1.0.conv1.0.0.weight" in state
    first, last = ("conv1.0.0", "conv2.0.3") if factorised else ("conv1.0", "conv2.0")
    numbers = {(int(m[1]), int(m[2])) for key in state if (m := re.match(r"layer(\d+)\.(\d+)\.", key))}
    stages = range(1, max(stage for stage, _ in numbers) + 1)
    if any((stage, 0) not in numbers for stage in stages):
        raise WeightsError(f"{NAME} checkpoint: a stage is missing; must have layer1 to layer{stages[-1]}")
    # a factorised block's kernel in time is that of its second convolution, in every net of the zoo 3
    temporal = tuple(
        tuple(
            3 if factorised else kernel(NAME, state, f"layer{stage}.{block}.{first}.weight")[2]
            for block in range(sum(number == stage for number, _ in numbers))
        )
        for stage in stages
    )
    architecture = ClipArchitecture(
        block="factorised" if factorised else "basic",
        temporal=temporal,
        stem="factorised" if "stem.3.weight" in state else "r3d",
        out_channels=kernel(NAME, state, f"layer{stages[-1]}.0.{last}.weight")[0],
        in_chans=kernel(NAME, state, "stem.0.weight")[1],
        num_classes=classes(state, "fc.weight"),
    )
    return architecture.read(NAME, state, name, options, lambda key: foreign_key(key, factorised), TRANSFORM)


LAYOUT = Layout(NAME, matches, read)
