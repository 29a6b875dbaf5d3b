"""Batches of sentence pairs."""

import numpy as np
import pytest

from tasks.errors import DataError
from tasks.translation.data import TokenBatches


def test_batches_cover_each_pair_once_within_the_budget():
    random_ = np.random.default_rng(0)
    source, target = random_.integers(2, 40, (2, 1000))
    batches = TokenBatches(source, target, 160, seed=3, ranks=1)
    epochs = []
    for epoch in (0, 1):
        batches.seek(epoch, 0)
        found = list(batches)
        assert len(found) == len(batches)
        assert all(e == epoch for keys in found for e, _ in keys)
        assert sorted(i for keys in found for _, i in keys) == list(range(1000))
        for keys in found:
            rows = [i for _, i in keys]
            assert max(source[rows].max(), target[rows].max()) * len(rows) <= 160
        epochs.append([[i for _, i in keys] for keys in found])
        padding = sum(target[rows].max() * len(rows) for rows in epochs[-1]) / target.sum()
        assert padding < 1.15
        batches.seek(epoch, 7)
        assert list(batches) == found[7:]
    assert {frozenset(b) for b in epochs[0]} != {frozenset(b) for b in epochs[1]}
    three = TokenBatches(source, target, 160, seed=3, ranks=3)
    assert len(three) == len(batches) // 3 * 3
    with pytest.raises(
        DataError, match="a training sentence has 39 tokens, a batch of one process 30; raise train.batch_size"
    ):
        TokenBatches(source, target, 30, 0, 1)
    with pytest.raises(DataError, match="2 pairs make 1 batches of 160 tokens, 4 processes require"):
        TokenBatches(source[:2], target[:2], 160, 0, 4)
