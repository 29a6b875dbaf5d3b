"""The description of a net's input and head in timm's words, which timm's tools read from ``net.pretrained_cfg``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from zoo.nets.base import Backbone, ModelConfig, Net
from zoo.specs import ModelSpec
from zoo.transforms import AnyTransform, InputTransform

CROP = 0.875  # side of the centre crop over the short side, of nets without weights


def describe(
    net: Backbone,
    *,
    input_size: int,
    in_chans: int,
    num_classes: int,
    transform: AnyTransform | None = None,
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return timm's ``pretrained_cfg`` of a net for images, without an address of weights.

    As in timm, it describes the weights, not the net where the two differ.

    Args:
        net: net of the weights.
        input_size: side in pixels that the net was designed for.
        in_chans: input channels of the weights.
        num_classes: classes of the weights.
        transform: transform of the weights; None, or one that is not of single images, for ImageNet's.
        classes: class names of the weights.
    """
    if not isinstance(transform, InputTransform):
        transform = InputTransform.imagenet(input_size, round(input_size / CROP))
    # timm resizes the short side to floor(size / crop_pct); rounding must not lose a pixel
    crop_pct = transform.size / transform.resize
    if math.floor(transform.size / crop_pct) != transform.resize:
        crop_pct = math.nextafter(crop_pct, 0)
    # the strides of residual nets round up, those of max pools down
    positions = transform.size / net.levels[-1].reduction
    side = math.ceil(positions) if net.residual else math.floor(positions)
    first = next(name for name, parameter in net.named_parameters() if parameter.ndim >= 4)
    cfg = {
        "architecture": net.config.name,
        "input_size": (in_chans, transform.size, transform.size),
        "pool_size": (side, side),
        "crop_pct": crop_pct,
        "crop_mode": "center",
        "interpolation": transform.interpolation,
        "mean": transform.mean,
        "std": transform.std,
        "num_classes": num_classes,
        "first_conv": first.removesuffix(".weight"),
        "classifier": net.get_classifier(name_only=True),
    }
    if transform.channel_order != "RGB":
        cfg["channel_order"] = transform.channel_order  # not a word of timm, whose images are RGB
    return {**cfg, "label_names": tuple(classes)} if classes else cfg


def set_pretrained_cfg(
    net: Net, spec: ModelSpec, stored: ModelConfig, transform: AnyTransform | None = None, classes: Sequence[str] = ()
) -> None:
    """Describe a net for images; other nets have no description in timm.

    Args:
        net: net to describe.
        spec: registered net.
        stored: config of its weights, or its own.
        transform: transform of the weights.
        classes: class names of the weights.
    """
    if isinstance(net, Backbone) and spec.input_kind == "images":
        size = {"input_size": spec.input_size, "in_chans": stored.in_chans, "num_classes": stored.num_classes}
        net.pretrained_cfg = net.default_cfg = describe(net, **size, transform=transform, classes=classes)
