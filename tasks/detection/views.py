"""Test-time augmentation of detectors: objects of several views of an image, merged.

The boxes of all views go through one non-maximum suppression, by class, in which the best score of an object stays.
Each kept object then gets its mask from all views: the mean of the probabilities, each read in the object's box.
Source: detectron2's ``GeneralizedRCNNWithTTA``, which merges in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from tasks.errors import UserError

if TYPE_CHECKING:
    from tasks.detection.rcnn import Detector

SMALLEST, LARGEST = 0.1, 10.0  # factors of a view's size


@dataclass(frozen=True)
class View:
    """A way to look at an image.

    Attributes:
        flip: whether it is mirrored from left to right.
        scale: factor of the size at which the net sees it.
    """

    flip: bool = False
    scale: float = 1.0


def parse_views(option: str | None) -> tuple[View, ...]:
    """Return the views that ``--tta`` names: ``flip`` mirrors each, a number adds a size; () without the option.

    >>> [(view.flip, view.scale) for view in parse_views("flip,1.25")]
    [(False, 1.0), (True, 1.0), (False, 1.25), (True, 1.25)]

    Raises:
        UserError: another word, or a factor out of range.
    """
    if option is None:
        return ()
    flips, scales = [False], [1.0]
    for word in (part.strip() for part in option.split(",")):
        if word == "flip":
            flips = [False, True]
            continue
        try:
            scale = float(word)
        except ValueError:
            scale = -1.0
        if not SMALLEST <= scale <= LARGEST:
            raise UserError(
                f"--tta {option}: {word!r} must be flip, or a factor of the size from {SMALLEST} to {LARGEST:g}; for "
                "example flip,0.75,1.25"
            )
        scales.append(scale)
    return tuple(View(flip, scale) for scale in dict.fromkeys(scales) for flip in flips)


class _Seen(NamedTuple):
    """What the net makes of a view: its features, its size, and that of the image over it, in x and y."""

    features: dict[str, Tensor]
    size: tuple[int, int]
    ratio: tuple[float, float]


def detect_in_views(model: Detector, image: Tensor, views: Sequence[View]) -> dict[str, Tensor]:
    """Detect objects in some views of an image (3, H, W).

    Returns:
        ``boxes`` (N, 4) in pixels of the image, ``labels`` (N,), ``scores`` (N,), best first, and of Mask R-CNN
        ``masks`` (N, 1, m, m) of probabilities within the boxes.
    """
    heads = model.roi_heads
    height, width = image.shape[-2:]
    seen: list[_Seen] = []
    each: list[tuple[Tensor, Tensor, Tensor]] = []
    # 1. The boxes of each view, in pixels of the image.
    for view in views:
        with _scaled(model, view.scale):
            batch, _ = model.transform([image.flip(-1) if view.flip else image])
        features = model.backbone(batch.tensors)
        proposals, _ = model.rpn(batch, features)
        predicted = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, batch.image_sizes)))
        boxes, scores, labels = heads.postprocess_detections(*predicted, proposals, batch.image_sizes)
        size = batch.image_sizes[0]
        seen.append(_Seen(features, size, (width / size[1], height / size[0])))
        placed = boxes[0] * boxes[0].new_tensor(seen[-1].ratio * 2)
        each.append((_mirrored(placed, width) if view.flip else placed, scores[0], labels[0]))
    # 2. Each object once.
    boxes, scores, labels = (torch.cat(values) for values in zip(*each, strict=True))
    keep = batched_nms(boxes, scores, labels, heads.nms_thresh)[: heads.detections_per_img]
    found = {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}
    # 3. Its mask in all views.
    if model.has_masks:
        masks = [_masks(model, found, view, one, width) for view, one in zip(views, seen, strict=True)]
        found["masks"] = torch.stack(masks).mean(0)
    return found


def _masks(model: Detector, found: dict[str, Tensor], view: View, seen: _Seen, width: int) -> Tensor:
    """Return the probabilities (N, 1, m, m) of the found objects in a view, within their boxes in the image."""
    boxes = _mirrored(found["boxes"], width) if view.flip else found["boxes"]
    inside = boxes / boxes.new_tensor(seen.ratio * 2)
    masks = model.roi_heads.masks_of(seen.features, inside, found["labels"], seen.size)
    return masks.flip(-1) if view.flip else masks


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    """Return boxes (N, 4) as x1, y1, x2, y2 in the mirror image of an image of this width."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=1)


@contextmanager
def _scaled(model: Detector, scale: float) -> Iterator[None]:
    """Have the net see images at a factor of its size, until the end of the context."""
    transform = model.transform
    before = transform.min_size, transform.max_size
    transform.min_size = tuple(max(1, round(side * scale)) for side in before[0])
    transform.max_size = max(1, round(before[1] * scale))
    try:
        yield
    finally:
        transform.min_size, transform.max_size = before
