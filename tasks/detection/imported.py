"""A foreign detector in the keys of ours: what a layout of detectors returns, and the detector made from it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import zoo
from tasks.detection.build import IMAGENET, build_detector, check_options, parse_name
from tasks.detection.rcnn import Detector, DetectorOptions
from zoo.convert.layouts import Imported
from zoo.convert.layouts.fitting import with_asked
from zoo.errors import WeightsError
from zoo.states import load_state
from zoo.transforms import DetectionTransform


@dataclass(frozen=True)
class ImportedDetector:
    """A foreign detector in the keys of the detector of the zoo that has the same layers and norms.

    Attributes:
        layout: name of the layout that it had.
        name: name of our detector.
        num_classes: number of classes without the background.
        options: fields of ``DetectorOptions`` that differ from the defaults, those of the body among them.
        state: complete state dict of our detector with ``scheme="bn"``.
        eps: eps of the norms.
        input: input transform.
        classes: class names; None if they are not known.
    """

    layout: str
    name: str
    num_classes: int
    options: dict[str, Any]
    state: dict[str, Tensor]
    eps: float
    input: DetectionTransform
    classes: tuple[str, ...] | None


def load_imported(imported: ImportedDetector) -> Detector:
    """Return the detector of the zoo that a foreign checkpoint is, with its norms.

    Raises:
        WeightsError: tensors that are missing, left over, or of other shapes.
    """
    _, backbone = parse_name(imported.name)
    net = zoo.build_model(zoo.ModelConfig(backbone, "bn", 0, 3, imported.options["body"]))
    assert isinstance(net, zoo.Backbone)
    detector = build_detector(imported.name, net, imported.num_classes, imported.options, imported.input)
    detector.to(next(value for value in imported.state.values() if value.is_floating_point()).dtype)
    # FrozenBatchNorm2d and old checkpoints count no batches
    counters = {key: value for key, value in detector.state_dict().items() if key.endswith("num_batches_tracked")}
    load_state(detector, {**counters, **imported.state}, f"{imported.layout} checkpoint")
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = imported.eps
    return detector.eval()


def require(layout: str, state: Mapping[str, Tensor], keys: Iterable[str]) -> None:
    """Refuse a checkpoint that lacks one of these keys.

    Args:
        layout: name of the checkpoint's layout, for messages.
        state: tensors of the checkpoint.
        keys: keys that it must have.

    Raises:
        WeightsError: a key is missing.
    """
    if missing := [key for key in keys if key not in state]:
        raise WeightsError(f"{layout} checkpoint: {missing[0]} is missing; it is no whole detector")


def asked_backbone(layout: str, kind: str, name: str | None) -> str | None:
    """Return the backbone of the detector that was asked for; None if any.

    Args:
        layout: name of the checkpoint's layout, for messages.
        kind: faster or mask.
        name: name of our detector that was asked for; None for any.

    Raises:
        WeightsError: a detector of the other kind was asked for.
    """
    if name is None:
        return None
    asked, backbone = parse_name(name)
    if asked != kind:
        raise WeightsError(f"{layout} checkpoint: it is a {kind} R-CNN, which {name} is not; leave the name out")
    return backbone


def imported_detector(
    layout: str,
    kind: str,
    net: Imported,
    state: Mapping[str, Tensor],
    options: Mapping[str, Any],
    *,
    eps: float,
    input: DetectionTransform = IMAGENET,
    classes: tuple[str, ...] | None = None,
) -> ImportedDetector:
    """Return the detector that a body, and pyramid and heads in our keys, are together.

    Args:
        layout: name of the checkpoint's layout.
        kind: faster or mask.
        net: body, as a layout of backbones reads it.
        state: tensors of pyramid and heads.
        options: settings that the tensors do not show: options of the input and fields of ``DetectorOptions``.
        eps: eps of the norms.
        input: input transform, whose fields options may replace.
        classes: class names.

    Raises:
        ZooError: unknown option.
        WeightsError: layers that no detector of the zoo has, or an option that contradicts them.
    """
    if net.config.in_chans != 3:
        raise WeightsError(f"{layout} checkpoint: its body takes {net.config.in_chans} channels; must be 3")
    # the options
    of_input = {key: options[key] for key in ("min_size", "max_size") if key in options}
    of_input |= {key: tuple(options[key]) for key in ("mean", "std") if key in options}
    rest = {key: value for key, value in options.items() if key not in of_input}
    asked = check_options("from_batchnorm", rest)
    shown = {**shown_options(layout, state, len(asked.aspect_ratios)), "body": dict(net.config.options)}
    merged = with_asked(layout, shown, {key: value for key, value in rest.items() if key != "body"})
    # the detector
    return ImportedDetector(
        layout=layout,
        name=f"{kind}_rcnn_{net.config.name}_fpn",
        num_classes=len(state["roi_heads.box_predictor.cls_score.weight"]) - 1,
        options={key: value for key, value in merged.items() if value != _DEFAULTS.get(key)},
        state={**{f"backbone.body.body.{key}": value for key, value in net.state.items()}, **state},
        eps=eps,
        input=dataclasses.replace(input, **of_input),
        classes=classes,
    )


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(DetectorOptions)}


def shown_options(layout: str, state: Mapping[str, Tensor], ratios: int) -> dict[str, Any]:
    """Return the fields of ``DetectorOptions`` that tensors around the body, in our keys, show.

    Args:
        layout: name of the checkpoint's layout, for messages.
        state: tensors of pyramid and heads.
        ratios: number of aspect ratios of the anchors.

    Raises:
        WeightsError: layers that no detector of the zoo has.
    """

    def widths(pattern: str) -> tuple[int, ...]:
        return tuple(len(state[key]) for key in sorted(state) if re.fullmatch(pattern, key))

    # the pyramid
    pyramid = widths(r"backbone\.fpn\.outputs\.\d\.weight")
    if len(pyramid) != 4:
        raise WeightsError(f"{layout} checkpoint: its pyramid has {len(pyramid)} levels of the body; must be 4 (C2-C5)")
    # the heads: norms are in all of pyramid, box head and mask head, or in none
    style = "2fc" if "roi_heads.box_head.fc6.weight" in state else "4conv1fc"
    normed = {key.split("norm")[0] for key in state if key.endswith("running_mean")}
    parts = {"backbone.fpn.lateral_", "backbone.fpn.output_", "roi_heads.box_head.convs."}
    if "roi_heads.mask_head.conv1.weight" in state:
        parts.add("roi_heads.mask_head.")
    if normed != (set() if style == "2fc" else parts):
        wrong = sorted(normed or parts)[0]
        raise WeightsError(
            f"{layout} checkpoint: norms in {wrong}* but not in every part; with a box head of convolutions "
            "pyramid, box head and mask head must all have BatchNorm, with one of two linear layers none of them"
        )
    linear = "fc6" if style == "2fc" else "fc"
    require(layout, state, [f"roi_heads.box_head.{linear}.weight"])
    anchors = state["rpn.head.cls_logits.weight"].shape[0]
    if anchors != ratios:
        raise WeightsError(
            f"{layout} checkpoint: {anchors} anchors at a position; must be {ratios}, one for each of aspect_ratios"
        )
    shown: dict[str, Any] = {
        "heads": style,
        "fpn_channels": pyramid[0],
        "rpn_convs": len(widths(r"rpn\.head\.conv\.\d\.0\.weight")),
        "box_width": len(state[f"roi_heads.box_head.{linear}.weight"]),
    }
    if style == "4conv1fc":
        shown["box_convs"] = widths(r"roi_heads\.box_head\.convs\.conv\d\.weight")
    if "roi_heads.mask_head.conv1.weight" in state:
        shown["mask_convs"] = widths(r"roi_heads\.mask_head\.conv\d\.weight")
        shown["mask_width"] = state["roi_heads.mask_predictor.conv5_mask.weight"].shape[1]
    return shown
