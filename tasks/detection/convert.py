"""Detectors with BatchNorm into detectors without normalization that find the same objects.

A checkpoint of torchvision is read into a detector of ours with ``scheme="bn"``, whose layers are the same, and that
detector is rescaled: its body by ``zoo.convert.rescaled``, pyramid and heads layer by layer, as no trunk runs through
them. A scale and a bias for each channel replace their norms. Detectors trained here with ``bn`` convert likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops import FrozenBatchNorm2d

from tasks.detection import from_detectron2, from_torchvision
from tasks.detection.build import build_detector
from tasks.detection.class_names import Classes, kept_classes
from tasks.detection.heads import ConvsLinear
from tasks.detection.imported import load_imported
from tasks.detection.rcnn import Detector, DetectorOptions
from zoo.calibration import HasDataBias
from zoo.convert.batchnorm import Conversion
from zoo.convert.rescaled import SCHEME_OPTIONS, Form, rescaled, transfer
from zoo.errors import ZooError
from zoo.layers import GainedConv
from zoo.options import free_options
from zoo.states import load_state

OURS = "RescaleNet model zoo"
NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def from_batchnorm(
    state: Mapping[str, Tensor],
    name: str | None,
    *,
    model: nn.Module | None,
    eps: float | None,
    form: Form,
    classes: Classes = None,
    **options: Any,
) -> Conversion | None:
    """Return the conversion of a detector with BatchNorm; None if it is not of a known layout.

    Args:
        state: state dict of torchvision's or detectron2's Faster or Mask R-CNN, or of a detector of the zoo.
        name: name of our detector; None to infer it.
        model: module that the state dict is of; None if a state dict was given. Anchors, sizes and thresholds show in
            the module only: for a state dict they are torchvision's defaults.
        eps: eps of the norms; None for 0 where the body has FrozenBatchNorm2d, else 1e-5.
        form: form of the conversion. Pyramid and heads have no multipliers; ``balanced`` leaves them as ``folded``.
        classes: class names in order of the labels. Two words are allowed too: ``coco`` keeps of a detector with COCO's
            ids the 80 that are names of objects, ``all`` keeps each without a name. None is ``coco`` for detectors with
            as many classes as COCO's have in their layout, which is logged, and ``all`` for others.
        options: ``min_size``, ``max_size``, ``mean``, ``std`` of the input, and fields of ``DetectorOptions``; those in
            ``body`` are those that ``zoo.convert.from_batchnorm`` takes for the body.

    Raises:
        ZooError: unknown option.
        WeightsError: a detector that none of the zoo equals, with the reason.
    """
    # a detector of the zoo
    if isinstance(model, Detector):
        if name not in (None, model.config.name):
            raise ZooError(f"name={name!r}: the detector given is {model.config.name}; leave the name out")
        if any(eps not in (None, norm.eps) for norm in model.modules() if isinstance(norm, NORMS)):
            raise ZooError(f"eps={eps}: the norms of the detector given have their own; leave eps out")
        done = rescaled_detector(model, form, **options)
        names = kept_classes(classes, done.num_classes, OURS, usual=0).names
        return Conversion(done, OURS, form, None, done.input, names)
    # one of torchvision or detectron2
    layout = next((layout for layout in (from_torchvision, from_detectron2) if layout.matches(state)), None)
    if layout is None:
        return None
    settings = from_torchvision.module_settings(model) if isinstance(model, GeneralizedRCNN) else {}
    of_result, of_layout = split_options({**settings, **options})
    imported = layout.read(state, name, of_layout, eps=eps, classes=classes)
    detector = load_imported(imported)
    done = rescaled_detector(detector, form, **of_result)
    return Conversion(done, imported.layout, form, imported.eps, imported.input, imported.classes)


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the options of a conversion into those that change the result and those that describe the source."""
    free = free_options(DetectorOptions)
    body = options.get("body", {})
    of_result = {key: value for key, value in options.items() if key in free}
    of_layout = {key: value for key, value in options.items() if key not in free and key != "body"}
    of_result["body"] = {key: value for key, value in body.items() if key in SCHEME_OPTIONS}
    of_layout["body"] = {key: value for key, value in body.items() if key not in SCHEME_OPTIONS}
    return of_result, of_layout


