"""Segmentations of COCO: polygons and run lengths (RLE), checked before pycocotools, which does not check them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as rle

LONGEST_OUTLINE = 2**22  # pixels; pycocotools makes five points of each
_THIN = 2  # pixels of mean width, from which on a polygon has pixels inside
_LONGEST_RUN = 40  # bits of a number in compressed RLE, of which masks need 32

Rle = dict[str, Any]  # "size" (height, width) and "counts" as bytes, as pycocotools has it


def broken(segmentation: Any, height: int, width: int) -> str | None:
    """Return why a segmentation does not follow the COCO format, None if it does.

    Args:
        segmentation: value of a COCO file.
        height, width: size of the image.
    """
    if isinstance(segmentation, list):
        return _broken_polygons(segmentation, height, width)
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


def _broken_polygons(parts: list[Any], height: int, width: int) -> str | None:
    """Return why polygons cannot be rasterised, None if they can.

    pycocotools does not check polygons, and goes along each edge in steps of a fifth of a pixel. NaN and huge
    coordinates end the process with a segmentation fault (cocoapi issue 380). Points moderately far outside of the
    image are accepted, since annotation tools write them.
    """
    reach = 2 * max(width, height, 1000)  # pixels beyond the image
    for part in parts:
        if not isinstance(part, list):
            return "annotations whose polygons are not lists of numbers"
        try:
            values = np.asarray(part)
        except ValueError:  # numpy refuses lists of unequal length inside a polygon
            return "annotations whose polygons are not lists of numbers"
        if not len(part):
            continue
        if values.ndim != 1 or values.dtype.kind not in "iuf":
            return "annotations whose polygons are not lists of numbers"
        for coordinates, side in ((values[0::2], width), (values[1::2], height)):
            if not ((coordinates >= -reach) & (coordinates <= side + reach)).all():  # NaN compares as False
                return "annotations whose polygons have points that are not finite or far outside of the image"
        # An edge is at most three sides of the image long, so that only many of them can be too long.
        if len(values) > 200 and len(values) % 2 == 0 and outline(values) > LONGEST_OUTLINE:
            return f"annotations whose polygons have an outline of more than {LONGEST_OUTLINE} pixels"
    return None


def outline(points: np.ndarray) -> float:
    """Return the length of a closed polygon x1, y1, x2, y2, ... as pycocotools goes along it: the longer sides."""
    corners = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(1).sum())


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
            if parts and sum(map(outline, parts)) <= LONGEST_OUTLINE:
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


class Extent:
    """Bounding box and area of a mask; polygons are measured without their pixels, in a tenth of the time.

    Args:
        annotation: annotation whose segmentation is not broken.
        height, width: size of the image.

    Attributes:
        box: bounding box inside of the image as x1, y1, x2, y2; None where the mask has no pixels.
        drawn: likewise of the polygons as they are drawn, which a tool's box is of. A thin one has fewer pixels.
        area: area in pixels.
    """

    def __init__(self, annotation: Mapping[str, Any], height: int, width: int) -> None:
        self.box: tuple[float, float, float, float] | None = None
        self.drawn: tuple[float, float, float, float] | None = None
        self.area = 0.0
        if not isinstance(annotation["segmentation"], list):
            self._measure(encode_mask(annotation, height, width))
            self.drawn = self.box
            return
        parts = [np.asarray(part, dtype=np.float64).reshape(-1, 2) for part in polygons(annotation)]
        if not parts:
            return
        lowest = np.min([part.min(0) for part in parts], axis=0)
        highest = np.max([part.max(0) for part in parts], axis=0)
        self.area = sum(map(_area, parts))
        inside = (lowest >= 0).all() and (highest <= (width, height)).all()
        # A thin polygon, or one that is partly outside, may have no pixels.
        if not inside or self.area < max(16.0, _THIN * sum(outline(part) for part in parts)):
            self._measure(encode_mask(annotation, height, width))
        else:
            self.box = (*lowest.tolist(), *highest.tolist())
        (x1, y1), (x2, y2) = np.clip([lowest, highest], 0, (width, height)).tolist()
        self.drawn = (x1, y1, x2, y2) if self.box is not None else None

    def _measure(self, encoded: Rle) -> None:
        """Take box and area from the pixels."""
        self.area = float(rle.area(encoded))
        x, y, w, h = rle.toBbox(encoded).tolist()
        self.box = (x, y, x + w, y + h) if self.area else None


def _area(corners: np.ndarray) -> float:
    """Return the area of a polygon (P, 2) by the shoelace formula."""
    x, y = corners[:, 0], corners[:, 1]
    return 0.5 * abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1)))
