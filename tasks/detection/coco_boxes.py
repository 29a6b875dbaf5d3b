"""Boxes of a COCO file, compared with the masks and sizes of the file: COCO's are x, y, width, height in pixels.

Other layouts have the same four numbers, and nothing in the file shows which. Read as COCO's they train a detector on
nonsense without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TOLERANCE = 3.0  # pixels between a box and its mask that are no disagreement
IOU = 0.5  # of a box and its mask, below which they disagree
SAME = 0.8  # IoU of another reading of the box and the mask, from which on the reading explains the box
SHARE = 0.8  # share of the disagreeing boxes that another reading must explain
LEAST = 3  # boxes that another layout must explain; one or two may fit one by accident
FEW = 6  # boxes, below which their being corners may be an accident
BEYOND = 0.2  # share of boxes that end outside of the image, from which on they are taken for corners

_corners = "subtract the first two numbers from the last two"


def _swap(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, [1, 0, 3, 2]]


def _ends(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _centred(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


# other layouts with the function from their boxes (N, 4) to x1, y1, x2, y2, and what makes them COCO's
_READINGS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "x1, y1, x2, y2": (lambda boxes: boxes, _corners),
    "centre x, centre y, width, height": (_centred, "subtract half of the size from the centre"),
    "y, x, height, width": (lambda boxes: _ends(_swap(boxes)), "exchange the numbers of each pair"),
    "y1, x1, y2, x2": (_swap, f"exchange the numbers of each pair, then {_corners}"),
}
_UNITS = {
    "": (1.0, ""),
    " as shares of the image": (1.0, ", multiply by the image's width and height"),
    " in percent of the image": (0.01, ", multiply by a hundredth of the image's width and height"),
}


@dataclass
class Boxes:
    """Boxes of the annotations of a file, in order.

    Attributes:
        names: name of each annotation in messages.
        boxes: four numbers of each, as in the file.
        sizes: width and height of each annotation's image.
        extents: bounding box of each mask as it is drawn, x1, y1, x2, y2; NaN where there is no mask.
        areas: area of each annotation in the file; NaN where there is none.
    """

    names: list[str] = field(default_factory=list)
    boxes: list[Sequence[float]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    extents: list[Sequence[float]] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)

    def examine(self) -> tuple[dict[str, list[str]], dict[str, list[str]], np.ndarray]:
        """Compare the boxes with masks and sizes.

        Returns:
            Names of the annotations by the reason for which the file is refused, the same for what is to be reported,
            and for each annotation whether its box disagrees with its mask, (N,).
        """
        boxes = np.asarray(self.boxes, dtype=np.float64).reshape(-1, 4)
        sizes = np.asarray(self.sizes, dtype=np.float64).reshape(-1, 2)
        extents = np.asarray(self.extents, dtype=np.float64).reshape(-1, 4)
        areas = np.asarray(self.areas, dtype=np.float64)
        wrong = np.zeros(len(boxes), dtype=bool)
        if not len(boxes):
            return {}, {}, wrong
        # 1. Boxes within 0..1.
        small = ((boxes >= 0) & (boxes <= 1)).all(1)  # (N,)
        small &= (boxes[:, 2:] > 0).all(1) & (sizes > 2).all(1)
        shares = small & (boxes % 1 > 0).any(1)  # other small boxes may be objects of a pixel in the corner
        if small.all() or 2 * shares.sum() >= len(boxes):
            reason = "annotations whose bbox is within 0..1 (COCO's boxes are in pixels: multiply by the image's size)"
            return {reason: self._named(small)}, {}, wrong
        # 2. Boxes beside their masks.
        masked = ~np.isnan(extents).any(1)
        inside = np.clip(_ends(boxes), 0, np.tile(sizes, 2))  # as masks are
        wrong[masked] = _apart(inside[masked], extents[masked], IOU)
        other = np.zeros(len(boxes), dtype=bool)  # near the upper left corner other layouts overlap with the masks
        other[masked] = _apart(inside[masked], extents[masked], SAME)
        if other.sum() >= LEAST:
            explained = self._explained(boxes[other], sizes[other], extents[other])
            if explained is not None:
                return {explained: self._named(other)}, {}, wrong
        if 2 * wrong.sum() > masked.sum() and wrong.sum() >= LEAST:
            reason = (
                "annotations whose bbox is not that of their mask, more than half of all (was one of them made for "
                "images of another size?)"
            )
            return {reason: self._named(wrong)}, {}, wrong
        # 3. Corners, where there are no masks.
        if not masked.any() and _are_corners(boxes, sizes, areas):
            reason = f"annotations whose bbox looks like x1, y1, x2, y2 (COCO's is x, y, width, height: {_corners})"
            found = {reason: self.names}
            return ({}, found, wrong) if len(boxes) < FEW else (found, {}, wrong)
        return {}, {}, wrong

    def _named(self, chosen: Any) -> list[str]:
        return [self.names[i] for i in np.flatnonzero(chosen)]

    @staticmethod
    def _explained(boxes: np.ndarray, sizes: np.ndarray, extents: np.ndarray) -> str | None:
        """Return the reason to refuse boxes that are not those of their masks, if another layout explains them."""
        for unit, (factor, more) in _UNITS.items():
            scale = np.tile(sizes * factor, 2) if unit else np.ones_like(boxes)
            for layout, (read, remedy) in _READINGS.items():
                if (~_apart(read(boxes) * scale, extents, SAME)).mean() >= SHARE:
                    return (
                        f"annotations whose bbox is {layout}{unit} by their masks (COCO's is x, y, width, height in "
                        f"pixels: {remedy}{more})"
                    )
            if unit and (~_apart(_ends(boxes) * scale, extents, SAME)).mean() >= SHARE:
                return f"annotations whose bbox is x, y, width, height{unit} by their masks (COCO's is in pixels{more})"
        return None


def _apart(first: np.ndarray, second: np.ndarray, iou: float) -> np.ndarray:
    """Return whether boxes x1, y1, x2, y2 (N, 4) differ by more than the tolerance and overlap by less than an IoU."""
    far = np.abs(first - second).max(1, initial=0) > TOLERANCE
    low, high = np.maximum(first[:, :2], second[:, :2]), np.minimum(first[:, 2:], second[:, 2:])
    shared = np.clip(high - low, 0, None).prod(1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1) for boxes in (first, second)]
    return far & (shared < iou * (areas[0] + areas[1] - shared))


def _are_corners(boxes: np.ndarray, sizes: np.ndarray, areas: np.ndarray) -> bool:
    """Return whether boxes without masks are corners: they fit into the images as such, and not as COCO's."""
    valid = (boxes[:, 2:] > boxes[:, :2]).all(1) & (boxes[:, :2] >= -1).all(1) & (boxes[:, 2:] <= sizes + 1).all(1)
    if not valid.all():
        return False
    beyond = (boxes[:, :2] + boxes[:, 2:] > sizes + TOLERANCE).any(1)
    as_corners, as_sizes = (boxes[:, 2:] - boxes[:, :2]).prod(1), boxes[:, 2:].prod(1)
    by_area = np.abs(areas - as_corners) <= 0.01 * as_corners
    by_area &= np.abs(areas - as_sizes) > 0.01 * as_sizes  # NaN compares as False
    return bool(beyond.mean() >= BEYOND or by_area.mean() >= SHARE)
