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
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from tasks.devices import synchronize
from tasks.engine.ranks import lost_peer, share_buffers, wait_for_all
from tasks.engine.records import BlocksRecord, EpochRecord, FailedRecord, StepRecord
from tasks.engine.run import Run
from tasks.engine.sampler import seed_from
from tasks.engine.signals import Signals
from tasks.errors import Interrupted, OutOfMemory, TrainingError, UserError, dead_worker, out_of_memory
from tasks.outputs import try_to_draw
from tasks.plots import curves
from tasks.progress import Progress, print_line
from zoo.calibration import sum_dtype
from zoo.errors import one_line
from zoo.method import branch_statistics

_ASK_EVERY = 5.0  # seconds between two questions of several processes whether to save or to stop
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

        take the folder and read it: refuse another run, load the state of this one if it resumes
        build the model and the data loader; refuse data other than the state's
        calibrate the biases on the first batches, or load the model's state
        prepare model, optimizer and averaged weights; open the log
        for each epoch:
            seek the loader to the position
            for each optimizer step:
                seed, set the learning rate, forward and backward, update
                log the loss, and from time to time the signals
                save the state every few minutes, and when a signal of the system arrives, which ends the run
            store the state and the last weights
            evaluate; store the best weights, and the last ones with their metrics
            log metrics, multipliers and weight norms; store the state
            (an epoch without an evaluation stores the state and the last weights here)
        draw the curves

    The state is on the disk before the evaluation, so that an evaluation that fails costs no training: it is reported,
    and the run goes on.

    Args:
        task: task with its config.
        resume: whether to go on with the run in the config's output folder; without a checkpoint there it starts anew.
        changed_data: whether the samples may differ from those before; see ``Run``.

    Raises:
        TrainingError: the folder contains another run or is used by another process, its data have changed, or a batch
            size or epoch length does not fit the settings.
        ConfigError: the folder's config is not valid any more, or a sink is unknown.
    """

    signals: Signals

    def fit(self) -> dict[str, float]:
        """Train to the end, and return the last metrics.

        Raises:
            TrainingError: a loss or weight that is not finite, a data loading process that died, too little memory, a
                full disk, another process of the run that ended, the last evaluation failed; the last good checkpoint
                stays.
            Interrupted: SIGINT, SIGTERM or SIGUSR1; the state is saved.
        """
        try:
            with Signals() as self.signals:
                try:
                    return self._fit()
                finally:
                    with self.signals.deferred():  # a signal that comes again changes nothing any more
                        self.close()
        except Interrupted as stop:
            where = f"{stop.name}: stopped at {self.describe_position()}"
            raise Interrupted(stop.number, f"{where}; {self._how_to_go_on()}") from None
        except Exception as error:
            if (explained := self._explain(error)) is None:
                raise
            raise explained from None

    def close(self) -> None:
        """Close the log, end the data loading processes and give the folder free, as ``fit`` does at its end."""
        try:
            self.log.close()
        finally:
            self.loader = None  # whose processes end with it
            self.files.release()

    def _how_to_go_on(self) -> str:
        return f"continue with --resume; {self.files.describe_state()}"

    def _explain(self, error: Exception) -> TrainingError | None:
        """Return the error that names the reason and what to do; None for an error of the program."""
        where, go_on = self.describe_position(), self._how_to_go_on()
        if isinstance(error, OSError) and error.errno is not None:
            name = error.filename if isinstance(error.filename, str) else None
            if error.errno in _NO_SPACE:
                root = self.files.root
                place = root if name is None or root in Path(name).parents else name
                remedy = "make it writable" if error.errno == errno.EROFS else "free some space"
                return TrainingError(f"{place}: cannot be written ({error.strerror}); {remedy} and {go_on}")
            if name is None:  # its own message has no place
                return TrainingError(f"{where}: {error.strerror}; {go_on}")
            return None
        if (reason := dead_worker(error)) is not None:
            return TrainingError(f"{where}: {reason}; {go_on}")
        if (reason := out_of_memory(error)) is not None:
            return OutOfMemory(
                f"{where}: {reason}: lower train.batch_size and raise train.accumulate by the same factor, in a new "
                f"run; or free memory and {go_on}"
            )
        if self.accelerator.num_processes > 1 and lost_peer(error):
            # A process that could state why it ended has done so, and the command line reports only the first reason.
            return TrainingError(f"{where}: another process of the run ended or does not answer; {go_on}")
        return None

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
                synchronize(self.accelerator.device)
                begun = time.perf_counter()
            self._step([next(batches) for _ in range(self.forwards)])
            self.average.after_step()
            self.at.step += 1
        synchronize(self.accelerator.device)
        seconds = (time.perf_counter() - begun) / (count - min(2, count - 1))
        self.close()  # Windows does not remove a folder with an open file
        return Pace(self.steps_per_epoch, self.train.epochs, seconds)

    def _fit(self) -> dict[str, float]:
        at, train = self.at, self.train
        total = train.epochs * self.steps_per_epoch
        items = self.batches.per_batch / self.batches.pieces * self.shards * self.forwards
        shown = Progress(total, at.step, items, unit=self.task.unit, enabled=self.main)
        trained = 0.0  # seconds without evaluations
        # From here on a signal waits until what was trained is saved.
        with shown as progress, self.signals.deferred():
            while at.epoch < train.epochs and not self._is_stale():
                begun = time.monotonic()
                self._epoch(progress)
                trained += time.monotonic() - begun
                self._end_of_epoch(progress)
        self.log.close()
        if self.main:
            if self.diagnosis is not None and (line := self.diagnosis.describe_cost(trained)):
                print_line(line)
            if at.epoch < train.epochs:
                print_line(
                    f"ended after {at.epoch} of {train.epochs} epochs: {at.stale} evaluations without a better "
                    f"{self.task.metric} (train.early_stopping)"
                )
            drawn = self.files.curves
            try_to_draw(lambda: curves(self.files.log, drawn, self.task.metric), drawn)
        self.accelerator.end_training()
        return at.metrics

    def _epoch(self, progress: Progress) -> None:
        """Train the rest of the epoch in progress."""
        at, train = self.at, self.train
        # A remainder that would not fill an optimizer step is left out.
        usable = self.steps_per_epoch * train.accumulate
        if at.batch >= usable:
            return
        self.batches.seek(at.epoch, at.batch // train.accumulate * self.forwards * self.shards)
        self.model.train()
        forwards: list[Any] = []  # batches of the step
        for batch in self.loader:
            if at.batch >= usable:
                break
            # Collect the batches of an optimizer step.
            forwards.append(batch)
            if len(forwards) < self.forwards:
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
            self._save_or_stop()

    def _step(self, forwards: list[Any]) -> dict[str, Tensor]:
        """Make one optimizer step.

        Returns:
            Terms of the loss on this rank; those of the step are the means over the ranks.
        """
        at, train = self.at, self.train
        # Randomness and learning rate depend on the step alone.
        set_seed(seed_from(train.seed, at.step, self.accelerator.process_index) % 2**32)
        diagnosis = self.diagnosis if self.diagnosis is not None and self.diagnosis.is_due(at.step) else None
        if diagnosis is not None and not diagnosis.look(forwards[-1]):
            diagnosis = None
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
                if self.accelerator.sync_gradients and (self.gradients.used or diagnosis is not None):
                    self.accelerator.unscale_gradients()
                    if diagnosis is not None:
                        diagnosis.before_update()
                    self.gradients.change()
                self.optimizer.step()
                self.optimizer.zero_grad()
        if diagnosis is not None:
            diagnosis.after_update(at.step, at.epoch, self.log)
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
            device = self.accelerator.device
            on_device = torch.tensor(total, dtype=sum_dtype(device), device=device)
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
        """Store the trained epoch; evaluate and log it; store the state at the start of the next one."""
        at, train = self.at, self.train
        evaluated = (at.epoch + 1) % train.eval_every == 0 or at.epoch + 1 == train.epochs
        # Store what was trained. The state is at the end of this epoch: resumed, it is evaluated.
        if evaluated and self.saved_step != at.step:
            self._save()
        else:
            self.check_weights()
        model = self.average.after_epoch(at.epoch)
        share_buffers(self.accelerator, model)
        meta: dict[str, Any] = {"epochs": at.epoch + 1, "config": self.config.model_dump(mode="json")}
        if self.main and evaluated:
            self.task.save_weights(model, self.files.last, meta)
        # Evaluate.
        train_loss = at.loss_sum / at.loss_count
        metrics = self.task.end_of_epoch(self.accelerator)
        if evaluated and self._evaluate(model, meta):
            metrics = {**metrics, **at.metrics}
        # Log, and store the state.
        self.log.write(EpochRecord(step=at.step, epoch=at.epoch, train_loss=train_loss, metrics=metrics))
        self.log.write(BlocksRecord(step=at.step, epoch=at.epoch, blocks=branch_statistics(self.bare)))
        shown = "  ".join(f"{key} {value:.4g}" for key, value in {"train_loss": train_loss, **metrics}.items())
        progress.message(f"epoch {at.epoch + 1}/{train.epochs}  {shown}")
        at.epoch, at.batch, at.loss_sum, at.loss_count = at.epoch + 1, 0, 0.0, 0
        self._save()
        if self.main and not evaluated:  # never before the state: without it a resumed run would replace them
            self.task.save_weights(model, self.files.last, meta)
        self.signals.stop_if_requested()

    def _evaluate(self, model: nn.Module, meta: dict[str, Any]) -> bool:
        """Evaluate, store the best weights, and add the metrics to the last weights.

        Args:
            model: model to evaluate.
            meta: metadata of the weights, to which the metrics are added.

        Returns:
            Whether there are metrics. A failure is reported, and the run goes on.

        Raises:
            TrainingError: a failure after the last epoch, or in one of several processes, for which the others wait.
        """
        at = self.at
        try:
            with self.signals.immediate():
                at.metrics = self.task.evaluate(model, self.accelerator, self.dtype)
        except Exception as error:
            no_space = isinstance(error, OSError) and error.errno in _NO_SPACE
            if no_space or (self.accelerator.num_processes > 1 and lost_peer(error)):  # ``fit`` explains these
                raise
            reason = one_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
            ended_by = TrainingError
            if (memory := out_of_memory(error)) is not None:
                reason, ended_by = f"{memory}: lower data.eval_batch_size", OutOfMemory
            failure = f"the evaluation of epoch {at.epoch + 1} failed: {reason}"
            if self.accelerator.num_processes > 1 or at.epoch + 1 == self.train.epochs:
                raise ended_by(f"{failure}; its weights are in {self.files.last}, --resume evaluates them") from None
            print_line(failure)
            self.log.write(FailedRecord(step=at.step, epoch=at.epoch, reason=failure))
            return False
        # a header has no NaN: a class without samples has no accuracy
        meta["metrics"] = {key: value if math.isfinite(value) else None for key, value in at.metrics.items()}
        value, rule = at.metrics[self.task.metric], self.train.early_stopping
        if value > at.counted + (rule.min_delta if rule else 0.0):
            at.counted, at.stale = value, 0
        else:
            at.stale += 1
        better = value > at.best  # not NaN
        if better:
            at.best = value
        if self.main:
            if better:
                self.task.save_weights(model, self.files.best, meta)
            self.task.save_weights(model, self.files.last, meta)
        return True

    def _save_or_stop(self) -> None:
        """Save the state if ``train.checkpoint_minutes`` have passed, or if a signal asks the run to stop, and stop it.

        Several processes agree on it every few seconds, because the question waits for the device.
        """
        save, stop = time.monotonic() - self.saved_at >= self.train.checkpoint_minutes * 60, self.signals.requested
        if self.accelerator.num_processes > 1:
            if self.at.step < self.next_question:
                return
            save, stop = self._agree(save, stop)
        if save or stop:
            self._save()
        if stop:
            wait_for_all(self.accelerator)  # torchrun ends the others when the first one ends
            raise Interrupted(stop)

    def _agree(self, save: bool, stop: int) -> tuple[bool, int]:
        """Return whether any process is to save, and the signal that any received; set the step of the next question.

        Args:
            save: whether this process is to save.
            stop: signal of this process.
        """
        asked, step = self.asked
        now = time.monotonic()
        pace = (now - asked) / max(self.at.step - step, 1)  # seconds of a step
        wait = min(_ASK_EVERY, self.train.checkpoint_minutes * 60)
        steps = max(1, int(wait / max(pace, 1e-9)))
        own = torch.tensor([[int(save), stop, -min(steps, 10_000)]], device=self.accelerator.device)
        saves, stops, steps = self.accelerator.gather(own).amax(0).tolist()
        self.asked, self.next_question = (now, self.at.step), self.at.step - steps
        return bool(saves), stops
