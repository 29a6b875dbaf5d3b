"""Text of weights for translation."""

import pytest

import zoo
from tasks.translation.vocabulary import train_vocabulary
from zoo.cleaning import CLEANING
from zoo.text import Vocabulary
from zoo.transforms import read_transform


def test_a_vocabulary_that_is_none():
    with pytest.raises(zoo.ZooError, match="not a sentencepiece model"):
        zoo.TextTransform("en", "de", "QUJD", None).build()
    for model in ("%%%", "QUJé", "A"):
        with pytest.raises(zoo.ZooError, match="vocabulary: not base64"):
            zoo.TextTransform("en", "de", model, None).build()


def test_a_piece_that_is_no_text():
    model = train_vocabulary(["one two three", "ein zwei drei"] * 20, 40, "bpe").model
    with pytest.raises(zoo.ZooError, match=r"m: a piece of it is not UTF-8 .*; get the model again"):
        Vocabulary(model.replace("▁".encode(), b"\xe0\x96\x81"), "m")


def test_weights_state_the_rules_of_their_cleaning():
    """Those of earlier versions do not; those of later ones clean by rules that are unknown here."""
    old = {"kind": "text", "source": "en", "target": "de", "source_model": "QUJD", "target_model": None}
    assert (read_transform(old).cleaning, read_transform(old).longest) == (1, None)
    with pytest.raises(zoo.ZooError, match=rf"cleaning={CLEANING + 1}: of a later version, .*; update"):
        read_transform({**old, "cleaning": CLEANING + 1})
    for key in ("cleaning", "longest"):
        with pytest.raises(zoo.ZooError, match=key):
            read_transform({**old, key: 0})
