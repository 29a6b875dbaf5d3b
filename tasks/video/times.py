"""Times of frames: repaired where a file lacks some, and stored as runs that need little memory.

A run describes the times that follow the last one, in one of two forms:

- ``(step, count)``: ``count`` times, each ``step`` after the one before;
- ``(p, q, r, count)``: the k-th time is 1 + floor((k p - r) / q) after the last one, k = 1 ... ``count``, 1 <= r <= q.
  Matroska stores 30 frames per second in whole milliseconds, as steps of 33, 33, 34: one run of p / q = 100 / 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import groupby, pairwise, zip_longest
from typing import TypeAlias

import numpy as np

Run: TypeAlias = tuple[int, int] | tuple[int, int, int, int]
# largest denominators of p / q, tried in order: 24000/1001 frames per second in milliseconds is 1001/24
_DENOMINATORS = (*range(1, 121), 1001, 50_000)
_SHORTEST = 4  # steps; shorter runs are stored step by step
_LARGEST = 2**40  # times beyond it are stored step by step, so that no product exceeds 64 bits


def to_runs(times: Sequence[int]) -> tuple[Run, ...]:
    """Return the runs of rising times, without the first time; ``from_runs`` gives the times back.

    >>> to_runs([0, 33, 67, 100, 133, 167])
    ((100, 3, 2, 5),)
    """
    values = np.asarray(times, dtype=np.int64)
    steps = np.diff(values)
    plain = tuple((int(step), sum(1 for _ in equal)) for step, equal in groupby(steps.tolist()))
    if len(plain) <= 1 or int(np.abs(values - values[0]).max()) >= _LARGEST:
        return plain
    # A line between two gaps: steps that differ by more than rounding from the usual one.
    gaps = np.flatnonzero(np.abs(steps - int(np.median(steps))) > 1)
    runs: list[Run] = []
    start = 0  # index of the last time that has a run
    for end in (*gaps.tolist(), len(steps)):
        runs += _line(values[start : end + 1])
        if end < len(steps):
            runs.append((int(steps[end]), 1))
        start = end + 1
    return tuple(runs) if sum(map(len, runs)) < 2 * len(plain) else plain


def _line(values: np.ndarray) -> list[Run]:
    """Return one run of times on a line, or the runs of equal steps if they are not on one."""
    count = len(values) - 1
    steps = np.diff(values)
    if count >= _SHORTEST and steps.min() != steps.max():
        slope = Fraction(int(values[-1] - values[0]), count)
        k, rise = np.arange(len(values)), values - values[0]
        close = (each for each in map(slope.limit_denominator, _DENOMINATORS) if abs(each - slope) * count < 1)
        for p, q in dict.fromkeys(each.as_integer_ratio() for each in close):
            # 1 + floor((k p - r) / q) is the k-th time if r is within both bounds, for every k
            rest = k * p - rise * q
            low, high = max(int(rest.max()) + 1, 1), min(int(rest.min()) + q, q)
            if low <= high:
                return [(p, q, high, count)]
    return [(int(step), sum(1 for _ in equal)) for step, equal in groupby(steps.tolist())]


def from_runs(first: int, runs: Sequence[Run]) -> np.ndarray:
    """Return the times that start at ``first``: int64 (1 + count of all runs,)."""
    parts, last = [np.array([first], dtype=np.int64)], first
    for run in runs:
        parts.append(last + rises(run))
        last = int(parts[-1][-1])
    return np.concatenate(parts)


def rises(run: Run) -> np.ndarray:
    """Return the times of a run after the last time before it: int64 (count,)."""
    k = np.arange(1, run[-1] + 1, dtype=np.int64)
    return k * run[0] if len(run) == 2 else 1 + (k * run[0] - run[2]) // run[1]


def length_of(runs: Sequence[Run]) -> int:
    """Return the time from the first frame to the last."""
    return sum(run[0] * run[1] if len(run) == 2 else 1 + (run[3] * run[0] - run[2]) // run[1] for run in runs)


def rising(times: Sequence[int | None]) -> bool:
    """Return whether all times are known and each is after the one before."""
    known = [time for time in times if time is not None]
    return len(known) == len(times) and all(a < b for a, b in pairwise(known))


def repaired(times: Sequence[int | None], step: int) -> tuple[list[int], int]:
    """Return rising times, and how many of them are not the given ones.

    A time that is missing or not after the one before is put between its neighbours. Times that jump back and go on
    from there, as in recordings that were joined, follow the others at the usual step.

    Args:
        times: time of each frame in the order of display, None where it is unknown; one or more are known.
        step: usual time from frame to frame, > 0; used at the ends and where times jump back.
    """
    # 1. Keep the times that rise, with what is added after a jump back.
    kept: dict[int, int] = {}  # number of the frame -> time
    known = [(number, time) for number, time in enumerate(times) if time is not None]
    added, last, last_number = 0, known[0][1] - 1, 0
    for (number, time), following in zip_longest(known, [time for _, time in known[1:]]):
        if time + added <= last:
            if following is None or following + added > last:
                continue  # one odd time
            added = last + step * (number - last_number) - time
        kept[number], last, last_number = time + added, time + added, number
    # 2. Put the others between them, at the usual step before the first and after the last.
    numbers = np.fromiter(kept, dtype=np.int64, count=len(kept))
    values = np.fromiter(kept.values(), dtype=np.int64, count=len(kept))
    every = np.arange(len(times))
    found = np.rint(np.interp(every, numbers, values.astype(np.float64))).astype(np.int64)
    found[numbers] = values
    found[: numbers[0]] = values[0] - step * (numbers[0] - every[: numbers[0]])
    found[numbers[-1] + 1 :] = values[-1] + step * (every[numbers[-1] + 1 :] - numbers[-1])
    # 3. Rounding may have made two of them equal: where neighbours leave no unit between them, later ones move on.
    floor = np.maximum.accumulate(found - every)
    result = (floor + every).tolist()
    return result, sum(a != b for a, b in zip(result, times, strict=True))
