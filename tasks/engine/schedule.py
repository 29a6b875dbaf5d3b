"""The optimizer and its learning rates. The schedules are ``tasks.config.SCHEDULES``."""

from __future__ import annotations

import warnings

import torch
from torch import nn

import zoo
from tasks import config as cfg


def make_optimizer(model: nn.Module, section: cfg.SGD | cfg.AdamW) -> torch.optim.Optimizer:
    """Make the optimizer over ``zoo.param_groups``, with weight decay on weights only."""
    groups = zoo.param_groups(model, section.weight_decay, multiplier_lr=section.multiplier_lr, bias_lr=section.bias_lr)
    for group in groups:
        del group["names"]
    if isinstance(section, cfg.SGD):
        return torch.optim.SGD(groups, lr=section.lr, momentum=section.momentum, nesterov=section.nesterov)
    return torch.optim.AdamW(groups, lr=section.lr, betas=section.betas, eps=section.eps)


def rate(schedule: cfg.ScheduleSection, epoch: float, epochs: int, steps: int = 1) -> float:
    """Call ``schedule.factor``, whose former name this is (deprecated)."""
    warnings.warn("tasks.engine.rate is now the method factor of a schedule", DeprecationWarning, stacklevel=2)
    return schedule.factor(epoch, epochs, steps)
