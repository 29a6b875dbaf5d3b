"""What the layouts of video nets have in common: the architecture that shapes show, and the search for its net."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zoo.convert.layouts.base import Imported
from zoo.convert.layouts.fitting import candidates, fitted, with_asked
from zoo.errors import WeightsError
from zoo.nets.base import ModelConfig
from zoo.nets.resnet3d import ResNet3d, ResNet3dConfig, branch
from zoo.transforms import VideoTransform

EPS = 1e-5  # of the norms of torchvision, SlowFast and PyTorchVideo


@dataclass(frozen=True)
class ClipArchitecture:
    """The architecture that the keys and shapes of a video checkpoint show.

    Attributes:
        block: kind of the blocks, as in ``ResNet3dConfig``.
        temporal: kernel size in time of each block of each stage.
        stem: kind of the entrance, as in ``ResNet3dConfig``.
        out_channels: channels of the last stage.
        in_chans: input channels.
        num_classes: number of classes; 0 without a last layer.
        pooled: whether a pool in time follows the first stage; None if the checkpoint does not show it.
    """

    block: str
    temporal: tuple[tuple[int, ...], ...]
    stem: str
    out_channels: int
    in_chans: int
    num_classes: int
    pooled: bool | None = None

    def __str__(self) -> str:
        pool = {None: "", True: " and a pool in time", False: " and no pool in time"}[self.pooled]
        return f"{self.block} blocks with kernels {self.temporal} in time, {self.stem} stem{pool}"

    def fits(self, layout: ResNet3dConfig) -> bool:
        """Return whether a net's layout has these blocks, widths aside."""
        kernels = tuple(
            tuple(kernels[j % len(kernels)] for j in range(depth))
            for depth, kernels in zip(layout.depths, layout.temporal, strict=True)
        )
        pooled = layout.frame_pool > 1 if self.pooled is None else self.pooled
        found = (self.block, self.temporal, self.stem, pooled)
        return found == (layout.block, kernels, layout.stem, layout.frame_pool > 1)

    def options(self, layout: ResNet3dConfig) -> dict[str, Any]:
        """Return the options that give a net with this layout the checkpoint's architecture."""
        widest = layout.base_channels * 2 ** (len(layout.depths) - 1)
        full = branch(layout, widest, widest, 1, 3)[-1].channels
        options: dict[str, Any] = {"shortcut": "conv"}
        return options if self.out_channels == full else {**options, "width": self.out_channels / full}

    def read(
        self,
        source: str,
        state: Mapping[str, Tensor],
        name: str | None,
        options: Mapping[str, Any],
        foreign: Callable[[str], str],
        transform: VideoTransform,
    ) -> Imported:
        """Return a checkpoint of this architecture in the keys of our ``bn`` net.

        Args:
            source: name of the checkpoint's layout, for messages.
            state: state dict of the checkpoint.
            name: name of our net; None to find it.
            options: options of our net.
            foreign: function from a key of our net to the checkpoint's.
            transform: input that the checkpoint expects.

        Raises:
            WeightsError: no registered net fits.
        """
        configs = [
            ModelConfig(
                name=spec.name,
                scheme="bn",
                num_classes=self.num_classes,
                in_chans=self.in_chans,
                options=with_asked(source, self.options(spec.layout), options),
            )
            for spec in candidates(source, ResNet3d, name, str(self), self.fits)
        ]
        return dataclasses.replace(fitted(source, state, configs, foreign), transform=transform, eps=EPS)


def kernel(source: str, state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    """Return the shape (O, I, t, h, w) of a convolution of a video net.

    Raises:
        WeightsError: a tensor that is missing or no such kernel.
    """
    if key not in state:
        raise WeightsError(f"{source} checkpoint: {key} is missing")
    if state[key].ndim != 5 or not state[key].numel():
        raise WeightsError(f"{source} checkpoint: {key} has shape {tuple(state[key].shape)}; must be (O, I, t, h, w)")
    return tuple(state[key].shape)


def classes(state: Mapping[str, Tensor], key: str) -> int:
    """Return the number of classes of the last layer, whose weight has this key; 0 without one."""
    return state[key].shape[0] if key in state and state[key].ndim else 0
