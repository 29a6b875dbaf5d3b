"""Text to token ids and back: sentencepiece vocabularies, which are stored inside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo._moved import moved_names
from zoo.cleaning import clean
from zoo.errors import ZooError, one_line

BOS, PAD, EOS, UNK = 0, 1, 2, 3  # fairseq's ids


class Vocabulary:
    """Converts text to token ids and back.

    Args:
        model: serialised sentencepiece model whose ids 0 to 3 are <s>, padding, </s> and unknown.
        source: origin of the model, for messages.

    Raises:
        ZooError: another kind of model.
    """

    def __init__(self, model: bytes, source: str = "vocabulary") -> None:
        import sentencepiece

        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError) as error:
            raise ZooError(f"{source}: not a sentencepiece model ({one_line(error)})") from None
        p = self._processor
        ids = (p.bos_id(), p.pad_id(), p.eos_id(), p.unk_id())
        if ids != (BOS, PAD, EOS, UNK):
            raise ZooError(
                f"{source}: its <s>, padding, </s> and unknown have ids {ids}, not {(BOS, PAD, EOS, UNK)}; train it "
                "with bos_id=0 pad_id=1 eos_id=2 unk_id=3"
            )
        try:
            self.pieces(range(len(self)))
        except UnicodeDecodeError as error:
            raise ZooError(f"{source}: a piece of it is not UTF-8 ({one_line(error)}); get the model again") from None

    def __len__(self) -> int:
        return self._processor.get_piece_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without <s> and </s>."""
        return self._processor.encode(list(texts), num_threads=-1 if len(texts) > 1000 else 1)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return self._processor.decode([int(i) for i in ids])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the piece of each id."""
        return [self._processor.id_to_piece(int(i)) for i in ids]


def padded(rows: Sequence[Any]) -> Tensor:
    """Return rows of ids (lists or arrays) as one int64 tensor (rows, longest), with ``PAD`` at the ends."""
    out = np.full((len(rows), max(map(len, rows), default=0)), PAD, np.int64)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(out)


class Tokenizer:
    """Converts sentences to a net's input and its output tokens to text; ``TextTransform.build`` makes it.

    Args:
        source: vocabulary of the sentences.
        target: vocabulary of the output tokens.
    """

    def __init__(self, source: Vocabulary, target: Vocabulary) -> None:
        self.source, self.target = source, target

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the ids of sentences as int64 (B, S), each with </s>, padded at the end; see ``encode``."""
        return padded([[*ids, EOS] for ids in self.encode(texts)])

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each sentence after ``clean``, without </s>."""
        return self.source.encode([clean(text) for text in texts])

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of target tokens."""
        return self.target.decode(tokens)


__getattr__ = moved_names(__name__, {"TextTransform": "zoo.transforms:TextTransform", "Coder": "zoo.text:Tokenizer"})
