"""What test_ranks.py runs on two processes: ``torchrun -m tests.helpers.two_ranks``. The main process prints JSON."""

import json

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

import zoo
from tasks.devices import make_accelerator
from tasks.engine.fingerprint import Fingerprint, SetPrint
from tasks.engine.ranks import from_main, on_main, require_same_data, share_buffers, share_state, wait_for_all
from tasks.errors import TrainingError
from tasks.progress import print_line


def main():
    accelerator = make_accelerator(timeout_minutes=1)
    rank = accelerator.process_index
    found = {}
    # a decision of the main process, and its error
    found["decided"] = on_main(accelerator, lambda: f"by {rank}")

    def refuse():
        raise TrainingError(f"refused by {rank}")

    try:
        on_main(accelerator, refuse)
    except TrainingError as error:
        found["refused"] = str(error)
    # what the main process reads for all, and its error
    found["read"] = from_main(accelerator, lambda: {"by": rank, "bytes": b"0" * 2**20})["by"]
    try:
        from_main(PartialState(), refuse)
    except TrainingError as error:
        found["unread"] = str(error)
    # the state, which only the main process has
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = {"model": model.state_dict(), "rest": [torch.tensor(7), (1.5, None, "text")], "none": None}
    shared = share_state(accelerator, state if rank == 0 else None)
    expected = state["model"]
    found["state"] = all(torch.equal(shared["model"][key], value) for key, value in expected.items())
    found["types"] = [str(value.dtype) for value in shared["model"].values()] == [
        str(v.dtype) for v in expected.values()
    ]
    found["rest"] = [int(shared["rest"][0]), list(shared["rest"][1]), shared["none"]]
    # statistics that each process collected from its own samples
    model.train()(torch.randn(4, 3) + rank)
    found["own"] = model[1].running_mean.tolist()
    share_buffers(accelerator, model)
    found["mean"] = model[1].running_mean.tolist()
    found["count"] = int(model[1].num_batches_tracked)
    # gradients of kernels of 1 x 1 pixels, whose strides torch remarks on
    torch.manual_seed(0)
    net = zoo.create_model("rescalenet20_cifar", width=0.25).to(memory_format=torch.channels_last)
    wrapped = accelerator.prepare(net)
    for _ in range(2):  # torch compares from the second step on
        wrapped(torch.randn(2, 3, 32, 32)).sum().backward()
    found["strides"] = sum(parameter.grad.stride() != parameter.stride() for parameter in net.parameters())
    # data, which each process reads by itself
    require_same_data(accelerator, Fingerprint(("a",), SetPrint.of("xy"), SetPrint.of("z"), "images"))
    try:
        require_same_data(accelerator, Fingerprint(("a",), SetPrint.of("xy"[rank:]), SetPrint.of("z"), "images"))
    except TrainingError as error:
        found["data"] = str(error)
    # a barrier that names no device: the machine's GPUs may be fewer than the processes on its CPU
    barrier, named = torch.distributed.barrier, []

    def recorded(**settings):
        named.append(settings)
        barrier(**settings)

    torch.distributed.barrier = recorded
    wait_for_all(accelerator)
    found["barriers"] = named
    everything = gather_object([found])
    if accelerator.is_main_process:
        print(json.dumps(everything))
    print_line("done")
    accelerator.end_training()  # a process group that Python destroys at exit can abort the process


if __name__ == "__main__":
    main()
