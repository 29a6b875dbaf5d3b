"""Transforms of whole clips, uint8 (T, 3, H, W), which treat all frames of a clip alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from tasks.augment import Flip, distortions
from tasks.errors import UserError
from tasks.video.config import Augment
from zoo import VideoTransform


class RandomSide(v2.Transform):
    """Resizing of the short side, or of both sides, to a random length: uint8 (T, 3, H, W) -> (T, 3, H', W').

    Args:
        low: smallest length in pixels.
        high: largest length in pixels.
        transform: input transform of the net, which defines whether one or both sides are resized to the length.
    """

    def __init__(self, low: int, high: int, transform: VideoTransform) -> None:
        super().__init__()
        self.low, self.high, self.resized = low, high, transform.resized

    def draw(self) -> int:
        """Draw the length from torch's generator."""
        return int(torch.randint(self.low, self.high + 1, ()))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the length."""
        return {"size": self.resized(self.draw())}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize a clip to the length that was drawn."""
        return v2.functional.resize(inpt, params["size"], antialias=True)


@dataclass(frozen=True)
class FrameResize:
    """Resizing of one frame as soon as it is decoded: uint8 (H, W, 3) -> (H', W', 3).

    The frames of a clip become what a resize of the whole clip would give, but are never in memory at full size
    together.

    Attributes:
        side: length in pixels, of the short side or of both.
        transform: input transform of the net, which defines whether one or both sides are resized to the length.
        pixel_ratio: width of a displayed pixel over its height; the result has square pixels.
    """

    side: int
    transform: VideoTransform
    pixel_ratio: float = 1.0

    def __call__(self, image: np.ndarray) -> np.ndarray:
        size = self.transform.resized(self.side)
        if self.pixel_ratio != 1 and len(size) == 1:
            height, width = image.shape[0], image.shape[1] * self.pixel_ratio
            short = min(height, width)
            size = [max(1, int(self.side * length / short)) for length in (height, width)]
        pixels = torch.from_numpy(image).permute(2, 0, 1)  # (3, H, W)
        resized: np.ndarray = v2.functional.resize(pixels, size, antialias=True).permute(1, 2, 0).numpy()
        return resized


def displayed(image: np.ndarray, pixel_ratio: float) -> Image.Image:
    """Return a frame (H, W, 3) as a picture with square pixels."""
    picture = Image.fromarray(image)
    return picture if pixel_ratio == 1 else picture.resize((max(1, round(picture.width * pixel_ratio)), picture.height))


def usual_short_side(resize: int) -> tuple[int, int]:
    """Return the range of the short side in training for one in evaluation, as published: 256 to 320 for 256."""
    return resize, resize * 5 // 4


def train_transform(augment: Augment, transform: VideoTransform) -> v2.Transform:
    """Return the augmentation of a training clip: uint8 (T, 3, H, W) -> (T, 3, size, size)."""
    low, high = augment.short_side or usual_short_side(transform.resize)
    steps: list[Any] = [
        RandomSide(low, high, transform),
        v2.RandomCrop(transform.size),
    ]
    if augment.flip:
        steps.append(Flip(augment.flip))
    if augment.colour:
        strength = augment.colour
        steps.append(v2.ColorJitter(strength, strength, strength))
    return v2.Compose(steps + distortions(augment, transform))


def crops(clip: Tensor, transform: VideoTransform, count: int) -> Tensor:
    """Resize a clip and crop views of it: (T, 3, H, W) -> (count, T, 3, size, size).

    Args:
        clip: frames of the clip.
        transform: input transform of the net, with the sizes.
        count: number of views; 1: the centre, 3: begin, centre and end of the long side (Wang et al. 2018).

    Raises:
        UserError: another count than 1 and 3.
    """
    if count not in (1, 3):
        raise UserError(f"crops={count}: must be 1 (the centre) or 3 (along the long side)")
    size = transform.size
    clip = v2.functional.resize(clip, transform.resized(transform.resize), antialias=True)
    height, width = clip.shape[-2:]
    margin = max(height, width) - size  # pixels of the long side outside of a view
    along = [margin // 2] if count == 1 else [0, margin // 2, margin]  # offsets of the views along the long side
    across = (min(height, width) - size) // 2
    corners = [(place, across) if height > width else (across, place) for place in along]  # (top, left)
    return torch.stack([v2.functional.crop(clip, top, left, size, size) for top, left in corners])
