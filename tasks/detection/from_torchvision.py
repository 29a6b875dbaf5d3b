"""Faster and Mask R-CNN of torchvision, read into the keys of our detectors."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from tasks.detection.class_names import IDS, Classes, Kept, kept_classes
from tasks.detection.imported import ImportedDetector, asked_backbone, imported_detector, require
from zoo.convert.layouts import resnet
from zoo.errors import WeightsError

log = logging.getLogger("rescalenet")

NAME = "torchvision Faster or Mask R-CNN"
FROZEN_EPS = 0.0  # torchvision sets it where it loads COCO_V1, whose bodies are FrozenBatchNorm2d
BODY = "backbone.body."
PREDICTORS = {  # rows of each tensor for a class
    "roi_heads.box_predictor.cls_score": 1,
    "roi_heads.box_predictor.bbox_pred": 4,
    "roi_heads.mask_predictor.mask_fcn_logits": 1,
}

# keys of torchvision, old versions included -> ours, without the body's
_KEYS = [
    (r"backbone\.fpn\.inner_blocks\.(\d)(\.0)?\.(\w+)", r"backbone.fpn.laterals.\1.\3"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.1\.(\w+)", r"backbone.fpn.lateral_norms.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)(\.0)?\.(\w+)", r"backbone.fpn.outputs.\1.\3"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.1\.(\w+)", r"backbone.fpn.output_norms.\1.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
]
_STACKS = [  # convolutions counted from 0 -> from 1
    (r"roi_heads\.box_head\.(\d)\.0\.(\w+)", "roi_heads.box_head.convs.conv"),
    (r"roi_heads\.box_head\.(\d)\.1\.(\w+)", "roi_heads.box_head.convs.norm"),
    (r"roi_heads\.mask_head\.(\d)\.0\.(\w+)", "roi_heads.mask_head.conv"),
    (r"roi_heads\.mask_head\.(\d)\.1\.(\w+)", "roi_heads.mask_head.norm"),
]

# parts that no detector of the zoo has: pattern of their keys, reason
_FOREIGN = {
    r"roi_heads\.keypoint_": "a keypoint head; the zoo has boxes and masks",
    r"backbone\.fpn\.extra_blocks\.": "levels that convolutions add to the pyramid; must be a max pool",
    r"backbone\.body\.body\.": "the keys of a detector of the zoo; give the model instead of its state dict",
}


def matches(keys: Collection[str]) -> bool:
    """Return whether keys are those of a detector in torchvision's form."""
    return any(key.startswith(BODY) for key in keys) and "roi_heads.box_predictor.cls_score.weight" in keys


def read(
    state: Mapping[str, Tensor],
    name: str | None,
    options: Mapping[str, Any],
    *,
    eps: float | None = None,
    classes: Classes = None,
) -> ImportedDetector:
    """Return a checkpoint of torchvision's Faster or Mask R-CNN in the keys of our ``bn`` detector.

    Args:
        state: state dict of the checkpoint.
        name: name of our detector; None to find it.
        options: options of the input and fields of ``DetectorOptions`` that the keys do not show.
        eps: eps of the norms; None for 0 where the body has FrozenBatchNorm2d, else 1e-5.
        classes: see ``kept_classes``; a detector with COCO's 91 ids loses the rows of ids that no object has.

    Raises:
        WeightsError: a checkpoint that no detector of the zoo equals, with the reason.
    """
    require(NAME, state, ("roi_heads.box_predictor.bbox_pred.weight", "rpn.head.cls_logits.weight"))
    for key in state:
        for pattern, reason in _FOREIGN.items():
            if re.match(pattern, key):
                raise WeightsError(f"{NAME} checkpoint: it has {reason} ({key})")
    # the body
    body = {key.removeprefix(BODY): value for key, value in state.items() if key.startswith(BODY)}
    if not resnet.matches(body):
        raise WeightsError(f"{NAME} checkpoint: its body is no ResNet: its first key is {BODY}{next(iter(body))}")
    kind = "mask" if "roi_heads.mask_predictor.conv5_mask.weight" in state else "faster"
    net = resnet.read(body, asked_backbone(NAME, kind, name), options.get("body", {}))
    # pyramid and heads
    rest = {_renamed(key): value for key, value in state.items() if not key.startswith(BODY)}
    kept = kept_classes(classes, _class_count(rest), NAME, usual=IDS)
    rest = _with_rows(rest, kept)
    eps = default_eps(state) if eps is None else eps
    return imported_detector(NAME, kind, net, rest, options, eps=eps, classes=kept.names)


def default_eps(state: Mapping[str, Tensor]) -> float:
    """Return the eps of a state dict's norms: 0 for FrozenBatchNorm2d, which counts no batches, else 1e-5.

    torchvision trained COCO_V1 with frozen norms without eps. A state dict of a detector that was trained from a
    backbone alone looks the same and has 1e-5, so that the choice is logged.
    """
    if any(key.endswith("num_batches_tracked") for key in state):
        return 1e-5
    log.info(
        "frozen norms: eps 0 as in torchvision's COCO_V1; if the detector was trained from a backbone alone, give "
        "eps=1e-5, or the module in place of its state dict"
    )
    return FROZEN_EPS


