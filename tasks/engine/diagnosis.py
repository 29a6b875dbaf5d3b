"""The signals in the net during a run: ``train.diagnose``."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tasks.diagnose.measure import ParameterNumbers, as_in_training, norms, read, relative_changes
from tasks.diagnose.recorder import Recorder
from tasks.diagnose.signals import Signals
from tasks.engine.records import SignalsRecord
from tasks.engine.task import Task

SHARE = 0.02  # share of a run's time beyond which it advises to log more rarely


class Diagnosis:
    """What a run logs of the signals in its net every so many steps.

    A step that is due takes one more forward of its last batch, without gradients and without a trace in the net. The
    gradients and the update are those of the step itself. The numbers of the weights are read before the update, so
    that they belong to the signals. The run is the same with and without it.

    Args:
        model: net, without the wrappers of training.
        task: task of the run.
        accelerator: processes of the run.
        dtype: type of the inputs.
        every: number of steps between two records.
    """

    def __init__(self, model: nn.Module, task: Task, accelerator: Accelerator, dtype: torch.dtype, every: int) -> None:
        self.model, self.task, self.accelerator, self.dtype, self.every = model, task, accelerator, dtype, every
        self.records, self.seconds = 0, 0.0
        self._recorder: Recorder | None = None
        self._numbers: ParameterNumbers | None = None
        self._found: Signals | None = None
        self._weights: dict[str, Tensor] = {}

    def is_due(self, step: int) -> bool:
        """Return whether the step after ``step`` done ones is recorded."""
        return step % self.every == 0

    def look(self, batch: Any) -> None:
        """Record a forward of a batch that is on the device."""
        begun = time.monotonic()
        self._recorder = Recorder(self.model)
        with as_in_training(self.model), self._recorder.recording(), self.accelerator.autocast():
            self.task.calibration_forward(self.model, batch, self.dtype)
        self.seconds += time.monotonic() - begun

    def before_update(self) -> None:
        """Record the gradients of the step and the numbers of the weights, and keep the weights."""
        assert self._recorder is not None
        begun = time.monotonic()
        trained = {name: p for name, p in self.model.named_parameters() if p.grad is not None}
        self._weights = {name: p.detach().clone() for name, p in trained.items() if p.ndim >= 2}
        self._numbers = ParameterNumbers(self.model)
        self._numbers.gradient_norms = norms({name: p.grad for name, p in trained.items() if p.grad is not None})
        reduce = None if self.accelerator.num_processes == 1 else self._sum
        self._found, self._recorder = read(self._recorder, self._numbers, reduce), None
        self.seconds += time.monotonic() - begun

    def after_update(self, step: int, epoch: int) -> SignalsRecord:
        """Return the record of the step.

        Args:
            step: optimizer steps done before it.
            epoch: epoch in progress.
        """
        found, numbers = self._found, self._numbers
        assert found is not None
        assert numbers is not None
        begun = time.monotonic()
        numbers.update_ratios = relative_changes(self._weights, dict(self.model.named_parameters()))
        rows = [dataclasses.replace(row, update_ratio=numbers.update_ratio(row.name)) for row in found.layers]
        content = dataclasses.replace(found, layers=tuple(rows)).as_dict()
        self._found, self._numbers, self._weights = None, None, {}
        self.records += 1
        self.seconds += time.monotonic() - begun
        layers, sums, activations = (list(content[key]) for key in ("layers", "sums", "activations"))
        return SignalsRecord(step=step, epoch=epoch, layers=layers, sums=sums, activations=activations)

    def describe_cost(self, seconds: float) -> str:
        """Return a line on the time that the records took, empty without records.

        Args:
            seconds: time of the training steps of this process.
        """
        if not self.records or not seconds > 0:
            return ""
        share = self.seconds / seconds
        line = f"diagnosis: {self.records} records in {share:.1%} of the training time"
        if share > SHARE:
            line += f"; train.diagnose.every={-int(-self.every * share // SHARE)} takes {SHARE:.0%}"
        return line

    def _sum(self, sums: Tensor) -> Tensor:
        return self.accelerator.reduce(sums, "sum")
