"""Records of large sets in a few arrays, which data loading processes share with the process that started them.

Python objects are not shared for long: a forked process copies each page of memory on which a reference count changes,
and reading an object changes its count. A list of a million paths is so copied into every worker of every rank.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class Strings(Sequence[str]):
    """Strings that cannot be changed, in one block of bytes.

    >>> names = Strings(["a/1.png", "b/2.png"])
    >>> names[1], len(names), list(names[:1])
    ('b/2.png', 2, ['a/1.png'])

    Args:
        strings: strings; names of files may have bytes that are not UTF-8, as surrogates.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        block, ends = bytearray(), array("q", [0])
        for text in strings:
            block += text.encode("utf-8", "surrogateescape")
            ends.append(len(block))
        self._block, self._ends = bytes(block), np.array(ends)  # string i lies between ends i and i + 1

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Strings: ...
    def __getitem__(self, index: int | slice) -> str | Strings:
        """Return a string, or those of a slice."""
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"string {index} of {len(self)}")
        return self._get(index % len(self))

    def __eq__(self, other: object) -> bool:
        """Return whether the other is a sequence of the same strings."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __iter__(self) -> Iterator[str]:
        return map(self._get, range(len(self)))

    def select(self, indices: Iterable[int]) -> Strings:
        """Return the strings at ``indices``."""
        return Strings(self[i] for i in indices)

    def _get(self, index: int) -> str:
        return self._block[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogateescape")


def packed(strings: Iterable[str]) -> Strings:
    """Return strings as ``Strings``, which are kept as they are."""
    return strings if isinstance(strings, Strings) else Strings(strings)
