"""Shared by all tests: one thread a worker, narrow nets, real data where it is there."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import zoo

torch.set_num_threads(1)
collect_ignore = [] if importlib.util.find_spec("detectron2") else ["interop"]  # its own environment: test-interop
ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))  # for benchmarks/

# One narrow net for each family and block; everything is checked on these, counts and shapes on all nets.
IMAGES = {
    "basic": ("rescalenet18", {"width": 0.125}),
    "bottleneck": ("rescalenet50", {"width": 0.125}),
    "grouped": ("rescalenext50_32x4d", {"width": 0.25}),
    "cifar": ("rescalenet20_cifar", {"width": 0.5}),
    "vgg": ("rescalevgg16", {"width": 0.0625, "drop_rate": 0.0}),
}
CLIPS = {
    "r3d": ("rescale_r3d_18", {"width": 0.125}),
    "r2plus1d": ("rescale_r2plus1d_18", {"width": 0.125}),
    "i3d": ("rescale_i3d_r50", {"width": 0.125}),
    "replicate": ("rescale_r3d_10", {"width": 0.25, "temporal_padding": "replicate"}),
}
NARROW = {**IMAGES, **CLIPS}
VISION = zoo.list_models(takes="images") + zoo.list_models(takes="clips")  # nets of text: test_transformer.py


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def narrow(kind: str, **extra: object):
    """A fresh narrow net with 5 classes."""
    name, options = NARROW[kind]
    return zoo.create_model(name, num_classes=5, **{**options, **extra})


def samples(kind: str, count: int, height: int, width: int | None = None, *, chans: int = 3, **settings):
    """Random input for a narrow net: images, or clips of 5 frames."""
    frames = (5,) if kind in CLIPS else ()
    return torch.randn(count, chans, *frames, height, width or height, **settings)


def shared(*parts: str) -> Path:
    """A path below ../shared, or skip the test."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path.relative_to(SHARED.parent)}, which is not on this machine")
    return path


def natural_images(count: int, size: int) -> torch.Tensor:
    """Images with a 1/f amplitude spectrum, as photographs have, each channel with mean 0 and variance 1."""
    frequency = torch.fft.fftfreq(size)
    amplitude = 1 / (frequency[:, None] ** 2 + frequency**2).sqrt().clamp(min=1 / size)
    x = torch.fft.ifft2(torch.fft.fft2(torch.randn(count, 3, size, size)) * amplitude).real
    return (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)


def environment() -> dict[str, str]:
    """For subprocesses: one thread, no hub."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def train_and_kill(arguments: list[str], state: Path, after: int) -> dict[str, int]:
    """Train in a process group of its own and send it SIGKILL once a checkpoint has ``after`` steps.

    Returns:
        Where the checkpoint stands.
    """
    process = subprocess.Popen(arguments, env=environment(), start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if state.exists() and torch.load(state, weights_only=True)["position"]["step"] >= after:
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return torch.load(state, weights_only=True)["position"]


def on_two_processes(*arguments: object) -> str:
    """Run ``rescalenet`` with these arguments through torchrun on two processes.

    Returns:
        What they say on standard output.
    """
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tasks.cli"]
    launch += map(str, arguments)
    done = subprocess.run(launch, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
