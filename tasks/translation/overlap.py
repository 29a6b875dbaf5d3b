"""Sentences of evaluation sets that are in the training text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tasks.translation.clean import digest
from tasks.translation.text import Pair
from zoo.cleaning import clean


class Overlap:
    """Counts of the source sentences of evaluation sets that are in the training text, equal ones as one.

    Memory grows with the evaluation sets, not with the training text.

    Attributes:
        sources: digests of the sources of each evaluation set.
        common: those of them that were in the training text so far.
    """

    def __init__(self) -> None:
        self.sources: dict[str, set[bytes]] = {}
        self.common: dict[str, set[bytes]] = {}

    def add(self, name: str, pairs: Iterable[Pair]) -> None:
        """Add an evaluation set; all are added before the training text is read.

        Args:
            name: name of the set.
            pairs: pairs of the set, cleaned or as they were read.
        """
        self.sources[name] = {digest(clean(pair.source)) for pair in pairs}
        self.common[name] = set()

    def watch(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Yield cleaned training pairs again, and look for their sources in the sets."""
        sources = frozenset().union(*self.sources.values())
        for pair in pairs:
            if (found := digest(pair.source)) in sources:
                for name in self.sources:
                    if found in self.sources[name]:
                        self.common[name].add(found)
            yield pair

    def findings(self) -> list[str]:
        """Return a line for each set that has sources of the training text."""
        return [
            f"{name}: sources that are in train, of which the evaluation measures what was learned by heart: "
            f"{len(common)} of {len(self.sources[name])}"
            for name, common in self.common.items()
            if common
        ]
