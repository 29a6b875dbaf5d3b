"""Sequences of many small objects in two arrays, which processes that load data share instead of copying them."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, overload

import numpy as np

Item = TypeVar("Item")


class Packed(Sequence[Item]):
    """A sequence whose items are kept as bytes and made anew at each access.

    Python counts the references to an object in the object itself. A process that only reads a list of objects thus
    changes its memory, which the operating system then copies: once for each process that loads data.

    Args:
        items: objects of this program, as those of a frozen dataclass; nothing is unpickled but what was packed here.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        parts = [pickle.dumps(item, protocol=5) for item in items]
        self._ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(parts), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        item: Item = pickle.loads(self._bytes[self._ends[number] : self._ends[number + 1]].tobytes())
        return item

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_equal, self, other))

    def __hash__(self) -> int:
        raise TypeError("a packed sequence has no hash")

    @property
    def nbytes(self) -> int:
        """Number of bytes of both arrays."""
        return self._bytes.nbytes + self._ends.nbytes


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b)
