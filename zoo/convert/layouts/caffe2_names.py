"""Names of Caffe2's blobs (Detectron, MSRA, SlowFast's first files) in detectron2's and SlowFast's words."""

from __future__ import annotations

import re
from collections.abc import Collection

# leaves of a norm: those of files with the scale alone, of those with statistics, and of reconverted ones
NORM_LEAVES = {
    "s": "weight",
    "gamma": "weight",
    "b": "bias",
    "beta": "bias",
    "rm": "running_mean",
    "running_mean": "running_mean",
    "riv": "running_var",
    "running_var": "running_var",
}
LEAVES = {"w": "weight", "b": "bias"}

_CONVOLUTIONS = {"2a": "conv1", "2b": "conv2", "2c": "conv3", "1": "shortcut"}
_HEADS = [  # blobs of detectors, in the order of the net
    (r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?_({leaf})", r"backbone.fpn_lateral\1.{leaf}"),
    (r"fpn_res(\d)_\d+_sum_({leaf})", r"backbone.fpn_output\1.{leaf}"),
    (r"conv_rpn(?:_fpn2)?_({leaf})", "proposal_generator.rpn_head.conv.{leaf}"),
    (r"rpn_cls_logits(?:_fpn2)?_({leaf})", "proposal_generator.rpn_head.objectness_logits.{leaf}"),
    (r"rpn_bbox_pred(?:_fpn2)?_({leaf})", "proposal_generator.rpn_head.anchor_deltas.{leaf}"),
    (r"fc6_({leaf})", "roi_heads.box_head.fc1.{leaf}"),
    (r"fc7_({leaf})", "roi_heads.box_head.fc2.{leaf}"),
    (r"cls_score_({leaf})", "roi_heads.box_predictor.cls_score.{leaf}"),
    (r"bbox_pred_({leaf})", "roi_heads.box_predictor.bbox_pred.{leaf}"),
    (r"_\[mask\]_fcn(\d+)_({leaf})", r"roi_heads.mask_head.mask_fcn\1.{leaf}"),
    (r"conv5_mask_({leaf})", "roi_heads.mask_head.deconv.{leaf}"),
    (r"mask_fcn_logits_({leaf})", "roi_heads.mask_head.predictor.{leaf}"),
]


def is_caffe2(keys: Collection[str]) -> bool:
    """Return whether keys are blobs of a Caffe2 ResNet."""
    return {"conv1_w", "res2_0_branch2a_w"} <= set(keys)


def detectron2_key(key: str) -> str | None:
    """Return detectron2's key of a blob; None for a blob that is not known.

    The trunk's keys begin with ``stem.``, ``res2.`` and so on, those of a detector with ``backbone.fpn``,
    ``proposal_generator.`` and ``roi_heads.``.
    """
    if match := re.fullmatch(r"(?:fc1000|pred)_([wb])", key):
        return f"linear.{LEAVES[match[1]]}"
    # the trunk: convolutions and their norms
    if match := re.fullmatch(r"(?:res_)?conv1_(.+)", key):
        return _with_leaf("stem.conv1", match[1])
    if match := re.fullmatch(r"res(\d)_(\d+)_branch(1|2[abc])_(.+)", key):
        return _with_leaf(f"res{match[1]}.{match[2]}.{_CONVOLUTIONS[match[3]]}", match[4])
    # the parts of a detector
    for pattern, name in _HEADS:
        for short, leaf in LEAVES.items():
            if re.fullmatch(pattern.format(leaf=short), key):
                return re.sub(pattern.format(leaf=short), name.format(leaf=leaf), key)
    return None


def _with_leaf(convolution: str, end: str) -> str | None:
    """Return the key of a convolution's or its norm's tensor, given the end of the blob's name."""
    if end in LEAVES:
        return f"{convolution}.{LEAVES[end]}"
    if end.startswith("bn_") and end[3:] in NORM_LEAVES:
        return f"{convolution}.norm.{NORM_LEAVES[end[3:]]}"
    return None


def slowfast_key(key: str) -> str | None:
    """Return SlowFast's key of a blob of a net with one pathway; None for a blob that is not known."""
    if match := re.fullmatch(r"pred_([wb])", key):
        return f"head.projection.{LEAVES[match[1]]}"
    if key == "conv1_w":
        return "s1.pathway0_stem.conv.weight"
    if (match := re.fullmatch(r"res_conv1_bn_(.+)", key)) and match[1] in NORM_LEAVES:
        return f"s1.pathway0_stem.bn.{NORM_LEAVES[match[1]]}"
    if match := re.fullmatch(r"res(\d)_(\d+)_branch(1|2[abc])_(.+)", key):
        module = f"s{match[1]}.pathway0_res{match[2]}." + {"1": "branch1"}.get(match[3], f"branch2.{match[3][1:]}")
        if match[4] == "w":
            return f"{module}.weight"
        if match[4].startswith("bn_") and match[4][3:] in NORM_LEAVES:
            return f"{module}_bn.{NORM_LEAVES[match[4][3:]]}"
    return None
