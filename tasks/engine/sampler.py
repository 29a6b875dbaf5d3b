"""The order of the training data: a function of the seed and the epoch alone, so that a run can go on anywhere."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch.utils.data import Sampler

from tasks.errors import TrainingError

# (draw, index) of a sample, the key of training sets. ``draw`` numbers the augmentations of the sample with this index:
# it is the epoch, or for copy c of n in epoch e the number n e + c.
Key = tuple[int, int]


def seed_from(*numbers: int) -> int:
    """Hash several numbers to one seed, the same on every machine (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF


def mix(*numbers: int) -> int:
    """Call ``seed_from``, whose former name this is (deprecated)."""
    warnings.warn("tasks.engine.mix is now tasks.engine.seed_from", DeprecationWarning, stacklevel=2)
    return seed_from(*numbers)


def share_out(batches: int, ranks: int) -> tuple[int, int]:
    """Return how the batches of a step are shared out among ranks: pieces of each batch, and pieces that a rank takes.

    >>> share_out(4, ranks=2), share_out(2, ranks=4), share_out(2, ranks=3)
    ((1, 2), (2, 1), (3, 2))
    """
    common = math.gcd(batches, ranks)
    return ranks // common, batches // common


class EpochSampler(Sampler[list[Key]]):
    """Base of the samplers: batches of keys for a training set, from any batch of any epoch on.

    Args:
        seed: seed of the run.
        batch_size: samples in each batch; None where batches vary.
        per_batch: mean number of ``Task.unit`` in a batch, for the display of progress.

    Attributes:
        pieces: number of batches that each batch of ``index_batches`` is cut into, by the engine, where a run of a
            task with batches per rank goes on with more ranks. A piece of a batch with few samples may be empty.
        copies: number of times that each sample of a batch occurs in it, each time with a key of its own.
    """

    pieces = 1
    copies = 1
    drop_last = True  # Accelerate reads it and ``batch_size`` before it shards the batches

    def __init__(self, seed: int, *, batch_size: int | None, per_batch: float) -> None:
        self.seed, self.batch_size, self.per_batch = seed, batch_size, per_batch
        self.epoch, self.start = 0, 0

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches of an epoch, the same for every epoch; each piece counts."""

    @abstractmethod
    def index_batches(self) -> Iterable[list[int]]:
        """Return the batches of sample indices of ``self.epoch``, without copies.

        The caller drops those beyond ``len(self)``.
        """

    def seek(self, epoch: int, start: int) -> None:
        """Let the next iteration begin at batch ``start`` of ``epoch``."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[Key]]:
        pieces = (batch[i :: self.pieces] for batch in self.index_batches() for i in range(self.pieces))
        for batch in islice(pieces, self.start, len(self)):
            yield [(self.copies * self.epoch + copy, index) for copy in range(self.copies) for index in batch]


class EpochBatches(EpochSampler):
    """Batches of one size in random order; the remainder of an epoch is dropped.

    Args:
        length: samples of the data set.
        batch_size: samples of a batch, all ranks together.
        seed: seed of the run.
        groups: group of each sample; the samples of a batch share their group, except in an epoch's last batches. The
            remainder that an epoch drops is drawn from all samples, so that small groups are met too.
        repeats: mean number of times that each sample occurs in an epoch; by default 1.
        copies: number of times that each sample of a batch occurs in it, with other augmentations (Berman et al. 2019,
            arXiv:1902.05509). An epoch has as many batches as without copies, and so 1/copies of the samples, drawn
            at random, as in torchvision's RASampler. A batch has the first copies of all its samples, then the second
            ones: the copies of a sample go to different ranks where there are enough, and are not neighbours, which
            mixup and CutMix mix.

    Raises:
        TrainingError: fewer samples than one batch, or a batch size that is not a multiple of the copies.
    """

    batch_size: int

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        *,
        groups: Sequence[int] | None = None,
        repeats: Sequence[float] | None = None,
        copies: int = 1,
    ) -> None:
        super().__init__(seed, batch_size=batch_size, per_batch=float(batch_size))
        self.length, self.groups, self.repeats, self.copies = length, groups, repeats, copies
        self.samples = length if repeats is None else int(sum(repeats))  # of an epoch
        if self.samples < batch_size:
            raise TrainingError(f"the training set has {self.samples} samples, fewer than one batch of {batch_size}")
        if batch_size % copies:
            raise TrainingError(f"train.batch_size={batch_size}: must be a multiple of data.augment.copies={copies}")
        self.distinct = batch_size // copies  # samples of a batch, each counted once

    def __len__(self) -> int:
        return self.samples // self.batch_size

    def index_batches(self) -> list[list[int]]:
        order = self._order()
        if self.groups is None:
            return [order[i : i + self.distinct] for i in range(0, len(order), self.distinct)]
        # A batch is complete as soon as its group has enough samples; the rest is mixed at the end. What the epoch
        # drops is chosen before: the rest of the groups would be the same small group in every epoch.
        waiting: dict[int, list[int]] = {}
        batches = []
        for index in order[: len(order) // self.distinct * self.distinct]:
            group = waiting.setdefault(self.groups[index], [])
            group.append(index)
            if len(group) == self.distinct:
                batches.append(waiting.pop(self.groups[index]))
        rest = [index for group in waiting.values() for index in group]
        batches += [rest[i : i + self.distinct] for i in range(0, len(rest), self.distinct)]
        if self.copies == 1:
            return batches
        # An epoch takes the first batches only, among which the mixed ones would never be.
        generator = torch.Generator().manual_seed(seed_from(self.seed, self.epoch, self.copies))
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _order(self) -> list[int]:
        """Return the epoch's samples in random order."""
        generator = torch.Generator().manual_seed(seed_from(self.seed, self.epoch))
        if self.repeats is None:
            return torch.randperm(self.length, generator=generator).tolist()
        # Systematic resampling: a sample's count is its share rounded down or up, and the total is constant.
        ends = torch.tensor(self.repeats, dtype=torch.float64).cumsum(0)
        points = (torch.arange(self.samples) + torch.rand((), generator=generator, dtype=torch.float64)) / self.samples
        chosen = torch.searchsorted(ends, points * ends[-1], right=True).clamp(max=self.length - 1)
        return chosen[torch.randperm(self.samples, generator=generator)].tolist()
