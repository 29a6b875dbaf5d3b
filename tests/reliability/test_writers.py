"""Two runs in one folder: one goes on, the other ends with one line, and nothing of the first is damaged."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.helpers.small_run import points


@pytest.mark.parametrize("point", points(3))
def test_of_two_writers_one_goes_on(run, tmp_path, point):
    """The second starts at any time of the first, in some cases with ``--resume``."""
    folder = tmp_path / "run"
    numbers = random.Random(point)
    resume = point % 2 == 1
    first = run.start(folder, output=tmp_path / "first.txt")
    time.sleep(0.4 * numbers.random() if point % 3 else 0)
    second = run.start(folder, resume=resume, output=tmp_path / "second.txt")
    ends = [first.end(), second.end()]
    refused = [ended for ended in ends if ended.code != 0]
    # One that resumes after the other has ended finds a run that is finished.
    assert len(refused) == 1 or (resume and not refused)
    for ended in refused:
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
