"""Image folders and CIFAR as uint8 tensors; augmentation seeded by epoch and index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms import v2

from tasks.augment import Flip, distortions
from tasks.classification.config import Augment, CentreCrop, DataSection, PadCrop
from tasks.engine import Key, seed_from
from tasks.errors import DataError
from tasks.images import EXTENSIONS, Pixels, read_image
from tasks.locks import in_turn
from tasks.splits import require_same_classes, split_sets
from zoo.transforms import InputTransform


class Images:
    """Labelled images.

    Args:
        classes: names of the classes.
        labels: number of each image's class.
        names: name of each image.
        read: function from an image's index to the image.
    """

    def __init__(
        self, classes: Sequence[str], labels: Sequence[int], names: Sequence[str], read: Callable[[int], Image.Image]
    ) -> None:
        self.classes, self.labels, self.names, self.read = tuple(classes), list(labels), list(names), read

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int]) -> Images:
        """Return the images at ``indices``."""
        return Images(
            self.classes,
            [self.labels[i] for i in indices],
            [self.names[i] for i in indices],
            partial(_read_chosen, self.read, indices),
        )


# Readers, partly applied: data loading processes that do not fork (macOS, Windows) get a data set as a pickle, which
# cannot contain a lambda.
def _read_chosen(read: Callable[[int], Image.Image], indices: Sequence[int], i: int) -> Image.Image:
    return read(indices[i])


def _read_path(paths: Sequence[str], i: int) -> Image.Image:
    return read_image(paths[i])


def _read_array(arrays: Any, i: int) -> Image.Image:
    return Image.fromarray(arrays[i])  # (H, W, 3) uint8


def folder_images(root: Path) -> Images:
    """Find the images of an ImageFolder tree: one folder a class, classes in alphabetical order.

    Raises:
        DataError: there is no such folder, it has no classes, or a class has no images.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; it must contain one folder of images for each class")
    try:
        classes, to_index = datasets.folder.find_classes(str(root))
        samples = datasets.folder.make_dataset(str(root), to_index, extensions=EXTENSIONS)
    except FileNotFoundError as error:
        raise DataError(f"{root}: {error}") from None
    paths = [path for path, _ in samples]
    names = [str(Path(path).relative_to(root)) for path in paths]
    return Images(classes, [label for _, label in samples], names, partial(_read_path, paths))


def _torchvision_images(section: DataSection, train: bool) -> Images:
    cls = datasets.CIFAR10 if section.source == "cifar10" else datasets.CIFAR100
    try:
        with in_turn(Path(section.root) / section.source):
            data = cls(section.root, train=train, download=True)
    except Exception as error:  # torchvision raises URLError, RuntimeError, ...
        raise DataError(
            f"{section.root}: {section.source} is missing and cannot be downloaded ({error}); "
            "put torchvision's files there, or use data.source=folder"
        ) from None
    names = [f"{i:05}" for i in range(len(data))]
    return Images(data.classes, data.targets, names, partial(_read_array, data.data))


def load_images(section: DataSection) -> tuple[Images, Images]:
    """Find the training and evaluation images that the config names.

    Raises:
        DataError: folders, classes or held-out names are missing or do not agree.
    """
    root = Path(section.root)

    def load(folder: str, train: bool) -> Images:
        return folder_images(root / folder) if section.source == "folder" else _torchvision_images(section, train)

    everything = load(section.train, True)
    train, val = split_sets(
        section,
        everything,
        everything.names,
        load_val=lambda: load(section.val, False),
        select=lambda chosen: everything.subset([i for i, name in enumerate(everything.names) if chosen(name)]),
    )
    require_same_classes(train.classes, val.classes, f"{root}: {section.train} and {section.val}")
    return train, val


class TrainSet(Dataset[tuple[Tensor, int]]):
    """Augmented training images by (draw, index): (uint8 (3, size, size), label)."""

    def __init__(self, images: Images, section: DataSection, transform: InputTransform, seed: int) -> None:
        self.images, self.seed = images, seed
        self.pixels = Pixels(images.read, keep=section.cache)
        self.transform = train_transform(section.augment, transform)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        draw, index = key
        image = self.pixels[index]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_from(self.seed, draw, index))
            return self.transform(image), self.images.labels[index]


class EvalSet(Dataset[tuple[Tensor, int]]):
    """Evaluation images by index: (transform(uint8 (3, H, W)), label)."""

    def __init__(self, images: Images, transform: Callable[[Tensor], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = v2.functional.pil_to_tensor(self.images.read(index))
        return self.transform(image), self.images.labels[index]


class Resize:
    """``v2.Resize`` of the short side, which returns images of this size at once.

    Args:
        size: length of the short side in pixels.
        interpolation: interpolation of ``v2.Resize``.
    """

    def __init__(self, size: int, interpolation: v2.InterpolationMode) -> None:
        self.size, self.resize = size, v2.Resize(size, interpolation=interpolation, antialias=True)

    def __call__(self, image: Tensor) -> Tensor:
        return image if min(image.shape[-2:]) == self.size else self.resize(image)


class PaddedCrop:
    """Random square of an image with a border of zeros: ``v2.RandomCrop(size, padding)`` with the same draws.

    It pads and crops in one copy, in less than half the time. At 32 px the crop takes most of the time of a sample.

    Args:
        size: side of the square in pixels.
        padding: width of the border in pixels.
    """

    def __init__(self, size: int, padding: int) -> None:
        self.size, self.padding = size, padding

    def _offset(self, length: int) -> int:
        """Draw where the square begins along a side of the image, which is negative within the border."""
        choices = length + 2 * self.padding - self.size + 1
        return (int(torch.randint(choices, ())) if choices > 1 else 0) - self.padding

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        top, left = self._offset(height), self._offset(width)
        bottom, right = min(top + self.size, height), min(left + self.size, width)
        first, second = max(top, 0), max(left, 0)  # row and column of the first pixel inside of the image
        square = image.new_zeros(*image.shape[:-2], self.size, self.size)
        square[..., first - top : bottom - top, second - left : right - left] = image[..., first:bottom, second:right]
        return square


def train_transform(augment: Augment, transform: InputTransform) -> v2.Transform:
    """Make the augmentation: uint8 (3, H, W) -> uint8 (3, size, size)."""
    crop, size = augment.crop, transform.size
    interpolation = v2.InterpolationMode(transform.interpolation)
    steps: list[Any]
    if isinstance(crop, CentreCrop):
        steps = [eval_transform(transform)]
    elif isinstance(crop, PadCrop):
        steps = [Resize(transform.resize, interpolation), PaddedCrop(size, crop.padding)]
    else:
        steps = [v2.RandomResizedCrop(size, scale=crop.scale, interpolation=interpolation, antialias=True)]
    if augment.flip:
        steps.append(Flip(augment.flip))
    return v2.Compose(steps + distortions(augment, transform))


def eval_transform(transform: InputTransform) -> v2.Transform:
    """Make the transform of evaluation, resize and centre crop: uint8 (3, H, W) -> uint8 (3, size, size)."""
    resize = Resize(transform.resize, v2.InterpolationMode(transform.interpolation))
    return v2.Compose([resize, v2.CenterCrop(transform.size)])