def _renamed(key: str) -> str:
    """Return our key of one of torchvision's, outside of the body; a key that is not known stays."""
    for pattern, ours in _KEYS:
        if match := re.fullmatch(pattern, key):
            return match.expand(ours)
    for pattern, ours in _STACKS:
        if match := re.fullmatch(pattern, key):
            return f"{ours}{int(match[1]) + 1}.{match[2]}"
    if match := re.fullmatch(r"roi_heads\.mask_head\.mask_fcn(\d)\.(\w+)", key):  # old versions
        return f"roi_heads.mask_head.conv{match[1]}.{match[2]}"
    return re.sub(r"^roi_heads\.box_head\.\d\.(weight|bias)$", r"roi_heads.box_head.fc.\1", key)


def _class_count(state: Mapping[str, Tensor]) -> int:
    """Return the number of classes of a detector in our keys, without the background.

    Raises:
        WeightsError: boxes that are not regressed for each class.
    """
    score, box = (state[f"roi_heads.box_predictor.{layer}.weight"] for layer in ("cls_score", "bbox_pred"))
    if len(box) != 4 * len(score):
        raise WeightsError(
            f"{NAME} checkpoint: {len(box)} box coordinates for {len(score)} classes; must be 4 for each"
        )
    return len(score) - 1


def _with_rows(state: Mapping[str, Tensor], kept: Kept) -> dict[str, Tensor]:
    """Return the tensors of pyramid and heads with the rows of the background and of the classes that stay."""
    rows_kept = [0, *kept.labels]
    result = dict(state)
    for layer, rows in PREDICTORS.items():
        for key in (f"{layer}.weight", f"{layer}.bias"):
            if key in state:  # Faster R-CNN has no masks
                grouped = state[key].unflatten(0, (-1, rows))  # (classes, rows, ...)
                result[key] = grouped[rows_kept].flatten(0, 1)
    return result


def module_settings(model: Any) -> dict[str, Any]:
    """Return what the keys of a detector of torchvision do not show, as options: its anchors, sizes and thresholds.

    Args:
        model: Faster or Mask R-CNN of torchvision.

    Raises:
        WeightsError: settings that no detector of the zoo has.
    """
    rpn, heads, transform = model.rpn, model.roi_heads, model.transform
    # anchors: one size a level, in proportion to its stride
    sizes, ratios = rpn.anchor_generator.sizes, rpn.anchor_generator.aspect_ratios
    scale = sizes[0][0] / 4
    if [tuple(level) for level in sizes] != [(scale * stride,) for stride in (4, 8, 16, 32, 64)] or len(
        set(ratios)
    ) > 1:
        raise WeightsError(
            f"anchors of sizes {sizes} and ratios {ratios}; must be one size a level, doubling, and one set of ratios"
        )
    # what is the same in every detector of the zoo
    pools = {"box_roi_pool": (7, 7), "mask_roi_pool": (14, 14)}
    fixed = [
        ("transform.fixed_size", transform.fixed_size, None),
        ("rpn.nms_thresh", rpn.nms_thresh, 0.7),
        ("rpn.score_thresh", rpn.score_thresh, 0.0),
        ("rpn._post_nms_top_n", rpn._post_nms_top_n["testing"], rpn._pre_nms_top_n["testing"]),
        ("roi_heads.box_coder.weights", tuple(heads.box_coder.weights), (10.0, 10.0, 5.0, 5.0)),
    ]
    for name, size in pools.items():
        if (pool := getattr(heads, name)) is not None:
            own = (tuple(pool.output_size), pool.sampling_ratio, pool.canonical_scale, pool.canonical_level)
            fixed.append((f"roi_heads.{name}", own, (size, 2, heads.box_roi_pool.canonical_scale, 4)))
    for name, value, required in fixed:
        if value != required:
            raise WeightsError(f"{name} is {value}; must be {required}")
    return {
        "min_size": transform.min_size[-1],
        "max_size": transform.max_size,
        "mean": transform.image_mean,
        "std": transform.image_std,
        "anchor_scale": scale,
        "aspect_ratios": tuple(ratios[0]),
        "canonical_size": heads.box_roi_pool.canonical_scale,
        "rpn_samples": rpn.fg_bg_sampler.batch_size_per_image,
        "box_samples": heads.fg_bg_sampler.batch_size_per_image,
        "proposals_train": rpn._post_nms_top_n["training"],
        "proposals_test": rpn._post_nms_top_n["testing"],
        "score_thresh": heads.score_thresh,
        "nms_thresh": heads.nms_thresh,
        "detections": heads.detections_per_img,
    }
