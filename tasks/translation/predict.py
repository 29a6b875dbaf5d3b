"""Translation of a stream of lines, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tasks.progress import print_line
from tasks.shards import chunks
from tasks.translation.clean import without_control
from tasks.translation.search import Beam, Hypothesis, Sampling, beam_search, sample
from zoo.nets.transformer import Transformer
from zoo.text import EOS, Tokenizer, padded


class Translated(NamedTuple):
    """A line and its translations.

    Attributes:
        source: line as it was given.
        texts: translations, best first.
        scores: score of each translation, as in ``Hypothesis``; for a line of several parts the sum of their scores.
    """

    source: str
    texts: list[str]
    scores: list[float]


class Translator:
    """Function from lines to their translations.

    A line that is longer than the net takes is cut between words into parts that fit. Their translations are joined,
    and a message is printed. An empty line stays empty.

    Args:
        model: net in eval mode, on its device; a folded net (``zoo.fold``) is faster.
        coder: tokenizer of the net.
        settings: settings of the search or the sampling.
        window: number of lines that are read before the first is translated. Lines of similar length among them share a
            batch.
        batch_size: number of sentences of a batch.
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
        """Yield the translations in the order of the lines."""
        first = 1
        for batch in chunks(lines, self.window):
            yield from self._translate(batch, first)
            first += len(batch)

    def _translate(self, lines: list[str], first: int) -> Iterator[Translated]:
        """Yield the translations of the lines of a window; ``first`` is the number of the first line."""
        # 1. Tokenise the lines, and cut them into parts if necessary.
        pieces: list[list[int]] = []
        owners: list[range] = []  # numbers of the pieces of each line
        for number, line in enumerate(lines, first):
            parts = self.parts(without_control(line))
            if len(parts) > 1:
                print_line(
                    f"line {number}: has more than {self.longest} tokens, the limit of the net; "
                    f"translated in {len(parts)} parts"
                )
            owners.append(range(len(pieces), len(pieces) + len(parts)))
            pieces += parts
        # 2. Translate the parts.
        found = self._search(pieces)
        # 3. Join the translations of the parts of each line: the best ones, the second best ones, and so on.
        for line, own in zip(lines, owners, strict=True):
            if not own:
                yield Translated(line, [""], [0.0])
                continue
            count = min(len(found[i]) for i in own)
            texts = [" ".join(self.coder.decode(found[i][n].tokens) for i in own) for n in range(count)]
            yield Translated(line, texts, [sum(found[i][n].score for i in own) for n in range(count)])

    def parts(self, line: str) -> list[list[int]]:
        """Return the token ids of a line in parts that the net takes; no part for a line without tokens."""
        (ids,) = self.coder.source.encode([line])
        if len(ids) <= self.longest:
            return [ids] if ids else []
        words = line.split()
        if len(words) == 1:
            return [ids[i : i + self.longest] for i in range(0, len(ids), self.longest)]
        middle = len(words) // 2
        return self.parts(" ".join(words[:middle])) + self.parts(" ".join(words[middle:]))

    def _search(self, pieces: list[list[int]]) -> list[list[Hypothesis]]:
        """Return the hypotheses of each piece; pieces of similar length share a batch."""
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
        found: dict[int, list[Hypothesis]] = {}
        device = self.model.encoder_embedding.weight.device
        for rows in chunks(order, self.batch_size):
            source = padded([[*pieces[i], EOS] for i in rows]).to(device)  # (B, S)
            if isinstance(self.settings, Beam):
                results = beam_search(self.model, source, self.settings)
            else:
                results = sample(self.model, source, self.settings)
            found.update(zip(rows, results, strict=True))
        return [found[i] for i in range(len(pieces))]
