"""The optimizer and its learning rates. The schedules are ``tasks.config.SCHEDULES``."""

from __future__ import annotations

import warnings

import torch
from torch import nn

import zoo
from tasks import config as cfg
from zoo.nets.base import parameters_by_level


def make_optimizer(model: nn.Module, section: cfg.SGD | cfg.AdamW) -> torch.optim.Optimizer:
    """Make the optimizer over ``zoo.param_groups``, with weight decay on weights only."""
    groups = zoo.param_groups(
        model,
        section.weight_decay,
        multiplier_lr=section.multiplier_lr,
        bias_lr=section.bias_lr,
        layer_decay=section.layer_decay,
        head_lr=section.head_lr,
    )
    for group in groups:
        del group["names"]
    if isinstance(section, cfg.SGD):
        return torch.optim.SGD(groups, lr=section.lr, momentum=section.momentum, nesterov=section.nesterov)
    return torch.optim.AdamW(groups, lr=section.lr, betas=section.betas, eps=section.eps)


def describe_levels(model: nn.Module, section: cfg.SGD | cfg.AdamW) -> list[str]:
    """Return a line on each feature level: its trained parameters and their peak rate.

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
        peak = section.lr * (section.head_lr if level == "head" else section.layer_decay**distance)
        trained_at = f"{trained:,} of {total:,} parameters trained, peak rate {peak:.4g}"
        lines.append(f"{level}: {trained_at if trained else f'{total:,} parameters, frozen'}")
    return lines[::-1]


def rate(schedule: cfg.ScheduleSection, epoch: float, epochs: int, steps: int = 1) -> float:
    """Call ``schedule.factor``, whose former name this is (deprecated)."""
    warnings.warn("tasks.engine.rate is now the method factor of a schedule", DeprecationWarning, stacklevel=2)
    return schedule.factor(epoch, epochs, steps)
