"""Rules of languages and scripts."""

# ruff: noqa: RUF001  letters of other scripts are what is tested

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.translation.languages import count_words, joint, language_of, sentences
from zoo.cleaning import clean


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("A dog runs. A cat sleeps! Why? So...", ["A dog runs. ", "A cat sleeps! ", "Why? ", "So..."]),
        ("Dr. Who met Mr. X. He left.", ["Dr. Who met Mr. X. He left."]),  # initials: rather too few ends
        ("It costs 3.5 euros, approx. one z.B. here. Yes.", ["It costs 3.5 euros, approx. one z.B. here. ", "Yes."]),
        ('He said "no." Then "yes!" came.', ['He said "no." ', 'Then "yes!" ', "came."]),
        ("一只狗。两只猫！好吗？", ["一只狗。", "两只猫！", "好吗？"]),
        ("彼は「はい。」と言った。", ["彼は「はい。」", "と言った。"]),
        ("यह है। वह है।", ["यह है। ", "वह है।"]),
        ("هل؟ نعم. لا", ["هل؟ ", "نعم. ", "لا"]),
        ("no end at all", ["no end at all"]),
        ("", []),
    ],
)
def test_sentences(text, parts):
    assert sentences(text) == parts


@given(st.text(st.sampled_from('ab .!?。」"Dr')))
def test_nothing_is_lost(text):
    cleaned = clean(text)
    parts = sentences(cleaned)
    assert "".join(parts) == cleaned
    assert all(parts)


def test_words():
    assert count_words("a b  c") == 3
    assert count_words("") == 0
    assert count_words("。") == 1
    assert count_words("我喜欢狗") == 2
    assert count_words("我有 iPhone 15") == 3
    assert [language_of(code) for code in ("zh-CN", "zho_Hans", "JPN", "en_GB", "xx")] == ["zh", "zh", "ja", "en", "xx"]
    assert (joint("ja_JP"), joint("de")) == ("", " ")
