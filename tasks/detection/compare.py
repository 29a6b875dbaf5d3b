"""Detected masks beside the true ones, picture by picture: what was found, missed and wrong, and the AP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from tasks.detection.coco import Coco, ImageRecord, decode_mask
from tasks.detection.evaluate import CocoReport, CocoResult, coco_metrics
from tasks.detection.found import Packed
from tasks.plots import brightened, outlined

RIGHT, WRONG = (0, 190, 255), (255, 130, 0)  # sky blue and orange, which colour-blind people distinguish


@dataclass
class Comparison:
    """The detections of a picture beside its true objects.

    Attributes:
        image: record of the picture.
        report: COCO's metrics of the masks of this picture alone, of all its detections.
        true: masks of the true objects.
        found: masks of the detections of at least the threshold, best first.
        matches: number of the true object that each of ``found`` has found; None if it has found none.
    """

    image: ImageRecord
    report: CocoReport
    true: list[Packed]
    found: list[Packed]
    matches: list[int | None]

    @property
    def right(self) -> int:
        """Number of true objects that were found."""
        return sum(match is not None for match in self.matches)


def compare(data: Coco, results: Sequence[CocoResult], *, threshold: float = 0.5, iou: float = 0.5) -> list[Comparison]:
    """Compare detected masks with the true ones of each picture of a set.

    Args:
        data: set with masks.
        results: detections in COCO's results format, with masks.
        threshold: lowest score of the detections that are shown and matched; COCO's metrics take all.
        iou: lowest intersection over union of a detection and the object that it finds.

    Returns:
        Comparisons in the order of the set.
    """
    compared = []
    for image in data.images:
        # 1. Compute COCO's metrics from the picture's detections.
        own = [result for result in results if result["image_id"] == image.id]
        report = coco_metrics(_alone(data, image), own, ("segm",))["segm"]
        # 2. Match the detections that are good enough with the true objects of their category.
        truths = data.objects(image, masks=True)
        shown = sorted((r for r in own if r["score"] >= threshold), key=lambda result: -result["score"])
        true = [Packed.of(decode_mask(truth, image.height, image.width).view(bool)) for truth in truths]
        found = [Packed.of(rle.decode(result["segmentation"]).view(bool)) for result in shown]
        whole = [mask.in_image(image.width, image.height) for mask in true]
        overlaps = mask_iou([result["segmentation"] for result in shown], whole)  # (F, T)
        for i, result in enumerate(shown):
            for j, truth in enumerate(truths):
                if result["category_id"] != truth["category_id"]:
                    overlaps[i, j] = 0.0
        compared.append(Comparison(image, report, true, found, match(overlaps, iou)))
    return compared


def _alone(data: Coco, image: ImageRecord) -> Coco:
    return data.subset(lambda other: other.id == image.id)


def mask_iou(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return the intersection over union of each of F masks with each of S masks, as compressed RLE: (F, S)."""
    if not len(first) or not len(second):  # pycocotools returns a list
        return np.zeros((len(first), len(second)))
    return np.asarray(rle.iou(list(first), list(second), [0] * len(second)))


def match(overlaps: np.ndarray, iou: float) -> list[int | None]:
    """Match detections with true objects as COCO does: each takes the free object that it overlaps most.

    Args:
        overlaps: intersection over union of each detection, best first, with each true object, (F, T).
        iou: lowest intersection over union of a match.

    Returns:
        Number of the true object of each detection; None without a match.
    """
    free = np.ones(overlaps.shape[1], dtype=bool)
    matches: list[int | None] = []
    for row in overlaps:
        best = int(np.argmax(np.where(free, row, -1.0))) if free.any() else -1
        if best >= 0 and row[best] >= iou:
            free[best] = False
            matches.append(best)
        else:
            matches.append(None)
    return matches


def draw_comparison(picture: Image.Image, compared: Comparison) -> tuple[list[Image.Image], list[str]]:
    """Draw a picture plain, with its true masks, and with the detected ones, as outlines.

    Returns:
        Three pictures, and a caption for each.
    """
    hit = {number for number in compared.matches if number is not None}
    true = [RIGHT if number in hit else WRONG for number in range(len(compared.true))]
    found = [WRONG if number is None else RIGHT for number in compared.matches]
    shown, factor = brightened(picture)  # outlines in black show nothing
    panels = [
        outlined(shown, [], []),
        outlined(shown, compared.true, true),
        outlined(shown, compared.found, found),
    ]
    note = f", shown {factor:.1f} times as bright" if factor > 1 else ""
    captions = [
        f"{compared.image.file_name}\nmask AP {compared.report.stats[0]:.3f}{note}",
        f"{len(true)} true masks\n{len(hit)} found (blue), {len(true) - len(hit)} missed (orange)",
        f"{len(found)} detections\n{len(hit)} right (blue), {len(found) - len(hit)} wrong (orange)",
    ]
    return panels, captions
