"""Cleaning of sentence pairs."""

# ruff: noqa: RUF001  letters of other scripts are what is tested

import pytest

from tasks.translation.clean import JOINED, Cleaner
from tasks.translation.config import CleanSection
from tasks.translation.text import Pair
from zoo.cleaning import clean


def test_cleaning_counts_what_it_drops():
    pairs = [
        ("a b", "x y"),
        ("a b", "x y"),
        ("a\x00b\u00ad", "x  y"),
        ("", "x"),
        ("a", "\u200b"),
        ("a b c d", "x"),
        ("a " * 6, "x " * 6),
        ("می\u200cخواهم", "x"),
    ]
    cleaner = Cleaner(CleanSection(max_words=5, max_ratio=3))
    assert list(cleaner(Pair(*p) for p in pairs)) == [("a b", "x y"), ("می\u200cخواهم", "x")]
    counts = {"read": 8, "kept": 2, "mended": 3, "duplicate": 2, "empty": 2, "ratio": 1, "long": 1, JOINED: 1}
    assert dict(cleaner.counts) == counts
    assert "8 pairs read, 2 kept" in str(cleaner)
    keeping = Cleaner(CleanSection(duplicates="keep"))
    assert len(list(keeping(Pair(*p) for p in pairs[:2]))) == 2
    assert clean("a\ufeff b\ue000\tc\n") == "a b c"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("gui\u00adtar", "guitar"),
        ("pl\u2060aying", "playing"),
        ("\ufeffone\u200b", "one"),
        ("a\u200eb\u202ac\u2069", "abc"),
        ("Auf\u200clage", "Auflage"),  # a ligature that is not made
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("क्\u200dष", "क्\u200dष"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("x\u200d\u200dy", "xy"),
        ("a\x01b\x85c\u2028d\u00a0e\u3000f", "a b c d e f"),
        ("a\ud800b\uffffc\U000f0000d", "a b c d"),
        ("\u0600٣ \u06dd", "\u0600٣ \u06dd"),  # seen, though of the category of format characters
        ("e\u0301 \u00e9 ﬁ", "e\u0301 \u00e9 ﬁ"),  # the vocabulary normalises
    ],
)
def test_characters(text, cleaned):
    assert clean(text) == cleaned
    assert clean(cleaned) == cleaned


def test_the_ratio_of_scripts_without_blanks():
    pairs = [
        Pair(f"I like to see the black dog on street {i}.", f"我喜欢在第{i}条街上看到那只黑色的狗。") for i in range(9)
    ]
    pairs += [
        Pair("I like to see the black dog on the street.", "通りで黒い犬を見るのが好きです。"),
        Pair("I like to see the black dog on the street.", "ฉันชอบดูหมาดำบนถนน"),
        Pair("I like to see the black dog on the street.", "나는 거리에서 검은 개를 보는 것을 좋아한다."),
    ]
    assert len(list(Cleaner(CleanSection())(pairs))) == len(pairs)
    wrong = [Pair("Yes.", pairs[0].target * 3), Pair(pairs[0].source * 3, "狗。")]
    assert not list(Cleaner(CleanSection())(wrong))
