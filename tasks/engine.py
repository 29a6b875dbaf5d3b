"""The one training loop, on Accelerate.

A run is a pure function of its config and data: the learning rate is a function of the step, the random
state is seeded from (seed, step, rank), the order of the data from (seed, epoch), an image's augmentation
from (seed, epoch, index). So a checkpoint needs no generator states, and a resumed run repeats the
uninterrupted one exactly (to the bit on the CPU).

A run's folder: ``config.yaml`` (resolved), ``log.jsonl``, ``tensorboard/``, ``curves.png``,
``checkpoints/last.pt`` (training state), ``best.safetensors`` and ``last.safetensors`` (weights for
``zoo.create_model``).
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, broadcast, set_seed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import BatchSampler, DataLoader, Dataset

import zoo
from tasks import config as cfg
from tasks.devices import make_accelerator
from tasks.errors import TrainingError, dead_worker
from tasks.progress import Progress, print_line
from zoo.files import atomic_write, write_text
from zoo.method import branch_statistics

# what writing says where there is no room: disk full, quota, file size limit, read-only
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

Key = tuple[int, int]  # (epoch, index): what the sampler asks a training set for


class Task(Protocol):
    """What the engine needs to know of a task."""

    config: Any
    metric: str  # the metric (higher is better) that chooses the best checkpoint
    unit: str  # what progress counts: images, clips

    def build_model(self) -> nn.Module:
        """A model on the CPU, with the weights that the config names."""

    def train_set(self) -> Dataset[Any]:
        """A map-style data set whose keys are (epoch, index)."""

    def batches(self, batch_size: int, seed: int) -> EpochBatches:
        """The batches of keys of each epoch."""

    def collate(self, samples: list[Any]) -> Any:
        """Samples -> batch of tensors."""

    def calibration_forward(self, model: nn.Module, batch: Any, dtype: torch.dtype) -> None:
        """A forward of a batch (on the device) through every layer, for ``zoo.calibrate``."""

    def losses(self, model: nn.Module, batch: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        """The terms of the loss by name, each a mean over the batch; their sum is minimised."""

    def weight(self, batch: Any) -> int | None:
        """How much a batch counts beside others of an optimizer step (its tokens); None where all count the same."""

    def evaluate(self, model: nn.Module, accelerator: Accelerator, dtype: torch.dtype) -> dict[str, float]:
        """Metrics on the evaluation set, the same on every rank."""

    def end_of_epoch(self, accelerator: Accelerator) -> dict[str, float]:
        """What the task counted while training an epoch, the same on every rank; logged with it."""

    def save_weights(self, model: nn.Module, path: Path, meta: dict[str, Any]) -> None:
        """Write the model as weights that ``zoo.create_model`` loads."""


class EpochBatches(BatchSampler):
    """Batches of (epoch, index) in an order that depends on seed and epoch alone; the remainder is dropped.

    Args:
        length: of the data set.
        groups: of each sample; a batch is of one group, but for the last few of an epoch.
        repeats: how often each sample is wanted in an epoch, on average; default once.

    Attributes:
        per_rank: whether a batch is for one rank; else it is split over the ranks.
        per_batch: what progress counts (``Task.unit``) in a batch, on average.
    """

    per_rank = False
    per_batch: float

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        *,
        groups: Sequence[int] | None = None,
        repeats: Sequence[float] | None = None,
    ) -> None:
        self.groups, self.repeats = groups, repeats
        self.samples = length if repeats is None else int(sum(repeats))  # of an epoch
        if self.samples < batch_size:
            raise TrainingError(f"the training set has {self.samples} samples, fewer than one batch of {batch_size}")
        self.length, self.batch_size, self.seed, self.drop_last = length, batch_size, seed, True
        self.per_batch = float(batch_size)
        self.epoch, self.start = 0, 0

    def seek(self, epoch: int, start: int) -> None:
        """The next iteration gives the batches of ``epoch`` from number ``start`` on."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.samples // self.batch_size

    def __iter__(self) -> Iterator[list[Key]]:  # type: ignore[override]
        for batch in self._grouped(self._order())[self.start : len(self)]:
            yield [(self.epoch, index) for index in batch]

    def _order(self) -> list[int]:
        """The epoch's samples in random order."""
        generator = torch.Generator().manual_seed(seed_from(self.seed, self.epoch))
        if self.repeats is None:
            return torch.randperm(self.length, generator=generator).tolist()
        # Systematic resampling: each sample floor or ceil of its share, always the same number in all.
        ends = torch.tensor(self.repeats, dtype=torch.float64).cumsum(0)
        points = (torch.arange(self.samples) + torch.rand((), generator=generator, dtype=torch.float64)) / self.samples
        chosen = torch.searchsorted(ends, points * ends[-1], right=True).clamp(max=self.length - 1)
        return chosen[torch.randperm(self.samples, generator=generator)].tolist()

    def _grouped(self, order: list[int]) -> list[list[int]]:
        """Batches in the order in which they fill."""
        if self.groups is None:
            return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        waiting: dict[int, list[int]] = {}
        batches = []
        for index in order:
            bucket = waiting.setdefault(self.groups[index], [])
            bucket.append(index)
            if len(bucket) == self.batch_size:
                batches.append(waiting.pop(self.groups[index]))
        rest = [index for bucket in waiting.values() for index in bucket]
        return batches + [rest[i : i + self.batch_size] for i in range(0, len(rest), self.batch_size)]


