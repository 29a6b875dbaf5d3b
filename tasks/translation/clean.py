"""Cleaning of parallel text for training; what is dropped is counted."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

from tasks.translation.config import CleanSection
from tasks.translation.text import Pair

# Characters of category C that belong into text: joiners of scripts such as Persian's.
_KEPT = "\u200c\u200d"


class Cleaner:
    """Drops and mends pairs by rules; ``counts`` tells how many by which.

    Rules, in this order: control characters become spaces (the pair is kept); ``empty``, on either side; ``long``,
    more than max_words on either side; ``ratio``, the longer side has more than max_ratio times the words of the
    shorter; ``duplicate``, the same pair was there before.
    """

    def __init__(self, settings: CleanSection) -> None:
        self.settings = settings
        self.counts: Counter[str] = Counter()
        self._seen: set[bytes] = set()

    def __call__(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        for pair in pairs:
            self.counts["read"] += 1
            mended = Pair(*map(without_control, pair))
            self.counts["mended"] += mended != pair
            if (reason := self._reason(mended)) is not None:
                self.counts[reason] += 1
                continue
            self.counts["kept"] += 1
            yield mended

    def _reason(self, pair: Pair) -> str | None:
        rules = self.settings
        lengths = len(pair.source.split()), len(pair.target.split())
        if not min(lengths):
            return "empty"
        if max(lengths) > rules.max_words:
            return "long"
        if max(lengths) > rules.max_ratio * min(lengths):
            return "ratio"
        if rules.duplicates == "drop":
            key = hashlib.blake2b("\t".join(pair).encode(), digest_size=12).digest()
            if key in self._seen:
                return "duplicate"
            self._seen.add(key)
        return None

    def __str__(self) -> str:
        dropped = ", ".join(f"{self.counts[r]} {r}" for r in ("empty", "long", "ratio", "duplicate", "untokenisable"))
        return (
            f"{self.counts['read']} pairs read, {self.counts['kept']} kept "
            f"({self.counts['mended']} with control characters mended); dropped: {dropped}"
        )


def without_control(text: str) -> str:
    """The text with control, private and unassigned characters as spaces, and single spaces between words."""
    if text.isascii() and text.isprintable():
        cleaned = text
    else:
        cleaned = "".join(" " if unicodedata.category(c)[0] == "C" and c not in _KEPT else c for c in text)
    return " ".join(cleaned.split())
