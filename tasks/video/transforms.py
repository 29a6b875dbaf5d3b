"""Whole clips at once: uint8 (T, 3, H, W), every frame treated alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from tasks.errors import UserError
from tasks.video.config import DataSection
from zoo import VideoTransform


class RandomSide(v2.Transform):
    """Resize the short side, or both, to a length drawn from low..high: uint8 (T, 3, H, W) -> (T, 3, H', W')."""

    def __init__(self, low: int, high: int, transform: VideoTransform) -> None:
        super().__init__()
        self.low, self.high, self.resized = low, high, transform.resized

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"size": self.resized(int(torch.randint(self.low, self.high + 1, ())))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return v2.functional.resize(inpt, params["size"], antialias=True)


def train_transform(section: DataSection, transform: VideoTransform) -> v2.Transform:
    """uint8 (T, 3, H, W) -> augmented uint8 (T, 3, size, size)."""
    augment = section.augment
    low, high = augment.short_side
    steps: list[Any] = [
        RandomSide(low, high, transform),
        v2.RandomCrop(section.size),
    ]
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip(augment.flip))
    if augment.colour:
        strength = augment.colour
        steps.append(v2.ColorJitter(strength, strength, strength))
    return v2.Compose(steps)


def crops(clip: Tensor, transform: VideoTransform, count: int) -> Tensor:
    """Resized, then cropped: (T, 3, H, W) -> (count, T, 3, size, size).

    Args:
        count: 1 for the centre; 3 for both ends of the long side and the centre (Wang et al. 2018).

    Raises:
        UserError: another count.
    """
    if count not in (1, 3):
        raise UserError(f"crops={count}: 1 (the centre) or 3 (along the long side)")
    size = transform.size
    clip = v2.functional.resize(clip, transform.resized(transform.resize), antialias=True)
    height, width = clip.shape[-2:]
    tall = height > width
    room = (height if tall else width) - size
    places = [room // 2] if count == 1 else [0, room // 2, room]
    across = ((width if tall else height) - size) // 2
    views = [
        v2.functional.crop(clip, place if tall else across, across if tall else place, size, size) for place in places
    ]
    return torch.stack(views)
