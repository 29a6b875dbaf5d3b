"""The signals in the net during a run: ``train.diagnose``."""

from __future__ import annotations

import time
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tasks.diagnose.measure import ParameterNumbers, as_in_training, norms, read, relative_changes
from tasks.diagnose.recorder import Recorder
from tasks.engine.records import SignalsRecord
from tasks.engine.task import Task

SHARE = 0.02  # share of a run's time beyond which it advises to log more rarely


class Diagnosis:
    """What a run logs of the signals in its net every so many steps.

    A step that is due takes one more forward of its last batch, without gradients and without a trace in the net. The
    gradients and the update are those of the step itself. All numbers stay on the device until the step is made, so
    that the host waits for it once. The run is the same with and without it.

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
        self._gradients: dict[str, Tensor] = {}
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
        """Record the gradients of the step, and keep the weights."""
        begun = time.monotonic()
        trained = {name: p for name, p in self.model.named_parameters() if p.grad is not None}
        self._gradients = {name: p.grad.detach().clone() for name, p in trained.items() if p.grad is not None}
        self._weights = {name: p.detach().clone() for name, p in trained.items() if p.ndim >= 2}
        self.seconds += time.monotonic() - begun

    def after_update(self, step: int, epoch: int) -> SignalsRecord:
        """Return the record of the step.

        Args:
            step: optimizer steps done before it.
            epoch: epoch in progress.
        """
        assert self._recorder is not None
        begun = time.monotonic()
        numbers = ParameterNumbers(self.model)
        numbers.gradient_norms = norms(self._gradients)
        numbers.update_ratios = relative_changes(self._weights, dict(self.model.named_parameters()))
        reduce = None if self.accelerator.num_processes == 1 else self._sum
        content = read(self._recorder, numbers, reduce).as_dict()
        self._recorder, self._gradients, self._weights = None, {}, {}
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
