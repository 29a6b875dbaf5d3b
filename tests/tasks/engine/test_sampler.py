"""Batches: a function of seed and epoch, grouped, repeated."""

import math

import pytest
import torch

from tasks.engine import EpochBatches, seed_from
from tasks.errors import TrainingError


def test_batches_are_a_function_of_seed_and_epoch():
    batches = EpochBatches(10, 3, seed=5)
    first = list(batches)
    assert [len(b) for b in first] == [3, 3, 3]
    assert len({index for b in first for _, index in b}) == 9
    batches.seek(1, 0)
    second = list(batches)
    assert [i for b in second for _, i in b] != [i for b in first for _, i in b]
    assert all(epoch == 1 for b in second for epoch, _ in b)
    batches.seek(0, 2)
    assert list(batches) == first[2:]
    assert list(EpochBatches(10, 3, seed=6)) != first
    with pytest.raises(TrainingError, match="2 samples, fewer than one batch of 3"):
        EpochBatches(2, 3, 0)


def test_mixed_seeds_do_not_collide():
    assert len({seed_from(a, b, c) for a in range(20) for b in range(20) for c in range(20)}) == 8000
    assert seed_from(1, 2) != seed_from(2, 1)


def epoch(batches, number):
    batches.seek(number, 0)
    return [[index for _, index in batch] for batch in batches]


def test_batches_are_of_one_group():
    """Groups of 13 and 7 in batches of 4: all but the last are of one group, and nobody comes twice."""
    groups = [0] * 13 + [1] * 7
    batches = EpochBatches(20, 4, 0, groups=groups)
    for number in range(5):
        seen = epoch(batches, number)
        assert len(seen) == len(batches) == 5
        assert sorted(i for batch in seen for i in batch) == list(range(20))
        assert all(len({groups[i] for i in batch}) == 1 for batch in seen[:-1])
    assert epoch(batches, 0) != epoch(batches, 1)
    assert epoch(batches, 1) == epoch(batches, 1)
    batches.seek(1, 3)
    assert [[i for _, i in batch] for batch in batches] == epoch(batches, 1)[3:]


@pytest.mark.parametrize(("large", "small", "size"), [(64, 7, 8), (100, 1, 2), (95, 3, 16), (5, 4, 8)])
@pytest.mark.parametrize("copies", [1, 2])
def test_every_sample_of_a_small_group_is_met(large, small, size, copies):
    """The remainder that an epoch drops is another one each time; it was always the small group."""
    batches = EpochBatches(large + small, size, 0, groups=[0] * large + [1] * small, copies=copies)
    counts = torch.zeros(large + small)
    for number in range(100):
        seen = epoch(batches, number)
        assert [len(batch) for batch in seen] == [size] * len(batches)
        counts += torch.bincount(torch.tensor([i for batch in seen for i in batch]), minlength=len(counts))
    share = len(batches) * size / (large + small)  # mean number of times in an epoch
    assert counts.min() > 0.6 * 100 * share
    assert counts[large:].mean() == pytest.approx(100 * share, rel=0.25)


def test_samples_are_repeated_as_often_as_wanted():
    """Each epoch floor or ceil of the wanted number, and on average that number."""
    repeats = [1.0, 1.0, 2.5, 1.25, 3.25]
    batches = EpochBatches(5, 3, 0, repeats=repeats)
    assert len(batches) == 3  # 9 samples
    counts = torch.zeros(5)
    for number in range(400):
        seen = torch.bincount(torch.tensor([i for batch in epoch(batches, number) for i in batch]), minlength=5)
        for got, wanted in zip(seen.tolist(), repeats, strict=True):
            assert math.floor(wanted) <= got <= math.ceil(wanted)
        counts += seen
    assert (counts / 400).tolist() == pytest.approx(repeats, abs=0.08)


def test_copies_of_a_batch():
    """Each batch has batch_size / n samples n times, as many batches as without, and draws that never come again."""
    plain, copies = EpochBatches(50, 12, seed=1), EpochBatches(50, 12, seed=1, copies=3)
    assert len(copies) == len(plain) == 4
    seen = set()
    for number in range(4):
        plain.seek(number, 0)
        copies.seek(number, 0)
        order = [index for batch in plain for _, index in batch]
        batches = list(copies)
        for i, batch in enumerate(batches):
            indices = order[4 * i : 4 * i + 4]  # the epoch's first third
            assert [index for _, index in batch] == indices * 3  # copies are no neighbours
            assert [draw for draw, _ in batch] == [3 * number + c for c in range(3) for _ in range(4)]
        keys = [key for batch in batches for key in batch]
        assert len(set(keys)) == len(keys) == 48
        assert not seen & set(keys)
        seen |= set(keys)
        copies.seek(number, 2)
        assert list(copies) == batches[2:]
    assert len({index for _, index in seen}) > 30  # each epoch draws other samples; 16 by one epoch
    with pytest.raises(TrainingError, match=r"train.batch_size=12: must be a multiple of data.augment.copies=5"):
        EpochBatches(50, 12, 0, copies=5)


def test_copies_of_groups():
    groups = [0] * 20 + [1] * 12
    batches = EpochBatches(32, 8, 0, groups=groups, copies=2)
    for batch in epoch(batches, 0):
        assert batch[:4] == batch[4:]
        assert len(set(batch)) == 4
        assert len({groups[i] for i in batch}) == 1
