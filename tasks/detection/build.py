"""From the name of a detector, its options and a backbone to the detector."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import zoo
from tasks.detection.rcnn import Detector, DetectorOptions
from zoo.arguments import as_python
from zoo.errors import ZooError, suggestion
from zoo.options import checked, plain
from zoo.transforms import IMAGENET_MEAN, IMAGENET_STD, DetectionTransform

IMAGENET = DetectionTransform(800, 1333, IMAGENET_MEAN, IMAGENET_STD)
_NAME = re.compile(r"(faster|mask)_rcnn_(.+)_fpn")


def parse_name(name: str) -> tuple[str, str]:
    """Split a detector's name into its kind (faster or mask) and its backbone.

    Raises:
        ZooError: the name is not a detector's, or its backbone does not take images.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ZooError(f"unknown detector {name!r}: must be faster_rcnn_BACKBONE_fpn or mask_rcnn_BACKBONE_fpn")
    if (kind := zoo.model_info(match[2]).input_kind) != "images":
        raise ZooError(f"{name}: {match[2]} takes {kind}, not images")
    return match[1], match[2]


def check_options(name: str, values: Mapping[str, Any]) -> DetectorOptions:
    """Return the checked options of a detector.

    Raises:
        ZooError: an option is unknown (the message has near matches), or a value has the wrong type.
    """
    known = [field.name for field in dataclasses.fields(DetectorOptions)]
    for key in values:
        if key not in known:
            raise ZooError(f"{name} has no option {key!r}{suggestion(key, known)}")
    given = checked(values, DetectorOptions, name)
    try:
        return DetectorOptions(**given)
    except ZooError as error:
        raise ZooError(f"{name}: {error}") from None


def build_detector(
    name: str, net: zoo.Backbone, num_classes: int, options: Mapping[str, Any], input: DetectionTransform
) -> Detector:
    """Return a detector around a backbone; its pyramid and heads are fresh.

    Args:
        name: name of the detector.
        net: backbone without a classifier, of the name's architecture; the detector takes it over.
        num_classes: number of classes without the background.
        options: fields of ``DetectorOptions``; ``body`` gives way to the net's own options.
        input: input transform.

    Raises:
        ZooError: an unknown option, one of the wrong type, or no class.
    """
    options = as_python(dict(options))
    settings = check_options(name, options)
    indices = _last_strides(net) if settings.out_indices is None else settings.out_indices
    config = zoo.ModelConfig(
        name, net.config.scheme, num_classes, 3, {**plain(dict(options)), "body": dict(net.config.options)}
    )
    if num_classes < 1:
        raise ZooError(f"num_classes={num_classes}: must be >= 1 (the background does not count)")
    kind, _ = parse_name(name)
    return Detector(config, zoo.FeatureExtractor(net, indices), settings, input, masks=kind == "mask")


def _last_strides(net: zoo.Backbone) -> tuple[int, ...]:
    """Return the indices of the deepest level of each of the last four strides."""
    deepest = {level.reduction: i for i, level in enumerate(net.levels)}
    return tuple(deepest.values())[-4:]
