"""Vocabularies."""

import pytest

from tasks.errors import DataError, UserError
from tasks.translation.vocabulary import train_vocabulary
from zoo.text import PAD, padded


def test_user_errors_are_user_errors():
    assert issubclass(DataError, UserError)
    assert padded([[5], [6, 7]]).tolist() == [[5, PAD], [6, 7]]
    with pytest.raises(DataError, match="lower data.corpus.vocabulary.size"):
        train_vocabulary(["a b"], 500, "unigram")
