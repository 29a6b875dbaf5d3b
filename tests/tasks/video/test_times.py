"""Times of frames as runs, and times that a file lacks."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.video.times import from_runs, length_of, repaired, rising, to_runs


@given(first=st.integers(-(2**50), 2**50), steps=st.lists(st.integers(1, 2**45), max_size=60))
@settings(max_examples=200, deadline=None)
def test_runs_give_any_times_back(first, steps):
    times = np.concatenate([[first], first + np.cumsum(steps, dtype=np.int64)]).astype(np.int64).tolist()
    runs = to_runs(times)
    assert from_runs(first, runs).tolist() == times
    assert length_of(runs) == times[-1] - times[0]
    assert 1 + sum(run[-1] for run in runs) == len(times)


def rounded(rate, frames, begin=0):
    """Times in milliseconds as Matroska has them: the nearest, halves up."""
    return [int(Fraction(1000 * n) / rate + Fraction(1, 2)) for n in range(begin, begin + frames)]


@pytest.mark.parametrize("rate", [24, 25, 30, 60, Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001)])
@pytest.mark.parametrize("begin", [0, 7, 1234])
def test_rounded_times_are_one_run(rate, begin):
    times = rounded(rate, 3000, begin)
    assert len(to_runs(times)) == 1
    assert from_runs(times[0], to_runs(times)).tolist() == times


def test_a_gap_divides_a_run():
    times = [t for n, t in enumerate(rounded(30, 300)) if n not in (50, 51, 200)]
    assert len(to_runs(times)) == 5
    assert from_runs(0, to_runs(times)).tolist() == times


@pytest.mark.parametrize(
    ("times", "expected", "changed"),
    [
        ([0, 40, 80], [0, 40, 80], 0),
        ([0, 40, None, 120], [0, 40, 80, 120], 1),  # one packet without a time
        ([None, None, 80, 120], [0, 40, 80, 120], 2),
        ([0, 40, None, None], [0, 40, 80, 120], 2),
        ([0, 40, 40, 120], [0, 40, 80, 120], 1),  # a time twice
        ([0, 40, 20, 120], [0, 40, 80, 120], 1),
        ([1000, 1040, 0, 40, 80], [1000, 1040, 1080, 1120, 1160], 3),  # two recordings, one after the other
        ([0, None, None, None, 2], [0, 1, 2, 3, 4], 4),  # no unit of time between them
        ([None, 5, None], [-35, 5, 45], 2),
        ([0, 500, 540], [0, 500, 540], 0),  # a pause is no fault
    ],
)
def test_missing_and_odd_times(times, expected, changed):
    assert repaired(times, 40) == (expected, changed)


@given(st.lists(st.one_of(st.none(), st.integers(-(10**9), 10**9)), min_size=1, max_size=50), st.integers(1, 10**4))
def test_repaired_times_always_rise(times, step):
    if all(time is None for time in times):
        return
    found, changed = repaired(times, step)
    assert rising(found)
    assert changed == sum(a != b for a, b in zip(found, times, strict=True))
    if rising(times):
        assert changed == 0
