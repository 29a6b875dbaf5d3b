"""Translate lines as they come, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tasks.progress import print_line
from tasks.translation.clean import without_control
from tasks.translation.search import Beam, Hypothesis, Sampling, beam_search, sample
from zoo.nets.transformer import Transformer
from zoo.text import EOS, Tokenizer, padded


class Translated(NamedTuple):
    """A line and its translations, best first, with their scores (log probability over length ** penalty)."""

    source: str
    texts: list[str]
    scores: list[float]


class Translator:
    """Text to text.

    A line that is longer than the net takes is cut between words into pieces that fit, whose translations are joined; a
    message says so. An empty line stays empty.

    Args:
        model: in eval mode, on its device; ``zoo.fold`` of it is faster.
        window: lines that are read before the first is translated: those of about the same length are batched.
        batch_size: sentences that are translated at a time.
    """

    def __init__(
        self,
        model: Transformer,
        coder: Tokenizer,
        settings: Beam | Sampling,
        *,
        window: int = 512,
        batch_size: int = 64,
    ) -> None:
        self.model, self.coder, self.settings = model, coder, settings
        self.window, self.batch_size = window, batch_size
        self.longest = model.layout.max_length - 1

    def __call__(self, lines: Iterable[str]) -> Iterator[Translated]:
        """Translations in the order of the lines."""
        batch: list[str] = []
        number = 0
        for number, line in enumerate(lines, 1):
            batch.append(line)
            if len(batch) == self.window:
                yield from self._translate(batch, number - len(batch) + 1)
                batch = []
        if batch:
            yield from self._translate(batch, number - len(batch) + 1)

    def _translate(self, lines: list[str], first: int) -> Iterator[Translated]:
        pieces: list[list[int]] = []
        owners: list[range] = []
        for number, line in enumerate(lines, first):
            parts = self.parts(without_control(line))
            if len(parts) > 1:
                print_line(
                    f"line {number}: more than the net's {self.longest} tokens, translated in {len(parts)} parts"
                )
            owners.append(range(len(pieces), len(pieces) + len(parts)))
            pieces += parts
        found = self._search(pieces)
        for line, own in zip(lines, owners, strict=True):
            if not own:
                yield Translated(line, [""], [0.0])
                continue
            count = min(len(found[i]) for i in own)
            texts = [" ".join(self.coder.decode(found[i][n].tokens) for i in own) for n in range(count)]
            yield Translated(line, texts, [sum(found[i][n].score for i in own) for n in range(count)])

    def parts(self, line: str) -> list[list[int]]:
        """Ids of the line, in pieces that the net takes; none for a line without tokens."""
        (ids,) = self.coder.source.encode([line])
        if len(ids) <= self.longest:
            return [ids] if ids else []
        words = line.split()
        if len(words) == 1:
            return [ids[i : i + self.longest] for i in range(0, len(ids), self.longest)]
        middle = len(words) // 2
        return self.parts(" ".join(words[:middle])) + self.parts(" ".join(words[middle:]))

    def _search(self, pieces: list[list[int]]) -> list[list[Hypothesis]]:
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
        found: dict[int, list[Hypothesis]] = {}
        device = self.model.encoder_embedding.weight.device
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            source = padded([[*pieces[i], EOS] for i in rows]).to(device)
            if isinstance(self.settings, Beam):
                results = beam_search(self.model, source, self.settings)
            else:
                results = sample(self.model, source, self.settings)
            found.update(zip(rows, results, strict=True))
        return [found[i] for i in range(len(pieces))]
