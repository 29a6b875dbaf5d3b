"""Runs that are killed: no file is half written, and the resumed run equals one that was not disturbed."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.helpers import faults
from tests.helpers.small_run import IN_A_ROW, points


@pytest.mark.parametrize("seed", points(1, 20))
def test_a_run_killed_at_operations_on_its_files_goes_on(run, operations, tmp_path, seed):
    """It is killed ten times in a row."""
    folder, numbers = tmp_path / "run", random.Random(seed)
    for kill in range(IN_A_ROW):
        given = (folder, numbers.randint(1, operations // 4), signal.SIGKILL)
        ended = run.start(folder, resume=kill > 0, fault=faults.signal_at, given=given).end()
        run.assert_sound(folder)
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL
    run.assert_goes_on(folder)


@pytest.mark.parametrize("point", points(1, 50))
def test_a_run_killed_in_the_middle_of_a_write_goes_on(run, tmp_path, point):
    """The system ends the process when a file reaches a length, at which the file is cut off."""
    lengths = [path.stat().st_size for path in run.whole.rglob("*") if path.is_file()]
    length = random.Random(point).randint(1, max(lengths) - 1)
    folder = tmp_path / "run"
    ended = run.start(folder, fault=faults.limit_length, given=(length, True)).end()
    assert ended.code == -signal.SIGXFSZ
    run.assert_sound(folder)
    run.assert_goes_on(folder)


@pytest.mark.parametrize("point", points(1, 100))
def test_a_run_killed_at_any_time_goes_on(run, tmp_path, point):
    """Some runs write TensorBoard's files too, by a thread, and some are killed again after the resume."""
    numbers = random.Random(point)
    folder = tmp_path / "run"
    arguments = ["train.sinks=[tensorboard]"] if point % 4 == 1 else []
    for number in range(1 + point % 2):
        started = run.start(folder, *arguments, resume=number > 0)
        started.wait_until((folder / "log.jsonl").exists)
        time.sleep(0.2 * numbers.random())
        started.signal(signal.SIGKILL)
        assert started.end().code in (0, -signal.SIGKILL)
        run.assert_sound(folder)
    run.assert_goes_on(folder, *arguments)
