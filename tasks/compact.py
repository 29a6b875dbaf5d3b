"""Records of large sets in a few arrays, which data loading processes share with the process that started them.

Python objects are not shared for long: a forked process copies each page of memory on which a reference count changes,
and reading an object changes its count. A list of a million paths is so copied into every worker of every rank.
"""

from __future__ import annotations

import operator
import pickle
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar, overload

import numpy as np

Item = TypeVar("Item")


class Packed(Sequence[Item]):
    """Items that cannot be changed, in one block of bytes; each is made anew at each access.

    Args:
        items: objects of this program, as those of a frozen dataclass, or plain values. They are pickled; nothing is
            unpickled but what was packed here.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        block, ends = bytearray(), array("q", [0])
        for item in items:
            block += self._encode(item)
            ends.append(len(block))
        self._block, self._ends = bytes(block), np.array(ends)  # item i lies between ends i and i + 1

    @staticmethod
    def _encode(item: Any) -> bytes:
        return pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def _decode(content: bytes) -> Any:
        return pickle.loads(content)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Item | Self:
        """Return an item, or those of a slice."""
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        item: Item = self._decode(self.content(range(len(self))[index]))
        return item

    def __eq__(self, other: object) -> bool:
        """Return whether the other is a sequence of the same items."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __iter__(self) -> Iterator[Item]:
        return (self[i] for i in range(len(self)))

    def select(self, indices: Iterable[int]) -> Self:
        """Return the items at ``indices``."""
        return type(self)(self[i] for i in indices)

    def content(self, index: int) -> bytes:
        """Return the bytes of the item at an index from 0."""
        return self._block[self._ends[index] : self._ends[index + 1]]

    @property
    def nbytes(self) -> int:
        """Number of bytes of the block and the ends."""
        return len(self._block) + self._ends.nbytes


class Strings(Packed[str]):
    """Strings that cannot be changed, in one block of bytes.

    >>> names = Strings(["a/1.png", "b/2.png"])
    >>> names[1], len(names), list(names[:1])
    ('b/2.png', 2, ['a/1.png'])

    Args:
        items: strings; names of files may have bytes that are not UTF-8, as surrogates.
    """

    @staticmethod
    def _encode(item: str) -> bytes:
        return item.encode("utf-8", "surrogateescape")

    @staticmethod
    def _decode(content: bytes) -> str:
        return content.decode("utf-8", "surrogateescape")


def packed(strings: Iterable[str]) -> Strings:
    """Return strings as ``Strings``, which are kept as they are."""
    return strings if isinstance(strings, Strings) else Strings(strings)
