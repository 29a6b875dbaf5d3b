"""Cleaning of sentence pairs."""

from tasks.translation.clean import Cleaner, without_control
from tasks.translation.config import CleanSection
from tasks.translation.text import Pair


def test_cleaning_counts_what_it_drops():
    pairs = [
        ("a b", "x y"),
        ("a b", "x y"),
        ("a\x00b\u00ad", "x  y"),
        ("", "x"),
        ("a", "\u200b"),
        ("a b c d", "x"),
        ("a " * 6, "x " * 6),
        ("ü\u200cb", "x"),
    ]
    cleaner = Cleaner(CleanSection(max_words=5, max_ratio=3))
    assert list(cleaner(Pair(*p) for p in pairs)) == [("a b", "x y"), ("ü\u200cb", "x")]
    counts = {"read": 8, "kept": 2, "mended": 3, "duplicate": 2, "empty": 2, "ratio": 1, "long": 1}
    assert dict(cleaner.counts) == counts
    assert "8 pairs read, 2 kept" in str(cleaner)
    keeping = Cleaner(CleanSection(duplicates="keep"))
    assert len(list(keeping(Pair(*p) for p in pairs[:2]))) == 2
    assert without_control("a\ufeff b\ue000\tc\n") == "a b c"
