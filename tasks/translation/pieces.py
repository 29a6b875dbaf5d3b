"""Lines in pieces of the length that a net was trained on, and the translations of the pieces as lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import zoo
from tasks.shards import chunks
from tasks.translation.languages import joint, sentences
from zoo.cleaning import clean
from zoo.nets.transformer import Transformer
from zoo.text import Tokenizer
from zoo.transforms import TextTransform

USUAL = 32  # tokens of a sentence in training, for weights that do not state it
# A word with the blanks behind it; a clause of a script without blanks.
_WORD = re.compile(r"[^\s\u3001\uff0c\uff1b\uff1a]*[\u3001\uff0c\uff1b\uff1a]*\s*")


@dataclass(frozen=True)
class Splitter:
    """Function from a line to the token ids of its pieces.

    A line of more than ``usual`` tokens is cut at all ends of sentences: a net that was trained on single sentences
    leaves out some of several, however short they are together. A sentence of more than ``most`` tokens is cut at
    blanks or commas, and a word of so many anywhere. Nothing is lost: the pieces together have all tokens of the line.

    Attributes:
        coder: tokenizer of the net.
        usual: number of tokens that few training sentences exceed.
        most: largest number of tokens that the net was trained on or takes, without </s>.
        between: text between the translations of two pieces.
    """

    coder: Tokenizer
    usual: int
    most: int
    between: str = " "

    @classmethod
    def of(cls, entry: zoo.Weights, model: Transformer, coder: Tokenizer, longest: int | None = None) -> Splitter:
        """Return the splitter for weights.

        Args:
            entry: weights of a translation net.
            model: net of the weights.
            coder: tokenizer of the net.
            longest: ``usual`` in place of what the weights state.
        """
        assert isinstance(entry.transform, TextTransform)
        trained = entry.meta.get("config")
        for key in ("data", "max_length"):  # weights of strangers have anything there
            trained = trained.get(key) if isinstance(trained, dict) else None
        most = model.layout.max_length - 1
        if type(trained) is int and trained > 1:
            most = min(most, trained - 1)
        return cls(coder, min(longest or entry.transform.longest or USUAL, most), most, joint(entry.transform.target))

    def __call__(self, line: str) -> list[list[int]]:
        """Return the token ids of the pieces of a line; no piece for a line without tokens."""
        text = clean(line)
        (ids,) = self.coder.source.encode([text])
        if not ids:
            return []
        if len(ids) <= self.usual:
            return [ids]
        return [piece for part in sentences(text) for piece in self._within(part)]

    def join(self, texts: Iterable[str]) -> str:
        """Return the translations of the pieces of a line as one line."""
        return self.between.join(text for text in texts if text)

    def _packed(self, parts: Sequence[str], limit: int) -> list[str]:
        """Return neighbouring parts of a text joined, as long as they have at most ``limit`` tokens together."""
        packed: list[str] = []
        size = 0
        for part, ids in zip(parts, self.coder.source.encode(parts), strict=True):
            if packed and size + len(ids) <= limit:
                packed[-1] += part
                size += len(ids)
            else:
                packed.append(part)
                size = len(ids)
        return packed

    def _within(self, text: str) -> list[list[int]]:
        """Return the token ids of a text in pieces of at most ``most`` tokens."""
        (ids,) = self.coder.source.encode([text])
        if len(ids) <= self.most:
            return [ids] if ids else []
        words = [word for word in _WORD.findall(text) if word]
        if len(words) == 1:
            return list(chunks(ids, self.most))
        parts = self._packed(words, self.most)
        if len(parts) == 1:  # tokens across words, of which there are more than in the words alone
            middle = len(words) // 2
            parts = ["".join(words[:middle]), "".join(words[middle:])]
        return [piece for part in parts for piece in self._within(part)]
