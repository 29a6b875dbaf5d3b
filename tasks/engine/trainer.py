"""The training loop.

A run is a pure function of its config and data: the learning rate is a function of the step, the random state is
seeded from (seed, step, rank), the order of the data from (seed, epoch), a sample's augmentation from its key and the
seed. So a checkpoint contains no generator states, and a resumed run repeats the uninterrupted one exactly (to the
bit on the CPU).
"""

from __future__ import annotations

import errno
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import broadcast, set_seed
from torch import Tensor

from tasks.engine.records import BlocksRecord, EpochRecord, StepRecord
from tasks.engine.run import Run
from tasks.engine.sampler import seed_from
from tasks.errors import TrainingError, dead_worker
from tasks.plots import curves
from tasks.progress import Progress
from zoo.method import branch_statistics

# errors of writing that end with more space: disk full, quota, file size limit, read-only
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@dataclass(frozen=True)
class Pace:
    """The time that a run takes.

    Attributes:
        steps_per_epoch: optimizer steps of an epoch.
        epochs: epochs of the run.
        seconds_per_step: mean time of a step.
    """

    steps_per_epoch: int
    epochs: int
    seconds_per_step: float

    @property
    def seconds(self) -> float:
        """Time of the whole run, without evaluations."""
        return self.epochs * self.steps_per_epoch * self.seconds_per_step


