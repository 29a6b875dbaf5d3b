"""Boxes x1, y1, x2, y2 that are found by where they are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

Box = tuple[float, float, float, float]


def area(box: Box) -> float:
    """Return the area of a box."""
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap_area(first: Box, second: Box) -> float:
    """Return the area that two boxes share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return width * height if width > 0 and height > 0 else 0.0


class BoxIndex:
    """Boxes in grids of cells, a grid for each size: comparing each pair of 40,000 boxes takes minutes.

    The grid of level k has cells of side s = 2^k and the boxes whose longer side is in (s / 2, s], by their centres.
    A box meets only those of them whose centres are at most s / 2 away from it.
    """

    def __init__(self) -> None:
        self.levels: dict[int, dict[tuple[int, int], list[Box]]] = defaultdict(lambda: defaultdict(list))

    def add(self, box: Box) -> None:
        """Add a box."""
        longer = max(box[2] - box[0], box[3] - box[1])
        level = math.ceil(math.log2(longer)) if longer > 0 else 0
        side = 2.0**level
        cell = math.floor((box[0] + box[2]) / 2 / side), math.floor((box[1] + box[3]) / 2 / side)
        self.levels[level][cell].append(box)

    def near(self, box: Box) -> Iterator[Box]:
        """Yield the boxes that may overlap a box: all that do, and some others."""
        for level, cells in self.levels.items():
            side = 2.0**level
            left, top, right, bottom = (
                math.floor(value / side + step) for value, step in zip(box, (-0.5, -0.5, 0.5, 0.5), strict=True)
            )
            if (right - left + 1) * (bottom - top + 1) > len(cells):
                places = [(x, y) for x, y in cells if left <= x <= right and top <= y <= bottom]
            else:
                places = [(x, y) for x in range(left, right + 1) for y in range(top, bottom + 1)]
            for place in places:
                yield from cells.get(place, ())
