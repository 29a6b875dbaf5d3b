"""The command line in this process, in processes of its own, and killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from tasks import cli


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


def call(capsys, monkeypatch, *arguments):
    """Exit code, stdout and stderr of ``rescalenet ARGUMENTS``."""
    monkeypatch.setattr("sys.argv", ["rescalenet", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    captured = capsys.readouterr()
    return code, captured.out, captured.err
