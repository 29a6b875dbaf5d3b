"""VGG nets in torchvision's layout, with BatchNorm after each convolution or without."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from zoo.convert.layouts.base import Imported, Layout
from zoo.convert.layouts.fitting import candidates, fitted, weight_of, with_asked
from zoo.errors import WeightsError
from zoo.nets.base import ModelConfig
from zoo.nets.vgg import VGG, VGGConfig

NAME = "torchvision VGG"

HEAD = {"hidden.0": "classifier.0", "hidden.3": "classifier.3", "fc": "classifier.6"}


def module_names(depths: tuple[int, ...], normalized: bool) -> dict[str, str]:
    """Return the names of torchvision's modules by those of ours.

    Args:
        depths: convolutions in each stage.
        normalized: whether a BatchNorm follows each convolution.
    """
    names, position = dict(HEAD), 0
    for stage, depth in enumerate(depths, 1):
        for number in range(1, depth + 1):
            names[f"stage{stage}.conv{number}"] = f"features.{position}"
            if normalized:
                names[f"stage{stage}.norm{number}"] = f"features.{position + 1}"
            position += 3 if normalized else 2  # the convolution, its norm and its ReLU
        position += 1  # the pool
    return names


def depths_of(state: Mapping[str, Tensor], normalized: bool) -> tuple[int, ...]:
    """Return the number of convolutions between max pools, which the gaps in the numbers show.

    Raises:
        WeightsError: a gap that is none of one pool.
    """
    step = 3 if normalized else 2
    convs = sorted(
        int(m[1])
        for key, value in state.items()
        if (m := re.fullmatch(r"features\.(\d+)\.weight", key)) and value.ndim > 1
    )
    depths = [1]
    for before, after in itertools.pairwise(convs):
        if after - before == step:
            depths[-1] += 1
        elif after - before == step + 1:
            depths.append(1)
        else:
            raise WeightsError(
                f"{NAME} checkpoint: features.{before} and features.{after} are {after - before} modules apart; must "
                f"be {step}, or {step + 1} with a max pool between"
            )
    return tuple(depths)


def matches(keys: Collection[str]) -> bool:
    """Return whether keys are those of torchvision's VGG."""
    return {"features.0.weight", "classifier.0.weight", "classifier.3.weight"} <= set(keys)


def read(state: Mapping[str, Tensor], name: str | None, options: Mapping[str, Any]) -> Imported:
    """Return a checkpoint of torchvision's VGG in the keys of our ``bn`` net, or of our ``none`` net without BatchNorm.

    Args:
        state: state dict of the checkpoint.
        name: name of our net; None to find it.
        options: options of our net.

    Raises:
        WeightsError: a checkpoint that no net of the zoo fits, with the reason.
    """
    normalized = "features.1.running_mean" in state
    depths = depths_of(state, normalized)

    def fits(layout: VGGConfig) -> bool:
        return layout.depths == depths

    specs = candidates(NAME, VGG, name, f"{sum(depths)} convolutions in stages of {depths}", fits)
    # width: the hidden layers show it finest
    found: dict[str, Any] = {}
    if (hidden := weight_of(NAME, state, "classifier.0.weight", 2).shape[0]) != 4096:
        found["width"] = hidden / 4096
    if "features.0.bias" in state:
        found["post_bias"] = True
    classes = weight_of(NAME, state, "classifier.6.weight", 2).shape[0] if "classifier.6.weight" in state else 0
    configs = [
        ModelConfig(
            name=spec.name,
            scheme="bn" if normalized else "none",
            num_classes=classes,
            in_chans=weight_of(NAME, state, "features.0.weight", 4).shape[1],
            options=with_asked(NAME, found, options),
        )
        for spec in specs
    ]
    names = module_names(depths, normalized)

    def foreign(key: str) -> str:
        module, _, leaf = key.rpartition(".")
        return f"{names[module]}.{leaf}"

    return fitted(NAME, state, configs, foreign)


LAYOUT = Layout(NAME, matches, read)
