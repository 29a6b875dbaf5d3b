"""The device of a command, and errors of memory."""

import pytest
import torch

from tasks import devices
from tasks.errors import TrainingError, UserError, out_of_memory


@pytest.fixture(autouse=True)
def _no_choice():
    yield
    devices.choose_device(None)


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "cpu:0", "CPU"])
def test_an_unknown_device_names_those_that_there_are(name):
    with pytest.raises(UserError, match=rf"^--device {name}: this machine has cpu"):
        devices.choose_device(name)


def test_every_place_takes_the_chosen_device(monkeypatch):
    accelerator = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: accelerator)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert devices.best_device() == accelerator
    assert devices.device_names() == ["cpu", "cuda", "cuda:0", "cuda:1"]
    devices.choose_device("cpu")
    assert devices.best_device() == torch.device("cpu")
    assert devices.process_state().device == torch.device("cpu")
    assert devices.make_accelerator().device == torch.device("cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--device cuda:1: each process that torchrun starts has a device of its own"):
        devices.choose_device("cuda:1")
    monkeypatch.undo()
    assert devices.describe_run(devices.process_state(), "bf16") == (
        f"device cpu, precision bf16, 1 process, torch {torch.__version__}"
    )


def test_a_numbered_device_becomes_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    devices.choose_device("cuda:1")
    assert chosen == [1]
    assert devices.best_device() == torch.device("cuda:1")


def test_processes_that_would_share_a_device_are_refused(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    expected = r"^2 processes on a machine with 1 cuda device: give torchrun --nproc-per-node 1, or .* --device cpu$"
    for start in (devices.process_state, devices.make_accelerator):
        with pytest.raises(UserError, match=expected):
            start()


def test_a_precision_that_the_device_lacks_is_refused():
    """Accelerate would train in fp32 without a word."""
    devices.choose_device("cpu")
    with pytest.raises(TrainingError, match=r"train.precision=fp16: not on this device, cpu; use fp32, or bf16 on a C"):
        devices.make_accelerator(precision="fp16")
    assert devices.make_accelerator(precision="bf16").native_amp


def test_memory_runs_out_on_devices_and_on_the_cpu():
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(2**60)
    errors = [
        cpu.value,
        MemoryError("Unable to allocate 3.00 TiB for an array"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("MPS backend out of memory"),
    ]
    assert all(out_of_memory(error).startswith("out of memory (") for error in errors)
    assert out_of_memory(RuntimeError("shapes differ")) is None
    assert out_of_memory(ValueError("can't allocate memory")) is None
