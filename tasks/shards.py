"""Each rank's part of a list of samples, and the results of all ranks in the list's order.

Evaluation needs no batches of equal size, so each rank takes its own part and no sample is repeated to fill a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any, TypeAlias, TypeVar

from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset, Subset

Found = TypeVar("Found")


Ranks: TypeAlias = Accelerator | PartialState  # the processes of a run, and the number of this one


def own_part(count: int, ranks: Ranks) -> range:
    """Return the numbers below ``count`` that this rank processes: each ``num_processes``-th."""
    return range(ranks.process_index, count, ranks.num_processes)


def own_batch_size(batch_size: int, ranks: Ranks) -> int:
    """Return this rank's share of a batch of all ranks together, at least 1."""
    return max(1, batch_size // ranks.num_processes)


def own_loader(
    data: Dataset[Any],
    ranks: Ranks,
    batch_size: int,
    *,
    workers: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """Load this rank's part of a data set in batches, in its order.

    Args:
        data: map-style data set with a length.
        ranks: processes of the run.
        batch_size: number of samples of a batch on this rank.
        workers: number of data loading processes.
        collate: function from samples to a batch; default: torch's.
    """
    part = Subset(data, own_part(len(data), ranks))  # type: ignore[arg-type]  # a map-style set has a length
    return DataLoader(part, batch_size=batch_size, num_workers=workers, collate_fn=collate)


def as_list(samples: list[Any]) -> list[Any]:
    """Return the samples as they are: a collate function for samples of different shapes."""
    return samples


def gather_in_order(found: Mapping[int, Found]) -> list[Found]:
    """Gather the results of all ranks on every rank, in the order of the samples' numbers.

    Args:
        found: mapping from the number of each of this rank's samples to its result.
    """
    pairs: Sequence[tuple[int, Found]] = gather_object(list(found.items()))
    return [result for _, result in sorted(pairs, key=itemgetter(0))]


def chunks(items: Iterable[Found], size: int) -> Iterator[list[Found]]:
    """Yield lists of ``size`` items; the last list may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
