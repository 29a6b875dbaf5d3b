"""Input transforms: from an image, an image with objects, a video or text to the input that a net expects.

The header of a weights file contains the transform, with its ``kind``.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import math
import reprlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import pydantic
import torch
from torch import Tensor, nn

from zoo.arguments import real_number, shown, text, whole_number
from zoo.cleaning import CLEANING
from zoo.errors import WeightsError, ZooError, one_line, reason_of, suggestion
from zoo.files import safe_name
from zoo.text import Tokenizer, Vocabulary

if TYPE_CHECKING:
    from torchvision.transforms.v2 import Transform

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of each channel, RGB, on the 0..1 scale
IMAGENET_STD = (0.229, 0.224, 0.225)

LONGEST_SIDE = 16384  # pixels
MOST_FRAMES = 4096
LARGEST_RATE = 10_000.0  # frames per second, and frames from one of a clip to the next
MOST_CHANNELS = 10_000
SMALLEST_STD = 1e-6  # below it a standardised pixel overflows half precision
LONGEST_MODEL = 2**25  # characters of a vocabulary
Interpolation = Literal["bilinear", "bicubic", "nearest", "nearest-exact"]


@dataclass(frozen=True)
class InputTransform:
    """Transform of images: resize, centre crop, scaling to 0..1 and standardisation.

    Attributes:
        size: side in pixels of the square that enters the net.
        resize: length in pixels of the short side before the centre crop.
        mean: mean of each channel in ``channel_order``, on the 0..1 scale.
        std: standard deviation of each channel in ``channel_order``, on the 0..1 scale.
        interpolation: bilinear, bicubic, nearest or nearest-exact.
        channel_order: order of the channels that enter the net.

    Raises:
        ZooError: sizes that are not 0 < size <= resize (a larger crop would be filled up with black), or values out of
            range.
    """

    kind: ClassVar[str] = "image"

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"
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
        _check_sides(self, "size", "resize")
        _check_choice(self, "interpolation", Interpolation)
        _check_statistics(self)

    def build(self) -> Transform:
        """Return the transform from a PIL image or uint8 tensor (C, H, W) to a float32 tensor (C, size, size).

        Grey images become RGB for three channels, coloured ones become grey for one. For another number of channels
        the images must have it, as RGBA images have 4; others raise a ``ZooError``.
        """
        from torchvision.transforms import v2

        channels = len(self.mean)
        steps = [
            *({3: [v2.RGB()], 1: [v2.Grayscale(1)]}.get(channels, [])),
            v2.ToImage(),
            *([] if channels in (1, 3) else [RequireChannels(channels)]),
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
        _check_sides(self, "min_size", "max_size")
        _check_statistics(self)

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
        _check_sides(self, "size", "resize")
        _check_choice(self, "crop_mode", Literal["center", "squash"])
        _check_statistics(self)
        object.__setattr__(self, "frames", whole_number(self.frames, "frames", None))
        rates = {key: getattr(self, key) for key in ("interval", "fps") if getattr(self, key) is not None}
        for key, value in rates.items():
            object.__setattr__(self, key, real_number(value, key, -math.inf))
        fits = all(0 < getattr(self, key) <= LARGEST_RATE for key in rates)
        if not (fits and 0 < self.frames <= MOST_FRAMES):
            raise ZooError(
                f"frames={self.frames}, interval={self.interval}, fps={self.fps}: must be > 0, frames at most "
                f"{MOST_FRAMES}, the others at most {LARGEST_RATE:g}"
            )

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


class RequireChannels(nn.Module):
    """Passes images (..., channels, H, W) on and refuses others.

    Args:
        channels: number of channels.

    Raises:
        ZooError: an image of another number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-3] != self.channels:
            raise ZooError(f"an image of {image.shape[-3]} channels: the net takes {self.channels}; see its transform")
        return image


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
        cleaning: version of the rules of ``zoo.cleaning.clean`` in the training text; see ``zoo.cleaning.CLEANING``.
        longest: number of source tokens that few training sentences exceed: longer text is translated in parts; None:
            unknown.
    """

    kind: ClassVar[str] = "text"

    source: str
    target: str
    source_model: str = field(repr=False)
    target_model: str | None = field(repr=False)
    cleaning: int = 1
    longest: int | None = None

    def __post_init__(self) -> None:
        # the languages name files, and a weights file may come from anywhere
        safe_name(text(self.source, "language source"), "language source", longest=20)
        safe_name(text(self.target, "language target"), "language target", longest=20)
        for key in ("source_model", "target_model"):
            value = getattr(self, key)
            if value is None and key == "target_model":
                continue
            if len(text(value, key)) > LONGEST_MODEL:
                raise ZooError(f"{key}: has more than {LONGEST_MODEL} characters")
        object.__setattr__(self, "cleaning", whole_number(self.cleaning, "cleaning", 1))
        if self.cleaning > CLEANING:
            raise ZooError(f"cleaning={self.cleaning}: of a later version, which cleans text by other rules; update")
        if self.longest is not None:
            object.__setattr__(self, "longest", whole_number(self.longest, "longest", 1))

    @classmethod
    def from_vocabularies(
        cls,
        languages: tuple[str, str],
        source: Vocabulary,
        target: Vocabulary,
        *,
        cleaning: int = CLEANING,
        longest: int | None = None,
    ) -> TextTransform:
        """Return the transform of a pair of languages.

        Args:
            languages: source and target language.
            source: vocabulary of the source language.
            target: vocabulary of the target language.
            cleaning: version of the cleaning of the training text.
            longest: number of source tokens that few training sentences exceed; None: unknown.
        """
        models = [base64.b64encode(v.model).decode() for v in (source, target)]
        return cls(*languages, models[0], models[1] if models[1] != models[0] else None, cleaning, longest)

    def same_text(self, other: TextTransform) -> bool:
        """Return whether languages and vocabularies are those of another transform."""
        names = ("source", "target", "source_model", "target_model")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    @classmethod
    def of(cls, languages: tuple[str, str], source: Vocabulary, target: Vocabulary) -> TextTransform:
        """Call ``from_vocabularies``: its name of version 0.1.0, deprecated."""
        warnings.warn("TextTransform.of is named from_vocabularies", DeprecationWarning, stacklevel=2)
        return cls.from_vocabularies(languages, source, target, cleaning=1)  # the rules of that version

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
        content = base64.b64decode(model, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError for characters beyond ASCII
        raise ZooError(f"vocabulary: not base64 ({one_line(error)})") from None
    return Vocabulary(content)


AnyTransform = InputTransform | DetectionTransform | VideoTransform | TextTransform
KINDS: dict[str, type[AnyTransform]] = {
    cls.kind: cls for cls in (InputTransform, DetectionTransform, VideoTransform, TextTransform)
}


# the kinds of input (``zoo.ModelInfo``) that a kind of transform makes; those of other packages are not restricted
_INPUT_KINDS = {
    "image": ("images", "image_lists"),
    "detection": ("image_lists",),
    "video": ("clips",),
    "text": ("text",),
}


def check_input(transform: AnyTransform, input_kind: str, source: str) -> None:
    """Check that a transform makes the input that a net takes.

    Args:
        transform: transform of weights.
        input_kind: kind of input of their net.
        source: name of the weights, for the message.

    Raises:
        WeightsError: a transform of the project that makes another kind of input.
    """
    if input_kind not in _INPUT_KINDS.get(transform.kind, (input_kind,)):
        raise WeightsError(f"{source}: a transform of kind {transform.kind!r}, and a net that takes {input_kind}")


def register_transform(cls: type[Any]) -> type[Any]:
    """Register a kind of transform that the headers of weights may name; usable as a decorator.

    Args:
        cls: frozen dataclass with a ``kind`` and the method ``build``.

    Raises:
        ZooError: a kind that is taken.
    """
    kind = getattr(cls, "kind", None)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and isinstance(kind, str)):
        raise ZooError(f"register_transform: {shown(cls)} is no dataclass with a kind")
    if kind in KINDS:
        raise ZooError(f"transform of kind {kind!r} is registered already")
    KINDS[kind] = cast(Any, cls)
    return cls


def read_transform(entry: Mapping[str, Any]) -> AnyTransform:
    """Return the transform of the header of a weights file.

    Args:
        entry: fields of the transform with its ``kind``. Files of version 0.1.0 have no kind: the names of the fields
            determine theirs.

    Raises:
        ZooError: an unknown kind or field, or a field that is missing or has a wrong value.
    """
    fields = {key: value for key, value in entry.items() if key != "kind"}
    # the class, by its kind
    if "kind" not in entry:
        cls = _class_of(fields)
    elif not isinstance(entry["kind"], str) or entry["kind"] not in KINDS:
        kind = reprlib.repr(entry["kind"])
        raise ZooError(f"transform: unknown kind of transform {kind}{suggestion(str(entry['kind'])[:80], KINDS)}")
    else:
        cls = KINDS[entry["kind"]]
    # its fields
    known = [field.name for field in dataclasses.fields(cls)]
    for key in fields:
        if key not in known:
            raise ZooError(f"transform.{key}: {cls.kind} transforms have no such key{suggestion(key, known)}")
    try:
        return pydantic.TypeAdapter(cls).validate_python(fields)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(["transform", *map(str, first["loc"])])
        given = f"={reprlib.repr(first['input'])}" if first["loc"] and first["type"] != "missing" else ""
        raise ZooError(f"{key}{given}: {one_line(reason_of(first))}") from None


def _class_of(fields: Mapping[str, Any]) -> type[AnyTransform]:
    """Return the one class of version 0.1.0 that has all of these fields and no required field beside them.

    Raises:
        ZooError: there is none.
    """
    for cls in (InputTransform, DetectionTransform, VideoTransform, TextTransform):
        own = dataclasses.fields(cls)
        required = {field.name for field in own if field.default is dataclasses.MISSING}
        if required <= fields.keys() <= {field.name for field in own}:
            return cls
    raise ZooError(f"transform: its keys ({reprlib.repr(sorted(fields))}) are those of no kind of transform")


# -- checks of fields; a frozen dataclass gets the plain value -----------------------------------------


def _check_sides(transform: Any, smaller: str, larger: str) -> None:
    """Check two sizes in pixels, 0 < smaller <= larger.

    Raises:
        ZooError: other values.
    """
    values = [getattr(transform, key) for key in (smaller, larger)]
    for key, value in zip((smaller, larger), values, strict=True):
        object.__setattr__(transform, key, (whole := whole_number(value, key, None)))
        if whole > LONGEST_SIDE:
            raise ZooError(f"{key}={shown(value)}: must be at most {LONGEST_SIDE} pixels")
    if not 0 < values[0] <= values[1]:
        raise ZooError(f"{smaller}={values[0]}, {larger}={values[1]}: must be 0 < {smaller} <= {larger}")


def _check_choice(transform: Any, key: str, choices: Any) -> None:
    """Check a field that has one of several values.

    Raises:
        ZooError: another value.
    """
    allowed, value = choices.__args__, getattr(transform, key)
    if not isinstance(value, str) or value not in allowed:
        raise ZooError(f"{key}={shown(value)}: must be {', '.join(allowed[:-1])} or {allowed[-1]}")


def _check_statistics(transform: Any) -> None:
    """Check mean, std and, if there is one, the channel order.

    Raises:
        ZooError: numbers of values that differ, values that are not on the 0..1 scale, or an unknown order.
    """
    for key, least in (("mean", 0.0), ("std", SMALLEST_STD)):
        given = getattr(transform, key)
        try:
            values = tuple(float(value) for value in ([given] if isinstance(given, str) else given))
        except (TypeError, ValueError, OverflowError):
            raise ZooError(f"{key}={shown(given)}: must be one number for each channel") from None
        object.__setattr__(transform, key, values)
        if not all(math.isfinite(value) and least <= value <= 1 for value in values):
            raise ZooError(
                f"{key}={reprlib.repr(values)}: must be {least:g} to 1, on the 0..1 scale of the pixels; divide values "
                "on the 0..255 scale by 255"
            )
    channels = len(transform.mean)
    if channels != len(transform.std) or not 0 < channels <= MOST_CHANNELS:
        raise ZooError(f"{channels} values of mean and {len(transform.std)} of std: must be one for each channel")
    if not hasattr(transform, "channel_order"):
        return
    _check_choice(transform, "channel_order", Literal["RGB", "BGR"])
    if transform.channel_order == "BGR" and channels != 3:
        raise ZooError(f"channel_order='BGR': requires 3 channels, not {channels}")
