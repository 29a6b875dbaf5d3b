"""Faster and Mask R-CNN of detectron2, read into the keys of our detectors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from tasks.detection.build import IMAGENET, build_detector, check_options
from tasks.detection.class_names import NAMES, Classes, kept_classes
from tasks.detection.imported import ImportedDetector, asked_backbone, imported_detector, require, shown_options
from zoo.building import WithoutInit
from zoo.convert.batchnorm import Conversion
from zoo.convert.layouts import detectron2
from zoo.convert.layouts.detectron2_heads import BOX, MASK, SCORE, background_first, our_key
from zoo.convert.layouts.fitting import with_asked
from zoo.errors import WeightsError
from zoo.nets.base import Backbone
from zoo.states import load_state
from zoo.transforms import DetectionTransform, InputTransform

NAME = "detectron2 Faster or Mask R-CNN"
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
    rest = _ours(others)
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


def read_own(
    state: Mapping[str, Tensor],
    name: str,
    *,
    net: Backbone,
    transform: InputTransform | DetectionTransform,
    source: str,
    classes: Classes = None,
    **options: Any,
) -> Conversion:
    """Return the detector that detectron2 trained around a backbone of the zoo, with the same detections.

    Args:
        state: tensors of pyramid and heads, by detectron2's keys.
        name: name of our detector.
        net: backbone of the detector.
        transform: input that the backbone expects.
        source: name of the checkpoint, for messages.
        classes: see ``kept_classes``; detectron2's order of COCO's classes is by id.
        options: ``min_size``, ``max_size`` and fields of ``DetectorOptions`` that the tensors do not show.

    Raises:
        ZooError: an unknown option.
        WeightsError: a detector that none of the zoo equals, with the reason.
    """
    rest = _ours(state)
    kind = "mask" if f"{MASK}.weight" in rest else "faster"
    if (backbone := asked_backbone(NAME, kind, name)) != net.config.name:
        raise WeightsError(f"{source}: its backbone is {net.config.name}, not {backbone}, that of {name}")
    rest = _background_first(rest)
    count = len(rest[f"{SCORE}.weight"]) - 1
    names = kept_classes(classes, count, NAME, usual=len(NAMES)).names
    # the options, and the input, of which detectron2 has the sizes in its config
    sizes = {key: options.pop(key) for key in ("min_size", "max_size") if key in options}
    input = dataclasses.replace(
        DetectionTransform(
            IMAGENET.min_size, IMAGENET.max_size, transform.mean, transform.std, transform.channel_order
        ),
        **sizes,
    )
    asked = check_options(name, options)
    shown = {**shown_options(NAME, rest, len(asked.aspect_ratios)), "conventions": "detectron2"}
    with WithoutInit():
        detector = build_detector(name, net, count, with_asked(NAME, shown, options), input)
    body = {f"backbone.body.{key}": value for key, value in detector.backbone.body.state_dict().items()}
    load_state(detector, {**body, **rest}, source)
    return Conversion(detector.eval(), NAME, None, None, input, names)


def _ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors around a body in our keys, with the background as the last class.

    Raises:
        WeightsError: layers that our detectors do not have, or none.
    """
    rest = {our_key(key): value for key, value in state.items() if not re.fullmatch(_UNUSED, key)}
    if key := next((key for key in rest if re.search(r"norm\.|\.box_head\.conv", key)), None):
        raise WeightsError(f"{NAME} checkpoint: {key}: norms or convolutions in pyramid or box head do not convert")
    require(
        NAME, rest, (f"{SCORE}.weight", f"{SCORE}.bias", f"{BOX}.weight", f"{BOX}.bias", "rpn.head.cls_logits.weight")
    )
    return rest


def _background_first(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with the background as the first class.

    Raises:
        WeightsError: boxes or masks that are not predicted for each class.
    """
    classes = len(state[f"{SCORE}.weight"]) - 1
    for layer, rows in ((BOX, 4 * classes), (MASK, classes)):
        for key in (f"{layer}.weight", f"{layer}.bias"):
            if key in state and len(state[key]) != rows:
                raise WeightsError(
                    f"{NAME} checkpoint: {key} has {len(state[key])} rows; must be {rows}, for each class"
                )
    return background_first(state)
