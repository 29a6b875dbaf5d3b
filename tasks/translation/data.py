"""Batches of sentence pairs of about the same length, by a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from tasks.engine import EpochBatches, Key, seed_from
from tasks.errors import DataError
from tasks.translation.corpus import Sentences
from zoo.text import EOS, padded

_GRID = 2  # lengths are rounded up to a multiple before pairs are grouped: the coarser, the more pairs mix


class Batch(NamedTuple):
    """Tokens, padded at the end with ``PAD``.

    Attributes:
        source: (B, S), each ends with </s>.
        target: (B, T), each begins with </s>: the decoder's input.
        labels: (B, T), what is to follow: the target one token on, with </s> at its end.
        tokens: labels that are not padding; known here, so that no device is asked for it.
    """

    source: Tensor
    target: Tensor
    labels: Tensor
    tokens: int


class Pairs(Dataset[tuple[np.ndarray, np.ndarray]]):
    """Pairs of sentences as ids, by (epoch, number)."""

    def __init__(self, source: Sentences, target: Sentences, chosen: np.ndarray) -> None:
        self.source, self.target, self.chosen = source, target, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: Key) -> tuple[np.ndarray, np.ndarray]:
        number = int(self.chosen[key[1]])
        return self.source[number], self.target[number]


def collate(pairs: Sequence[tuple[Any, Any]]) -> Batch:
    """Pairs of ids (lists or arrays) -> batch."""
    return Batch(
        padded([np.append(s, EOS) for s, _ in pairs]),
        padded([np.insert(t, 0, EOS) for _, t in pairs]),
        padded([np.append(t, EOS) for _, t in pairs]),
        sum(len(t) + 1 for _, t in pairs),
    )


class TokenBatches(EpochBatches):
    """Batches of (epoch, number) for one rank each, of at most ``budget`` tokens on either side, padding counted.

    Pairs are sorted by their lengths on a coarse grid; which of equal ones meet in a batch, and the batches' order,
    depends on seed and epoch alone. Every epoch has the same number of batches.

    Args:
        source, target: lengths of the pairs, </s> counted.
        ranks: batches that are taken at a time; those that are left over at an epoch's end are dropped.

    Raises:
        DataError: a sentence longer than the budget, or fewer batches than ranks.
    """

    per_rank = True

    def __init__(self, source: np.ndarray, target: np.ndarray, budget: int, seed: int, ranks: int) -> None:
        self.keys = np.stack([-(-target // _GRID), -(-source // _GRID)])
        longest = np.maximum(source, target)
        if len(longest) and int(longest.max()) > budget:
            raise DataError(f"a sentence of {int(longest.max())} tokens is longer than a batch of {budget}")
        order = np.lexsort((self.keys[1], self.keys[0]))
        widths = np.minimum(self.keys.max(0) * _GRID, budget)[order]
        self.bounds = [0]
        widest = 0
        for i, width in enumerate(widths.tolist()):
            widest = max(widest, width)
            if widest * (i + 1 - self.bounds[-1]) > budget:
                self.bounds.append(i)
                widest = width
        self.bounds.append(len(order))
        self.count = (len(self.bounds) - 1) // ranks * ranks
        if not self.count:
            raise DataError(f"{len(order)} pairs make fewer batches of {budget} tokens than there are processes")
        self.per_batch = float(target.sum()) / (len(self.bounds) - 1)
        self.seed, self.drop_last = seed, True
        self.batch_size = None  # type: ignore[assignment]  # they vary; Accelerate asks for it before it shards them
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[Key]]:  # type: ignore[override]
        generator = np.random.default_rng(seed_from(self.seed, self.epoch))
        ties = generator.random(self.keys.shape[1])
        order = np.lexsort((ties, self.keys[1], self.keys[0]))
        for number in generator.permutation(len(self.bounds) - 1)[self.start : self.count]:
            batch = order[self.bounds[number] : self.bounds[number + 1]]
            yield [(self.epoch, index) for index in batch.tolist()]
