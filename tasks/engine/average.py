"""Averaged weights: what is evaluated and stored in place of the trained ones."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tasks import config as cfg
from zoo.states import load_state


def ema_decay(rule: cfg.EMA, updates: int) -> float:
    """Return the weight of the average so far in an update.

    With warm-up, update t has the decay min(decay, (1 + t) / (10 + t)) of TensorFlow's ``ExponentialMovingAverage``,
    where t = 0 is the first update of an average that exists. It is timm's ``ModelEmaV3`` with ``warmup_gamma=9``
    and ``warmup_power=1``.

    Args:
        rule: section of the config.
        updates: updates before this one; the first of all, 0, sets the average.
    """
    if updates == 0:
        return 0.0
    return min(rule.decay, updates / (9 + updates)) if rule.warmup else rule.decay


def first_averaged(rule: cfg.LastEpochs, epochs: int) -> int:
    """Return the first epoch, from 0, of the mean over the last epochs of a run.

    Args:
        rule: section of the config.
        epochs: epochs of the run.
    """
    return max(0, epochs - rule.epochs)


class WeightAverage:
    """The average of weights and buffers that ``train.average`` chooses. Integer buffers are copied.

    Args:
        model: trained net, on its device.
        rule: section of the config; None for no average.
        epochs: epochs of the run.
    """

    def __init__(self, model: nn.Module, rule: cfg.EMA | cfg.LastEpochs | None, epochs: int) -> None:
        self.model, self.rule, self.epochs = model, rule, epochs
        self.average = None if rule is None else copy.deepcopy(model)
        self.updates = 0  # a Python number, so that no step waits for the device

    def after_step(self) -> None:
        """Update an average over the steps."""
        if self.average is not None and isinstance(self.rule, cfg.EMA):
            self._update(self.average, ema_decay(self.rule, self.updates))

    def after_epoch(self, epoch: int) -> nn.Module:
        """Update an average over the epochs, and return the model to evaluate and store after this epoch."""
        if self.average is None:
            return self.model
        if isinstance(self.rule, cfg.LastEpochs):
            first = first_averaged(self.rule, self.epochs)
            if epoch < first:
                return self.model
            if epoch == first:  # a run that became longer had an average before
                self.updates = 0
            self._update(self.average, self.updates / (self.updates + 1))
        return self.average

    @torch.no_grad()
    def _update(self, average: nn.Module, decay: float) -> None:
        """Replace the average by ``decay`` times itself plus the rest times the model."""
        pairs = list(zip(_tensors(average), _tensors(self.model), strict=True))
        floats = [(old, new) for old, new in pairs if decay and old.is_floating_point()]
        if floats:
            torch._foreach_lerp_([old for old, _ in floats], [new for _, new in floats], 1 - decay)
        for old, new in pairs:
            if not (decay and old.is_floating_point()):
                old.copy_(new)
        self.updates += 1

    def state_dict(self) -> dict[str, Any] | None:
        """Return the state of the average in the format of torch's ``AveragedModel``; None without one."""
        if self.average is None:
            return None
        state = {f"{_PREFIX}{key}": value for key, value in self.average.state_dict().items()}
        return {"n_averaged": torch.tensor(self.updates), **state}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Load what ``state_dict`` returned in a run with the same config.

        Raises:
            ValueError: a state without an average where there is one, or with one where there is none.
            WeightsError: the average of another net, or numbers of another kind.
        """
        if (self.average is None) != (state is None):
            raise ValueError(f"it has {'no' if state is None else 'an'} average of the weights")
        if self.average is not None and state is not None:
            self.updates = int(state["n_averaged"])
            if self.updates < 0:
                raise ValueError(f"n_averaged is {self.updates}")
            tensors = {k.removeprefix(_PREFIX): v for k, v in state.items() if k != "n_averaged"}
            load_state(self.average, tensors, "the average")


_PREFIX = "module."


def _tensors(model: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers, without autograd."""
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
