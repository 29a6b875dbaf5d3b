"""Means with intervals: of one scheme, and of the difference between two under the same seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: mean of the values; NaN without values.
        std: standard deviation of the values, with n - 1; NaN for fewer than two.
        half_width: half of the 95 % confidence interval of the mean; NaN for fewer than two values.
        count: number of the values, n.
    """

    mean: float
    std: float
    half_width: float
    count: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the mean."""
        return self.mean - self.half_width, self.mean + self.half_width


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return the mean of independent values and its interval by Student's t distribution with n - 1 degrees.

    half_width = t s / sqrt(n), where t is the (1 + confidence) / 2 quantile (Student 1908). The interval assumes that
    the values are normally distributed; with three seeds it is wide.

    >>> estimate([1.0, 2.0, 3.0]).half_width  # 4.303 * 1 / sqrt(3)
    2.484...
    """
    count = len(values)
    if count < 2:
        return Estimate(values[0] if values else math.nan, math.nan, math.nan, count)
    spread = statistics.stdev(values)
    t = float(stats.t.ppf((1 + confidence) / 2, count - 1))
    return Estimate(statistics.fmean(values), spread, t * spread / math.sqrt(count), count)


def paired_difference(first: dict[int, float], second: dict[int, float]) -> tuple[list[float], Estimate]:
    """Return the differences first - second of the seeds that both have, and their estimate.

    Pairs share the order of the data and the initial draws, as far as the schemes allow, so that their differences vary
    less than the values.

    Args:
        first: value by seed.
        second: value by seed of what is subtracted.
    """
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    return differences, estimate(differences)
