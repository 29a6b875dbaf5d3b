"""Inputs of a diagnosis: noise of a stated spectrum, or pictures and sentences of the user."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

import zoo
from tasks.errors import DataError, UserError
from tasks.images import find_images, read_image, read_picture
from tasks.shards import chunks
from tasks.textfiles import read_text
from zoo.specs import ModelInfo
from zoo.text import EOS, PAD, UNK, padded

Spectrum = Literal["pink", "white"]
TEXT_LENGTH = 32  # tokens of a sentence of noise
FRAMES = 8  # frames of a clip of noise, for nets that were designed for no number
_PICTURE_STD, _PICTURE_MEAN = 0.25, 0.45  # of the pixels of photographs, on the 0..1 scale


@dataclass(frozen=True)
class Inputs:
    """Batches of a net's inputs.

    Attributes:
        batches: batches on the CPU, which each iteration makes anew, one at a time.
        forward: function that runs the net on a batch.
        loss: function that returns the loss of a batch; None if there are no labels that make sense.
        source: description.
    """

    batches: Iterable[Any]
    forward: Callable[[nn.Module, Any], object]
    loss: Callable[[nn.Module, Any], Tensor] | None
    source: str


def check_spectrum(name: str) -> Spectrum:
    """Return a spectrum by its name.

    Raises:
        UserError: an unknown name.
    """
    if name not in get_args(Spectrum):
        raise UserError(f"--noise {name}: must be {' or '.join(get_args(Spectrum))}")
    return name  # type: ignore[return-value]


def noise(shape: Sequence[int], spectrum: Spectrum, generator: torch.Generator) -> Tensor:
    """Return normally distributed noise (N, C, ...) with mean 0 and standard deviation 1 over the batch.

    ``white`` has the same power at all frequencies. ``pink`` has an amplitude of 1/f over the dimensions behind the
    channels, as photographs have (Field 1987).
    """
    x = torch.randn(*shape, generator=generator)
    if spectrum == "white":
        return x
    dims = tuple(range(2, len(shape)))
    squares = torch.zeros([1] * len(shape))
    for dim in dims:
        frequencies = torch.fft.fftfreq(shape[dim])
        squares = squares + frequencies.square().view([-1 if d == dim else 1 for d in range(len(shape))])
    amplitude = torch.where(squares > 0, squares, 1).rsqrt() * (squares > 0)
    x = torch.fft.ifftn(torch.fft.fftn(x, dim=dims) * amplitude, dim=dims).real
    return (x - x.mean()) / x.std()


def noise_inputs(
    model: nn.Module,
    info: ModelInfo,
    spectrum: Spectrum,
    *,
    count: int,
    batch_size: int,
    size: int | None,
    seed: int = 0,
) -> Inputs:
    """Return batches of noise for a net of any kind.

    Args:
        model: net.
        info: description of the net.
        spectrum: spectrum of images and clips; sentences have random tokens.
        count: number of batches.
        batch_size: samples of a batch.
        size: side of the images in pixels, or tokens of the sentences; None for the net's own.
        seed: seed of the noise and of the labels.

    Raises:
        UserError: images that are smaller than the net accepts.
    """
    if info.input_kind == "text":
        return _random_sentences(model, count, batch_size, size or TEXT_LENGTH, seed)
    side = size or info.input_size
    if side < info.min_size:
        raise UserError(f"--size {side}: must be >= {info.min_size} for {info.name}")
    channels = getattr(getattr(model, "config", None), "in_chans", 3)
    frames = (info.frames or FRAMES,) if info.input_kind == "clips" else ()
    shape = (batch_size, channels, *frames, side, side)
    source = f"{count * batch_size} samples of {spectrum} noise, {'x'.join(map(str, (*frames, side, side)))}"
    if info.input_kind == "image_lists":

        def pictures(generator: torch.Generator) -> Any:
            # a detector standardises pixels in 0..1 itself
            return list((_PICTURE_MEAN + _PICTURE_STD * noise(shape, spectrum, generator)).clamp(0, 1))

        return Inputs(_Random(count, seed, pictures), _call, None, source)
    classes = getattr(getattr(model, "config", None), "num_classes", 0)

    def labelled(generator: torch.Generator) -> Any:
        labels = torch.randint(max(classes, 1), (batch_size,), generator=generator)
        return noise(shape, spectrum, generator), labels

    batches = _Random(count, seed, labelled)
    return Inputs(batches, _forward_first, _classify if classes > 1 else None, source + ", random labels")


def _random_sentences(model: nn.Module, count: int, batch_size: int, length: int, seed: int) -> Inputs:
    assert isinstance(model, zoo.Transformer)
    sizes = model.layout.source_vocabulary, model.layout.target_vocabulary

    def sentences(generator: torch.Generator) -> Any:
        source, labels = (torch.randint(UNK + 1, size, (batch_size, length), generator=generator) for size in sizes)
        source[:, -1], labels[:, -1] = EOS, EOS
        return source, torch.cat([labels[:, -1:], labels[:, :-1]], 1), labels

    source_text = f"{count * batch_size} sentences of {length} random tokens"
    return Inputs(_Random(count, seed, sentences), _decode, _translate, source_text)


class _Random(Iterable[Any]):
    """Random batches that each iteration makes anew, the same each time.

    Args:
        count: number of batches.
        seed: seed.
        make: function that makes a batch with a generator.
    """

    def __init__(self, count: int, seed: int, make: Callable[[torch.Generator], Any]) -> None:
        self.count, self.seed, self.make = count, seed, make

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(self.seed)
        return (self.make(generator) for _ in range(self.count))


def picture_inputs(transform: Any, data: Path, *, channels: int, count: int | None, batch_size: int) -> Inputs:
    """Return batches of pictures as a net takes them, without labels.

    Args:
        transform: input transform of the net.
        data: picture, or folder of pictures.
        channels: number of channels that the net reads.
        count: number of batches; None for all.
        batch_size: pictures of a batch.

    Raises:
        DataError: no pictures, or one that cannot be read.
    """
    files = find_images([str(data)], channels)
    chosen = files if count is None else files[: count * batch_size]
    if not chosen:
        raise DataError(f"{data}: no pictures")
    source = f"{len(chosen)} pictures of {data.name}"
    if isinstance(transform, zoo.DetectionTransform):  # a detector standardises pixels in 0..1 itself

        def batch(paths: list[Path]) -> Any:
            return [pil_to_tensor(read_image(path)) / 255 for path in paths]

    else:
        made = transform.build()

        def batch(paths: list[Path]) -> Any:
            return torch.stack([made(read_picture(path, channels)) for path in paths])

    return Inputs(_Lazy(list(chunks(chosen, batch_size)), batch), _call, None, source)


class _Lazy(Iterable[Any]):
    """Batches that each iteration reads anew.

    Args:
        groups: items of each batch.
        make: function that makes a batch of its items.
    """

    def __init__(self, groups: Sequence[Any], make: Callable[[Any], Any]) -> None:
        self.groups, self.make = groups, make

    def __iter__(self) -> Iterator[Any]:
        return map(self.make, self.groups)


def sentence_inputs(transform: Any, data: Path, *, count: int | None, batch_size: int, longest: int) -> Inputs:
    """Return batches of source sentences, which the decoder reads shifted by one as if it copied them.

    Args:
        transform: text transform of the net.
        data: text file with a sentence on each line.
        count: number of batches; None for all.
        batch_size: sentences of a batch.
        longest: largest number of tokens of the net; longer sentences are cut.

    Raises:
        DataError: no sentences.
    """
    coder = transform.build()
    lines = [line for line in read_text(data, DataError).splitlines() if line.strip()]
    chosen = lines if count is None else lines[: count * batch_size]
    if not chosen:
        raise DataError(f"{data}: no sentences")

    def batch(group: list[str]) -> tuple[Tensor, Tensor]:
        source = padded([[*ids[: longest - 1], EOS] for ids in coder.encode(group)])
        return source, padded([[EOS, *ids[: longest - 1]] for ids in coder.target.encode(group)])

    batches = _Lazy(list(chunks(chosen, batch_size)), batch)
    text = f"{len(chosen)} sentences of {data.name}, copied by the decoder"
    return Inputs(batches, _decode, None, text)


def expected_power(transform: Any) -> float:
    """Return E[x^2] of photographs that a transform has standardised; 1 without a transform."""
    if not hasattr(transform, "mean"):
        return 1.0
    powers = [
        (_PICTURE_STD**2 + (_PICTURE_MEAN - mean) ** 2) / std**2
        for mean, std in zip(transform.mean, transform.std, strict=True)
    ]
    return sum(powers) / len(powers)


def _decode(model: nn.Module, batch: tuple[Tensor, ...]) -> object:
    assert isinstance(model, zoo.Transformer)
    return model.decode(batch[1], model.encode(batch[0]))


def _call(model: nn.Module, batch: Any) -> object:
    return model(batch)


def _forward_first(model: nn.Module, batch: tuple[Tensor, ...]) -> object:
    return model(batch[0])


def _classify(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _translate(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    loss, _ = model(*batch)
    return loss / (batch[2] != PAD).sum()
