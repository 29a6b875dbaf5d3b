"""What nets expect of their input: images, pictures with objects, clips, text."""

from __future__ import annotations

import base64
import binascii
import functools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.text import Tokenizer, Vocabulary

if TYPE_CHECKING:
    from torchvision.transforms.v2 import Transform


@dataclass(frozen=True)
class InputTransform:
    """What the net expects of an image: resized, centre-cropped, scaled to 0..1 and standardised.

    Attributes:
        size: side of the square that enters the net, in pixels.
        resize: length of the short side before the centre crop.
        mean, std: for each channel in ``channel_order``, on the 0..1 scale.
        interpolation: bilinear, bicubic or nearest.
    """

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    channel_order: Literal["RGB", "BGR"] = "RGB"

    def __post_init__(self) -> None:
        if self.channel_order not in ("RGB", "BGR"):
            raise ZooError(f"channel_order={self.channel_order!r}: RGB or BGR")

    def build(self) -> Transform:
        """PIL image or uint8 tensor (C, H, W) -> float32 tensor (C, size, size); grey images become RGB."""
        from torchvision.transforms import v2

        steps = [
            v2.RGB(),
            v2.ToImage(),
            v2.Resize(self.resize, interpolation=v2.InterpolationMode(self.interpolation), antialias=True),
            v2.CenterCrop(self.size),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(self.mean), list(self.std)),
        ]
        if self.channel_order == "BGR":
            steps.insert(-1, ReverseChannels())
        return v2.Compose(steps)


@dataclass(frozen=True)
class DetectionTransform:
    """What a detector expects of an image. It resizes and standardises by itself, as torchvision's do.

    Attributes:
        min_size: length that the short side is resized to, in pixels.
        max_size: limit of the long side; the short side then stays below ``min_size``.
        mean, std: for each channel in ``channel_order``, on the 0..1 scale.
    """

    min_size: int
    max_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: Literal["RGB", "BGR"] = "RGB"

    def __post_init__(self) -> None:
        if not 0 < self.min_size <= self.max_size:
            raise ZooError(f"min_size={self.min_size}, max_size={self.max_size}: 0 < min_size <= max_size is needed")

    def build(self) -> Transform:
        """PIL image or uint8 tensor (C, H, W) -> float32 RGB tensor (C, H, W) in 0..1."""
        from torchvision.transforms import v2

        return v2.Compose([v2.RGB(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


@dataclass(frozen=True)
class VideoTransform:
    """What a net expects of a video: which frames make a clip, and what is done with them.

    Attributes:
        frames: of a clip.
        interval: time from one frame of a clip to the next, in frames at ``fps``; None: the clip's frames are spread
            evenly over the whole video.
        fps: None for the video's own average rate.
        size: side of the square that enters the net, in pixels.
        resize: length of the short side before the centre crop.
        mean, std: for each channel, RGB, on the 0..1 scale.
        crop_mode: ``center`` as above; ``squash``: frames are resized to a square of side ``resize``, whatever their
            shape, so that nothing beside the centre is lost.
    """

    frames: int
    interval: float | None
    fps: float | None
    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_mode: Literal["center", "squash"] = "center"

    def __post_init__(self) -> None:
        if not 0 < self.size <= self.resize:
            raise ZooError(f"size={self.size}, resize={self.resize}: 0 < size <= resize is needed")
        if self.frames < 1 or any(value is not None and not value > 0 for value in (self.interval, self.fps)):
            raise ZooError(f"frames={self.frames}, interval={self.interval}, fps={self.fps}: greater than 0 is needed")

    def build(self) -> Transform:
        """uint8 clip (T, 3, H, W) -> float32 tensor (3, T, size, size)."""
        from torchvision.transforms import v2

        return v2.Compose(
            [
                v2.Resize(self.resized(self.resize), antialias=True),
                v2.CenterCrop(self.size),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(self.mean), list(self.std)),
                TimeAfterChannels(),
            ]
        )

    def resized(self, side: int) -> list[int]:
        """What torchvision's resize is given for a side."""
        return [side, side] if self.crop_mode == "squash" else [side]


class TimeAfterChannels(nn.Module):
    """(..., T, C, H, W) -> (..., C, T, H, W)."""

    def forward(self, clip: Tensor) -> Tensor:
        return clip.transpose(-4, -3)


class ReverseChannels(nn.Module):
    """RGB (..., 3, H, W) -> BGR."""

    def forward(self, image: Tensor) -> Tensor:
        return image.flip(-3)


_LANGUAGE = re.compile(r"[A-Za-z0-9_-]{1,20}")


@dataclass(frozen=True)
class TextTransform:
    """What a translation net expects: its languages and vocabularies.

    Attributes:
        source, target: languages, as in ``en``: letters, digits, - and _, at most 20. Exports name files after them.
        source_model, target_model: sentencepiece models, base64; ``target_model`` None for a joint vocabulary.
    """

    source: str
    target: str
    source_model: str = field(repr=False)
    target_model: str | None = field(repr=False)

    def __post_init__(self) -> None:
        for key in ("source", "target"):  # a weights file may come from anywhere, and its languages name files
            if not _LANGUAGE.fullmatch(getattr(self, key)):
                raise ZooError(
                    f"language {key}={getattr(self, key)!r}: must be 1 to 20 letters, digits, - or _, as in 'en'"
                )

    @classmethod
    def of(cls, languages: tuple[str, str], source: Vocabulary, target: Vocabulary) -> TextTransform:
        """The transform of a pair of languages and their vocabularies."""
        models = [base64.b64encode(v.model).decode() for v in (source, target)]
        return cls(*languages, models[0], models[1] if models[1] != models[0] else None)

    def build(self) -> Tokenizer:
        """A callable: sentences -> int64 (B, S).

        Raises:
            ZooError: a vocabulary that is not a sentencepiece model.
        """
        source = _vocabulary(self.source_model)
        return Tokenizer(source, source if self.target_model is None else _vocabulary(self.target_model))


@functools.lru_cache(maxsize=4)
def _vocabulary(model: str) -> Vocabulary:
    try:
        return Vocabulary(base64.b64decode(model, validate=True))
    except binascii.Error as error:
        raise ZooError(f"vocabulary: not base64 ({error})") from None


AnyTransform = InputTransform | DetectionTransform | VideoTransform | TextTransform
