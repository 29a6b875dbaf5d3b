"""Input transforms: from an image, an image with objects, a video or text to the input that a net expects.

The header of a weights file contains the transform, with its ``kind``.
"""

from __future__ import annotations

import base64
import binascii
import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn

from zoo.errors import ZooError, suggestion
from zoo.files import safe_name
from zoo.text import Tokenizer, Vocabulary

if TYPE_CHECKING:
    from torchvision.transforms.v2 import Transform

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of each channel, RGB, on the 0..1 scale
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputTransform:
    """Transform of images: resize, centre crop, scaling to 0..1 and standardisation.

    Attributes:
        size: side in pixels of the square that enters the net.
        resize: length in pixels of the short side before the centre crop.
        mean: mean of each channel in ``channel_order``, on the 0..1 scale.
        std: standard deviation of each channel in ``channel_order``, on the 0..1 scale.
        interpolation: bilinear, bicubic or nearest.
        channel_order: order of the channels that enter the net.
    """

    kind: ClassVar[str] = "image"

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    channel_order: Literal["RGB", "BGR"] = "RGB"

    @classmethod
    def imagenet(cls, size: int = 224, resize: int = 256) -> InputTransform:
        """Return the transform with ImageNet's mean and standard deviation.

        Args:
            size: side in pixels of the square that enters the net.
            resize: length in pixels of the short side before the centre crop.
        """
        return cls(size, resize, IMAGENET_MEAN, IMAGENET_STD)

    def __post_init__(self) -> None:
        if self.channel_order not in ("RGB", "BGR"):
            raise ZooError(f"channel_order={self.channel_order!r}: must be RGB or BGR")

    def build(self) -> Transform:
        """Return the transform from a PIL image or uint8 tensor (C, H, W) to a float32 tensor (C, size, size).

        Grey images become RGB.
        """
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
    """Transform of a detector's images. The detector itself resizes and standardises, as torchvision's do.

    Attributes:
        min_size: length in pixels that the short side is resized to.
        max_size: limit in pixels of the long side; the short side then stays below ``min_size``.
        mean: mean of each channel in ``channel_order``, on the 0..1 scale.
        std: standard deviation of each channel in ``channel_order``, on the 0..1 scale.
        channel_order: order of the channels that enter the backbone.
    """

    kind: ClassVar[str] = "detection"

    min_size: int
    max_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: Literal["RGB", "BGR"] = "RGB"

    def __post_init__(self) -> None:
        if not 0 < self.min_size <= self.max_size:
            raise ZooError(f"min_size={self.min_size}, max_size={self.max_size}: must be 0 < min_size <= max_size")

    def build(self) -> Transform:
        """Return the transform from a PIL image or uint8 tensor (C, H, W) to a float32 RGB tensor (C, H, W) in 0..1."""
        from torchvision.transforms import v2

        return v2.Compose([v2.RGB(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


@dataclass(frozen=True)
class VideoTransform:
    """Transform of videos: the choice of a clip's frames, and how they are resized and standardised.

    Attributes:
        frames: number of frames of a clip.
        interval: time from one frame of a clip to the next, in frames at ``fps``; None for a clip whose frames are
            spread evenly over the whole video.
        fps: frame rate that ``interval`` counts in; None for the video's own average rate.
        size: side in pixels of the square that enters the net.
        resize: length in pixels of the short side before the centre crop.
        mean: mean of each channel, RGB, on the 0..1 scale.
        std: standard deviation of each channel, RGB, on the 0..1 scale.
        crop_mode: ``center`` for a resized short side and a centre crop; ``squash`` for a resize to a square of side
            ``resize`` that loses nothing beside the centre but changes the aspect ratio.
    """

    kind: ClassVar[str] = "video"

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
            raise ZooError(f"size={self.size}, resize={self.resize}: must be 0 < size <= resize")
        if self.frames < 1 or any(value is not None and not value > 0 for value in (self.interval, self.fps)):
            raise ZooError(f"frames={self.frames}, interval={self.interval}, fps={self.fps}: must be > 0")

    def build(self) -> Transform:
        """Return the transform from a uint8 clip (T, 3, H, W) to a float32 tensor (3, T, size, size)."""
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
        """Return the size argument of torchvision's resize for a side in pixels."""
        return [side, side] if self.crop_mode == "squash" else [side]


class TimeAfterChannels(nn.Module):
    """Moves time after the channels: (..., T, C, H, W) -> (..., C, T, H, W)."""

    def forward(self, clip: Tensor) -> Tensor:
        return clip.transpose(-4, -3)


class ReverseChannels(nn.Module):
    """Reverses the channels (..., 3, H, W): RGB becomes BGR."""

    def forward(self, image: Tensor) -> Tensor:
        return image.flip(-3)


@dataclass(frozen=True)
class TextTransform:
    """Transform of a translation net's sentences: its languages and vocabularies.

    Attributes:
        source: source language, as in ``en``: letters, digits, - and _, at most 20. Exports name files after it.
        target: target language, likewise.
        source_model: sentencepiece model of the source vocabulary, base64.
        target_model: sentencepiece model of the target vocabulary, base64; None for a joint vocabulary.
    """

    kind: ClassVar[str] = "text"

    source: str
    target: str
    source_model: str = field(repr=False)
    target_model: str | None = field(repr=False)

    def __post_init__(self) -> None:
        # the languages name files, and a weights file may come from anywhere
        safe_name(self.source, "language source", longest=20)
        safe_name(self.target, "language target", longest=20)

    @classmethod
    def from_vocabularies(cls, languages: tuple[str, str], source: Vocabulary, target: Vocabulary) -> TextTransform:
        """Return the transform of a pair of languages.

        Args:
            languages: source and target language.
            source: vocabulary of the source language.
            target: vocabulary of the target language.
        """
        models = [base64.b64encode(v.model).decode() for v in (source, target)]
        return cls(*languages, models[0], models[1] if models[1] != models[0] else None)

    @classmethod
    def of(cls, languages: tuple[str, str], source: Vocabulary, target: Vocabulary) -> TextTransform:
        """Call ``from_vocabularies``: its name of version 0.1.0, deprecated."""
        warnings.warn("TextTransform.of is named from_vocabularies", DeprecationWarning, stacklevel=2)
        return cls.from_vocabularies(languages, source, target)

    def build(self) -> Tokenizer:
        """Return the tokenizer from sentences to int64 (B, S).

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
KINDS: dict[str, type[AnyTransform]] = {
    cls.kind: cls for cls in (InputTransform, DetectionTransform, VideoTransform, TextTransform)
}


def register_transform(cls: type[Any]) -> type[Any]:
    """Register a kind of transform that the headers of weights may name; usable as a decorator.

    Args:
        cls: frozen dataclass with a ``kind`` and the method ``build``.

    Raises:
        ZooError: a kind that is taken.
    """
    if cls.kind in KINDS:
        raise ZooError(f"transform of kind {cls.kind!r} is registered already")
    KINDS[cls.kind] = cls
    return cls


def read_transform(entry: Mapping[str, Any]) -> AnyTransform:
    """Return the transform of the header of a weights file.

    Args:
        entry: fields of the transform with its ``kind``. Files of version 0.1.0 have no kind: the fields alone
            determine theirs.

    Raises:
        ZooError: unknown kind.
        pydantic.ValidationError: fields that are missing or have a wrong type.
    """
    if "kind" not in entry:
        return pydantic.TypeAdapter(AnyTransform).validate_python(entry)
    if entry["kind"] not in KINDS:
        raise ZooError(f"unknown kind of transform {entry['kind']!r}{suggestion(str(entry['kind']), KINDS)}")
    return pydantic.TypeAdapter(KINDS[entry["kind"]]).validate_python(
        {key: value for key, value in entry.items() if key != "kind"}
    )
