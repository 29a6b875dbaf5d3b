"""Devices and processes: the one place that makes an Accelerator."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DataLoaderConfiguration

from tasks.errors import TrainingError, UserError
from tasks.launch import local_process_count, process_count

# DistributedDataParallel compares the strides of dimensions of length 1 too, which mean nothing: of weights of 1 x 1
# pixels in channels_last they differ between the implementations of a convolution.
warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)

_chosen: torch.device | None = None  # the device that ``choose_device`` has set for this process


def device_names() -> list[str]:
    """Return the names of this machine's devices: cpu, and the kind of its accelerators with and without a number."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return ["cpu"]
    numbered = [f"{found.type}:{i}" for i in range(torch.accelerator.device_count())]
    return ["cpu", found.type, *(numbered if found.type != "mps" else [])]


def choose_device(name: str | None) -> None:
    """Set the device of everything that this process runs from now on.

    Args:
        name: one of ``device_names``; None for the machine's accelerator, or the CPU where there is none.

    Raises:
        UserError: there is no such device, or torchrun has to give each of several processes its own.
    """
    global _chosen
    known = device_names()
    if name is not None and name not in known:
        raise UserError(f"--device {name}: this machine has {', '.join(known)}")
    if name is not None and ":" in name and process_count() > 1:
        raise UserError(f"--device {name}: each process that torchrun starts has a device of its own; give {known[1]}")
    chosen = None if name is None else torch.device(name)
    if chosen != _chosen:  # the state of accelerate belongs to the device that was set before
        AcceleratorState._reset_state(reset_partial_state=True)
    _chosen = chosen
    if chosen is not None and chosen.index is not None:
        torch.accelerator.set_device_index(chosen.index)  # accelerate takes the current device of one process


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


TIMEOUT_MINUTES = 30.0  # default of ``train.timeout_minutes``


def best_device() -> torch.device:
    """Return the device that was chosen, or else the machine's accelerator, or the CPU."""
    if _chosen is not None:
        return _chosen
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def process_state() -> PartialState:
    """Return this process's rank, the number of processes and the device, also before an Accelerator exists."""
    return start_processes(TIMEOUT_MINUTES)


def describe_run(ranks: Accelerator | PartialState, precision: str) -> str:
    """Describe device, precision, processes and torch in one line."""
    device, count = ranks.device, ranks.num_processes
    if _chosen is not None and _chosen.index is not None:  # which accelerate names cuda
        device = _chosen
    if device.type == "cpu":  # which accelerate numbers on machines with a GPU
        device = torch.device("cpu")
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    processes = "1 process" if count == 1 else f"{count} processes"
    return f"device {device}{name}, precision {precision}, {processes}, torch {torch.__version__}"


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

    Raises:
        UserError: more processes on this machine than it has devices.
    """
    _require_device_each()
    # Without ``cpu``, PartialState and Accelerator ignore torchrun on machines without accelerators.
    limit = {} if process_count() == 1 else {"timeout": timedelta(minutes=timeout_minutes)}
    return PartialState(cpu=best_device().type == "cpu", **limit)


def _require_device_each() -> None:
    """Refuse processes that would share an accelerator, which NCCL ends with a traceback.

    Raises:
        UserError: more processes on this machine than it has devices.
    """
    kind, processes = best_device().type, local_process_count()
    if kind != "cpu" and processes > (devices := torch.accelerator.device_count()):
        raise UserError(
            f"{processes} processes on a machine with {devices} {kind} device{'s' if devices > 1 else ''}: give "
            f"torchrun --nproc-per-node {devices}, or this command --device cpu"
        )


def make_accelerator(
    *, precision: str = "fp32", timeout_minutes: float = TIMEOUT_MINUTES, **settings: Any
) -> Accelerator:
    """Make an Accelerator whose batches are split over the ranks, on ``best_device``.

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
            cpu=best_device().type == "cpu",  # see start_processes
            dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=True),
            mixed_precision=precision if precision in ("bf16", "fp16") else "no",
            **settings,
        )
    except ValueError as error:  # a precision that the device does not have
        raise TrainingError(f"train.precision={precision}: {error}") from None
    _require_precision(accelerator)
    launched = process_count()
    if accelerator.num_processes != launched:
        raise TrainingError(f"{launched} processes were launched, but Accelerate sees {accelerator.num_processes}")
    return accelerator


def _require_precision(accelerator: Accelerator) -> None:
    """Refuse a precision that Accelerate leaves out on this device without an error, as fp16 on the CPU.

    Raises:
        TrainingError: the device lacks the precision.
    """
    precision, device = accelerator.mixed_precision, accelerator.device.type
    if precision != "no" and not accelerator.native_amp:
        raise TrainingError(f"train.precision={precision}: not on this device, {device}; use fp32, or bf16 on a CPU")
