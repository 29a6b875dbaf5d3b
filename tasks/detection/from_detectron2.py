"""Faster and Mask R-CNN of detectron2, read into the keys of our detectors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from tasks.detection.build import IMAGENET
from tasks.detection.class_names import NAMES, Classes, kept_classes
from tasks.detection.imported import ImportedDetector, asked_backbone, imported_detector, require
from zoo.convert.layouts import detectron2
from zoo.errors import WeightsError
from zoo.transforms import DetectionTransform, InputTransform

NAME = "detectron2 Faster or Mask R-CNN"
SCORE, BOX = "roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"
MASK = "roi_heads.mask_predictor.mask_fcn_logits"

# their modules -> ours; levels 2 to 5 of the pyramid are 0 to 3
_KEYS = [
    (r"backbone\.fpn_(lateral|output)(\d)\.(\w+)", lambda m: f"backbone.fpn.{m[1]}s.{int(m[2]) - 2}.{m[3]}"),
    (r"proposal_generator\.rpn_head\.conv\.(\w+)", lambda m: f"rpn.head.conv.0.0.{m[1]}"),
    (r"proposal_generator\.rpn_head\.conv\.conv(\d)\.(\w+)", lambda m: f"rpn.head.conv.{m[1]}.0.{m[2]}"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", lambda m: f"rpn.head.cls_logits.{m[1]}"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", lambda m: f"rpn.head.bbox_pred.{m[1]}"),
    (r"roi_heads\.box_head\.fc([12])\.(\w+)", lambda m: f"roi_heads.box_head.fc{int(m[1]) + 5}.{m[2]}"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.(\w+)", lambda m: f"roi_heads.mask_head.conv{m[1]}.{m[2]}"),
    (r"roi_heads\.mask_head\.deconv\.(\w+)", lambda m: f"roi_heads.mask_predictor.conv5_mask.{m[1]}"),
    (r"roi_heads\.mask_head\.predictor\.(\w+)", lambda m: f"{MASK}.{m[1]}"),
]
_UNUSED = r"pixel_(mean|std)|proposal_generator\.anchor_generator\.cell_anchors\.\d"


def matches(keys: Collection[str]) -> bool:
    """Return whether keys are those of a net of detectron2 or Detectron, which may be a detector."""
    return detectron2.matches(keys) or detectron2.is_caffe2(keys)


def read(
    state: Mapping[str, Tensor],
    name: str | None,
    options: Mapping[str, Any],
    *,
    eps: float | None = None,
    classes: Classes = None,
) -> ImportedDetector:
    """Return a checkpoint of detectron2's Faster or Mask R-CNN with a pyramid in the keys of our ``bn`` detector.

    Args:
        state: state dict of the checkpoint, or blobs of Detectron.
        name: name of our detector; None to find it.
        options: options of the input and fields of ``DetectorOptions``; ``body`` may have ``stride_in_1x1``.
        eps: eps of the norms; None for detectron2's.
        classes: see ``kept_classes``; detectron2's order of COCO's classes is by id.

    Raises:
        WeightsError: a checkpoint that no detector of the zoo equals, with the reason.
    """
    _, others = detectron2.split(state)
    rest = {_renamed(key): value for key, value in others.items() if not re.fullmatch(_UNUSED, key)}
    if key := next((key for key in rest if re.search(r"norm\.|\.box_head\.conv", key)), None):
        raise WeightsError(f"{NAME} checkpoint: {key}: norms or convolutions in pyramid or box head do not convert")
    require(
        NAME, rest, (f"{SCORE}.weight", f"{SCORE}.bias", f"{BOX}.weight", f"{BOX}.bias", "rpn.head.cls_logits.weight")
    )
    # the body, with its input
    kind = "mask" if f"{MASK}.weight" in rest else "faster"
    net = detectron2.read(state, asked_backbone(NAME, kind, name), options.get("body", {}))
    shown = net.transform
    if shown is None and not {"mean", "std"} <= options.keys():
        raise WeightsError(f"{NAME} checkpoint: it does not show its input; give mean= and std= on the 0..1 scale, BGR")
    assert shown is None or isinstance(shown, InputTransform)
    input = DetectionTransform(
        IMAGENET.min_size,
        IMAGENET.max_size,
        tuple(options["mean"] if shown is None else shown.mean),
        tuple(options["std"] if shown is None else shown.std),
        "BGR" if shown is None else shown.channel_order,
    )
    # the rest
    rest = _background_first(rest)
    count = len(rest[f"{SCORE}.weight"]) - 1
    return imported_detector(
        NAME,
        kind,
        net,
        rest,
        {"conventions": "detectron2", **options},
        eps=detectron2.EPS if eps is None else eps,
        input=input,
        classes=kept_classes(classes, count, NAME, usual=len(NAMES)).names,
    )


def _renamed(key: str) -> str:
    """Return our key of one of detectron2's, outside of the body; a key that is not known stays."""
    for pattern, ours in _KEYS:
        if match := re.fullmatch(pattern, key):
            return ours(match)
    return key


def _background_first(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move the background's scores from the last row to the first, and give its boxes and masks rows of zeros.

    Raises:
        WeightsError: boxes or masks that are not predicted for each class.
    """
    result = dict(state)
    classes = len(state[f"{SCORE}.weight"]) - 1
    for layer, rows in ((BOX, 4 * classes), (MASK, classes)):
        for key in (f"{layer}.weight", f"{layer}.bias"):
            if key not in state:  # Faster R-CNN has no masks
                continue
            if len(state[key]) != rows:
                raise WeightsError(
                    f"{NAME} checkpoint: {key} has {len(state[key])} rows; must be {rows}, for each class"
                )
            zeros = torch.zeros_like(state[key][: rows // classes])
            result[key] = torch.cat([zeros, state[key]])
    for key in (f"{SCORE}.weight", f"{SCORE}.bias"):
        result[key] = state[key].roll(1, 0)
    return result
