"""Conversion of checkpoints of the authors' ImageNet code (RescaleNet, NeurIPS 2020)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.building import WithoutInit
from zoo.convert.unwrapping import state_inside
from zoo.errors import WeightsError
from zoo.nets.base import Backbone, ModelConfig
from zoo.registry import build_model
from zoo.specs import get_spec
from zoo.states import load_state

# module of the reference -> parameter of ours; bias modules first, in both ResNets and VGG
_RESNET_BIASES = {"addbias1": "stem.conv1.bias", "addbias2": "head_bias.bias"}


_RESNET_KEPT = re.compile(r"layer\d+\.\d+\.conv[123]|fc")  # modules with the same name in both nets


def is_reference(keys: Iterable[str]) -> bool:
    """Return whether keys are of a net of the authors' code: its bias modules have ``_bias`` and ``init_mean``.

    Args:
        keys: keys of a state dict.

    >>> is_reference(["conv1.weight", "addbias1._bias", "addbias1.init_mean"])
    True
    >>> is_reference(["conv1.weight", "bn1.weight", "bn1.bias"])
    False
    """
    return any(key.endswith(("._bias", ".init_mean")) for key in keys)


def from_reference(state_dict: Mapping[str, Any], name: str, **options: Any) -> Backbone:
    """Return a net with the outputs of the authors' code, from their state dict.

    Their bias module computes x + _bias - init_mean; ours stores the difference. Their block counter starts at 0, so
    the net has ``first_index=0``. A ``module.`` prefix (DataParallel) is removed. The dtype of the state dict is kept.

    Args:
        state_dict: content of ``torch.load(path, weights_only=True)``, or the state dict in it.
        name: name of the net: rescalenet50, rescalenext50_32x4d, rescalevgg16, ...
        options: further options of the net (dropout rates).

    Raises:
        zoo.WeightsError: a checkpoint of other code; keys that are missing, left over or of the wrong shape.
    """
    # our keys, and one bias in place of _bias and init_mean
    state = state_inside(state_dict, "reference checkpoint")
    family = get_spec(name).family.__name__
    if family not in ("ResNet", "VGG"):
        raise WeightsError(f"reference checkpoint: {name} is not in the authors' code, which has ResNets and VGGs")
    _refuse_others(state)
    rename = _resnet_name if family == "ResNet" else _VGGNames(name)
    out: dict[str, Tensor] = {}
    unknown = []
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        if leaf in ("count", "init_mean"):
            continue
        own = rename(module, leaf)
        if own is None:
            unknown.append(key)
        elif leaf == "_bias":
            mean = state.get(f"{module}.init_mean")
            if mean is None:
                raise WeightsError(f"reference checkpoint: {module}.init_mean is missing")
            if mean.shape != value.shape:
                raise WeightsError(f"reference checkpoint: {module} has _bias and init_mean of different shapes")
            out[own] = (value - mean).flatten()
        elif leaf == "_scale":
            if value.numel() != 1:
                raise WeightsError(f"reference checkpoint: {key} has {value.numel()} values, must be one")
            out[own] = value.reshape(())
        else:
            out[own] = value
    if unknown:
        raise WeightsError(
            f"reference checkpoint: {len(unknown)} unexpected keys, the first {min(unknown)!r}, for {name}"
        )
    # a net with as many classes and of the same type
    if "fc.bias" not in out:
        raise WeightsError("reference checkpoint: the bias of the last layer is missing")
    if family == "ResNet":
        options = {"first_index": 0, **options}
    with WithoutInit():
        model = build_model(ModelConfig(name, "rescale", out["fc.bias"].numel(), 3, options))
    assert isinstance(model, Backbone)
    model.to(out["fc.bias"].dtype if out["fc.bias"].is_floating_point() else torch.float32)
    load_state(model, out, "reference checkpoint")
    return model


def _refuse_others(state: Mapping[str, Tensor]) -> None:
    """Check that a state dict is of the authors' code.

    Raises:
        zoo.WeightsError: it is not; the message names the kind that it seems to be, and the remedy.
    """
    if is_reference(state):
        return
    if any(key.endswith((".pre_bias", ".join.multiplier")) for key in state):
        raise WeightsError(
            "reference checkpoint: its keys are those of a net of this zoo: load the state dict into the net that "
            "zoo.create_model makes, and write it with zoo.save_weights"
        )
    if any(key.endswith("running_mean") for key in state):
        raise WeightsError(
            "reference checkpoint: its keys are those of a net with BatchNorm: convert it with "
            "zoo.convert.from_batchnorm"
        )
    raise WeightsError(
        "reference checkpoint: no key ends in ._bias or .init_mean, as those of the authors' code do; the first is "
        f"{min(state)[:80]!r}"
    )


def _resnet_name(module: str, leaf: str) -> str | None:
    """Return our key of a ResNet's parameter, None if it has none.

    Args:
        module: the reference's key without its last part.
        leaf: last part of the key.
    """
    if module in _RESNET_BIASES:
        return _RESNET_BIASES[module] if leaf == "_bias" else None
    if module == "conv1":
        return f"stem.conv1.{leaf}"
    if leaf == "_scale":
        return f"{module}.join.multiplier"
    if match := re.fullmatch(r"(layer\d+\.\d+)\.addbias([123])", module):
        return f"{match[1]}.conv{match[2]}.pre_bias" if leaf == "_bias" else None
    if match := re.fullmatch(r"(layer\d+\.\d+)\.downsample\.([12])", module):
        return f"{match[1]}.downsample.conv.{'pre_bias' if match[2] == '1' else 'weight'}"
    return f"{module}.{leaf}" if _RESNET_KEPT.fullmatch(module) and leaf in ("weight", "bias") else None


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

    def __call__(self, module: str, leaf: str) -> str | None:
        return self.names.get((module, leaf))
