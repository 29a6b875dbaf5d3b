"""Video ResNets with one pathway in the layouts of SlowFast and PyTorchVideo: I3D and SlowOnly.

At the size and length that they were trained with, 8 frames of 224 px, their outputs before softmax are equal to ours.
Elsewhere their heads average over windows of that size, ours over the whole clip, and a pool in time drops a last odd
frame, which ours keeps. Strides and dilations do not show in the keys: a trunk from AVA's detectors, whose last stage
is dilated, looks like Kinetics' and becomes a net with a stride there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from zoo.convert.layouts.base import Imported, Layout
from zoo.convert.layouts.caffe2_names import slowfast_key
from zoo.convert.layouts.clips import ClipArchitecture, classes, kernel
from zoo.errors import WeightsError
from zoo.transforms import VideoTransform

SLOWFAST, PYTORCHVIDEO = "SlowFast", "PyTorchVideo"
STEMS = {1: "slow", 5: "i3d"}  # by the kernel size in time

# every eighth of 30 frames a second, scaled as all nets of SlowFast are
TRANSFORM = VideoTransform(
    frames=8, interval=8, fps=30, size=224, resize=256, mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)
)

_LETTERS = {"1": "a", "2": "b", "3": "c"}


# -- SlowFast --------------------------------------------------------------------------------------------


def matches(keys: Collection[str]) -> bool:
    """Return whether keys are SlowFast's."""
    return any(key.startswith("s1.pathway0_stem.") for key in keys)


def foreign_key(key: str) -> str:
    """Return SlowFast's key of one of our keys."""
    module, _, leaf = key.rpartition(".")
    fixed = {"stem.conv1": "s1.pathway0_stem.conv", "stem.norm1": "s1.pathway0_stem.bn", "fc": "head.projection"}
    if module in fixed:
        return f"{fixed[module]}.{leaf}"
    stage, block, part = re.fullmatch(r"layer(\d+)\.(\d+)\.(.+)", module).groups()  # type: ignore[union-attr]
    shortcut = {"downsample.conv": "branch1", "downsample.norm": "branch1_bn"}
    end = shortcut.get(part) or f"branch2.{_LETTERS[part[-1]]}" + ("_bn" if part.startswith("norm") else "")
    return f"s{int(stage) + 1}.pathway0_res{block}.{end}.{leaf}"


def read(state: Mapping[str, Tensor], name: str | None, options: Mapping[str, Any]) -> Imported:
    """Return a checkpoint of SlowFast in the keys of our ``bn`` net.

    Args:
        state: state dict of SlowFast.
        name: name of our net; None to find it.
        options: options of our net.

    Raises:
        WeightsError: a checkpoint that no net of the zoo fits, with the reason.
    """
    _refuse(
        SLOWFAST,
        state,
        {
            r"s\d+(\.pathway1_|_fuse\.)": "two pathways with connections between them",
            r".*_nonlocal": "non-local blocks, whose weights depend on the input",
            r".*\.conv_xy\.|.*\.se\.": "the depthwise convolutions and squeeze-and-excitation of X3D",
        },
    )
    stem = "s1.pathway0_stem.conv.weight"
    blocks = [
        [f"s{stage}.pathway0_res{block}" for block in range(_count(state, rf"s{stage}\.pathway0_res(\d+)\."))]
        for stage in range(2, 6)
    ]
    architecture = _bottlenecks(
        SLOWFAST, state, stem, blocks, first="branch2.a", last="branch2.c", head="head.projection"
    )
    return architecture.read(SLOWFAST, state, name, options, foreign_key, TRANSFORM)


def read_caffe2(state: Mapping[str, Tensor], name: str | None, options: Mapping[str, Any]) -> Imported:
    """Return a checkpoint of SlowFast with Caffe2's names in the keys of our ``bn`` net.

    Args:
        state: blobs by name.
        name: name of our net; None to find it.
        options: options of our net.

    Raises:
        WeightsError: a checkpoint that no net of the zoo fits, with the reason.
    """
    _refuse(
        f"{SLOWFAST} (Caffe2)",
        state,
        {
            r"t_(conv1|res|pool)": "two pathways with connections between them",
            r"nonlocal_": "non-local blocks, whose weights depend on the input",
        },
    )
    renamed = {}
    for key, value in state.items():
        own = slowfast_key(key)
        if own is not None:
            # the last layer is a convolution of one position there
            renamed[own] = value.flatten(1) if own == "head.projection.weight" and value.ndim > 1 else value
        elif value.numel() > 1:  # single numbers are the solver's: learning rate, iteration
            raise WeightsError(f"{SLOWFAST} (Caffe2) checkpoint: unknown blob {key!r}; must be a ResNet of one pathway")
    return read(renamed, name, options)


# -- PyTorchVideo ----------------------------------------------------------------------------------------


def matches_pytorchvideo(keys: Collection[str]) -> bool:
    """Return whether keys are PyTorchVideo's of a ResNet or a relative of it."""
    return any(re.match(r"blocks\.\d+\.(multipathway_blocks\.\d+\.)?res_blocks\.0\.branch2\.", key) for key in keys)


