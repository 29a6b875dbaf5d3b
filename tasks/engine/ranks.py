"""What the processes of a run share: decisions of the main process, its state, its statistics."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch import Tensor, nn

from tasks.engine.fingerprint import Fingerprint
from tasks.errors import TrainingError, UserError
from tasks.shards import Ranks

Result = TypeVar("Result")
_BEGIN_SECONDS, _REPORT_SECONDS = 60.0, 3.0  # time to reach torchrun, at the begin of a run and at its end
_LOOK_EVERY = 0.1  # seconds between looks for whether the main process is ready
_waits = itertools.count()  # numbers of the waits for the main process, the same on all processes


def on_main(accelerator: Accelerator, function: Callable[[], Result]) -> Result | None:
    """Call a function on the main process, and return its result there, None on the others.

    An error of the user that it raises is raised on every process, so that none waits for the others.

    Raises:
        UserError: the error of the main process.
        OSError: likewise.
    """
    result, failure = _called_on_main(accelerator, function)
    if accelerator.num_processes > 1:
        failure = broadcast_object_list([failure])[0]
    if failure is not None:
        raise failure
    return result


def from_main(ranks: Ranks, function: Callable[[], Result]) -> Result:
    """Call a function on the main process, and return its result on every process.

    What the function reads is so read once, and need not be on a disk that the other machines see. It may take hours:
    the others wait outside of collective operations, which would end the run after ``train.timeout_minutes``.

    Args:
        ranks: processes of the run.
        function: function whose result can be pickled.

    Raises:
        UserError: the error of the main process, on every process.
        OSError: likewise.
        TrainingError: another process has ended.
    """
    result, failure = _called_on_main(ranks, function)
    if ranks.num_processes > 1:
        try:
            _wait_for_main(ranks)
            result, failure = broadcast_object_list([result, failure])
        except RuntimeError as error:
            if not lost_peer(error):
                raise
            raise TrainingError("while data were read another process of the run ended") from None
    if failure is not None:
        raise failure
    return cast(Result, result)


def _called_on_main(ranks: Ranks, function: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """Return the function's result, or the error of the user that it raises, on the main process."""
    if not ranks.is_main_process:
        return None, None
    try:
        return function(), None
    except (UserError, OSError) as error:
        return None, error


def _wait_for_main(ranks: Ranks) -> None:
    """Wait until the main process has come here, outside of collective operations: torchrun ends those that wait."""
    store, key = _store(_BEGIN_SECONDS), _key(f"read/{next(_waits)}")
    if ranks.is_main_process:
        store.set(key, "")
    while not store.check([key]):  # not its own wait, during which Python handles no signals
        time.sleep(_LOOK_EVERY)


def _store(seconds: float) -> torch.distributed.TCPStore:
    """Return what stores values for all processes of a run, which torchrun has in a process of its own."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return torch.distributed.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=seconds))


def _key(name: str) -> str:
    """Return the key of a value in the store; torchrun may start the processes again."""
    return f"rescalenet/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"


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
    for tensor in tensors_of(state):  # one by one: they need not fit on a device together
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

    The others fail because of it, and would report only that. Where the store cannot be reached each process reports.
    """
    try:
        return _store(_REPORT_SECONDS).add(_key("failed"), 1) == 1
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


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from tensors_of(inner)
