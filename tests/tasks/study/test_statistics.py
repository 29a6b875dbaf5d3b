"""Means with intervals of Student's t."""

import math

import numpy as np
import pytest

from tasks.study.statistics import estimate, paired_difference

# two-sided 95 % quantiles of Student's t by degrees of freedom, from printed tables (Fisher and Yates 1938, table III)
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 29: 2.045}


@pytest.mark.parametrize(("degrees", "t"), TABLE.items())
def test_half_width_is_the_tabulated_quantile_times_the_standard_error(degrees, t):
    values = [(-1.0) ** i for i in range(degrees + 1)]
    found = estimate(values)
    assert found.std == pytest.approx(np.std(values, ddof=1))
    assert found.half_width == pytest.approx(t * found.std / math.sqrt(len(values)), rel=1e-3)


def test_the_interval_covers_the_mean_as_often_as_it_states():
    draws = np.random.RandomState(0).normal(3.0, 2.0, (2000, 3))
    covered = sum(found.interval[0] <= 3.0 <= found.interval[1] for found in map(estimate, draws.tolist()))
    assert 0.935 < covered / 2000 < 0.965  # three standard errors of a share of 0.95


def test_one_value_has_no_interval():
    assert estimate([2.0]).mean == 2.0
    assert math.isnan(estimate([2.0]).half_width)
    assert math.isnan(estimate([]).mean)


def test_differences_pair_the_seeds_that_both_have():
    differences, mean = paired_difference({0: 3.0, 1: 5.0, 2: 7.0}, {2: 1.0, 1: 2.0, 5: 9.0})
    assert differences == [3.0, 6.0]
    assert (mean.mean, mean.count) == (4.5, 2)


def test_pairs_remove_what_seeds_have_in_common():
    seeds = np.random.RandomState(1).normal(0, 10, 5)
    first, second = ({i: value + shift for i, value in enumerate(seeds.tolist())} for shift in (1.0, 0.0))
    assert paired_difference(first, second)[1].half_width < 1e-9 < estimate(list(first.values())).half_width
