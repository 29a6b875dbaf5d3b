"""Conversion of checkpoints of the authors' ImageNet code (RescaleNet, NeurIPS 2020)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.errors import WeightsError
from zoo.nets.base import Backbone
from zoo.registry import create_model
from zoo.specs import get_spec
from zoo.states import load_state

# module of the reference -> parameter of ours; bias modules first, in both ResNets and VGG
_RESNET_BIASES = {"addbias1": "stem.conv1.bias", "addbias2": "head_bias.bias"}


def from_reference(state_dict: Mapping[str, Tensor], name: str, **options: Any) -> Backbone:
    """Return a net with the outputs of the authors' code, from their state dict.

    Their bias module computes x + _bias - init_mean; ours stores the difference. Their block counter starts at 0, so
    the net has ``first_index=0``. A ``module.`` prefix (DataParallel) is removed. The dtype of the state dict is kept.

    Args:
        state_dict: content of ``torch.load(path, weights_only=True)["state_dict"]``.
        name: name of the net: rescalenet50, rescalenext50_32x4d, rescalevgg16, ...
        options: further options of the net (dropout rates).

    Raises:
        zoo.WeightsError: keys that are missing, left over or of the wrong shape.
    """
    # our keys, and one bias in place of _bias and init_mean
    state = {key.removeprefix("module."): value for key, value in state_dict.items()}
    family = get_spec(name).family.__name__
    rename = _resnet_name if family == "ResNet" else _VGGNames(name)
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        if leaf in ("count", "init_mean"):
            continue
        if leaf == "_bias":
            mean = state.get(f"{module}.init_mean")
            if mean is None:
                raise WeightsError(f"reference checkpoint: {module}.init_mean is missing")
            out[rename(module, leaf)] = (value - mean).flatten()
        elif leaf == "_scale":
            out[rename(module, leaf)] = value.reshape(())
        else:
            out[rename(module, leaf)] = value
    # a net with as many classes and of the same type
    if "fc.bias" not in out:
        raise WeightsError("reference checkpoint: the bias of the last layer is missing")
    if family == "ResNet":
        options = {"first_index": 0, **options}
    model = create_model(name, num_classes=out["fc.bias"].numel(), **options)
    model.to(out["fc.bias"].dtype if out["fc.bias"].is_floating_point() else torch.float32)
    load_state(model, out, "reference checkpoint")
    return model


def _resnet_name(module: str, leaf: str) -> str:
    """Return our key of a ResNet's parameter; ``module`` and ``leaf`` are the parts of the reference's key."""
    if module in _RESNET_BIASES and leaf == "_bias":
        return _RESNET_BIASES[module]
    if module == "conv1":
        return f"stem.conv1.{leaf}"
    if leaf == "_scale":
        return f"{module}.join.multiplier"
    if match := re.fullmatch(r"(layer\d+\.\d+)\.addbias([123])", module):
        return f"{match[1]}.conv{match[2]}.pre_bias"
    if match := re.fullmatch(r"(layer\d+\.\d+)\.downsample\.([12])", module):
        return f"{match[1]}.downsample.conv.{'pre_bias' if match[2] == '1' else 'weight'}"
    return f"{module}.{leaf}"


class _VGGNames:
    """Maps positions in the reference's Sequentials to our stages.

    The reference's layout is conv, ReLU, (pool), bias, conv, ...

    Args:
        name: name of the net.
    """

    def __init__(self, name: str) -> None:
        depths = get_spec(name).layout.depths
        self.names: dict[tuple[str, str], str] = {}
        position = 0
        for stage, depth in enumerate(depths, 1):
            for j in range(1, depth + 1):
                conv = f"stage{stage}.conv{j}"
                if position:
                    self.names[f"features.{position}", "_bias"] = f"{conv}.pre_bias"
                    position += 1
                self.names[f"features.{position}", "weight"] = f"{conv}.weight"
                position += 2  # the convolution and its ReLU
            position += 1  # the pool
        self.names[f"features.{position}", "_bias"] = "head_bias.bias"
        self.names |= {
            ("classifier.0", "weight"): "hidden.0.weight",
            ("classifier.3", "_bias"): "hidden.3.pre_bias",
            ("classifier.4", "weight"): "hidden.3.weight",
            ("classifier.7", "_bias"): "fc.pre_bias",
            ("classifier.8", "weight"): "fc.weight",
            ("classifier.8", "bias"): "fc.bias",
        }

    def __call__(self, module: str, leaf: str) -> str:
        return self.names.get((module, leaf), f"{module}.{leaf}")


def is_reference(keys: Collection[str]) -> bool:
    """Return whether the keys of a state dict are of the authors' code, whose bias modules store their first mean."""
    leaves = {key.rpartition(".")[2] for key in keys}
    return {"_bias", "init_mean"} <= leaves
