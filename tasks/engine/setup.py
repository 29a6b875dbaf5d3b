"""The parts that a run is built of: processes, model, data loader, initial biases."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, set_seed
from torch import nn
from torch.utils.data import DataLoader

import zoo
from tasks import config as cfg
from tasks.devices import make_accelerator
from tasks.engine.sampler import EpochSampler
from tasks.engine.task import Task
from tasks.errors import TrainingError
from tasks.progress import print_line


def accelerator_for(train: cfg.TrainSection) -> Accelerator:
    """The accelerator with the run's precision and gradient accumulation.

    Raises:
        TrainingError: the batch size is not a multiple of the number of processes; see ``make_accelerator``.
    """
    accelerator = make_accelerator(
        mixed_precision=train.precision if train.precision in ("bf16", "fp16") else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(train.accumulate, sync_with_dataloader=False),
        step_scheduler_with_optimizer=False,
    )
    ranks = accelerator.num_processes
    if train.batch_size % ranks:
        raise TrainingError(f"train.batch_size={train.batch_size} must be a multiple of the {ranks} processes")
    return accelerator


def describe(accelerator: Accelerator, train: cfg.TrainSection) -> str:
    """One line on what a run uses: device, precision, processes, torch."""
    device = accelerator.device
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    processes = "1 process" if accelerator.num_processes == 1 else f"{accelerator.num_processes} processes"
    return f"device {device}{name}, precision {train.precision}, {processes}, torch {torch.__version__}"


def build_model(task: Task, train: cfg.TrainSection, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The task's model on the device, in the run's dtype and memory layout."""
    set_seed(train.seed)  # the initial weights are the same on every rank
    model = task.build_model().to(dtype)
    if train.channels_last:
        clips = any(p.ndim == 5 for p in model.parameters())
        model.to(memory_format=torch.channels_last_3d if clips else torch.channels_last)
    return model.to(device)


def build_loader(task: Task, sampler: EpochSampler, train: cfg.TrainSection, accelerator: Accelerator) -> Any:
    """The training set's loader; each rank gets its part of the batches."""
    if sampler.per_rank:
        accelerator.dataloader_config.split_batches = False
        accelerator.even_batches = False  # there is a batch for each rank
    loader = DataLoader(
        task.train_set(),
        batch_sampler=sampler,
        num_workers=train.workers,
        collate_fn=task.collate,
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=train.workers > 0,
        generator=torch.Generator(),
    )
    return accelerator.prepare(loader)


def count_calibration_batches(sampler: EpochSampler, train: cfg.TrainSection, shards: int) -> int:
    """The number of batches of each rank whose means initialise the biases.

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


def calibrate(
    task: Task,
    model: nn.Module,
    loader: Any,
    count: int,
    accelerator: Accelerator,
    forward: Callable[[nn.Module, Any], None],
) -> None:
    """Initialise the biases that no checkpoint supplied from the first batches, and report it.

    Args:
        task: task, which may merge the batches.
        model: net on the device.
        loader: prepared loader, at the start of the first epoch.
        count: batches of each rank.
        accelerator: accelerator of the run, which sums over the ranks and sets the precision.
        forward: the task's calibration forward.
    """

    def in_run_precision(model: nn.Module, batch: Any) -> None:
        # Entered for each forward: autocast stores converted parameters until its end, and a bias changes in between.
        with accelerator.autocast():
            forward(model, batch)

    report = zoo.calibrate(
        model,
        task.merge(list(islice(loader, count))),
        forward=in_run_precision,
        reduce=lambda t: accelerator.reduce(t, "sum"),
    )
    if report.calibrated and accelerator.is_main_process:
        print_line(f"calibration on {count} batches: {report}")
