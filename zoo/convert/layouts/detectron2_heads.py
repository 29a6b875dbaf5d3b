"""Names of the pyramid and the heads of detectron2's Faster and Mask R-CNN in ours, and back.

Both have the same layers. They differ in the place of the background: the last class in detectron2, the first here,
where it also has a box and a mask that nothing reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

SCORE, BOX = "roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"
MASK = "roi_heads.mask_predictor.mask_fcn_logits"

_Row = tuple[str, str, int]  # their module, our module, and their number {0} less ours
_MODULES: list[_Row] = [
    ("backbone.fpn_lateral{0}", "backbone.fpn.laterals.{0}", 2),
    ("backbone.fpn_output{0}", "backbone.fpn.outputs.{0}", 2),
    ("proposal_generator.rpn_head.objectness_logits", "rpn.head.cls_logits", 0),
    ("proposal_generator.rpn_head.anchor_deltas", "rpn.head.bbox_pred", 0),
    ("roi_heads.box_head.fc{0}", "roi_heads.box_head.fc{0}", -5),
    ("roi_heads.mask_head.mask_fcn{0}", "roi_heads.mask_head.conv{0}", 0),
    ("roi_heads.mask_head.deconv", "roi_heads.mask_predictor.conv5_mask", 0),
    ("roi_heads.mask_head.predictor", MASK, 0),
]
# the convolutions of the RPN have two names in detectron2: one alone, and several
_ONE: _Row = ("proposal_generator.rpn_head.conv", "rpn.head.conv.0.0", 0)
_SEVERAL: _Row = ("proposal_generator.rpn_head.conv.conv{0}", "rpn.head.conv.{0}.0", 0)
_LEAVES = r"((?:conv\.|gain\.)?\w+)"  # a lateral that reads its level through a gain has two modules


def our_key(key: str) -> str:
    """Return our key of one of detectron2's, outside of the body; a key that is not known stays."""
    return _renamed(key, [(theirs, ours, -shift) for theirs, ours, shift in (*_MODULES, _ONE, _SEVERAL)])


def their_key(key: str, rpn_convs: int) -> str:
    """Return detectron2's key of one of ours, outside of the body; a key that is not known stays.

    Args:
        key: key of one of our detectors with the heads ``2fc``.
        rpn_convs: convolutions of its region proposal network, whose names in detectron2 depend on their number.
    """
    rows = (*_MODULES, _ONE if rpn_convs == 1 else _SEVERAL)
    return _renamed(key, [(ours, theirs, shift) for theirs, ours, shift in rows])


def _renamed(key: str, table: list[_Row]) -> str:
    """Return a key whose module's name, in the first column of a table, becomes that in the second."""
    for before, after, shift in table:
        pattern = re.escape(before).replace(r"\{0\}", r"(\d)")
        if match := re.fullmatch(rf"{pattern}\.{_LEAVES}", key):
            number = int(match[1]) + shift if "{0}" in before else 0
            return f"{after.format(number)}.{match[match.re.groups]}"
    return key


def background_first(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move the background's scores from the last row to the first, and give its boxes and masks rows of zeros.

    Args:
        state: tensors by our keys, with detectron2's order of the classes and as many boxes and masks as classes.
    """
    result = dict(state)
    classes = len(state[f"{SCORE}.weight"]) - 1
    for leaf in ("weight", "bias"):
        result[f"{SCORE}.{leaf}"] = state[f"{SCORE}.{leaf}"].roll(1, 0)
        for layer in (BOX, MASK):
            if (value := state.get(f"{layer}.{leaf}")) is not None:  # Faster R-CNN has no masks
                result[f"{layer}.{leaf}"] = torch.cat([torch.zeros_like(value[: len(value) // classes]), value])
    return result


def background_last(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move the background's scores from the first row to the last, and drop its boxes and masks.

    Args:
        state: tensors by our keys, with our order of the classes.
    """
    result = dict(state)
    count = len(state[f"{SCORE}.weight"])
    for leaf in ("weight", "bias"):
        result[f"{SCORE}.{leaf}"] = state[f"{SCORE}.{leaf}"].roll(-1, 0)
        for layer in (BOX, MASK):
            if (value := state.get(f"{layer}.{leaf}")) is not None:
                result[f"{layer}.{leaf}"] = value[len(value) // count :]
    return result