def read_pytorchvideo(state: Mapping[str, Tensor], name: str | None, options: Mapping[str, Any]) -> Imported:
    """Return a checkpoint of PyTorchVideo in the keys of our ``bn`` net.

    Args:
        state: state dict of PyTorchVideo.
        name: name of our net; None to find it.
        options: options of our net.

    Raises:
        WeightsError: a checkpoint that no net of the zoo fits, with the reason.
    """
    _refuse(
        PYTORCHVIDEO,
        state,
        {
            r"blocks\.\d+\.multipathway_": "two pathways with connections between them",
            r"blocks\.0\.conv\.conv_(t|xy)\.": "the depthwise convolutions and squeeze-and-excitation of X3D",
            r".*\.branch2\.(conv|norm)_b\.\w+\.": "a 3x3 that is split into several convolutions",
        },
    )
    # the pool after the first stage has a number and no tensors
    numbers = sorted({int(m[1]) for key in state if (m := re.match(r"blocks\.(\d+)\.res_blocks\.", key))})
    if len(numbers) != 4 or numbers not in ([1, 2, 3, 4], [1, 3, 4, 5]):
        raise WeightsError(f"{PYTORCHVIDEO} checkpoint: it has stages {numbers}; must be 1, 2, 3, 4 or 1, 3, 4, 5")
    # the blocks, and the head after the last stage
    blocks = [
        [f"blocks.{n}.res_blocks.{block}" for block in range(_count(state, rf"blocks\.{n}\.res_blocks\.(\d+)\."))]
        for n in numbers
    ]
    architecture = _bottlenecks(
        PYTORCHVIDEO,
        state,
        "blocks.0.conv.weight",
        blocks,
        first="branch2.conv_a",
        last="branch2.conv_c",
        head=f"blocks.{numbers[-1] + 1}.proj",
        pooled=numbers[1] == 3,
    )

    def foreign(key: str) -> str:
        return pytorchvideo_key(key, numbers)

    return architecture.read(PYTORCHVIDEO, state, name, options, foreign, TRANSFORM)


def pytorchvideo_key(key: str, stages: Sequence[int]) -> str:
    """Return PyTorchVideo's key of one of our keys.

    Args:
        key: key of our net.
        stages: PyTorchVideo's numbers of the stages.
    """
    module, _, leaf = key.rpartition(".")
    fixed = {"stem.conv1": "blocks.0.conv", "stem.norm1": "blocks.0.norm", "fc": f"blocks.{stages[-1] + 1}.proj"}
    if module in fixed:
        return f"{fixed[module]}.{leaf}"
    stage, block, part = re.fullmatch(r"layer(\d+)\.(\d+)\.(.+)", module).groups()  # type: ignore[union-attr]
    shortcut = {"downsample.conv": "branch1_conv", "downsample.norm": "branch1_norm"}
    end = shortcut.get(part) or f"branch2.{part[:-1]}_{_LETTERS[part[-1]]}"
    return f"blocks.{stages[int(stage) - 1]}.res_blocks.{block}.{end}.{leaf}"


# -- both ------------------------------------------------------------------------------------------------


def _refuse(source: str, state: Mapping[str, Tensor], parts: Mapping[str, str]) -> None:
    """Refuse a net with parts that no net of the zoo has.

    Raises:
        WeightsError: such a part, with its key.
    """
    for pattern, reason in parts.items():
        if key := next((key for key in state if re.match(pattern, key)), None):
            raise WeightsError(f"{source} checkpoint: it has {reason} ({key}); the zoo has no such net")


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return the number of different numbers in the keys that begin with a pattern."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def _bottlenecks(
    source: str,
    state: Mapping[str, Tensor],
    stem: str,
    blocks: list[list[str]],
    *,
    first: str,
    last: str,
    head: str,
    pooled: bool | None = None,
) -> ClipArchitecture:
    """Return the architecture of a net with bottlenecks.

    Args:
        source: name of the layout, for messages.
        state: state dict of the checkpoint.
        stem: key of the first convolution.
        blocks: prefixes of each stage's blocks.
        first, last: names of a block's first and last convolution.
        head: name of the last layer.
        pooled: whether a pool in time follows the first stage; None if the checkpoint does not show it.

    Raises:
        WeightsError: a stem or a block that our nets cannot have.
    """
    if not all(blocks):
        raise WeightsError(f"{source} checkpoint: a stage is missing; must have four, and no parts of other nets")
    _, in_chans, frames, *_ = kernel(source, state, stem)
    if frames not in STEMS:
        raise WeightsError(
            f"{source} checkpoint: its stem {stem} spans {frames} frames; must be 1 (SlowOnly) or 5 (I3D)"
        )
    temporal = tuple(tuple(kernel(source, state, f"{block}.{first}.weight")[2] for block in stage) for stage in blocks)
    return ClipArchitecture(
        block="bottleneck",
        temporal=temporal,
        stem=STEMS[frames],
        out_channels=kernel(source, state, f"{blocks[-1][0]}.{last}.weight")[0],
        in_chans=in_chans,
        num_classes=classes(state, f"{head}.weight"),
        pooled=pooled,
    )


LAYOUTS = [
    Layout(SLOWFAST, matches, read),
    Layout(PYTORCHVIDEO, matches_pytorchvideo, read_pytorchvideo),
]
