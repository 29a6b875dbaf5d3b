"""Batches of sentence pairs of about the same length, by a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from tasks.engine import EpochSampler, Key, seed_from
from tasks.errors import DataError
from tasks.translation.corpus import Sentences
from zoo.text import EOS, PAD, padded

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


def merge(batches: Sequence[Batch]) -> Batch:
    """One batch with the pairs of all, padded to their common lengths."""

    def joined(parts: Sequence[Tensor]) -> Tensor:
        length = max(part.shape[1] for part in parts)
        return torch.cat([F.pad(part, (0, length - part.shape[1]), value=PAD) for part in parts])

    sources, targets, labels, tokens = zip(*batches, strict=True)
    return Batch(joined(sources), joined(targets), joined(labels), sum(tokens))


class TokenBatches(EpochSampler):
    """Batches for one rank each, of at most ``budget`` tokens on either side, padding counted.

    Pairs are sorted by their lengths on a coarse grid; which of equal ones meet in a batch, and the batches' order,
    depends on seed and epoch alone. Every epoch has the same number of batches.

    Args:
        source: lengths of the pairs' sources, </s> counted.
        target: lengths of their targets.
        budget: tokens of a batch.
        seed: seed of the run.
        ranks: batches taken at a time; those that are left over at an epoch's end are dropped.

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
        super().__init__(seed, batch_size=None, per_batch=float(target.sum()) / (len(self.bounds) - 1))

    def __len__(self) -> int:
        return self.count

    def index_batches(self) -> Iterator[list[int]]:
        generator = np.random.default_rng(seed_from(self.seed, self.epoch))
        ties = generator.random(self.keys.shape[1])
        order = np.lexsort((ties, self.keys[1], self.keys[0]))
        for number in generator.permutation(len(self.bounds) - 1):
            yield order[self.bounds[number] : self.bounds[number + 1]].tolist()
