"""What the processes of a run share: decisions of the main process, its state, its statistics."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch import Tensor, nn

from tasks.engine.fingerprint import Fingerprint
from tasks.errors import TrainingError, UserError

Result = TypeVar("Result")
_STORE_SECONDS = 3.0  # time to reach torchrun


def on_main(accelerator: Accelerator, function: Callable[[], Result]) -> Result | None:
    """Call a function on the main process, and return its result there, None on the others.

    An error of the user that it raises is raised on every process, so that none waits for the others.

    Raises:
        UserError: the error of the main process.
        OSError: likewise.
    """
    result, failure = None, None
    if accelerator.is_main_process:
        try:
            result = function()
        except (UserError, OSError) as error:
            failure = error
    if accelerator.num_processes > 1:
        failure = broadcast_object_list([failure])[0]
    if failure is not None:
        raise failure
    return result


def wait_for_all(accelerator: Accelerator) -> None:
    """Wait until every process has come here.

    On the CPU this is torch's own barrier. Accelerate gives it the number of a GPU also then, which fails where the
    machine has fewer of them than processes.
    """
    if accelerator.num_processes > 1 and accelerator.device.type == "cpu":
        torch.distributed.barrier()
    else:
        accelerator.wait_for_everyone()


def share_state(accelerator: Accelerator, state: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the main process's state on every process, on the CPU.

    The folder of a run need not be on a disk that the other machines see.

    Args:
        accelerator: processes of the run.
        state: nested dictionaries and lists with tensors; None if there is none. The other processes' values do not
            matter.
    """
    if accelerator.num_processes == 1:
        return state
    form = _map_tensors(state, lambda tensor: torch.empty_like(tensor, device="meta"))
    form = broadcast_object_list([form])[0]
    if not accelerator.is_main_process:
        state = _map_tensors(form, lambda tensor: torch.empty_like(tensor, device="cpu"))
    for tensor in _tensors(state):  # one by one: they need not fit on a device together
        tensor.copy_(broadcast(tensor.to(accelerator.device)))
    return state


def require_same_data(accelerator: Accelerator, fingerprint: Fingerprint) -> None:
    """Refuse data that are not the same on all processes, as where machines have copies of their own.

    Every process raises the error, so that none waits for the others.

    Args:
        accelerator: processes of the run.
        fingerprint: data that this process reads.

    Raises:
        TrainingError: classes, training or evaluation samples of a process are not those of the first one.
    """
    if accelerator.num_processes == 1:
        return
    first, *others = gather_object([fingerprint])
    for rank, other in enumerate(others, 1):
        if other != first:
            names = {"classes": "classes", "train": "training samples", "val": "evaluation samples"}
            parts = [shown for name, shown in names.items() if getattr(other, name) != getattr(first, name)]
            raise TrainingError(
                f"data: the {' and '.join(parts)} of process {rank} are not those of process 0; give every machine the "
                "same data"
            )


def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Give every process the main process's buffers, such as the statistics of BatchNorm.

    Data-parallel training copies them in each forward pass, so that after the last step each process has its own.
    """
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer.detach().clone()))


def first_to_fail() -> bool:
    """Return whether this process is the first of those that torchrun launched to report why it ends.

    The others fail because of it, and would report only that. The answer is stored where the processes find each other,
    which torchrun has in a process of its own. Where it cannot be reached each process reports.
    """
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = torch.distributed.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=_STORE_SECONDS))
        return store.add(f"rescalenet/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return True


def lost_peer(error: BaseException) -> bool:
    """Return whether an error means that another process of the run has ended or does not answer."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in ("gloo", "NCCL"))


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return nested dictionaries, lists and tuples with the function's value in the place of each tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map_tensors(inner, function) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(inner, function) for inner in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)
