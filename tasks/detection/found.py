"""What a detector finds in an image, with masks as run lengths.

A mask of the whole image takes as much memory as the image, and a detector finds a hundred objects or more. Here the
mask of an object is made within its box, kept as run lengths, and those below the threshold are not made at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks, paste_mask_in_image

from tasks.detection.conventions import in_box

PROBABILITY = 0.5  # above it a pixel belongs to the object
PIXELS = 2**22  # positions that are sampled at once


@dataclass(frozen=True, slots=True)
class Packed:
    """The mask of an object as run lengths: a hundred masks of a photograph take gigabytes as arrays.

    Attributes:
        corner: x and y of the upper left corner of the part of the image in which the object is.
        size: height and width of that part.
        counts: compressed RLE of that part, as pycocotools has it.
    """

    corner: tuple[int, int]
    size: tuple[int, int]
    counts: bytes

    @classmethod
    def of(cls, mask: np.ndarray, corner: tuple[int, int] = (0, 0)) -> Packed:
        """Return the packed form of a mask, bool (H, W), whose upper left corner (x, y) lies there in the image."""
        part, corner = bounding_part(mask, corner)
        counts = rle.encode(np.asfortranarray(part.view(np.uint8)))["counts"] if part.size else b""
        return cls(corner, (part.shape[0], part.shape[1]), counts)

    def array(self) -> np.ndarray:
        """Return the part of the mask, bool (h, w)."""
        if not self.counts:
            return np.zeros(self.size, dtype=bool)
        return rle.decode({"size": list(self.size), "counts": self.counts}).astype(bool)

    def moved(self, x: int, y: int) -> Packed:
        """Return the mask of the object moved by x to the right and y down."""
        return replace(self, corner=(self.corner[0] + x, self.corner[1] + y))

    def in_image(self, width: int, height: int) -> dict[str, object]:
        """Return the mask as compressed RLE of an image."""
        return full_rle(self.array(), self.corner, width, height)


@dataclass
class Found:
    """Objects found in one image, best first.

    Attributes:
        boxes: float tensor (N, 4) as x1, y1, x2, y2 in pixels of the image, on the CPU.
        labels: integer tensor (N,) from 1, on the CPU.
        scores: float tensor (N,), on the CPU.
        size: height and width of the image.
        masks: mask of each object; None from Faster R-CNN.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    size: tuple[int, int]
    masks: list[Packed] | None = None

    def rle(self, number: int) -> dict[str, object]:
        """Return the mask of an object as compressed RLE of the image."""
        assert self.masks is not None
        return self.masks[number].in_image(self.size[1], self.size[0])


def bounding_part(mask: np.ndarray, corner: tuple[int, int] = (0, 0)) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the bounding part of a mask (H, W) that is not empty, and its upper left corner (x, y).

    Args:
        mask: bool array (H, W).
        corner: upper left corner (x, y) of the mask in the image.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros((0, 0), dtype=bool), (0, 0)
    y, x = int(rows[0]), int(columns[0])
    return mask[y : rows[-1] + 1, x : columns[-1] + 1].copy(), (x + corner[0], y + corner[1])


def masks_in_boxes(masks: Tensor, boxes: Tensor, size: tuple[int, int], *, at_centres: bool) -> list[Packed]:
    """Return the mask of each object in an image: masks (N, 1, m, m) of probabilities in boxes (N, 4).

    The pixels are those at which the masks of the whole image exceed ``PROBABILITY``.

    Args:
        masks: probabilities, on the CPU.
        boxes: x1, y1, x2, y2 in pixels of the image, on the CPU.
        size: height and width of the image.
        at_centres: whether masks are sampled at the centres of pixels (``conventions.paste_at_centres``), instead of
            pasted at whole pixels as torchvision does.
    """
    if at_centres:
        return [_sampled(mask[None], box, size) for mask, box in zip(masks, boxes, strict=True)]
    masks, scale = expand_masks(masks, padding=1)
    boxes = expand_boxes(boxes, scale).to(torch.int64)
    return [_pasted(mask[0], box.tolist(), size) for mask, box in zip(masks, boxes, strict=True)]


def _pasted(mask: Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> Packed:
    """Paste a mask (m, m) into a box of whole pixels, both ends included, as into an image that ends with the box."""
    x1, y1, x2, y2 = box
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2 + 1, size[1]), min(y2 + 1, size[0])
    moved = (x1 - left, y1 - top, x2 - left, y2 - top)
    inside = paste_mask_in_image(mask, moved, bottom - top, right - left) > PROBABILITY
    return Packed.of(inside.numpy(), (left, top))


def _sampled(mask: Tensor, box: Tensor, size: tuple[int, int]) -> Packed:
    """Sample a mask (1, 1, m, m) at the centres of the pixels of its box: outside, no probability exceeds one half."""
    x1, y1, x2, y2 = box  # tensors, so that each sum rounds as that of the whole image
    left, top = max(math.floor(x1) - 1, 0), max(math.floor(y1) - 1, 0)
    right, bottom = min(math.ceil(x2) + 1, size[1]), min(math.ceil(y2) + 1, size[0])
    x = in_box(torch.arange(left, right, dtype=box.dtype), x1, x2)  # (w,)
    y = in_box(torch.arange(top, bottom, dtype=box.dtype), y1, y2)  # (h,)
    inside = np.zeros((len(y), len(x)), dtype=bool)
    rows = max(PIXELS // max(len(x), 1), 1)
    for first in range(0, len(y), rows):
        part = y[first : first + rows]
        grid = torch.stack([x[None].expand(len(part), -1), part[:, None].expand(-1, len(x))], dim=-1)[None]
        sampled = F.grid_sample(mask, grid.to(mask.dtype), align_corners=False)[0, 0]
        inside[first : first + rows] = (sampled > PROBABILITY).numpy()
    return Packed.of(inside, (left, top))


def full_rle(mask: np.ndarray, corner: tuple[int, int], width: int, height: int) -> dict[str, object]:
    """Encode a picture (height, width) that is empty except for ``mask`` at ``corner`` as compressed RLE."""
    # RLE counts the pixels of the runs of 0 and 1 in turn, column by column, and begins with 0.
    rows = mask.shape[0] + 2  # of each column, with a pixel that is 0 at each end
    padded = np.zeros((mask.shape[1], rows), dtype=bool)
    padded[:, 1:-1] = mask.T
    changes = np.flatnonzero(np.diff(padded.reshape(-1)))  # before the begin and before the end of each run, in turn
    columns, places = np.divmod(changes, rows)
    edges = (columns + corner[0]) * height + places + corner[1]
    # a run that ends with its column goes on with the next
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])
    edges = np.delete(edges, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    ends = [] if len(edges) and edges[-1] == width * height else [width * height]
    counts = np.diff(np.concatenate([[0], edges, ends])).tolist()
    encoded = rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