def seed_from(*numbers: int) -> int:
    """One seed from several numbers, the same on every machine (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF


def rate(schedule: cfg.Schedule, epoch: float, epochs: int, steps: int = 1) -> float:
    """The learning rate over its peak at a (fractional) epoch of a run of ``epochs``, each of ``steps``."""
    if isinstance(schedule, cfg.InverseSqrt):
        done = (epoch * steps + 1) / schedule.warmup_steps
        return done if done < 1 else done**-0.5
    if isinstance(schedule, cfg.OneCycle):
        up = schedule.up * epochs
        if epoch < up:
            return schedule.start + (1 - schedule.start) * 0.5 * (1 - math.cos(math.pi * epoch / up))
        return 0.5 * (1 + math.cos(math.pi * (epoch - up) / (epochs - up)))
    if epoch < schedule.warmup_epochs:
        return epoch / schedule.warmup_epochs
    if isinstance(schedule, cfg.MultiStep):
        return schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
    progress = (epoch - schedule.warmup_epochs) / max(epochs - schedule.warmup_epochs, 1e-12)
    return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: nn.Module, section: cfg.SGD | cfg.AdamW) -> torch.optim.Optimizer:
    """The optimizer over ``zoo.param_groups``: weight decay on weights only."""
    groups = zoo.param_groups(model, section.weight_decay, multiplier_lr=section.multiplier_lr, bias_lr=section.bias_lr)
    for group in groups:
        del group["names"]
    if isinstance(section, cfg.SGD):
        return torch.optim.SGD(groups, lr=section.lr, momentum=section.momentum, nesterov=section.nesterov)
    return torch.optim.AdamW(groups, lr=section.lr, betas=section.betas, eps=section.eps)


@dataclass
class Position:
    """Where a run is: what a checkpoint records besides tensors."""

    epoch: int = 0  # the epoch in progress
    batch: int = 0  # forwards of it that are done
    step: int = 0  # optimizer steps done
    log_bytes: int = 0
    loss_sum: float = 0.0  # over the logged steps of this epoch
    loss_count: int = 0
    best: float = -math.inf
    metrics: dict[str, float] = field(default_factory=dict)


class RunLog:
    """``log.jsonl`` and TensorBoard; only the main process writes."""

    def __init__(self, folder: Path, keep_bytes: int, step: int, enabled: bool) -> None:
        self.enabled = enabled
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "log.jsonl"
        path.touch()
        self._file = path.open("r+", encoding="utf-8")
        self._file.truncate(keep_bytes)  # records of steps that will be done again
        self._file.seek(keep_bytes)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, event: str, step: int, **values: Any) -> None:
        """One JSON line; numbers go to TensorBoard too."""
        if not self.enabled:
            return
        self._file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        self._file.flush()  # for those who watch it
        for key, value in values.items():
            if isinstance(value, int | float) and key != "epoch":
                self._board.add_scalar(f"{event}/{key}", value, step)

    def blocks(self, step: int, epoch: int, rows: list[dict[str, Any]]) -> None:
        """Multipliers and branch weight norms of every block."""
        if not self.enabled:
            return
        self.write("blocks", step, epoch=epoch, blocks=rows)
        for row in rows:
            if row["m"] is not None:
                self._board.add_scalar(f"multiplier/{row['block']}", row["m"], step)
            for i, norm in enumerate(row["weight_norms"], 1):
                self._board.add_scalar(f"weight_norm/{row['block']}.{i}", norm, step)

    def flush(self) -> int:
        """Bring all to the disk; the length of the log in bytes."""
        if not self.enabled:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()
        return self._file.tell()

    def close(self) -> None:
        if self.enabled:
            self._file.close()
            self._board.close()


class Trainer:
    """One run: ``Trainer(task).fit()``.

    Args:
        task: the task, with its config.
        resume: go on with the run in the config's output folder; without a checkpoint there, start anew.

    Raises:
        TrainingError: the folder holds another run, or a batch does not divide over the ranks.
    """

    def __init__(self, task: Task, *, resume: bool = False) -> None:
        self.task, self.config = task, task.config
        train: cfg.TrainSection = self.config.train
        self.train = train
        self.folder = Path(self.config.output)
        self.state_path = self.folder / "checkpoints" / "last.pt"
        half = train.precision in ("bf16", "fp16")
        self.accelerator = make_accelerator(
            mixed_precision=train.precision if half else "no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(train.accumulate, sync_with_dataloader=False),
            step_scheduler_with_optimizer=False,
        )
        self.dtype = torch.float64 if train.precision == "fp64" else torch.float32
        ranks = self.accelerator.num_processes
        if train.batch_size % ranks:
            raise TrainingError(f"train.batch_size={train.batch_size} does not divide over {ranks} processes")
        state = self._read_folder(resume)
        set_seed(train.seed)  # the net's init is the same on every rank
        model = task.build_model().to(self.dtype)
        if train.channels_last:
            clips = any(p.ndim == 5 for p in model.parameters())
            model.to(memory_format=torch.channels_last_3d if clips else torch.channels_last)
        self.bare = model.to(self.accelerator.device)
        data = task.train_set()
        self.batches = task.batches(train.batch_size, train.seed)
        if self.batches.per_rank:
            self.accelerator.dataloader_config.split_batches = False
            self.accelerator.even_batches = False  # there is a batch for each rank
        loader = DataLoader(
            data,
            batch_sampler=self.batches,
            num_workers=train.workers,
            collate_fn=task.collate,
            pin_memory=self.accelerator.device.type == "cuda",
            persistent_workers=train.workers > 0,
            generator=torch.Generator(),
        )
        self.shards = ranks if self.batches.per_rank else 1  # batches that all ranks together take at a time
        self.steps_per_epoch = len(self.batches) // (train.accumulate * self.shards)
        if not self.steps_per_epoch:
            raise TrainingError(f"train.accumulate={train.accumulate}: an epoch has only {len(self.batches)} batches")
        self.loader: Any = self.accelerator.prepare(loader)
        self.at = Position()
        if state is None:
            self._calibrate()
        else:
            self.bare.load_state_dict(state["model"])
            self.at = Position(**state["position"])
        optimizer = make_optimizer(self.bare, train.optimizer)
        self.peaks = [train.optimizer.lr * group["lr_scale"] for group in optimizer.param_groups]
        self.average: AveragedModel | None = None
        if train.average is not None:
            rule = get_ema_multi_avg_fn(train.average.decay) if isinstance(train.average, cfg.EMA) else None
            self.average = AveragedModel(self.bare, multi_avg_fn=rule, use_buffers=True)
        forward = torch.compile(self.bare) if train.compile else self.bare
        self.model, self.optimizer = self.accelerator.prepare(forward, optimizer)
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        self.accelerator.wait_for_everyone()  # every rank has looked into the folder
        if self.accelerator.is_main_process:
            write_text(cfg.dump(self.config), self.folder / "config.yaml")
            for stale in self.state_path.parent.glob(".*.tmp"):  # a kill in the middle of writing
                stale.unlink()
        self.log = RunLog(self.folder, self.at.log_bytes, self.at.step, self.accelerator.is_main_process)
        self.saved_at = time.monotonic()

    # -- setting up -----------------------------------------------------------------------------

    def _read_folder(self, resume: bool) -> dict[str, Any] | None:
        """The state to resume from, if any."""
        stored = self.folder / "config.yaml"
        state = None
        if stored.exists():
            if not resume:
                raise TrainingError(f"{self.folder} holds a run already: add --resume, or choose another output=FOLDER")
            old, new = cfg.read_yaml(stored), self.config.model_dump(mode="json")
            for content in (old, new):
                content.pop("output", None)  # the folder may have been moved
            if changed := _differences(old, new):
                raise TrainingError(f"{self.folder} was started with another config: {changed}; resume with the same")
        if resume and self.state_path.exists():
            try:
                state = torch.load(self.state_path, map_location="cpu", weights_only=True)
            except Exception as error:
                raise TrainingError(f"{self.state_path}: not a complete checkpoint ({error})") from None
            if state["ranks"] != self.accelerator.num_processes:
                print_line(f"resuming a run of {state['ranks']} processes on {self.accelerator.num_processes}")
        return state

    def _calibrate(self) -> None:
        """Initialise the biases that no checkpoint supplied, from the first batches of epoch 0."""
        self.batches.seek(0, 0)
        count = min(self.train.calibration_batches, len(self.batches))
        samples = []
        for batch in self.loader:
            samples.append(batch)
            if len(samples) == count:
                break
        report = zoo.calibrate(
            self.bare,
            samples,
            forward=lambda model, batch: self.task.calibration_forward(model, batch, self.dtype),
            reduce=lambda t: self.accelerator.reduce(t, "sum"),
        )
        if report.calibrated and self.accelerator.is_main_process:
            print_line(f"calibration on {count} batches: {report}")

    # -- the loop -------------------------------------------------------------------------------

    def fit(self) -> dict[str, float]:
        """Train to the end. Returns the last metrics.

        Raises:
            TrainingError: a loss or weight that is not finite, a data loading process that died, a disk that is full;
                the last good checkpoint stays.
        """
        try:
            return self._fit()
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise TrainingError(
                f"{self.folder}: cannot be written ({error.strerror}); make room and go on with --resume; "
                f"{self._kept()}"
            ) from None
        except RuntimeError as error:
            if (reason := dead_worker(error)) is None:
                raise
            raise TrainingError(f"{self._where()}: {reason}; go on with --resume; {self._kept()}") from None

    def _fit(self) -> dict[str, float]:
        at, train = self.at, self.train
        total = train.epochs * self.steps_per_epoch
        samples = self.batches.per_batch * self.shards * train.accumulate
        main = self.accelerator.is_main_process
        with Progress(total, at.step, samples, unit=self.task.unit, enabled=main) as progress:
            while at.epoch < train.epochs:
                self._epoch(progress)
                self._end_of_epoch(progress)
        self.log.close()
        if main:
            from tasks.plots import curves

            curves(self.folder / "log.jsonl", self.folder / "curves.png", self.task.metric)
        self.accelerator.end_training()
        return at.metrics

    def _epoch(self, progress: Progress) -> None:
        at, train = self.at, self.train
        usable = self.steps_per_epoch * train.accumulate
        if at.batch >= usable:
            return
        self.batches.seek(at.epoch, at.batch * self.shards)
        self.model.train()
        forwards: list[Any] = []  # of a step
        for batch in self.loader:
            if at.batch >= usable:  # a remainder that would not fill an optimizer step
                break
            forwards.append(batch)
            if len(forwards) < train.accumulate:
                continue
            terms = self._step(forwards)
            forwards = []
            at.batch += train.accumulate
            at.step += 1
            if self.average is not None and isinstance(train.average, cfg.EMA):
                self.average.update_parameters(self.bare)
            if at.step % train.log_every == 0 or at.batch == usable:
                self._log_step(terms)
            mean = {"loss": at.loss_sum / at.loss_count} if at.loss_count else {}
            progress.step(at.step, epoch=f"{at.epoch + 1}/{train.epochs}", **mean)
            if self._due():
                self._save()

    def _step(self, forwards: list[Any]) -> dict[str, Tensor]:
        """One optimizer step. Returns the terms of the loss, of this rank: their mean over ranks is the step's."""
        at, train = self.at, self.train
        usable = self.steps_per_epoch * train.accumulate
        set_seed(seed_from(train.seed, at.step, self.accelerator.process_index) % 2**32)
        epoch = at.epoch + at.batch / usable
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * rate(train.schedule, epoch, train.epochs, self.steps_per_epoch)
        shares = self._shares(forwards)
        losses: list[dict[str, Tensor]] = []
        for batch, share in zip(forwards, shares, strict=True):
            with self.accelerator.accumulate(self.model):
                terms = self.task.losses(self.model, batch, self.dtype)
                if share is not None:
                    terms = {name: term * share for name, term in terms.items()}
                losses.append({name: term.detach() for name, term in terms.items()})
                self.accelerator.backward(torch.stack(list(terms.values())).sum())
                if self.accelerator.sync_gradients and train.optimizer.clip_norm is not None:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), train.optimizer.clip_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return {name: torch.stack([terms[name] for terms in losses]).mean() for name in losses[0]}

    def _shares(self, forwards: list[Any]) -> list[float] | list[None]:
        """The weight of each forward's loss over the mean weight of all forwards of the step, on all ranks."""
        weights = [self.task.weight(batch) for batch in forwards]
        own = [weight for weight in weights if weight is not None]
        if not own:
            return [None] * len(weights)
        total = float(sum(own))
        if self.accelerator.num_processes > 1:
            there = torch.tensor(total, dtype=torch.float64, device=self.accelerator.device)
            total = float(self.accelerator.reduce(there, "mean"))
        mean = total / len(own)
        return [weight / mean for weight in own]

    def _log_step(self, terms: dict[str, Tensor]) -> None:
        at = self.at
        means = self.accelerator.reduce(torch.stack(list(terms.values())), "mean").tolist()
        value = sum(means)
        shown = dict(zip(terms, means, strict=True)) if len(terms) > 1 else {}
        if not math.isfinite(value):
            parts = ", ".join(f"{name} {mean}" for name, mean in shown.items())
            self._not_finite(f"the loss is {value}" + (f" ({parts})" if parts else ""))
        at.loss_sum, at.loss_count = at.loss_sum + value, at.loss_count + 1
        self.log.write("step", at.step, epoch=at.epoch, loss=value, **shown, lr=self.optimizer.param_groups[0]["lr"])

    def _end_of_epoch(self, progress: Progress) -> None:
        at, train, main = self.at, self.train, self.accelerator.is_main_process
        self._check_weights()
        model = self._averaged()
        folder = self.folder / "checkpoints"
        values = {"train_loss": at.loss_sum / at.loss_count, **self.task.end_of_epoch(self.accelerator)}
        meta: dict[str, Any] = {"epochs": at.epoch + 1, "config": self.config.model_dump(mode="json")}
        if (at.epoch + 1) % train.eval_every == 0 or at.epoch + 1 == train.epochs:
            at.metrics = self.task.evaluate(model, self.accelerator, self.dtype)
            values |= at.metrics
            meta["metrics"] = at.metrics
            if at.metrics[self.task.metric] > at.best:
                at.best = at.metrics[self.task.metric]
                if main:
                    self.task.save_weights(model, folder / "best.safetensors", meta)
        self.log.write("epoch", at.step, epoch=at.epoch, **values)
        self.log.blocks(at.step, at.epoch, branch_statistics(self.bare))
        if main:
            self.task.save_weights(model, folder / "last.safetensors", meta)
            shown = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
            progress.message(f"epoch {at.epoch + 1}/{train.epochs}  {shown}")
        at.epoch, at.batch, at.loss_sum, at.loss_count = at.epoch + 1, 0, 0.0, 0
        self._save()

    def _averaged(self) -> nn.Module:
        """What is evaluated and kept at an epoch's end."""
        average, rule = self.average, self.train.average
        if average is None:
            return self.bare
        if isinstance(rule, cfg.LastEpochs):
            if self.at.epoch < self.train.epochs - rule.epochs:
                return self.bare
            average.update_parameters(self.bare)
        return average.module

    # -- checkpoints ----------------------------------------------------------------------------

    def _due(self) -> bool:
        """Whether every-n-minutes says to save; the main process decides for all."""
        due = time.monotonic() - self.saved_at >= self.train.checkpoint_minutes * 60
        if self.accelerator.num_processes == 1:
            return due
        if self.at.step % self.train.log_every:  # asking the other ranks is a synchronisation: as often as logging
            return False
        return bool(broadcast(torch.tensor([int(due)], device=self.accelerator.device)))

    def _check_weights(self) -> None:
        for name, parameter in self.bare.named_parameters():
            if not torch.isfinite(parameter).all():
                self._not_finite(f"{name} has values that are not finite")

    def _where(self) -> str:
        return f"epoch {self.at.epoch + 1}, step {self.at.step}"

    def _kept(self) -> str:
        return f"the last good checkpoint is {self.state_path}" if self.state_path.exists() else "no checkpoint yet"

    def _not_finite(self, what: str) -> None:
        self.log.flush()
        raise TrainingError(
            f"{self._where()}: {what}; {self._kept()}. "
            "Lower train.optimizer.lr, lengthen the warm-up or set train.optimizer.clip_norm"
        )

    def _save(self) -> None:
        """Write the training state, after making sure that it is worth keeping."""
        self._check_weights()
        self.saved_at = time.monotonic()
        if not self.accelerator.is_main_process:
            return
        self.at.log_bytes = self.log.flush()
        state = {
            "model": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "position": dict(vars(self.at)),
            "ranks": self.accelerator.num_processes,
        }
        atomic_write(self.state_path, lambda path: _save_state(state, path))


def _save_state(state: dict[str, Any], path: Path) -> None:
    """torch.save that says so when the disk is full: writing to a path, it calls that an unexpected position."""
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    """The first few keys whose values differ, as text."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            inner = _differences(a, b, f"{prefix}{key}.")
            found += [inner] if inner else []
        elif a != b:
            found.append(f"{prefix}{key} was {a!r}, is {b!r}")
    return ", ".join(found)
