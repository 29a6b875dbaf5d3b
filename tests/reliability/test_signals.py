"""Signals: the step is finished, its state saved, one line says how to go on; a second signal ends the process."""

from __future__ import annotations

import json
import random
import signal
import time

import pytest
import torch

from tests.helpers import faults
from tests.helpers.small_run import IN_A_ROW, points

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
RARELY = "train.checkpoint_minutes=10"  # so that only the signal, and the end of an epoch, save


def step_of(folder):
    """The step of the saved state."""
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["position"]["step"]


def assert_stopped(run, ended, folder, number):
    """Check the exit code, the line, and that no step of the log is lost."""
    assert ended.code == 128 + number, ended
    assert "Traceback" not in ended.written
    assert "error: " not in ended.written
    line = ended.written.splitlines()[-1]
    assert line.startswith(f"{signal.Signals(number).name}: stopped "), line
    assert ended.written.count(": stopped ") == 1
    assert "continue with --resume" in line
    run.assert_sound(folder, rarely=True)
    if "before the training began" not in line:
        records = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
        if records:  # else it was before the first step
            assert step_of(folder) == records[-1]["step"]


@pytest.mark.parametrize("seed", points(1, 20))
def test_signals_at_operations_on_files(run, operations, tmp_path, seed):
    """Ten in a row: in saves, between them, in the first writes to the folder and in the last."""
    folder, numbers = tmp_path / "run", random.Random(seed)
    for stop in range(IN_A_ROW):
        sent = numbers.choice(SIGNALS)
        given = (folder, numbers.randint(1, operations // 4), sent)
        ended = run.start(folder, resume=stop > 0, fault=faults.signal_at, given=given).end()
        if ended.code == 0:
            break
        assert_stopped(run, ended, folder, sent)
    run.assert_goes_on(folder)


@pytest.mark.parametrize("point", points(1, 100))
def test_a_signal_at_any_time(run, tmp_path, point):
    """The state is saved by the signal, not by the clock."""
    folder, sent = tmp_path / "run", SIGNALS[point % 3]
    started = run.start(folder, RARELY)
    started.wait_until((folder / "log.jsonl").exists)
    time.sleep(0.1 * random.Random(point).random())
    started.signal(sent)
    ended = started.end()
    if ended.code != 0 or ": stopped " in ended.written:  # else it was at its end already
        assert_stopped(run, ended, folder, sent)
    run.assert_goes_on(folder, RARELY)


def test_a_second_signal_ends_the_process_in_its_step(run, tmp_path):
    """Within a second it counts as the first, as Ctrl+C reaches a process more than once."""
    folder, reached = tmp_path / "run", tmp_path / "reached"
    started = run.start(folder, fault=faults.long_step, given=(reached, 60))
    started.wait_until(reached.exists)
    for seconds in (0, 0, 1.1):
        time.sleep(seconds)
        assert started.process.is_alive()  # in its step
        started.signal(signal.SIGTERM)
    begun = time.monotonic()
    ended = started.end()
    assert ended.code == 128 + signal.SIGTERM
    assert "continue with --resume" in ended.written.splitlines()[-1]
    assert time.monotonic() - begun < 10
    run.assert_sound(folder)
    run.assert_goes_on(folder)


def test_a_signal_waits_for_the_step(run, tmp_path):
    folder, reached = tmp_path / "run", tmp_path / "reached"
    started = run.start(folder, RARELY, fault=faults.long_step, given=(reached, 0.3))
    started.wait_until(reached.exists)
    started.signal(signal.SIGUSR1)
    assert_stopped(run, started.end(), folder, signal.SIGUSR1)
    assert step_of(folder) == 1
    run.assert_goes_on(folder, RARELY)
