"""Training and evaluation sets: images and targets as tensors, augmentation seeded by epoch and index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from tasks.detection.build import IMAGENET
from tasks.detection.coco import Coco, ImageRecord, clipped_box, decode_mask, load_coco
from tasks.detection.config import DataSection, LargeScaleJitter, ShortSide
from tasks.detection.masks import Placement
from tasks.detection.records import ImageId, Records
from tasks.engine import Key, seed_from
from tasks.errors import DataError
from tasks.images import Pixels
from tasks.progress import print_line
from tasks.splits import choose_share, split_sets

Target = dict[str, Tensor]
IMAGENET_GREY = (124, 116, 104)  # ImageNet's mean in 0..255: padding that is about 0 once standardised


def load_sets(section: DataSection, *, masks: bool, report: bool = True) -> tuple[Coco, Coco]:
    """Load and check the training and evaluation sets that the config names, and print what was corrected.

    Args:
        section: ``data`` section of the config.
        masks: whether annotations must have a segmentation.
        report: whether what was corrected is printed.

    Raises:
        DataError: a set cannot be loaded (see ``load_coco``), the evaluation set has objects of a class that the
            training set does not list, held-out names are not in the training set, or no images are left to train on.
    """
    root = Path(section.root)

    def load(annotations: str, images: str) -> Coco:
        loaded = load_coco(root / annotations, root / images, masks=masks, check=section.check)
        for line in loaded.report() if report else ():
            print_line(line)
        return loaded

    def select(chosen: Callable[[str], bool]) -> Coco:
        return everything.subset(lambda image: chosen(image.file_name))

    # Split; the classes of both sets are those of the training set, found by name.
    everything = load(section.train_annotations, section.train_images)
    names = [image.file_name for image in everything.images]
    if section.split == "share":
        held_out = choose_share(names, [0] * len(names), section.val_share, section.val_seed)
        train, val = select(lambda name: name not in held_out), select(lambda name: name in held_out)
        if not len(val):
            raise DataError(f"{train.path}: data.split=share needs two images or more, it has {len(names)}")
    else:
        train, val = split_sets(
            section,
            everything,
            names,
            load_val=lambda: load(section.val_annotations, section.val_images),
            select=select,
        )
    val = val.with_names(train.names)
    # Leave out training images without objects, if the config does.
    if section.empty == "skip":
        count = len(train)
        train = train.subset(lambda image: bool(train.objects(image, masks=masks)))
        if len(train) < count and report:
            print_line(
                f"{train.path}: {count - len(train)} images without objects to train on, skipped (data.empty=skip)"
            )
    if not len(train):
        raise DataError(f"{train.path}: no images to train on")
    return train, val


def make_target(data: Coco, image: ImageRecord, *, masks: bool) -> Target:
    """Return the N objects of an image as the target of a detector.

    Returns:
        ``boxes`` (N, 4) as x1, y1, x2, y2, ``labels`` (N,) from 1, and with ``masks`` also ``masks`` (N, H, W) uint8.
    """
    objects = data.objects(image, masks=masks)
    target = _boxes_of(data, image, objects)
    if masks:
        stacked = torch.zeros(len(objects), image.height, image.width, dtype=torch.uint8)
        for mask, annotation in zip(stacked, objects, strict=True):
            mask.copy_(torch.from_numpy(decode_mask(annotation, image.height, image.width)))
        target["masks"] = tv_tensors.Mask(stacked)
    return target


def _boxes_of(data: Coco, image: ImageRecord, objects: Sequence[Mapping[str, Any]]) -> Target:
    """Return boxes and labels of these annotations of an image, see ``make_target``."""
    label = {category: i for i, category in enumerate(data.categories, 1)}
    boxes = torch.tensor([clipped_box(a, image) for a in objects], dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(image.height, image.width)),
        "labels": torch.tensor([label[a["category_id"]] for a in objects], dtype=torch.int64),
    }


def describe_objects(train: Coco, val: Coco) -> list[str]:
    """Return lines about the objects that a run trains on and evaluates."""
    counts = [(data.path, data.counts()) for data in (train, val)]
    (_, of_train), (_, of_val) = counts
    lines = [f"objects: {sum(of_train.values())} in train, {sum(of_val.values())} in val"]
    for name, found, other in (("train", of_train, of_val), ("val", of_val, of_train)):
        if missing := [key for key in train.names if not found[key] and other[key]]:
            lines.append(
                f"{name} has no objects of {len(missing)} classes that are in the other set, e.g. {missing[0]!r}"
            )
    return lines


class TrainSet(Dataset[tuple[Tensor, Target]]):
    """Augmented training images by (epoch, index): (uint8 (3, H, W), target)."""

    def __init__(self, data: Coco, section: DataSection, seed: int, *, masks: bool) -> None:
        self.data, self.seed, self.masks = data, seed, masks
        self.pixels = Pixels(self._read, keep=section.cache)
        self.transform = train_transform(section)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: Key) -> tuple[Tensor, Target]:
        epoch, index = key
        record = self.data.images[index]
        objects = self.data.objects(record, masks=self.masks)
        image = tv_tensors.Image(self.pixels[index])
        # Masks are made at the size that enters the net. Three points show where the augmentation puts them.
        corners = torch.tensor([(0, 0), (record.width, 0), (0, record.height)], dtype=torch.float64)
        points = tv_tensors.KeyPoints(corners, canvas_size=(record.height, record.width))
        target = {**_boxes_of(self.data, record, objects), "points": points}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_from(self.seed, epoch, index))
            image, target = self.transform(image, target)
        boxes, labels = target["boxes"].as_subclass(Tensor), target["labels"]
        size = (image.shape[-2], image.shape[-1])
        keep = (boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)  # (N,)
        if not self.masks:
            return image.as_subclass(Tensor), {"boxes": boxes[keep], "labels": labels[keep]}
        placed = Placement.of(target["points"].as_subclass(Tensor).numpy(), record.width, record.height)
        masks = _MaskStack(int(keep.sum()), size)
        for number in torch.nonzero(keep).flatten().tolist():
            keep[number] = masks.add(placed.mask(objects[number], record.height, record.width, size))
        return image.as_subclass(Tensor), _with_masks(boxes[keep], labels[keep], masks.tensor)

    def _read(self, index: int) -> Image.Image:
        return self.data.read(self.data.images[index])


class _MaskStack:
    """Masks of one size that have pixels, (N, H, W) uint8, in memory for the largest possible number."""

    def __init__(self, most: int, size: tuple[int, int]) -> None:
        self._masks, self._count = torch.zeros(most, *size, dtype=torch.uint8), 0

    def add(self, mask: np.ndarray) -> bool:
        """Add a mask, and return whether it has pixels."""
        if not mask.any():
            return False
        self._masks[self._count] = torch.from_numpy(mask)
        self._count += 1
        return True

    @property
    def tensor(self) -> Tensor:
        """All masks that were added."""
        return self._masks[: self._count]


def _with_masks(boxes: Tensor, labels: Tensor, masks: Tensor) -> Target:
    """Return a target, with boxes that end where cropping left the masks, to a pixel."""
    if len(masks):
        tight = masks_to_boxes(masks)
        tight[:, 2:] += 1  # masks_to_boxes gives the last pixel, boxes end behind it
        low, high = torch.maximum(boxes[:, :2], tight[:, :2] - 1), torch.minimum(boxes[:, 2:], tight[:, 2:] + 1)
        inside = (high > low).all(1, keepdim=True)  # a box that a crop has left beside its mask is the mask's
        boxes = torch.where(inside, torch.cat([low, high], dim=1), tight)
    return {"boxes": boxes, "labels": labels, "masks": masks}


class EvalSet(Dataset[tuple[Tensor, ImageId]]):
    """Images by index, as they are: (uint8 (3, H, W), the image's id in the annotation file)."""

    def __init__(self, data: Coco) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, ImageId]:
        record = self.data.images[index]
        return v2.functional.pil_to_tensor(self.data.read(record)), record.id


