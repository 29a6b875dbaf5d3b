"""Cleaning of parallel text for training, with counts of the dropped pairs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

from tasks.translation.config import CleanSection
from tasks.translation.languages import count_words
from tasks.translation.text import Pair
from zoo.cleaning import JOINERS, clean

REPLACED = "mended"  # key in corpus.json of the number of pairs that ``zoo.cleaning.clean`` changed
JOINED = "joined"  # key in corpus.json of the number of kept pairs with joiners, which are part of the spelling


def digest(text: str) -> bytes:
    """Return 12 bytes for a text, to compare: those of the sentences of a large corpus need less memory than these."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()


class Cleaner:
    """Filter of sentence pairs.

    The text is cleaned first (``zoo.cleaning.clean``). A pair is then dropped for the first of these reasons that
    applies:

    - ``empty``: one side has no words. Words are those of ``tasks.translation.languages.count_words``.
    - ``long``: one side has more than ``max_words`` words.
    - ``ratio``: the longer side has more than ``max_ratio`` times the words of the shorter side.
    - ``duplicate``: the same pair occurred before.

    Args:
        settings: limits of the rules.

    Attributes:
        counts: number of pairs by result: ``read``, ``kept``, the reasons above, ``REPLACED`` and ``JOINED``.
    """

    def __init__(self, settings: CleanSection) -> None:
        self.settings = settings
        self.counts: Counter[str] = Counter()
        self._seen: set[bytes] = set()

    def __call__(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Yield the cleaned pairs that are kept, and count all."""
        for pair in pairs:
            cleaned = Pair(*map(clean, pair))
            reason = self._reason(cleaned)
            self.counts["read"] += 1
            self.counts[REPLACED] += cleaned != pair
            self.counts[reason or "kept"] += 1
            if reason is None:
                if any(joiner in text for text in cleaned for joiner in JOINERS):
                    self.counts[JOINED] += 1
                yield cleaned

    def _reason(self, pair: Pair) -> str | None:
        """Return why a cleaned pair is dropped, None if it is kept."""
        rules = self.settings
        lengths = count_words(pair.source), count_words(pair.target)
        if not min(lengths):
            return "empty"
        if max(lengths) > rules.max_words:
            return "long"
        if max(lengths) > rules.max_ratio * min(lengths):
            return "ratio"
        if rules.duplicates == "drop":
            if (key := digest("\t".join(pair))) in self._seen:
                return "duplicate"
            self._seen.add(key)
        return None

    def __str__(self) -> str:
        dropped = ", ".join(f"{self.counts[r]} {r}" for r in ("empty", "long", "ratio", "duplicate"))
        return (
            f"{self.counts['read']} pairs read, {self.counts['kept']} kept "
            f"({self.counts[REPLACED]} with blanks, control or format characters changed); dropped: {dropped}"
        )
