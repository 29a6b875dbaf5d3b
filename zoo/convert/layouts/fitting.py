"""The search for the registered net that a foreign checkpoint fits, and the checkpoint in that net's keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.convert.layouts.base import Imported
from zoo.errors import WeightsError, suggestion
from zoo.nets.base import ModelConfig, Net
from zoo.options import plain
from zoo.registry import build_model
from zoo.specs import MODELS, ModelSpec, get_spec

COUNTER = "num_batches_tracked"  # of BatchNorm; old checkpoints have none


def candidates(
    layout: str, family: type[Net], name: str | None, description: str, fits: Callable[[Any], bool]
) -> list[ModelSpec]:
    """Return the registered nets of a family whose layout fits a checkpoint.

    Args:
        layout: name of the checkpoint's layout, for messages.
        family: class of the nets.
        name: name of the net that was asked for; None for any.
        description: architecture of the checkpoint, for messages.
        fits: whether a net's layout is that architecture.

    Raises:
        WeightsError: no net fits, or the net that was asked for does not.
    """
    if name is not None:
        spec = get_spec(name)
        if spec.family is not family or not fits(spec.layout):
            raise WeightsError(f"{layout} checkpoint: {description}, which {name} is not; leave the name out")
        return [spec]
    specs = [spec for spec in MODELS.values() if spec.family is family and fits(spec.layout)]
    if not specs:
        raise WeightsError(
            f"{layout} checkpoint: {description}, which no registered net is; register one (zoo.register_model)"
        )
    return specs


def weight_of(layout: str, state: Mapping[str, Tensor], key: str, dimensions: int) -> Tensor:
    """Return a weight of a checkpoint that its architecture is read from.

    Raises:
        WeightsError: no such key, or a tensor of another number of dimensions.
    """
    if key not in state:
        raise WeightsError(f"{layout} checkpoint: missing key {key!r}")
    if state[key].ndim != dimensions or not state[key].numel():
        raise WeightsError(f"{layout} checkpoint: {key} has shape {tuple(state[key].shape)}; must be {dimensions}-D")
    return state[key]


def with_asked(layout: str, found: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a checkpoint shows together with those that were asked for.

    Raises:
        WeightsError: an option was asked for with another value than the checkpoint shows.
    """
    for key, value in asked.items():
        if key in found and plain(value) != plain(found[key]):
            raise WeightsError(f"{layout} checkpoint: option {key}={value!r}: it has {found[key]!r}; leave it out")
    return {**found, **asked}


def fitted(
    layout: str, state: Mapping[str, Tensor], configs: Sequence[ModelConfig], foreign: Callable[[str], str]
) -> Imported:
    """Return a checkpoint in the keys of the first of several nets that has its keys and shapes.

    Args:
        layout: name of the checkpoint's layout, for messages.
        state: state dict of the checkpoint.
        configs: configs of the nets, at least one.
        foreign: function from a key of the nets to the checkpoint's.

    Raises:
        WeightsError: keys that are missing or left over, or shapes that differ; the message is about the net with the
            fewest differences.
    """
    problems: list[tuple[int, str]] = []
    for config in configs:
        with torch.device("meta"):
            shapes = {key: value.shape for key, value in build_model(config).state_dict().items()}
        found = _differences(config, shapes, state, foreign)
        if not found:
            return Imported(config, _renamed(shapes, state, foreign))
        problems.append((len(found), found[0]))
    raise WeightsError(f"{layout} checkpoint: {min(problems, key=lambda problem: problem[0])[1]}")


def _differences(
    config: ModelConfig, shapes: Mapping[str, torch.Size], state: Mapping[str, Tensor], foreign: Callable[[str], str]
) -> list[str]:
    """Return what keeps a checkpoint from being this net, as messages; the shapes come last."""
    keys = {foreign(key): key for key in shapes}
    missing = sorted(key for key in keys if key not in state and not key.endswith(COUNTER))
    unexpected = sorted(state.keys() - keys.keys())
    found = [f"unexpected key {key!r}{_near(key, missing)}: {described(config)} has none" for key in unexpected]
    found += [f"missing key {key!r}, which {described(config)} requires" for key in missing]
    return found + [
        f"{key} has shape {tuple(state[key].shape)}, in {described(config)} it has {tuple(shapes[own])}"
        for key, own in keys.items()
        if key in state and state[key].shape != shapes[own]
    ]


def _near(key: str, known: Iterable[str]) -> str:
    hint = suggestion(key, known)
    return hint if "did you mean" in hint else ""


def described(config: ModelConfig) -> str:
    """Return the name of a net with its options, for messages."""
    options = ", ".join(f"{key}={value!r}" for key, value in config.options.items())
    return f"{config.name} ({options})" if options else config.name


def _renamed(
    shapes: Mapping[str, torch.Size], state: Mapping[str, Tensor], foreign: Callable[[str], str]
) -> dict[str, Tensor]:
    renamed = {}
    for own in shapes:
        key = foreign(own)
        renamed[own] = state[key] if key in state else torch.zeros((), dtype=torch.long)
    return renamed