def train_sizes(section: DataSection) -> ShortSide | LargeScaleJitter:
    """Return how training images are resized, with the sizes that the config leaves to those of evaluation."""
    resize = section.augment.resize
    if isinstance(resize, LargeScaleJitter):
        return resize
    short = IMAGENET.min_size if section.min_size is None else section.min_size
    sizes = resize.sizes or tuple(max(1, round(short * factor)) for factor in resize.factors)
    long = IMAGENET.max_size if section.max_size is None else section.max_size
    return resize.model_copy(update={"sizes": sizes, "max_size": resize.max_size or max(long, *sizes)})


def train_transform(section: DataSection) -> v2.Transform:
    """Make the augmentation of (image, target), which ends at the size that enters the net."""
    augment, resize = section.augment, train_sizes(section)
    steps: list[Any] = []
    if augment.photometric:
        steps.append(v2.RandomPhotometricDistort(p=augment.photometric))
    if isinstance(resize, LargeScaleJitter):
        size = (resize.size, resize.size)
        steps.append(v2.ScaleJitter(size, scale_range=resize.scale, antialias=True))
        steps.append(v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Image: IMAGENET_GREY, "others": 0}))
    else:
        assert resize.sizes is not None
        steps.append(v2.RandomShortestSize(list(resize.sizes), max_size=resize.max_size, antialias=True))
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip(augment.flip))
    if augment.vertical_flip:
        steps.append(v2.RandomVerticalFlip(augment.vertical_flip))
    return v2.Compose([*steps, v2.ClampBoundingBoxes()])


def aspect_groups(data: Coco) -> list[int]:
    """Return 0 for images that are wider than tall, 1 for the others."""
    if isinstance(data.images, Records):
        return [int(height >= width) for width, height in data.images.sizes.tolist()]
    return [int(image.height >= image.width) for image in data.images]
