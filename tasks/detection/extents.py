"""Masks of a COCO file, checked and measured many at a time: one by one, numpy takes longer for them than the parser.

pycocotools does not check what it is given. It goes along each edge of a polygon in steps of a fifth of a pixel; NaN
and huge coordinates end the process with a segmentation fault (cocoapi issue 380).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle

from tasks.detection.masks import LONGEST_OUTLINE, Rle, broken_rle, encode_mask, lengths_along

AT_ONCE = 10_000  # masks, for callers with more of them
_THIN = 2  # pixels of mean width, from which on a polygon has pixels inside
_NUMBERS = frozenset((int, float))  # types of JSON's numbers
_NO_NUMBERS = "annotations whose polygons are not lists of numbers"
_FAR = "annotations whose polygons have points that are not finite or far outside of the image"
_LONG = f"annotations whose polygons have an outline of more than {LONGEST_OUTLINE} pixels"

Box = tuple[float, float, float, float]  # x1, y1, x2, y2


class Extent(NamedTuple):
    """Bounding box and area of a mask.

    Attributes:
        box: bounding box inside of the image as x1, y1, x2, y2; None where the mask has no pixels.
        drawn: likewise of the polygons as they are drawn, which a tool's box is of. A thin one has fewer pixels.
        area: area in pixels.
    """

    box: Box | None = None
    drawn: Box | None = None
    area: float = 0.0


def examine(segmentations: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> list[Extent | str | None]:
    """Return the extent of each mask, or why it does not follow the COCO format; None for an empty list.

    Polygons are measured without their pixels, in a fraction of the time, but those that may have none: thin ones, and
    those that are partly outside of the image.

    Args:
        segmentations: values of a COCO file.
        sizes: height and width of the image of each.
    """
    found: list[Extent | str | None] = [None] * len(segmentations)
    encoded: dict[int, Rle] = {}  # of those whose pixels are measured
    outlined = []
    for number, (segmentation, (height, width)) in enumerate(zip(segmentations, sizes, strict=True)):
        if not isinstance(segmentation, list):
            if (reason := broken_rle(segmentation, height, width)) is not None:
                found[number] = reason
            else:
                encoded[number] = encode_mask({"segmentation": segmentation}, height, width)
        elif all(isinstance(part, list) and _NUMBERS.issuperset(map(type, part)) for part in segmentation):
            outlined.append(number)
        else:
            found[number] = _NO_NUMBERS
    drawn: dict[int, Box] = {}
    each = _Outlines([segmentations[i] for i in outlined], [sizes[i] for i in outlined]).extents()
    for number, extent in zip(outlined, each, strict=True):
        if isinstance(extent, Extent) and extent.drawn is not None and extent.box is None:
            drawn[number] = extent.drawn
            encoded[number] = encode_mask({"segmentation": segmentations[number]}, *sizes[number])
        elif segmentations[number]:
            found[number] = extent
    for number, mask in encoded.items():  # one by one: with numpy 2, rle.area refuses lists of more than 255
        if area := float(rle.area(mask)):
            x, y, w, h = rle.toBbox(mask).tolist()
            found[number] = Extent((x, y, x + w, y + h), drawn.get(number, (x, y, x + w, y + h)), area)
        else:
            found[number] = Extent()
    return found


class _Outlines:
    """The polygons of some masks in one array.

    Args:
        segmentations: polygons of each mask, lists of numbers.
        sizes: height and width of the image of each mask.
    """

    def __init__(self, segmentations: Sequence[list[list[float]]], sizes: Sequence[tuple[int, int]]) -> None:
        self.count = len(segmentations)
        self.sides = np.array(sizes, dtype=np.int64).reshape(-1, 2)[:, ::-1]  # width and height of each mask's image
        parts = list(chain.from_iterable(segmentations))
        self.owners = np.repeat(np.arange(self.count), [len(segmentation) for segmentation in segmentations])
        self.lengths = np.array([len(part) for part in parts], dtype=np.int64)
        self.values = _floats(list(chain.from_iterable(parts)))  # x1, y1, x2, y2, ... of all polygons
        self.starts = np.cumsum(self.lengths) - self.lengths

    def extents(self) -> list[Extent | str]:
        """Return the extent of each mask or why it cannot be rasterised; without ``box`` where pixels must show it."""
        far, long = self._far(), np.zeros(self.count, dtype=bool)
        # 1. Measure the polygons, those with equal numbers of corners together.
        used = (self.lengths >= 6) & (self.lengths % 2 == 0) & ~far[self.owners]
        owners, lengths, starts = self.owners[used], self.lengths[used], self.starts[used]
        lowest, highest = np.empty((len(owners), 2)), np.empty((len(owners), 2))
        areas, outlines = np.empty(len(owners)), np.empty(len(owners))
        for length in np.unique(lengths).tolist():
            chosen = np.flatnonzero(lengths == length)
            corners = self.values[starts[chosen, None] + np.arange(length)].reshape(-1, length // 2, 2)  # (N, P, 2)
            lowest[chosen], highest[chosen] = corners.min(1), corners.max(1)
            areas[chosen], outlines[chosen] = _areas(corners), lengths_along(corners)
        long[owners[outlines > LONGEST_OUTLINE]] = True
        # 2. Put those of each mask together.
        low, high = np.full((self.count, 2), np.inf), np.full((self.count, 2), -np.inf)
        np.minimum.at(low, owners, lowest)
        np.maximum.at(high, owners, highest)
        area, outline = (np.bincount(owners, each, self.count) for each in (areas, outlines))
        inside = (low >= 0).all(1) & (high <= self.sides).all(1)
        plain = inside & (area >= np.maximum(16.0, _THIN * outline))
        drawn = np.concatenate([np.clip(low, 0, self.sides), np.clip(high, 0, self.sides)], axis=1)  # (N, 4)
        # 3. Describe each.
        found: list[Extent | str] = [Extent()] * self.count
        boxes, measured = drawn.tolist(), area.tolist()
        for number in np.unique(owners).tolist():
            box = tuple(boxes[number])
            found[number] = Extent(box, box, measured[number]) if plain[number] else Extent(None, box)
        for reason, refused in ((_FAR, far), (_LONG, long)):
            for number in np.flatnonzero(refused).tolist():
                found[number] = reason
        return found

    def _far(self) -> np.ndarray:
        """Return whether each mask has points that are far outside of its image; tools write some beside it."""
        reach = 2 * np.maximum(self.sides.max(1, initial=0), 1000)  # pixels beyond the image
        of = np.repeat(self.owners, self.lengths)
        second = (np.arange(len(self.values)) - np.repeat(self.starts, self.lengths)) % 2  # 0 for x, 1 for y
        # NaN compares as False.
        near = (self.values >= -reach[of]) & (self.values <= self.sides[of, second] + reach[of])
        far = np.zeros(self.count, dtype=bool)
        far[of[~near]] = True
        return far


def _floats(numbers: list[float]) -> np.ndarray:
    """Return numbers as an array; whole numbers that are too large for it are infinite."""
    try:
        return np.array(numbers, dtype=np.float64)
    except OverflowError:
        return np.array([number if abs(number) < 2**64 else math.inf for number in numbers], dtype=np.float64)


def _areas(corners: np.ndarray) -> np.ndarray:
    """Return the areas of polygons (N, P, 2) by the shoelace formula."""
    x, y = corners[:, None, :, 0], corners[:, None, :, 1]  # (N, 1, P)
    before_x, before_y = (np.roll(side, 1, axis=2).transpose(0, 2, 1) for side in (x, y))  # (N, P, 1)
    return 0.5 * np.abs(x @ before_y - y @ before_x)[:, 0, 0]
