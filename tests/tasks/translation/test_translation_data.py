"""Batches of sentence pairs."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.engine.sampler import share_out
from tasks.errors import DataError
from tasks.translation.data import TokenBatches, collate, merge
from tests.helpers.transformers import make
from tests.helpers.translation import sharp


def test_batches_cover_each_pair_once_within_the_budget():
    random_ = np.random.default_rng(0)
    source, target = random_.integers(2, 40, (2, 1000))
    batches = TokenBatches(source, target, 160, seed=3)
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
    with pytest.raises(
        DataError, match="a training sentence has 39 tokens, a batch of one process 30; raise train.batch_size"
    ):
        TokenBatches(source, target, 30, 0)


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.integers(0, 2))
def test_other_ranks_take_the_same_pairs_in_each_step(before, accumulate, ranks, done):
    """Steps of a run that began with ``before`` ranks; the batches come to the ranks in turn."""
    lengths = np.random.default_rng(0).integers(2, 40, (2, 200))
    batches, pieces = (TokenBatches(*lengths, 160, seed=3) for _ in range(2))
    taken = before * accumulate
    pieces.pieces, forwards = share_out(taken, ranks)
    assert len(pieces) == len(batches) * pieces.pieces
    assert len(pieces) // (forwards * ranks) == len(batches) // taken  # steps of an epoch
    batches.seek(1, done * taken)
    pieces.seek(1, done * forwards * ranks)
    old, new = list(batches), list(pieces)
    for step in range(len(batches) // taken - done):
        own = old[step * taken : (step + 1) * taken]
        shared = new[step * forwards * ranks : (step + 1) * forwards * ranks]
        assert sorted(itertools.chain(*own)) == sorted(itertools.chain(*shared))


def test_a_batch_without_pairs_weighs_nothing():
    model = sharp()
    source, target, labels, places, uneven, tokens = collate([])
    assert tokens == 0
    loss, likelihood = model(source, target, labels, 0.1, places=places, padded=uneven)
    assert (loss.item(), likelihood.item()) == (0, 0)
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("even", [True, False])
def test_what_a_batch_knows_changes_no_bit(even):
    pairs = [([4, 5, 6], [7, 8]), ([9, 4, 7], [5])] if even else [([4, 5, 6], [7, 8]), ([9], [5])]
    batch = merge([collate(pairs), collate(pairs[:1])])
    assert batch.padded == (not even)
    assert len(batch.places) == batch.tokens
    model = make().float()
    results = []
    for known in ({}, {"places": batch.places, "padded": batch.padded}):
        model.zero_grad()
        loss, likelihood = model(batch.source, batch.target, batch.labels, 0.1, **known)
        loss.backward()
        results.append([loss.detach(), likelihood, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
