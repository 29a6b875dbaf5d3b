"""Nets of timm that are no ResNets of torchvision's form: recognised, and refused with the reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from zoo.convert.layouts.base import Imported, Layout
from zoo.errors import WeightsError


def _refused(name: str, reason: str, *required: str) -> Layout:
    """Return a layout with these keys that reads nothing and states the reason."""

    def matches(keys: Collection[str]) -> bool:
        return set(required) <= set(keys)

    def read(state: Mapping[str, Tensor], asked: str | None, options: Mapping[str, Any]) -> Imported:
        raise WeightsError(f"{name} checkpoint: {reason}")

    return Layout(name, matches, read)


REFUSED = [
    _refused(
        "timm ResNetV2",
        "its norms come before the convolutions, so that none follows a product into which it could be folded",
        "stages.0.blocks.0.norm1.weight",
        "stages.0.blocks.0.conv1.weight",
    ),
    _refused(
        "timm VGG",
        "its hidden layers are convolutions, which differ from torchvision's net at other sizes than 224; convert "
        "torchvision's weights, which are the same",
        "features.0.weight",
        "pre_logits.fc1.weight",
    ),
    _refused(
        "legacy SENet of timm",
        "it has squeeze-and-excitation, whose factors depend on the input",
        "layer1.0.se_module.fc1.weight",
    ),
]
