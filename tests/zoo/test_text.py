"""Text of weights for translation."""

import pytest

import zoo


def test_a_vocabulary_that_is_none():
    with pytest.raises(zoo.ZooError, match="not a sentencepiece model"):
        zoo.TextTransform("en", "de", "QUJD", None).build()
    for model in ("%%%", "QUJé", "A"):
        with pytest.raises(zoo.ZooError, match="vocabulary: not base64"):
            zoo.TextTransform("en", "de", model, None).build()
