"""The signals in the net during a run: ``train.diagnose``."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tasks import config as cfg
from tasks.devices import synchronize
from tasks.diagnose.measure import ParameterNumbers, as_in_training, norms, read, relative_changes
from tasks.diagnose.recorder import Recorder
from tasks.diagnose.signals import Signals
from tasks.engine.records import SignalsRecord
from tasks.engine.runlog import RunLog
from tasks.engine.task import Task
from tasks.errors import DataError, UserError
from tasks.progress import print_line
from zoo.calibration import sum_dtype
from zoo.errors import one_line


class Diagnosis:
    """What a run logs of the signals in its net every so many steps.

    A step that is due takes one more forward of its last batch, without gradients and without a trace in the net. The
    gradients and the update are those of the step itself. The numbers of the weights are read before the update, so
    that they belong to the signals. The run is the same with and without it.

    Records become rarer where they would take more than ``section.share`` of the training time: the number of steps
    between two is ``section.every`` times the lowest power of two that keeps them within it. The time of a record is
    compared with that of its own step; the first one, which also warms up, does not count.

    Args:
        model: net, without the wrappers of training.
        task: task of the run.
        accelerator: processes of the run.
        dtype: type of the inputs.
        section: the config's ``train.diagnose``.

    Attributes:
        every: number of steps between two records.
        records: number of records so far.
        seconds: time that they took on this process.
        left_out: number of records that were due and not taken.
    """

    def __init__(
        self, model: nn.Module, task: Task, accelerator: Accelerator, dtype: torch.dtype, section: cfg.DiagnoseSection
    ) -> None:
        self.model, self.task, self.accelerator, self.dtype = model, task, accelerator, dtype
        self.section, self.every = section, section.every
        self.records, self.seconds, self.left_out = 0, 0.0, 0
        self._begun = 0.0  # of the step with the record in progress
        self._spent = 0.0  # in that record
        self._reason = ""  # of the last record that was left out
        self._costs: list[float] = []  # times of the records, in steps
        self._recorder: Recorder | None = None
        self._numbers: ParameterNumbers | None = None
        self._found: Signals | None = None
        self._weights: dict[str, Tensor] = {}

    def is_due(self, step: int) -> bool:
        """Return whether the step after ``step`` done ones is recorded."""
        return step % self.every == 0

    def look(self, batch: Any) -> bool:
        """Record a forward of a batch that is on the device.

        Returns:
            Whether the step has a record: not where the batch of a process has no sample that can be read.
        """
        synchronize(self.accelerator.device)
        self._begun, self._spent = time.monotonic(), 0.0
        self._recorder, unread, reason = Recorder(self.model), 0.0, "a batch of another process"
        with self._timed():
            try:
                with as_in_training(self.model), self._recorder.recording(), self.accelerator.autocast():
                    self.task.calibration_forward(self.model, batch, self.dtype)
            except DataError as error:  # the step itself goes on without such a batch
                unread, reason = 1.0, one_line(error)
            # All processes have a record of the step or none, as their sums are added up.
            left_out = bool(self._sum(torch.tensor(unread, device=self.accelerator.device)))
        if left_out:
            self._leave_out(reason)
        return not left_out

    def before_update(self) -> None:
        """Record the gradients of the step and the numbers of the weights, and keep the weights."""
        assert self._recorder is not None
        with self._timed():
            trained = {name: p for name, p in self.model.named_parameters() if p.grad is not None}
            self._weights = {name: p.detach().clone() for name, p in trained.items() if p.ndim >= 2}
            self._numbers = ParameterNumbers(self.model)
            self._numbers.gradient_norms = norms({name: p.grad for name, p in trained.items() if p.grad is not None})
            reduce = None if self.accelerator.num_processes == 1 else self._sum
            try:
                self._found, self._recorder = read(self._recorder, self._numbers, reduce), None
            except UserError as error:  # on all processes: their batches took different ways through the net
                self._leave_out(one_line(error))

    def after_update(self, step: int, epoch: int, log: RunLog) -> None:
        """Write the record of the step, and choose the number of steps until the next one.

        Args:
            step: optimizer steps done before it.
            epoch: epoch in progress.
            log: log of the run.
        """
        found, numbers = self._found, self._numbers
        if found is None:  # left out
            return
        assert numbers is not None
        with self._timed():
            numbers.update_ratios = relative_changes(self._weights, dict(self.model.named_parameters()))
            rows = [dataclasses.replace(row, update_ratio=numbers.update_ratio(row.name)) for row in found.layers]
            content = dataclasses.replace(found, layers=tuple(rows)).as_dict()
            layers, sums, activations = (list(content[key]) for key in ("layers", "sums", "activations"))
            log.write(SignalsRecord(step=step, epoch=epoch, layers=layers, sums=sums, activations=activations))
        self._found, self._numbers, self._weights = None, None, {}
        self.records += 1
        self.seconds += self._spent
        if self.records > 1:
            self._adapt()

    def describe_cost(self, seconds: float) -> str:
        """Return a line on the time that the records took, empty without records.

        Args:
            seconds: time of the training steps of this process.
        """
        if not self.records + self.left_out or not seconds > 0:
            return ""
        line = f"diagnosis: {self.records} records in {self.seconds / seconds:.1%} of the training time"
        return f"{line}; {self.left_out} left out, the last one: {self._reason}" if self.left_out else line

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Add the time of a part of a record; the work that the device was given before is not part of it."""
        synchronize(self.accelerator.device)
        begun = time.monotonic()
        yield
        synchronize(self.accelerator.device)
        self._spent += time.monotonic() - begun

    def _adapt(self) -> None:
        """Choose the number of steps until the next record, the same on all processes."""
        device = self.accelerator.device
        times = [self._spent, time.monotonic() - self._begun]
        record, both = self._sum(torch.tensor(times, dtype=sum_dtype(device), device=device)).tolist()
        self._costs.append(record / max(both - record, 1e-9))
        cost = statistics.median(self._costs)
        before, self.every = self.every, steps_between(cost, self.section)
        if self.every != before and self.accelerator.is_main_process:
            print_line(
                f"diagnosis: a record takes the time of {cost:.1f} steps; from now on one every {self.every} steps, "
                f"for at most {self.section.share:.0%} of the training time (train.diagnose.share)"
            )

    def _leave_out(self, reason: str) -> None:
        """Count a record that was due and is not taken."""
        self.left_out += 1
        self._reason = reason
        self._found, self._recorder, self._numbers, self._weights = None, None, None, {}

    def _sum(self, sums: Tensor) -> Tensor:
        return self.accelerator.reduce(sums, "sum")


def steps_between(cost: float, section: cfg.DiagnoseSection) -> int:
    """Return the number of steps between two records that keeps them within their share of the training time.

    Args:
        cost: time of a record, in steps.
        section: the config's ``train.diagnose``.

    Returns:
        ``section.every`` times a power of two.
    """
    needed = cost * (1 / section.share - 1)  # cost / (steps + cost) = share
    return section.every * 2 ** max(0, math.ceil(math.log2(max(needed, 1) / section.every)))
