"""Devices and processes: the one place that makes an Accelerator."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DataLoaderConfiguration

from tasks.errors import TrainingError

TIMEOUT_MINUTES = 30.0  # default of ``train.timeout_minutes``


def best_device() -> torch.device:
    """Return the machine's accelerator, or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def process_state() -> PartialState:
    """Return this process's rank, the number of processes and the device, also before an Accelerator exists."""
    # Without ``cpu``, PartialState and Accelerator ignore torchrun on machines without accelerators.
    return PartialState(cpu=not torch.accelerator.is_available())


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def crowded() -> str | None:
    """Return a warning where other processes keep the CPUs busy that this one's threads count on; else None.

    OpenMP's threads wait for each other after each operation. With more threads than free CPUs a step can take many
    times as long (benchmarks/side_by_side.py).
    """
    if not hasattr(os, "getloadavg") or torch.get_num_threads() == 1:
        return None
    load, cpus, threads = os.getloadavg()[0], available_cpus(), torch.get_num_threads()
    if load + threads < 1.5 * cpus:
        return None
    return (
        f"the machine is busy (load {load:.1f} on {cpus} CPUs) and this run has {threads} threads, which slows it down "
        "many times: set OMP_NUM_THREADS to its share, or compare runs by rescalenet study --jobs"
    )


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of parameters and inputs in a run of this ``train.precision``."""
    return torch.float64 if precision == "fp64" else torch.float32


def start_processes(timeout_minutes: float) -> PartialState:
    """Join the processes that torchrun launched, if it did; the first call decides the time-out.

    Args:
        timeout_minutes: time that a process waits for the others in a collective operation.
    """
    limit = {} if int(os.environ.get("WORLD_SIZE", "1")) == 1 else {"timeout": timedelta(minutes=timeout_minutes)}
    return PartialState(cpu=not torch.accelerator.is_available(), **limit)


def make_accelerator(
    *, precision: str = "fp32", timeout_minutes: float = TIMEOUT_MINUTES, **settings: Any
) -> Accelerator:
    """Make an Accelerator whose batches are split over the ranks, on the machine's accelerator or the CPU.

    Args:
        precision: ``train.precision``; bf16 and fp16 are autocast.
        timeout_minutes: see ``start_processes``.
        settings: other arguments of ``Accelerator``.

    Raises:
        TrainingError: the device lacks the precision, or Accelerate does not see the processes torchrun launched.
    """
    start_processes(timeout_minutes)
    AcceleratorState._reset_state()  # otherwise the precision of an earlier run in this process stays
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # see process_state
            dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=True),
            mixed_precision=precision if precision in ("bf16", "fp16") else "no",
            **settings,
        )
    except ValueError as error:  # a precision that the device does not have
        raise TrainingError(str(error)) from None
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise TrainingError(f"{launched} processes were launched, but Accelerate sees {accelerator.num_processes}")
    return accelerator
