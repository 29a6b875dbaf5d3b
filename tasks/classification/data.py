"""Image folders, lists and CIFAR as uint8 tensors; augmentation seeded by epoch and index."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
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
from tasks.compact import Strings, packed
from tasks.engine import Key, seed_from
from tasks.errors import DataError
from tasks.files import LeftOut, class_files
from tasks.images import Picture, PictureNotes, Pixels, endings_for, read_picture, require_shape, to_pixels
from tasks.lists import Row, class_number, number_classes, read_labels
from tasks.locks import in_turn
from tasks.printing import printable
from tasks.splits import choose_share, describe_sets, require_same_classes, split_sets
from zoo.errors import one_line
from zoo.transforms import InputTransform

SETS = frozenset(("train", "training", "val", "valid", "validation", "eval", "test", "testing"))


class Images:
    """Labelled images.

    Args:
        classes: names of the classes.
        labels: number of each image's class.
        names: name of each image.
        read: function from an image's index to the image.
        left_out: counts of the files that the search for the images left out.
        paths: path of each image's file; None where the images are no files.
    """

    def __init__(
        self,
        classes: Sequence[str],
        labels: Sequence[int],
        names: Sequence[str],
        read: Callable[[int], Picture],
        left_out: LeftOut | None = None,
        paths: Sequence[str] | None = None,
    ) -> None:
        self.classes, self.read, self.left_out = tuple(classes), read, left_out or LeftOut()
        # A million names are no million objects, which every data loading process would copy.
        self.labels, self.names = list(labels), packed(names)
        self.paths = None if paths is None else packed(paths)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int]) -> Images:
        """Return the images at ``indices``."""
        return Images(
            self.classes,
            [self.labels[i] for i in indices],
            self.names.select(indices),
            partial(_read_chosen, self.read, array("l", indices)),
            self.left_out,
            None if self.paths is None else self.paths.select(indices),
        )

    def resizable(self, short_side: int) -> Images:
        """Return the images, of which files that are too long for a short side of this length cannot be read."""
        if self.paths is None:
            return self
        read = partial(_read_resizable, self.read, self.names, short_side)
        return Images(self.classes, self.labels, self.names, read, self.left_out, self.paths)

    def class_counts(self) -> list[int]:
        """Return the number of images of each class."""
        counts = Counter(self.labels)
        return [counts[label] for label in range(len(self.classes))]


# Readers, partly applied: data loading processes that do not fork (macOS, Windows) get a data set as a pickle, which
# cannot contain a lambda.
def _read_chosen(read: Callable[[int], Picture], indices: Sequence[int], i: int) -> Picture:
    return read(indices[i])


def _read_resizable(read: Callable[[int], Picture], names: Sequence[str], short_side: int, i: int) -> Picture:
    return require_shape(read(i), short_side, names[i])


def _read_path(paths: Sequence[str], channels: int, i: int) -> Picture:
    return read_picture(paths[i], channels)


def _read_array(arrays: Any, channels: int, i: int) -> Picture:
    image = Image.fromarray(arrays[i])  # (H, W, 3) uint8
    return image if channels == 3 else image.convert("L")


def folder_images(root: Path, channels: int = 3) -> Images:
    """Find the images of a tree with one folder for each class, in alphabetical order (``tasks.files.class_files``).

    Args:
        root: folder of the class folders.
        channels: number of channels to read (``tasks.images.read_picture``).

    Raises:
        DataError: there is no such folder, it has no classes, or a class has no images.
    """
    classes, files, left_out = class_files(root, endings_for(channels), "images")
    if len(classes) > 1 and all(name.lower() in SETS for name in classes):
        raise DataError(
            f"{root}: its folders {', '.join(classes)} are sets by their names, not classes; give the folder that has "
            "one folder of images for each class"
        )
    paths = Strings(str(path) for found in files for path in found)
    labels = [label for label, found in enumerate(files) for _ in found]
    names = [Path(path).relative_to(root).as_posix() for path in paths]
    return Images(classes, labels, names, partial(_read_path, paths, channels), left_out, paths)


def list_images(file: Path, root: Path, classes: Sequence[str] | None = None, channels: int = 3) -> Images:
    """Read a CSV list of images, with the columns path and label (``tasks.lists.read_labels``).

    Args:
        file: path of the list.
        root: folder to which the paths in the list are relative.
        classes: names of the classes in order; None: the labels of the list, numbers in numerical order, names in
            alphabetical order.
        channels: number of channels to read (``tasks.images.read_picture``).

    Raises:
        DataError: a missing or empty list; a line without a path or label, with a class that is not in ``classes``, a
            path that is no file, or one that another line gives another label.
    """
    rows = read_labels(file)
    names, numbers = number_classes([row.label for row in rows], classes)
    # Each path once, each with one label.
    first: dict[str, Row] = {}
    missing: list[Row] = []
    for row in rows:
        class_number(numbers, row.label, f"{file}, line {row.line}")
        known = first.setdefault(row.path, row)
        if known.label != row.label:
            other = f"in line {known.line} {known.label!r}"
            raise DataError(f"{file}, line {row.line}: {row.path!r} has the label {row.label!r}, {other}")
        if known is row and not (root / row.path).is_file():
            missing.append(row)
    if missing:
        more = f" ({len(missing)} such lines)" if len(missing) > 1 else ""
        if missing[0].line == 1:  # a header with other names is read as a row
            more += "; if this line is a header, call its columns path and label"
        raise DataError(f"{file}, line {missing[0].line}: {root / missing[0].path}: no such file{more}")
    chosen = list(first.values())
    paths = Strings(str(root / row.path) for row in chosen)
    labels = [numbers[row.label] for row in chosen]
    read = partial(_read_path, paths, channels)
    return Images(names, labels, [row.path for row in chosen], read, paths=paths)


def read_set(data: Path, channels: int = 3) -> Images:
    """Return a set of labelled images for an evaluation.

    Args:
        data: folder with one folder of images for each class, or CSV list with paths relative to its own folder.
        channels: number of channels to read.

    Raises:
        DataError: see ``folder_images`` and ``list_images``.
    """
    return list_images(data, data.parent, channels=channels) if data.is_file() else folder_images(data, channels)


def _torchvision_images(section: DataSection, train: bool, channels: int) -> Images:
    cls = datasets.CIFAR10 if section.source == "cifar10" else datasets.CIFAR100
    if channels not in (1, 3):
        raise DataError(f"data.source={section.source}: the images have 3 channels, the net takes {channels}")
    try:
        with in_turn(Path(section.root) / section.source):
            data = cls(section.root, train=train, download=True)
    except Exception as error:  # torchvision raises URLError, RuntimeError, ...
        raise DataError(
            f"{section.root}: {section.source} is missing and cannot be downloaded ({one_line(error)}); "
            "put torchvision's files there, or use data.source=folder"
        ) from None
    names = [f"{i:05}" for i in range(len(data))]
    return Images(data.classes, data.targets, names, partial(_read_array, data.data, channels))


def load_images(section: DataSection, channels: int = 3) -> tuple[Images, Images]:
    """Find the training and evaluation images that the config names.

    Args:
        section: ``data`` section of the config.
        channels: number of channels to read.

    Raises:
        DataError: folders, lists, classes or held-out names are missing or do not agree; one class only; a class
            without images to train on; no images to evaluate.
    """
    root = Path(section.root)

    def load(name: str, train: bool, classes: Sequence[str] | None = None) -> Images:
        if section.source == "folder":
            return folder_images(root / name, channels)
        if section.source == "list":
            return list_images(root / name, root, classes, channels)
        return _torchvision_images(section, train, channels)

    def select(chosen: Callable[[str], bool]) -> Images:
        return everything.subset([i for i, name in enumerate(everything.names) if chosen(name)])

    everything = load(section.train, True)
    if len(everything.classes) < 2:
        raise DataError(
            f"{root / section.train}: has one class only ({printable(everything.classes[0])!r}), from which a "
            "classifier learns nothing; give each class a folder of its own, directly below, or a label of its own in "
            "the list"
        )
    # The two sets.
    if section.split == "share":
        held_out = choose_share(everything.names, everything.labels, section.val_share, section.val_seed)
        train, val = select(lambda name: name not in held_out), select(lambda name: name in held_out)
    else:
        train, val = split_sets(
            section,
            everything,
            everything.names,
            load_val=lambda: load(section.val, False, everything.classes),
            select=select,
        )
    require_same_classes(train.classes, val.classes, f"{root}: {section.train} and {section.val}")
    # What is left in them.
    if section.split != "official" and (empty := _classes_without_images(train)):
        raise DataError(
            f"data.split={section.split}: no images are left to train on of {len(empty)} of {len(train.classes)} "
            f"classes, e.g. {empty[0]!r}"
        )
    if not len(val):
        raise DataError(f"data.split={section.split}: there are no images to evaluate; raise data.val_share")
    return train, val


def _classes_without_images(images: Images) -> list[str]:
    return [name for name, count in zip(images.classes, images.class_counts(), strict=True) if not count]


def describe_images(train: Images, val: Images) -> list[str]:
    """Return lines about what a run trains on and evaluates (``tasks.splits.describe_sets``)."""
    left_out = (train.left_out, val.left_out)
    lines = describe_sets(len(train), len(val), "images", classes=len(train.classes), left_out=left_out)
    if missing := _classes_without_images(val):
        example = printable(missing[0])
        lines.insert(1, f"val has no images of {len(missing)} of {len(val.classes)} classes, e.g. {example!r}")
    return lines


def look_at_sample(*sets: Images, limit: int = 32) -> list[str]:
    """Return lines about odd pictures (``tasks.images.PictureNotes``), from a look at some of each set, spread evenly.

    Pictures that cannot be read are left to those who need them.

    Args:
        sets: sets of images.
        limit: number of images to look at in all.
    """
    notes = PictureNotes()
    for images in sets:
        for i in spread(len(images), limit // len(sets)):
            with suppress(DataError):
                notes.add(images.names[i], images.read(i))
    return notes.lines()


def spread(length: int, limit: int | None) -> list[int]:
    """Return at most ``limit`` numbers below ``length``, evenly spread; None: all."""
    count = length if limit is None else min(length, limit)
    return [i * length // count for i in range(count)]


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
    """Evaluation images by index: (transform(uint8 (C, H, W)), label)."""

    def __init__(self, images: Images, transform: Callable[[Tensor], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(to_pixels(self.images.read(index))), self.images.labels[index]


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