class Trainer(Run):
    """One run, as ``Trainer(task).fit()``.

    In pseudo-code::

        read the folder: refuse another run, load the state of this one if it resumes
        build the model and the data loader
        calibrate the biases on the first batches, or load the model's state
        prepare model, optimizer and averaged weights; open the log
        for each epoch:
            seek the loader to the position
            for each optimizer step:
                seed, set the learning rate, forward and backward, update
                log the loss; save the state every few minutes
            evaluate; store the best weights
            log metrics, multipliers and weight norms
            store the last weights and the state
        draw the curves

    Args:
        task: task with its config.
        resume: whether to go on with the run in the config's output folder; without a checkpoint there it starts anew.

    Raises:
        TrainingError: the folder contains another run, or a batch size or epoch length does not fit the settings.
        ConfigError: the folder's config is not valid any more, or a sink is unknown.
    """

    def fit(self) -> dict[str, float]:
        """Train to the end, and return the last metrics.

        Raises:
            TrainingError: a loss or weight that is not finite, a data loading process that died, a full disk; the last
                good checkpoint stays.
        """
        try:
            return self._fit()
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            raise TrainingError(
                f"{self.files.root}: cannot be written ({error.strerror}); free some space and continue with --resume; "
                f"{self.files.describe_state()}"
            ) from None
        except RuntimeError as error:
            if (reason := dead_worker(error)) is None:
                raise
            raise TrainingError(
                f"{self.describe_position()}: {reason}; continue with --resume; {self.files.describe_state()}"
            ) from None

    def measure(self, steps: int) -> Pace:
        """Time optimizer steps, with their data, after two untimed ones; the weights change, nothing is stored.

        Args:
            steps: number of the steps, at most an epoch's.
        """
        self.model.train()
        batches = iter(self.loader)
        count = min(steps + 2, self.steps_per_epoch)
        begun = 0.0
        for number in range(count):
            if number == min(2, count - 1):
                self._synchronize()
                begun = time.perf_counter()
            self._step([next(batches) for _ in range(self.train.accumulate)])
            self.average.after_step()
            self.at.step += 1
        self._synchronize()
        seconds = (time.perf_counter() - begun) / (count - min(2, count - 1))
        self.log.close()  # Windows does not remove a folder with an open file
        return Pace(self.steps_per_epoch, self.train.epochs, seconds)

    def _synchronize(self) -> None:
        """Wait for the device."""
        if self.accelerator.device.type != "cpu":
            torch.accelerator.synchronize(self.accelerator.device)

    def _fit(self) -> dict[str, float]:
        at, train = self.at, self.train
        total = train.epochs * self.steps_per_epoch
        items = self.batches.per_batch * self.shards * train.accumulate
        main = self.accelerator.is_main_process
        with Progress(total, at.step, items, unit=self.task.unit, enabled=main) as progress:
            while at.epoch < train.epochs:
                self._epoch(progress)
                self._end_of_epoch(progress)
        self.log.close()
        if main:
            curves(self.files.log, self.files.curves, self.task.metric)
        self.accelerator.end_training()
        return at.metrics

    def _epoch(self, progress: Progress) -> None:
        """Train the rest of the epoch in progress."""
        at, train = self.at, self.train
        # A remainder that would not fill an optimizer step is left out.
        usable = self.steps_per_epoch * train.accumulate
        if at.batch >= usable:
            return
        self.batches.seek(at.epoch, at.batch * self.shards)
        self.model.train()
        forwards: list[Any] = []  # batches of the step
        for batch in self.loader:
            if at.batch >= usable:
                break
            # Collect the batches of an optimizer step.
            forwards.append(batch)
            if len(forwards) < train.accumulate:
                continue
            terms = self._step(forwards)
            forwards = []
            at.batch += train.accumulate
            at.step += 1
            self.average.after_step()
            # Log the loss, show progress, and store the state from time to time.
            if at.step % train.log_every == 0 or at.batch == usable:
                self._log_step(terms)
            mean = {"loss": at.loss_sum / at.loss_count} if at.loss_count else {}
            progress.step(at.step, epoch=f"{at.epoch + 1}/{train.epochs}", **mean)
            if self._is_time_to_save():
                self._save()

    def _step(self, forwards: list[Any]) -> dict[str, Tensor]:
        """Make one optimizer step.

        Returns:
            Terms of the loss on this rank; those of the step are the means over the ranks.
        """
        at, train = self.at, self.train
        # Randomness and learning rate depend on the step alone.
        set_seed(seed_from(train.seed, at.step, self.accelerator.process_index) % 2**32)
        epoch = at.epoch + at.batch / (self.steps_per_epoch * train.accumulate)
        factor = train.schedule.factor(epoch, train.epochs, self.steps_per_epoch)
        self.lr = train.optimizer.lr * factor
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        # Accelerate divides each loss by the number of forwards, and updates in the last of them only.
        losses: list[dict[str, Tensor]] = []
        for batch, weight in zip(forwards, self._loss_weights(forwards), strict=True):
            with self.accelerator.accumulate(self.model):
                terms = self.task.losses(self.model, batch, self.dtype)
                if weight is not None:
                    terms = {name: term * weight for name, term in terms.items()}
                losses.append({name: term.detach() for name, term in terms.items()})
                self.accelerator.backward(torch.stack(list(terms.values())).sum())
                if self.accelerator.sync_gradients and self.gradients.used:
                    self.accelerator.unscale_gradients()
                    self.gradients.change()
                self.optimizer.step()
                self.optimizer.zero_grad()
        return {name: torch.stack([terms[name] for terms in losses]).mean() for name in losses[0]}

    def _loss_weights(self, forwards: list[Any]) -> list[float] | list[None]:
        """Divide each forward's ``Task.weight`` by the mean weight of all forwards on all ranks.

        With tokens as weights the step's loss is a mean over its tokens. None where the batches have no weights.
        """
        weights = [self.task.weight(batch) for batch in forwards]
        own = [weight for weight in weights if weight is not None]
        if not own:
            return [None] * len(weights)
        total = float(sum(own))
        if self.accelerator.num_processes > 1:
            on_device = torch.tensor(total, dtype=torch.float64, device=self.accelerator.device)
            total = float(self.accelerator.reduce(on_device, "mean"))
        mean = total / len(own)
        return [weight / mean for weight in own]

    def _log_step(self, terms: dict[str, Tensor]) -> None:
        """Log the loss of a step, a mean over the ranks, and refuse one that is not finite."""
        at = self.at
        means = self.accelerator.reduce(torch.stack(list(terms.values())), "mean").tolist()
        loss = sum(means)
        named = dict(zip(terms, means, strict=True)) if len(terms) > 1 else {}
        if not math.isfinite(loss):
            parts = ", ".join(f"{name} {mean}" for name, mean in named.items())
            self.stop_not_finite(f"the loss is {loss}" + (f" ({parts})" if parts else ""))
        at.loss_sum, at.loss_count = at.loss_sum + loss, at.loss_count + 1
        self.log.write(StepRecord(step=at.step, epoch=at.epoch, loss=loss, terms=named, lr=self.lr))

    def _end_of_epoch(self, progress: Progress) -> None:
        """Evaluate, log, store weights and state."""
        at, train, main = self.at, self.train, self.accelerator.is_main_process
        self.check_weights()
        model = self.average.after_epoch(at.epoch)
        train_loss = at.loss_sum / at.loss_count
        metrics = self.task.end_of_epoch(self.accelerator)
        meta: dict[str, Any] = {"epochs": at.epoch + 1, "config": self.config.model_dump(mode="json")}
        # Evaluate, and store the best weights.
        if (at.epoch + 1) % train.eval_every == 0 or at.epoch + 1 == train.epochs:
            at.metrics = self.task.evaluate(model, self.accelerator, self.dtype)
            metrics = {**metrics, **at.metrics}
            # a header has no NaN: a class without samples has no accuracy
            meta["metrics"] = {key: value if math.isfinite(value) else None for key, value in at.metrics.items()}
            if at.metrics[self.task.metric] > at.best:
                at.best = at.metrics[self.task.metric]
                if main:
                    self.task.save_weights(model, self.files.best, meta)
        # Log.
        self.log.write(EpochRecord(step=at.step, epoch=at.epoch, train_loss=train_loss, metrics=metrics))
        self.log.write(BlocksRecord(step=at.step, epoch=at.epoch, blocks=branch_statistics(self.bare)))
        # Store the last weights, then the state, which is at the start of the next epoch.
        if main:
            self.task.save_weights(model, self.files.last, meta)
            shown = "  ".join(f"{key} {value:.4g}" for key, value in {"train_loss": train_loss, **metrics}.items())
            progress.message(f"epoch {at.epoch + 1}/{train.epochs}  {shown}")
        at.epoch, at.batch, at.loss_sum, at.loss_count = at.epoch + 1, 0, 0.0, 0
        self._save()

    def _is_time_to_save(self) -> bool:
        """Return whether ``train.checkpoint_minutes`` have passed; the main process decides for all."""
        passed = time.monotonic() - self.saved_at >= self.train.checkpoint_minutes * 60
        if self.accelerator.num_processes == 1:
            return passed
        if self.at.step % self.train.log_every:  # the broadcast synchronises the ranks: as often as logging does
            return False
        return bool(broadcast(torch.tensor([int(passed)], device=self.accelerator.device)))
