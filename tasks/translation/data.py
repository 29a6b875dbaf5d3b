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

# Lengths are rounded up to a multiple of this before pairs are sorted: more pairs are then of equal length, and batches
# are composed differently in each epoch.
_GRID = 2


class Batch(NamedTuple):
    """Tokens of sentence pairs, padded at the end with ``PAD``.

    Attributes:
        source: source sentences (B, S); each ends with </s>.
        target: input of the decoder (B, T); each begins with </s>.
        labels: next token after each of ``target`` (B, T); each ends with </s>.
        places: places of the labels that are not padding in the flattened labels (tokens,).
        padded: whether the source has padding.
        tokens: number of labels that are not padding.

    The last three are known here; for what is looked up on a GPU the host has to wait.
    """

    source: Tensor
    target: Tensor
    labels: Tensor
    places: Tensor
    padded: bool
    tokens: int


class Pairs(Dataset[tuple[np.ndarray, np.ndarray]]):
    """Pairs of sentences as token ids, by (epoch, number).

    Args:
        source: source sentences of the corpus.
        target: target sentences of the corpus.
        chosen: numbers of the pairs to use.
    """

    def __init__(self, source: Sentences, target: Sentences, chosen: np.ndarray) -> None:
        self.source, self.target, self.chosen = source, target, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: Key) -> tuple[np.ndarray, np.ndarray]:
        number = int(self.chosen[key[1]])
        return self.source[number], self.target[number]


def collate(pairs: Sequence[tuple[Any, Any]]) -> Batch:
    """Return the batch of pairs of token ids (lists or arrays); of none it has an empty sentence without labels."""
    if not pairs:
        end = torch.tensor([[EOS]])
        return Batch(end, end, torch.full_like(end, PAD), torch.empty(0, dtype=torch.int64), False, 0)
    labels = padded([np.append(t, EOS) for _, t in pairs])
    lengths = [len(s) for s, _ in pairs]
    return Batch(
        padded([np.append(s, EOS) for s, _ in pairs]),
        padded([np.insert(t, 0, EOS) for _, t in pairs]),
        labels,
        (labels != PAD).flatten().nonzero().flatten(),
        min(lengths) < max(lengths),
        sum(len(t) + 1 for _, t in pairs),
    )


def merge(batches: Sequence[Batch]) -> Batch:
    """Return one batch with the pairs of all, padded to the longest."""

    def joined(parts: Sequence[Tensor]) -> Tensor:
        """Concatenate tokens (B, T) of several widths T."""
        length = max(part.shape[1] for part in parts)
        return torch.cat([F.pad(part, (0, length - part.shape[1]), value=PAD) for part in parts])

    sources, targets, labels = (joined([getattr(b, name) for b in batches]) for name in ("source", "target", "labels"))
    places = (labels != PAD).flatten().nonzero().flatten()
    uneven = any(batch.padded or batch.source.shape[1] < sources.shape[1] for batch in batches)
    return Batch(sources, targets, labels, places, uneven, sum(batch.tokens for batch in batches))


class TokenBatches(EpochSampler):
    """Batches for one rank each, of at most ``budget`` tokens on either side, with padding.

    Pairs are sorted by their lengths on a coarse grid. Seed and epoch alone determine which pairs of equal length share
    a batch, and the order of the batches. Every epoch has the same number of batches.

    Args:
        source: length of each source sentence with </s>.
        target: length of each target sentence with </s>.
        budget: number of tokens of a batch.
        seed: seed of the run.

    Raises:
        DataError: a sentence longer than the budget.
    """

    def __init__(self, source: np.ndarray, target: np.ndarray, budget: int, seed: int) -> None:
        # 1. Sort the pairs by target length, then source length.
        self.keys = np.stack([-(-target // _GRID), -(-source // _GRID)])  # (2, pairs) lengths in steps of the grid
        longest = np.maximum(source, target)
        if len(longest) and int(longest.max()) > budget:
            raise DataError(
                f"a training sentence has {int(longest.max())} tokens, a batch of one process {budget}; "
                "raise train.batch_size or lower data.max_length"
            )
        order = np.lexsort((self.keys[1], self.keys[0]))
        widths = np.minimum(self.keys.max(0) * _GRID, budget)[order]
        # 2. Cut the sorted pairs into batches.
        self.bounds = [0]  # place of the first pair of each batch, and the number of pairs
        widest = 0
        for i, width in enumerate(widths.tolist()):
            widest = max(widest, width)
            if widest * (i + 1 - self.bounds[-1]) > budget:
                self.bounds.append(i)
                widest = width
        self.bounds.append(len(order))
        super().__init__(seed, batch_size=None, per_batch=float(target.sum()) / (len(self.bounds) - 1))

    def __len__(self) -> int:
        return (len(self.bounds) - 1) * self.pieces

    def index_batches(self) -> Iterator[list[int]]:
        generator = np.random.default_rng(seed_from(self.seed, self.epoch))
        ties = generator.random(self.keys.shape[1])
        order = np.lexsort((ties, self.keys[1], self.keys[0]))
        for number in generator.permutation(len(self.bounds) - 1):
            yield order[self.bounds[number] : self.bounds[number + 1]].tolist()
