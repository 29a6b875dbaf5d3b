"""Training of sentencepiece vocabularies."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Literal

import sentencepiece

from tasks.errors import DataError
from zoo.errors import one_line
from zoo.text import BOS, EOS, PAD, UNK, Vocabulary


def train_vocabulary(
    texts: Iterable[str],
    size: int,
    kind: Literal["bpe", "unigram"],
    *,
    coverage: float = 1.0,
    joined: bool = False,
    seed: int = 0,
) -> Vocabulary:
    """Train a sentencepiece vocabulary.

    Args:
        texts: sentences to train on.
        size: number of pieces.
        kind: model of sentencepiece.
        coverage: share of the characters of the text that get pieces of their own; the rest become <unk>.
        joined: whether joiners (ZWNJ, ZWJ) are characters like others, and not blanks.
        seed: seed of the random sample of sentences.

    Raises:
        DataError: too little text for the size.
    """
    buffer = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=buffer,
            vocab_size=size,
            model_type=kind,
            character_coverage=coverage,
            normalization_rule_name="nfkc" if joined else "nmt_nfkc",  # nmt_nfkc makes joiners blanks
            bos_id=BOS,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=UNK,
            input_sentence_size=5_000_000,  # of larger texts, a random sample of this size is used
            shuffle_input_sentence=True,
            num_threads=1,  # more threads would give other models
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"vocabulary of {size} {kind} pieces: {one_line(error)}; lower data.corpus.vocabulary.size"
        ) from None
    return Vocabulary(buffer.getvalue())
