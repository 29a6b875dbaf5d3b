"""What the quantisations of all targets share."""

from __future__ import annotations

from collections.abc import Sequence, Set


def between(sources: Sequence[Sequence[int]], starts: Set[int], ends: Set[int]) -> list[int]:
    """Return the nodes on paths from one of ``starts`` to one of ``ends`` that have no other of both on them.

    Args:
        sources: nodes that each node reads, all before it.
        starts: nodes that dequantise, or compute in int8.
        ends: nodes that quantise, or compute in int8.

    >>> between([[], [0], [1], [2], [3]], {0}, {3})
    [1, 2]
    """
    behind: set[int] = set()
    for i, before in enumerate(sources):
        if i not in starts | ends and any(j in starts or j in behind for j in before):
            behind.add(i)
    leading: set[int] = set()
    for i in reversed(range(len(sources))):
        if i in ends or i in leading:
            leading |= {j for j in sources[i] if j not in starts | ends}
    return sorted(behind & leading)
