"""Averaged weights: what is evaluated and stored in place of the trained ones."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tasks import config as cfg


class WeightAverage:
    """The average of weights that ``train.average`` chooses.

    Args:
        model: trained net, on its device.
        rule: section of the config; None for no average.
        epochs: epochs of the run.
    """

    def __init__(self, model: nn.Module, rule: cfg.EMA | cfg.LastEpochs | None, epochs: int) -> None:
        self.model, self.rule, self.epochs = model, rule, epochs
        self.average: AveragedModel | None = None
        if rule is not None:
            function = get_ema_multi_avg_fn(rule.decay) if isinstance(rule, cfg.EMA) else None
            self.average = AveragedModel(model, multi_avg_fn=function, use_buffers=True)

    def after_step(self) -> None:
        """Update an average over the steps."""
        if self.average is not None and isinstance(self.rule, cfg.EMA):
            self.average.update_parameters(self.model)

    def after_epoch(self, epoch: int) -> nn.Module:
        """Update an average over the epochs, and return the model to evaluate and store after this epoch."""
        if self.average is None:
            return self.model
        if isinstance(self.rule, cfg.LastEpochs):
            if epoch < self.epochs - self.rule.epochs:
                return self.model
            self.average.update_parameters(self.model)
        return self.average.module

    def state_dict(self) -> dict[str, Any] | None:
        """Return the state of the average; None without one."""
        return None if self.average is None else self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Load what ``state_dict`` returned in a run with the same config."""
        if self.average is not None and state is not None:
            self.average.load_state_dict(state)
