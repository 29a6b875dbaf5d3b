"""Power cuts: what no fsync has written is lost, and the run still goes on from its last save.

The disk is a double, ``tests.helpers.power``: it keeps the least that POSIX promises.
"""

from __future__ import annotations

import io
import random

import pytest
import torch

from tests.helpers import power
from tests.helpers.small_run import STEPS, points

STATE = "run/checkpoints/last.pt"


def step_of(state):
    return torch.load(io.BytesIO(state), weights_only=True)["position"]["step"]


@pytest.fixture(scope="session")
def moments(run):
    """The journal of the small run."""
    folder, journal, output = run.root / "disk", run.root / "journal", run.root / "journal.txt"
    folder.mkdir()
    ended = run.start(folder / "run", fault=power.record, given=(folder, journal), output=output).end()
    assert ended.code == 0, ended
    return power.read_journal(journal)


def saves(moments):
    """Moments at which a save has ended: the first operation after its last fsync."""
    found = {}
    for number in range(1, len(moments)):
        state = moments[number].tree.get(STATE)
        if state is not None and moments[number - 1].synchronised == moments[number - 1].tree["run/checkpoints"][0]:
            found.setdefault(step_of(state[1]), number)
    return found


def test_every_save_is_on_the_disk_when_it_ends(moments):
    found = saves(moments)
    assert list(found) == list(range(1, STEPS + 1))
    for step, number in found.items():
        assert step_of(power.Disk(moments[:number]).kept(STATE)) == step


@pytest.mark.parametrize("point", points(10, 200))
def test_a_run_goes_on_after_a_power_cut(run, moments, tmp_path, point):
    numbers = random.Random(point)
    number = numbers.randint(1, len(moments))
    power.Disk(moments[:number]).cut(numbers, tmp_path / "disk")
    folder = tmp_path / "disk" / "run"
    # What is left is the last save that had ended, or what came after it.
    saved = max((step for step, end in saves(moments).items() if end <= number), default=0)
    states = [path.read_bytes() for path in folder.glob("checkpoints/*.pt")]
    assert max(map(_step_or_0, states), default=0) >= saved
    run.assert_goes_on(folder)


def _step_or_0(state):
    try:
        return step_of(state)
    except (RuntimeError, EOFError, OSError):
        return 0
