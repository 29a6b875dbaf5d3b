"""Two runs in one folder: one goes on, the other ends with one line, and nothing of the first is damaged."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.helpers.small_run import IN_A_ROW, points


@pytest.mark.parametrize("seed", points(1, 20))
def test_of_ten_writers_one_goes_on(run, tmp_path, seed):
    """They start at once or at any time of the first."""
    folder, numbers = tmp_path / "run", random.Random(seed)
    started = []
    for number in range(IN_A_ROW):
        started.append(run.start(folder, output=tmp_path / f"{number}.txt"))
        time.sleep(0.1 * numbers.random() if number % 2 else 0)
    ends = [each.end() for each in started]
    assert [ended.code for ended in ends].count(0) == 1
    for ended in ends:
        if ended.code != 0:
            assert str(folder) in ended.error()
            assert "another process has a run in it" in ended.error() or "contains a run already" in ended.error()
    run.assert_whole(folder)


def test_the_lock_of_a_process_that_was_killed_blocks_nobody(run, tmp_path):
    folder = tmp_path / "run"
    first = run.start(folder)
    first.wait_until((folder / "checkpoints" / "last.pt").exists)
    refused = run.start(folder, resume=True, output=tmp_path / "second.txt").end()
    if first.process.is_alive():
        assert "another process has a run in it" in refused.error()
    first.signal(signal.SIGKILL)
    first.end()
    run.assert_goes_on(folder)
