"""Segmentations of COCO: polygons and run lengths (RLE), checked before pycocotools, which does not check them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as rle

LONGEST_OUTLINE = 2**22  # pixels; pycocotools makes five points of each
_LONGEST_RUN = 40  # bits of a number in compressed RLE, of which masks need 32

Rle = dict[str, Any]  # "size" (height, width) and "counts" as bytes, as pycocotools has it


def broken_rle(segmentation: Any, height: int, width: int) -> str | None:
    """Return why a segmentation that is no list of polygons is no RLE of the COCO format, None if it is.

    Args:
        segmentation: value of a COCO file.
        height, width: size of the image.
    """
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        return "annotations whose segmentation is neither polygons nor RLE"
    if segmentation["size"] != [height, width]:
        return "annotations whose RLE size does not match the image"
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = rle_counts(counts)
    if not isinstance(counts, list) or any(type(count) is not int for count in counts):
        return "annotations whose RLE counts are neither text nor whole numbers"
    if sum(counts) != height * width or min(counts, default=0) < 0:
        return "annotations whose RLE counts do not fill the image"
    return None


def lengths_along(corners: np.ndarray) -> np.ndarray:
    """Return the lengths of closed polygons (..., P, 2) as pycocotools follows them: the longer side of each edge."""
    return np.abs(corners - np.roll(corners, 1, axis=-2)).max(-1).sum(-1)


def rle_counts(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed RLE, an empty list if the text is not valid.

    pycocotools does not check the text and decodes a damaged one to whatever is in memory. The format (cocoapi,
    ``rleFrString``): each character has six bits, of which five are the next digits of a number and the sixth is set if
    the number continues. From the fourth number on, the difference to the last number but one is stored.
    """
    counts: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return []
        number |= (bits & 0x1F) << shift
        shift += 5
        if shift > _LONGEST_RUN:
            return []
        if bits & 0x20:  # the number continues
            continue
        if bits & 0x10:  # the number is negative
            number -= 1 << shift
        counts.append(number + counts[-2] if len(counts) > 2 else number)
        number = shift = 0
    return [] if shift else counts


def polygons(annotation: Mapping[str, Any]) -> list[list[float]]:
    """Return the polygons of an annotation that have at least three corners."""
    return [part for part in annotation["segmentation"] if len(part) >= 6 and len(part) % 2 == 0]


def encode_mask(annotation: Mapping[str, Any], height: int, width: int) -> Rle:
    """Return the mask of an annotation with polygons or RLE (compressed or not) as compressed RLE."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        parts = polygons(annotation)
        if not parts:
            return rle.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)
        return rle.merge(rle.frPyObjects(parts, height, width))
    if isinstance(segmentation["counts"], list):
        return rle.frPyObjects(segmentation, height, width)
    counts = segmentation["counts"]
    return {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def decode_mask(annotation: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """Return the mask of an annotation with polygons or RLE (compressed or not): uint8 (height, width), 0 or 1."""
    return rle.decode(encode_mask(annotation, height, width))


@dataclass(frozen=True)
class Placement:
    """Where an augmentation of scales, crops and flips puts the points of an image: x becomes scale x + shift.

    Attributes:
        scale: factors of x and y; negative where the axis is mirrored.
        shift: shifts of x and y in pixels. Pixel i covers i to i + 1.
    """

    scale: tuple[float, float]
    shift: tuple[float, float]

    @classmethod
    def of(cls, points: np.ndarray, width: int, height: int) -> Placement:
        """Return the placement that torchvision's transforms have given the points (0, 0), (width, 0), (0, height).

        Its flips take points for centres of pixels (x becomes W - 1 - x), its other transforms do not.
        """
        (x, y), (right, _), (_, bottom) = points.tolist()
        scale = (right - x) / width, (bottom - y) / height
        return cls(scale, (x + (scale[0] < 0), y + (scale[1] < 0)))

    def mask(self, annotation: Mapping[str, Any], height: int, width: int, size: tuple[int, int]) -> np.ndarray:
        """Return the mask of an annotation where it is placed: uint8 (H, W).

        Polygons are rasterised at their final size. Of run lengths the nearest pixel is taken.

        Args:
            annotation: annotation whose segmentation is not broken.
            height, width: size of the image of the annotation.
            size: height and width of the result.
        """
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            factors, shifts = np.asarray(self.scale), np.asarray(self.shift)
            parts = [
                np.asarray(part, dtype=np.float64).reshape(-1, 2) * factors + shifts for part in polygons(annotation)
            ]
            if parts and sum(map(lengths_along, parts)) <= LONGEST_OUTLINE:
                return rle.decode(rle.merge(rle.frPyObjects([part.ravel().tolist() for part in parts], *size)))
        whole = decode_mask(annotation, height, width)
        rows, columns = (
            np.floor((np.arange(length) + 0.5 - shift) / scale).astype(np.int64)
            for length, shift, scale in zip(size, self.shift[::-1], self.scale[::-1], strict=True)
        )
        found = np.zeros(size, dtype=np.uint8)
        inner = [np.flatnonzero((i >= 0) & (i < side)) for i, side in ((rows, height), (columns, width))]
        found[np.ix_(*inner)] = whole[np.ix_(rows[inner[0]], columns[inner[1]])]
        return found
