"""Cleaning of parallel text for training, with counts of the dropped pairs."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

from tasks.translation.config import CleanSection
from tasks.translation.text import Pair

# Characters of category C (control) that belong to text: the joiners of scripts such as Persian.
_JOINERS = "\u200c\u200d"
REPLACED = "mended"  # key in corpus.json of the number of pairs whose control characters were replaced


class Cleaner:
    """Filter of sentence pairs.

    Control characters are replaced by spaces first. A pair is then dropped for the first of these reasons that applies:

    - ``empty``: one side has no words.
    - ``long``: one side has more than ``max_words`` words.
    - ``ratio``: the longer side has more than ``max_ratio`` times the words of the shorter side.
    - ``duplicate``: the same pair occurred before.

    Args:
        settings: limits of the rules.

    Attributes:
        counts: number of pairs by result: ``read``, ``kept``, the reasons above, and ``REPLACED`` for pairs with
            replaced control characters.
    """

    def __init__(self, settings: CleanSection) -> None:
        self.settings = settings
        self.counts: Counter[str] = Counter()
        self._seen: set[bytes] = set()

    def __call__(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Yield the cleaned pairs that are kept, and count all."""
        for pair in pairs:
            cleaned = Pair(*map(without_control, pair))
            reason = self._reason(cleaned)
            self.counts["read"] += 1
            self.counts[REPLACED] += cleaned != pair
            self.counts[reason or "kept"] += 1
            if reason is None:
                yield cleaned

    def _reason(self, pair: Pair) -> str | None:
        """Return why a cleaned pair is dropped, None if it is kept."""
        rules = self.settings
        lengths = len(pair.source.split()), len(pair.target.split())
        if not min(lengths):
            return "empty"
        if max(lengths) > rules.max_words:
            return "long"
        if max(lengths) > rules.max_ratio * min(lengths):
            return "ratio"
        if rules.duplicates == "drop":
            # Digests need less memory than the sentences of a large corpus.
            key = hashlib.blake2b("\t".join(pair).encode(), digest_size=12).digest()
            if key in self._seen:
                return "duplicate"
            self._seen.add(key)
        return None

    def __str__(self) -> str:
        dropped = ", ".join(f"{self.counts[r]} {r}" for r in ("empty", "long", "ratio", "duplicate", "untokenisable"))
        return (
            f"{self.counts['read']} pairs read, {self.counts['kept']} kept "
            f"({self.counts[REPLACED]} with control characters replaced); dropped: {dropped}"
        )


def without_control(text: str) -> str:
    """Replace control, private and unassigned characters by spaces, and runs of white space by single spaces."""
    if text.isascii() and text.isprintable():
        cleaned = text
    else:
        cleaned = "".join(" " if unicodedata.category(c)[0] == "C" and c not in _JOINERS else c for c in text)
    return " ".join(cleaned.split())
