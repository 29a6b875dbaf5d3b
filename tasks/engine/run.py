"""The parts of a run, built step by step, and its state on disk."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

import zoo
from tasks import config as cfg
from tasks.devices import crowded, describe_run, dtype_of, make_accelerator
from tasks.engine.average import WeightAverage, first_averaged
from tasks.engine.diagnosis import Diagnosis
from tasks.engine.fingerprint import Fingerprint
from tasks.engine.gradients import GradientChanges
from tasks.engine.graphs import PINS_BESIDE, GraphedNet
from tasks.engine.optimizer import describe_levels, load_optimizer, make_optimizer
from tasks.engine.ranks import lost_peer, on_main, require_same_data, share_state, wait_for_all
from tasks.engine.records import DivergedRecord
from tasks.engine.runlog import RunLog, check_sinks, open_log
from tasks.engine.sampler import EpochSampler, share_out
from tasks.engine.signals import outlive_signals
from tasks.engine.state import Position, RunFolder, differences
from tasks.engine.task import Task
from tasks.errors import ConfigError, TrainingError, out_of_memory
from tasks.progress import print_line
from zoo.convert.centering import center_inputs_, untouched_biases
from zoo.errors import one_line
from zoo.options import plain
from zoo.states import load_state


class Run:
    """The parts of a run, at the position of its last checkpoint.

    Args:
        task: task with its config.
        resume: whether to go on with the run in the config's output folder; without a checkpoint there it starts anew.
        changed_data: whether the samples may differ from those that the run has been trained and evaluated on. The
            epoch in progress then begins anew, and the best weights so far do not count.

    Attributes:
        accelerator: processes, device and precision.
        main: whether this is the main process, which reads and writes the folder.
        fingerprint: data of the run.
        files: the run's folder.
        at: position of the run.
        bare: model, as it is evaluated and stored.
        model: the same as Accelerate wraps it for training.
        batches: sampler of the training set.
        loader: this rank's batches.
        ranks: number of processes that the batches are made for: with ``Task.per_rank`` that of the start of the run.
        shards: batches of the sampler that all ranks together take at a time.
        forwards: forwards of each rank in an optimizer step.
        gradients: changes of the gradients before the update.
        average: averaged weights.
        diagnosis: signals in the net that are logged every so many steps; None for none.
        log: log of the run; without sinks on all ranks but the first.

    Raises:
        TrainingError: the folder contains another run or is used by another process, its data have changed or differ
            between the processes, or a batch size or epoch length does not fit the settings.
        ConfigError: the folder's config is not valid any more, a sink is unknown, or graphs cannot be used.
    """

    def __init__(self, task: Task, *, resume: bool = False, changed_data: bool = False) -> None:
        self.task, self.config = task, task.config
        self.train: cfg.TrainSection = self.config.train
        check_sinks(self.train.sinks)
        self.accelerator = self._make_accelerator()
        self.main = self.accelerator.is_main_process
        self._check_graphs()
        self.files = RunFolder(Path(self.config.output))
        on_main(self.accelerator, self.files.take)
        try:
            self._build(resume, changed_data)
        except BaseException as error:
            self.files.release()
            if self.accelerator.num_processes > 1 and lost_peer(error):
                raise TrainingError("before the training began another process of the run ended") from None
            raise

    def _build(self, resume: bool, changed_data: bool) -> None:
        """Read the folder and build all parts; see the class for the arguments and errors."""
        state = share_state(self.accelerator, on_main(self.accelerator, lambda: self._read_folder(resume)))
        if self.main:
            print_line(describe_run(self.accelerator, self.train.precision))
            if self.accelerator.device.type == "cpu" and (warning := crowded()):
                print_line(warning)
        self.at = Position() if state is None else state["position"]
        self.fingerprint = self.task.fingerprint()
        require_same_data(self.accelerator, self.fingerprint)
        if self.main:
            for line in self.task.describe_data(self.fingerprint):
                print_line(line)
        if state is not None:
            self._check_data(state, changed_data)
        self.dtype = dtype_of(self.train.precision)
        self.bare = self._build_model()
        self._prepare_data(state)
        if state is None:
            self._guard_memory(self._calibrate)
        else:
            self._check_net(state)
            self._check_position()
            self._load(lambda model: load_state(self.bare, model, "the net"), state["model"])
        self._prepare_training(state)
        self.log = self._open_log()
        self.diagnosis = self._diagnosis()
        self.saved_at, self.saved_step = time.monotonic(), -1
        self.asked, self.next_question = (self.saved_at, self.at.step), self.at.step  # see ``Trainer._agree``

    def _make_accelerator(self) -> Accelerator:
        """Make the accelerator with the run's precision and gradient accumulation."""
        train = self.train
        return make_accelerator(
            precision=train.precision,
            timeout_minutes=train.timeout_minutes,
            gradient_accumulation_plugin=GradientAccumulationPlugin(train.accumulate, sync_with_dataloader=False),
            step_scheduler_with_optimizer=False,
        )

    def _read_folder(self, resume: bool) -> dict[str, Any] | None:
        """Check the run's folder, and return the state to resume from, if any."""
        stored, epochs = self.files.read_config(type(self.config)), self.train.epochs
        before = epochs if stored is None or not resume else stored.train.epochs
        self.files.check_config(_with_epochs(self.config, before), resume=resume)
        state = self.files.load_state() if resume else None
        if epochs == before:
            return state
        # the run becomes longer or shorter
        done = 0 if state is None else state["position"].epoch
        if epochs <= done:  # the last epoch of a run is always evaluated, and one that is done may not be
            raise TrainingError(
                f"{self.files.root}: train.epochs={epochs}: must be at least {done + 1}, as {done} are trained"
            )
        rule = self.train.average
        if isinstance(rule, cfg.LastEpochs):
            first = first_averaged(rule, epochs)
            if first < done and first != first_averaged(rule, before):
                raise TrainingError(
                    f"{self.files.root}: train.epochs={epochs}: the mean of the last {rule.epochs} epochs would begin "
                    f"with the weights of epoch {first + 1}, which are not kept; give at least {done + rule.epochs}"
                )
        print_line(
            f"train.epochs was {before}, is {epochs}: from epoch {done + 1} on the rate follows the new schedule"
        )
        return state

    def _build_model(self) -> nn.Module:
        """Make the task's model on the device, in the run's dtype and memory layout."""
        set_seed(self.train.seed)  # the initial weights are the same on every rank
        model = self.task.build_model().to(self.dtype)
        if self.train.channels_last:
            clips = any(p.ndim == 5 for p in model.parameters())
            model.to(memory_format=torch.channels_last_3d if clips else torch.channels_last)
        return model.to(self.accelerator.device)

    def _net(self) -> dict[str, Any]:
        """Return the name, scheme and options of the net, which its state dict does not contain."""
        config = getattr(self.bare, "config", None)
        return {} if config is None else plain(dataclasses.asdict(config))

    def _check_net(self, state: dict[str, Any]) -> None:
        """Refuse to go on with another net, as when a conversion gives weights other options than before.

        Raises:
            TrainingError: the net differs from that of the state.
        """
        net = self._net()
        if changed := differences(state.get("net", net), net):
            raise TrainingError(
                f"{self.files.state}: the net has changed: {changed}; model.weights gives another one now: start a new "
                f"run from {self.files.last}"
            )

    def _check_position(self) -> None:
        """Refuse a position that is not one of this run.

        Raises:
            TrainingError: more forwards than an epoch has, or an epoch at its end without a loss.
        """
        usable = self.steps_per_epoch * self.train.accumulate
        if self.at.batch > usable or (self.at.batch == usable and not self.at.loss_count):
            raise TrainingError(
                f"{self.files.state}: its position, batch {self.at.batch} of {usable}, is not one of this run; start a "
                "new run"
            )

    def _check_data(self, state: dict[str, Any], changed_data: bool) -> None:
        """Refuse data other than those that the run has seen, unless only the samples differ and that is expected.

        Raises:
            TrainingError: other classes; other samples without ``changed_data``.
        """
        if "data" not in state:
            print_line(f"{self.files.state}: of an earlier version, which did not store what the data were")
            return
        stored: Fingerprint = state["data"]
        self.fingerprint.require_classes(stored, str(self.files.state))
        if not (changes := self.fingerprint.changes(stored)):
            return
        listed = "; ".join(changes)
        if not changed_data:
            raise TrainingError(
                f"{self.files.state}: the data have changed: {listed}; restore them, or continue with the changed data "
                "by --resume --changed-data"
            )
        at = self.at
        same_val = self.fingerprint.val == stored.val
        if at.epoch >= self.train.epochs or (self._is_stale() and same_val):
            field = "epochs" if at.epoch >= self.train.epochs else "early_stopping.patience"
            print_line(
                f"the data have changed: {listed}; the run has ended and stays as it is: raise train.{field} to train "
                "on them"
            )
            return
        # each sample once in the epoch that begins anew
        at.batch, at.loss_sum, at.loss_count = 0, 0.0, 0
        if not same_val:
            at.best, at.counted, at.stale = -math.inf, -math.inf, 0
        print_line(f"the data have changed: {listed}; epoch {at.epoch + 1} begins anew")

    def _is_stale(self) -> bool:
        """Return whether ``train.early_stopping`` ends the run."""
        rule = self.train.early_stopping
        return rule is not None and self.at.stale >= rule.patience

    def _load(self, load: Callable[[Any], object], part: Any) -> None:
        """Load a part of a training state.

        Raises:
            TrainingError: a part of another form, or too little memory for it.
        """
        try:
            load(part)
        except (zoo.WeightsError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            if (reason := out_of_memory(error)) is not None:
                raise TrainingError(
                    f"{self.files.state}: {reason} while it was loaded; free memory and continue with --resume"
                ) from None
            raise TrainingError(
                f"{self.files.state}: does not fit the run of its folder ({one_line(error)[:300]}); start a new run"
            ) from None

    def _guard_memory(self, function: Callable[[], None]) -> None:
        """Call a function before the first step.

        Raises:
            TrainingError: the memory does not suffice.
        """
        try:
            function()
        except Exception as error:
            if (reason := out_of_memory(error)) is None:
                raise
            raise TrainingError(f"calibration: {reason}: lower train.calibration_samples or train.batch_size") from None

    def _prepare_data(self, state: dict[str, Any] | None) -> None:
        """Set the sampler, the loader, and the numbers of steps of an epoch and of forwards of a step.

        A run goes on exactly where it was, also on another number of processes. Batches that all processes share are
        divided by the new number. Of batches per process, a step takes those that it took at the start of the run,
        shared out anew: each process takes several, or pieces of them.

        Raises:
            TrainingError: a batch size that is not a multiple of the processes, or an epoch without a whole step.
        """
        train, accelerator = self.train, self.accelerator
        ranks = accelerator.num_processes
        before = ranks if state is None else state["ranks"]
        if before != ranks:
            print_line(f"resuming a run of {before} processes on {ranks}")
        # 1. The batches, which are those of the number of processes at the start of the run.
        self.ranks: int = before if self.task.per_rank else ranks
        self.shards = ranks if self.task.per_rank else 1
        if train.batch_size % self.ranks:
            raise TrainingError(f"train.batch_size={train.batch_size} must be a multiple of the {self.ranks} processes")
        batch_size = train.batch_size // self.ranks if self.task.per_rank else train.batch_size
        self.batches = self.task.batches(batch_size, train.seed)
        # 2. What each process takes of those of a step.
        self.forwards = train.accumulate
        if self.ranks != ranks:
            self.batches.pieces, self.forwards = share_out(self.ranks * train.accumulate, ranks)
            accelerator.gradient_accumulation_steps = self.forwards
        # 3. The loader.
        if self.task.per_rank:
            accelerator.dataloader_config.split_batches = False
            accelerator.even_batches = False  # there is a batch for each rank
        loader = DataLoader(
            self.task.train_set(),
            batch_sampler=self.batches,
            num_workers=train.workers,
            collate_fn=self.task.collate,
            pin_memory=accelerator.device.type == "cuda",
            persistent_workers=train.workers > 0,
            worker_init_fn=outlive_signals,
            generator=torch.Generator(),
        )
        self.loader: Any = accelerator.prepare(loader)
        self.steps_per_epoch = len(self.batches) // (self.forwards * self.shards)
        if not self.steps_per_epoch:
            processes = f" on {self.shards} processes" if self.shards > 1 else ""
            raise TrainingError(
                f"train.accumulate={train.accumulate}{processes}: an epoch has only {len(self.batches)} batches; lower "
                "train.accumulate or train.batch_size"
            )

    def _calibrate(self) -> None:
        """Initialise the biases that no checkpoint supplied, from the first batches of epoch 0.

        Those that a conversion left at 0 (docs/convert.md) are moved without a change of the outputs.
        """
        if not self.train.calibrate:
            if self.main:
                print_line("no calibration (train.calibrate=false): biases before products begin at 0")
            return

        def forward(model: nn.Module, batch: Any) -> None:
            # Entered for each forward: autocast stores converted parameters until its end, and biases change between.
            with self.accelerator.autocast():
                self.task.calibration_forward(model, batch, self.dtype)

        def reduce(sums: Tensor) -> Tensor:
            return self.accelerator.reduce(sums, "sum")

        self.batches.seek(0, 0)
        count = count_calibration_batches(self.batches, self.train, self.shards)
        batches = list(islice(self.loader, count))
        report = zoo.calibrate(self.bare, self.task.merge(batches), forward=forward, reduce=reduce)
        untouched = untouched_biases(self.bare) if self.train.center_inputs else []
        if untouched:
            untouched = center_inputs_(self.bare, batches, names=untouched, forward=forward, reduce=reduce)
        if self.main:
            if report.calibrated:
                print_line(f"calibration on {count} batches: {report}")
            if untouched:
                moved = f"{len(untouched)} biases before products moved off 0, outputs unchanged"
                print_line(f"calibration on {count} batches: {moved}")

    def _prepare_training(self, state: dict[str, Any] | None) -> None:
        """Set model, optimizer and average, and load their state."""
        train = self.train
        optimizer = make_optimizer(self.bare, train.optimizer)
        if self.main:
            for line in describe_levels(self.bare, train.optimizer):
                print_line(line)
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.gradients = GradientChanges(self.bare, train.optimizer)
        self.average = WeightAverage(self.bare, train.average, train.epochs)
        self.model, self.optimizer = self.accelerator.prepare(self._fast(self.bare), optimizer)
        if state is not None:
            self._load(partial(load_optimizer, self.optimizer), state["optimizer"])
            self._load(self.average.load_state_dict, state["average"])
            if self.accelerator.scaler is not None:
                self._load(self.accelerator.scaler.load_state_dict, state["scaler"])

    def _fast(self, model: nn.Module) -> nn.Module:
        """Return the model as it runs in training: compiled, or as CUDA graphs, if the config asks for it."""
        train = self.train
        compiled: Any = torch.compile(model) if train.compile else model
        return GraphedNet(compiled, train.batch_size) if train.graphs else compiled

    def _check_graphs(self) -> None:
        """Refuse ``train.graphs`` where the net cannot be replayed.

        Raises:
            ConfigError: batches that differ in shape, no CUDA device, several processes, or workers with an old torch.
        """
        if not self.train.graphs:
            return
        if not self.task.one_shape:
            raise ConfigError(f"train.graphs: batches of {self.config.task} differ in shape; leave it out")
        if self.accelerator.device.type != "cuda" or self.accelerator.num_processes > 1:
            raise ConfigError("train.graphs: needs a CUDA device and a single process; leave it out")
        if self.train.workers and not PINS_BESIDE:
            raise ConfigError(f"train.graphs: torch {torch.__version__} needs train.workers=0 for it; or update torch")

    def _open_log(self) -> RunLog:
        """Write the config and open the log, on the main process."""
        wait_for_all(self.accelerator)  # every rank has read the folder
        if not self.main:
            return RunLog()
        self.files.write_config(self.config)
        return open_log(self.files.root, self.train.sinks, keep_bytes=self.at.log_bytes, step=self.at.step)

    def _diagnosis(self) -> Diagnosis | None:
        """Return what logs the signals in the net, if the config asks for it."""
        section = self.train.diagnose
        return None if section is None else Diagnosis(self.bare, self.task, self.accelerator, self.dtype, section)

    def _save(self) -> None:
        """Write the training state, after a check that all weights are finite."""
        self.check_weights()
        self.saved_at, self.saved_step = time.monotonic(), self.at.step
        if not self.main:
            return
        self.at.log_bytes = self.log.flush()
        scaler = self.accelerator.scaler
        self.files.save_state(
            {
                "net": self._net(),
                "data": self.fingerprint.as_dict(),
                "model": self.bare.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "position": dict(vars(self.at)),
                "ranks": self.ranks,
            }
        )

    def check_weights(self) -> None:
        """Stop the run at a parameter, or a statistic of a norm, that is not finite.

        Statistics of the other ranks do not count: the main process stores the weights, and each forward pass copies
        its statistics to all.
        """
        checked = self.bare.state_dict() if self.main else dict(self.bare.named_parameters())
        for name, values in checked.items():
            if not torch.isfinite(values).all():
                self.stop_not_finite(f"{name} has values that are not finite")

    def stop_not_finite(self, what: str) -> None:
        """Raise the ``TrainingError`` of a loss or weight that is not finite; its message begins with ``what``."""
        self.log.write(DivergedRecord(step=self.at.step, epoch=self.at.epoch, reason=what))
        self.log.flush()
        raise TrainingError(
            f"{self.describe_position()}: {what}; {self.files.describe_state()}. "
            "Lower train.optimizer.lr, lengthen the warm-up or set train.optimizer.clip_norm"
        )

    def describe_position(self) -> str:
        """Return the epoch and step in progress, for messages."""
        return f"epoch {self.at.epoch + 1}, step {self.at.step}"


def _with_epochs(config: cfg.RunConfig, epochs: int) -> cfg.RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"epochs": epochs})})


def count_calibration_batches(sampler: EpochSampler, train: cfg.TrainSection, shards: int) -> int:
    """Count the batches of each rank whose means initialise the biases.

    Whole batches are taken, at least one, at most ``train.calibration_batches``, and as many as have at most
    ``train.calibration_samples`` samples on all ranks together.

    Args:
        sampler: sampler of the run, at the first epoch.
        train: engine's settings.
        shards: batches of the sampler that all ranks together take at a time.
    """
    sizes = [len(batch) for batch in islice(sampler, train.calibration_batches * shards)]
    totals = list(accumulate(sum(sizes[i : i + shards]) for i in range(0, len(sizes), shards)))
    return max(1, sum(total <= train.calibration_samples for total in totals))