def rescaled_detector(old: Detector, form: Form = "gained", **options: Any) -> Detector:
    """Return a detector without normalization that makes the detections of one with BatchNorm in eval mode.

    The gains of the pyramid's laterals are 1: a converted body has the levels of a normalized one, whose power needs no
    correction.

    Args:
        old: detector of the zoo of scheme ``bn``, ``frozen_bn`` or ``none``; it is not changed.
        form: see ``zoo.convert.rescaled``.
        options: free fields of ``DetectorOptions``; ``body`` has options of the result's body.

    Raises:
        ZooError: another scheme, or an option that the checkpoint decides.
    """
    for key, value in old.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ZooError(f"{old.config.name}: {key} has values that are not finite; the checkpoint is damaged")
    # options: only those that no weight depends on
    body = dict(options.pop("body", {}))
    if other := sorted(options.keys() - free_options(DetectorOptions)):
        raise ZooError(f"option {other[0]!r}: the checkpoint decides it; leave it out")
    # the body, and fresh layers around it
    net = rescaled(old.backbone.body.body, form, **body)
    new = build_detector(old.config.name, net, old.num_classes, {**old.config.options, **options}, old.input)
    like = next(old.parameters())
    new.to(like.device, like.dtype).train(old.training)
    # pyramid and heads, layer by layer
    pyramid, theirs = new.backbone.fpn, old.backbone.fpn
    with torch.no_grad():
        for place in ("lateral", "output"):
            layers = zip(
                getattr(theirs, f"{place}s"),
                getattr(theirs, f"{place}_norms"),
                getattr(pyramid, f"{place}s"),
                strict=True,
            )
            for i, (conv, norm, layer) in enumerate(layers):
                if isinstance(conv, GainedConv):  # of nets without norms, whose gains are their own
                    _copy(conv.gain, layer.gain)
                    conv = conv.conv
                inner = layer.conv if isinstance(layer, GainedConv) else layer
                transfer(conv, norm, inner, name=f"backbone.fpn.{place}_norms.{i}")
        _copy(old.rpn, new.rpn)
        old_heads, new_heads = old.roi_heads, new.roi_heads
        if isinstance(old_heads.box_head, ConvsLinear):
            _convert_stack(old_heads.box_head.convs, new_heads.box_head.convs, "roi_heads.box_head.convs")
            _copy_parameters(old_heads.box_head.fc, new_heads.box_head.fc)
        else:
            _copy(old_heads.box_head, new_heads.box_head)
        _copy(old_heads.box_predictor, new_heads.box_predictor)
        if old.has_masks:
            _convert_stack(old_heads.mask_head, new_heads.mask_head, "roi_heads.mask_head")
            _copy(old_heads.mask_predictor, new_heads.mask_predictor)
    # nothing is left to calibrate
    for module in new.modules():
        if isinstance(module, HasDataBias):
            module.calibrated = True
    return new


def _convert_stack(old: nn.Module, new: nn.Module, name: str) -> None:
    """Set the convolutions of a stack (``tasks.detection.heads.conv_stack``) to those of another and its norms."""
    count = sum(child.startswith("conv") for child, _ in old.named_children())
    for i in range(1, count + 1):
        norm = getattr(old, f"norm{i}", nn.Identity())
        transfer(getattr(old, f"conv{i}"), norm, getattr(new, f"conv{i}"), name=f"{name}.norm{i}")


def _copy(old: nn.Module, new: nn.Module) -> None:
    """Copy the tensors of a module of the same layers."""
    load_state(new, old.state_dict(), "heads")


def _copy_parameters(old: nn.Module, new: nn.Module) -> None:
    """Copy the parameters that two layers share; a bias before the product stays 0."""
    for key, value in old.named_parameters():
        new.get_parameter(key).copy_(value)
