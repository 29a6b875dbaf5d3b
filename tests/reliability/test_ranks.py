"""Runs of two processes: one that fails ends all, with one line; long preparation of data ends none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from tests.helpers.commands import environment

pytestmark = pytest.mark.slow


class Launch:
    """``torchrun`` with two processes of ``rescalenet``, or another module; what it writes, with the time."""

    def __init__(self, *arguments: object, module: str = "tasks.cli") -> None:
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", module]
        self.process = subprocess.Popen(
            [*line, *map(str, arguments)], env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.lines: list[tuple[float, str]] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    @property
    def ranks(self) -> dict[str, int]:
        """Numbers of the processes by their rank."""
        found = {}
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            try:
                variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                continue
            found |= {value[5:].decode(): int(child) for value in variables if value.startswith(b"RANK=")}
        return found

    def wait_for(self, path: Path, size: int) -> None:
        """Wait until a file has some bytes."""
        end = time.monotonic() + 240
        while not path.exists() or path.stat().st_size < size:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.05)

    def end(self, seconds: float) -> int:
        """Wait for the end of all processes, and return the exit code."""
        children = list(self.ranks.values())
        try:
            self.process.wait(seconds)
            self.reader.join(10)
            assert not any(Path(f"/proc/{child}").exists() for child in children), self.text
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                for child in children:  # torchrun gives each a session of its own
                    os.kill(child, signal.SIGKILL)
                self.process.wait()
        return self.process.returncode

    @property
    def text(self) -> str:
        """What it wrote, torchrun's own report with its traceback included."""
        return "\n".join(line for _, line in self.lines)

    def error(self) -> tuple[float, str]:
        """Return time and text of the one line with which the command line ended."""
        errors = [(at, line) for at, line in self.lines if line.startswith("error: ")]
        assert len(errors) == 1, self.text
        self.assert_no_traceback()
        return errors[0]

    def assert_no_traceback(self) -> None:
        """Check that no rank wrote a traceback; torch writes the rank before each line."""
        assert not [line for _, line in self.lines if line.startswith("[rank") and "Traceback" in line], self.text


@pytest.fixture
def config(images, tmp_path):
    """A config of many epochs."""
    content = {
        "task": "classification",
        "output": str(tmp_path / "run"),
        "model": {"name": "rescalenet20_cifar", "options": {"width": 0.25}},
        "data": {"root": str(images), "size": 12, "resize": 12, "augment": {"crop": {"name": "pad", "padding": 2}}},
        "train": {
            "epochs": 500,
            "batch_size": 8,
            "optimizer": {"name": "sgd", "lr": 0.01},
            "log_every": 1,
            "calibration_batches": 1,
            "sinks": [],
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return tmp_path / "config.yaml"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_is_killed_ends_all(config, tmp_path, rank):
    launch = Launch("train", config)
    launch.wait_for(tmp_path / "run" / "log.jsonl", 1000)
    begun = time.monotonic()
    os.kill(launch.ranks[rank], signal.SIGKILL)
    assert launch.end(30) != 0
    at, line = launch.error()
    assert at - begun < 30
    assert "--resume" in line


def test_a_rank_that_raises_ends_all(config, tmp_path):
    """A picture that cannot be read, which one of the two processes reads."""
    text = config.read_text().replace("epochs: 500", "epochs: 50")
    content = yaml.safe_load(text)
    root = tmp_path / "data"
    subprocess.run(["cp", "-r", content["data"]["root"], root], check=True)
    bad = sorted((root / "train" / "red").iterdir())[3]
    bad.write_bytes(b"no picture")
    launch = Launch("train", config, f"data.root={root}", "train.calibration_samples=1")
    assert launch.end(240) != 0
    at, line = launch.error()
    assert str(bad) in line
    assert time.monotonic() - at < 30


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_stops_all(config, tmp_path, sent):
    """The state is saved once, by the first process, whichever got the signal; the run goes on from it."""
    launch = Launch("train", config)
    log = tmp_path / "run" / "log.jsonl"
    launch.wait_for(log, 1000)
    os.kill(launch.ranks["1"], sent)
    assert launch.end(60) != 0
    assert [line for _, line in launch.lines if ": stopped at " in line and "--resume" in line]
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()
    launch.assert_no_traceback()


def test_preparation_longer_than_the_time_out_of_the_group(config, tmp_path):
    """One process downloads the data for 15 seconds, the other waits; the time-out is 6 seconds."""
    launch = Launch(
        "train",
        config,
        "data.source=cifar10",
        f"data.root={tmp_path}",
        "train.epochs=1",
        "train.timeout_minutes=0.1",
        module="tests.helpers.slow_download",
    )
    assert launch.end(240) == 0, launch.text
    assert (tmp_path / "run" / "curves.png").exists()
