"""The optimizer and its learning rates. The schedules are ``tasks.config.SCHEDULES``."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

import zoo
from tasks import config as cfg
from tasks.engine.gradients import require_ends
from tasks.engine.muon import JoinedOptimizer, Muon
from tasks.engine.ranks import tensors_of
from tasks.errors import ConfigError
from zoo.errors import ZooError, one_line
from zoo.nets.parameters import input_parameters, output_parameters, packed_matrices, parameters_by_level


def make_optimizer(model: nn.Module, section: cfg.SGD | cfg.AdamW | cfg.Muon) -> torch.optim.Optimizer:
    """Make the optimizer over ``zoo.param_groups``, with weight decay on weights only and peak rates as ``lr``.

    Raises:
        ConfigError: Muon where no hidden matrix or filter is trained, or rates by level for a net without levels.
    """
    rates = {"multiplier_lr": section.multiplier_lr, "bias_lr": section.bias_lr}
    rates |= {"layer_decay": section.layer_decay, "head_lr": section.head_lr}
    try:
        groups = zoo.param_groups(model, section.weight_decay, **rates)
    except ZooError as error:
        raise ConfigError(f"train.optimizer: {error}") from None
    if not isinstance(section, cfg.Muon):
        return _plain_optimizer(groups, section)
    hidden, rest = _split(groups, model, section.rest.weight_decay)
    if not hidden:
        raise ConfigError(
            "train.optimizer.name=muon: no matrix or filter between the first and the last layers is trained; use the "
            f"optimizer of the others, {section.rest.name}, for all"
        )
    muon = Muon(
        _with_rates(hidden, section.lr),
        lr=section.lr,
        momentum=section.momentum,
        nesterov=section.nesterov,
        ns_steps=section.ns_steps,
        adjust_lr_fn=section.adjust_lr_fn,
    )
    return JoinedOptimizer([muon, _plain_optimizer(rest, section.rest)])


def _split(groups: list[dict[str, Any]], model: nn.Module, rest_decay: float) -> tuple[list[Any], list[Any]]:
    """Divide the groups into those of Muon, by the number of matrices in each weight, and those of the other optimizer.

    Args:
        groups: groups of ``zoo.param_groups``.
        model: net of the groups.
        rest_decay: weight decay of the other optimizer's weights.
    """
    require_ends(model, "train.optimizer.name=muon")
    ends, packed = input_parameters(model) | output_parameters(model), packed_matrices(model)
    hidden, rest = [], []
    for group in groups:
        if group["group"] != "weights":
            rest.append(group)
            continue
        # the weights of first and last layers have no matrices for Muon
        counts = {name: 0 if name in ends else packed.get(name, 1) for name in group["names"]}
        for count in sorted(set(counts.values())):
            chosen = [i for i, name in enumerate(group["names"]) if counts[name] == count]
            part = {**group, **{key: [group[key][i] for i in chosen] for key in ("names", "params")}}
            if count:
                hidden.append({**part, "matrices": count})
            else:
                rest.append({**part, "weight_decay": rest_decay})
    return hidden, rest


def _with_rates(groups: list[dict[str, Any]], lr: float) -> list[dict[str, Any]]:
    """Return the groups with their peak rates, without names, which torch would store in each checkpoint."""
    return [{**{k: v for k, v in group.items() if k != "names"}, "lr": lr * group["lr_scale"]} for group in groups]


def _plain_optimizer(groups: list[dict[str, Any]], rule: cfg.SGDRule | cfg.AdamWRule) -> torch.optim.Optimizer:
    """Make the optimizer of torch that a section names."""
    groups = _with_rates(groups, rule.lr)
    if isinstance(rule, cfg.SGDRule):
        return torch.optim.SGD(groups, lr=rule.lr, momentum=rule.momentum, nesterov=rule.nesterov)
    return torch.optim.AdamW(groups, lr=rule.lr, betas=rule.betas, eps=rule.eps)


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Load the state of an optimizer with the same groups.

    Args:
        optimizer: new optimizer, of torch or as Accelerate wraps it.
        state: result of ``state_dict``.

    Raises:
        ValueError: other settings than the optimizer's, or values that do not belong to its parameters. Errors of
            torch for a state with other groups have several classes.
    """
    expected = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
    if any(not tensor.is_floating_point() for tensor in tensors_of(state)):  # torch converts them, and drops parts
        raise ValueError("the optimizer's state has numbers of another kind")
    optimizer.load_state_dict(state)
    for before, group in zip(expected, optimizer.param_groups, strict=True):
        for key, value in before.items():
            if type(group[key]) is not type(value) or group[key] != value:
                raise ValueError(f"the optimizer's {key} is {one_line(repr(group[key]))[:80]}, not {value!r}")
    plain = getattr(optimizer, "optimizer", optimizer)
    for part in getattr(plain, "parts", (plain,)):
        for parameter, values in part.state.items():
            if not isinstance(parameter, torch.Tensor) or not isinstance(values, dict):
                raise ValueError("the optimizer's state is not one of its parameters")
            for key, value in values.items():
                if value is None or (isinstance(value, torch.Tensor) and value.shape in (parameter.shape, ())):
                    continue
                raise ValueError(f"the optimizer's {key} does not fit its parameter")


def describe_levels(model: nn.Module, section: cfg.SGD | cfg.AdamW | cfg.Muon) -> list[str]:
    """Return a line on each feature level: its trained parameters and their peak rate.

    With Muon the peak rate is that of matrices and filters, and the one behind it that of other parameters.

    Returns:
        No lines where all parameters are trained at the same rate.
    """
    parameters = dict(model.named_parameters())
    same_rate = (section.layer_decay, section.head_lr) == (1.0, 1.0)
    if same_rate and all(parameter.requires_grad for parameter in parameters.values()):
        return []
    lines = []
    levels = parameters_by_level(model)
    for distance, (level, names) in enumerate(reversed(levels.items())):
        total = sum(parameters[name].numel() for name in names)
        trained = sum(parameters[name].numel() for name in names if parameters[name].requires_grad)
        factor = section.head_lr if level == "head" else section.layer_decay**distance
        rates = f"peak rate {section.lr * factor:.4g}"
        if isinstance(section, cfg.Muon):
            rates += f", without Muon {section.rest.lr * factor:.4g}"
        trained_at = f"{trained:,} of {total:,} parameters trained, {rates}"
        lines.append(f"{level}: {trained_at if trained else f'{total:,} parameters, frozen'}")
    return lines[::-1]


def rate(schedule: cfg.ScheduleSection, epoch: float, epochs: int, steps: int = 1) -> float:
    """Call ``schedule.factor``, whose former name this is (deprecated)."""
    warnings.warn("tasks.engine.rate is now the method factor of a schedule", DeprecationWarning, stacklevel=2)
    return schedule.factor(epoch, epochs, steps)
