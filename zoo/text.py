"""Text to token ids and back: sentencepiece vocabularies, which travel inside the weights."""

from __future__ import annotations

import base64
import binascii
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import ZooError

BOS, PAD, EOS, UNK = 0, 1, 2, 3  # fairseq's ids
_LANGUAGE = re.compile(r"[A-Za-z0-9_-]{1,20}")


class Vocabulary:
    """Text to token ids and back.

    Args:
        model: a serialised sentencepiece model whose ids 0 to 3 are <s>, padding, </s> and unknown.
        source: where it comes from, for messages.

    Raises:
        ZooError: not such a model.
    """

    def __init__(self, model: bytes, source: str = "vocabulary") -> None:
        import sentencepiece

        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError) as error:
            raise ZooError(f"{source}: not a sentencepiece model ({error})") from None
        p = self._processor
        ids = (p.bos_id(), p.pad_id(), p.eos_id(), p.unk_id())
        if ids != (BOS, PAD, EOS, UNK):
            raise ZooError(
                f"{source}: its <s>, padding, </s> and unknown have ids {ids}, not {(BOS, PAD, EOS, UNK)}; train it "
                "with bos_id=0 pad_id=1 eos_id=2 unk_id=3"
            )

    def __len__(self) -> int:
        return self._processor.get_piece_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without <s> and </s>."""
        return self._processor.encode(list(texts), num_threads=-1 if len(texts) > 1000 else 1)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        return self._processor.decode([int(i) for i in ids])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The piece of each id."""
        return [self._processor.id_to_piece(int(i)) for i in ids]


def padded(rows: Sequence[Any]) -> Tensor:
    """Rows of ids (lists or arrays) -> int64 (rows, longest), ``PAD`` at the ends."""
    out = np.full((len(rows), max(map(len, rows), default=0)), PAD, np.int64)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(out)


class Coder:
    """Sentences to what a net takes, and its tokens to text. Made by ``TextTransform.build``."""

    def __init__(self, source: Vocabulary, target: Vocabulary) -> None:
        self.source, self.target = source, target

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Sentences -> int64 (B, S), each with </s>, padded at the end."""
        return padded([[*ids, EOS] for ids in self.source.encode(texts)])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of target tokens."""
        return self.target.decode(tokens)


@dataclass(frozen=True)
class TextTransform:
    """What a translation net expects: its languages and vocabularies.

    Attributes:
        source, target: languages, as in ``en``: letters, digits, - and _, at most 20. Exports name files after them.
        source_model, target_model: sentencepiece models, base64; ``target_model`` None for a joint vocabulary.
    """

    source: str
    target: str
    source_model: str = field(repr=False)
    target_model: str | None = field(repr=False)

    def __post_init__(self) -> None:
        for key in ("source", "target"):  # a weights file may come from anywhere, and its languages name files
            if not _LANGUAGE.fullmatch(getattr(self, key)):
                raise ZooError(
                    f"language {key}={getattr(self, key)!r}: must be 1 to 20 letters, digits, - or _, as in 'en'"
                )

    @classmethod
    def of(cls, languages: tuple[str, str], source: Vocabulary, target: Vocabulary) -> TextTransform:
        """The transform of a pair of languages and their vocabularies."""
        models = [base64.b64encode(v.model).decode() for v in (source, target)]
        return cls(*languages, models[0], models[1] if models[1] != models[0] else None)

    def build(self) -> Coder:
        """A callable: sentences -> int64 (B, S).

        Raises:
            ZooError: a vocabulary that is not a sentencepiece model.
        """
        source = _vocabulary(self.source_model)
        return Coder(source, source if self.target_model is None else _vocabulary(self.target_model))


@functools.lru_cache(maxsize=4)
def _vocabulary(model: str) -> Vocabulary:
    try:
        return Vocabulary(base64.b64decode(model, validate=True))
    except binascii.Error as error:
        raise ZooError(f"vocabulary: not base64 ({error})") from None
