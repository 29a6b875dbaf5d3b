"""Translation of a stream of lines, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tasks.progress import print_line
from tasks.shards import chunks
from tasks.translation.pieces import Splitter
from tasks.translation.search import Beam, Hypothesis, Sampling, beam_search, sample
from tasks.translation.stream import windows
from zoo.nets.transformer import Transformer
from zoo.text import EOS, Tokenizer, padded


class Part(NamedTuple):
    """A piece of a line with its best translation.

    Attributes:
        source: token ids of the piece, without </s>.
        target: token ids of the translation, without </s>.
    """

    source: list[int]
    target: list[int]


class Translated(NamedTuple):
    """A line and its translations.

    Attributes:
        source: line as it was given.
        texts: translations, best first.
        scores: score of each translation, as in ``Hypothesis``; for a line of several parts the sum of their scores.
        parts: pieces of the line with their best translations.
    """

    source: str
    texts: list[str]
    scores: list[float]
    parts: list[Part]


class Translator:
    """Function from lines to their translations.

    A line that is longer than the sentences of training is translated in pieces (``Splitter``), which is reported once.
    An empty line stays empty.

    Args:
        model: net in eval mode, on its device; a folded net (``zoo.fold``) is faster.
        coder: tokenizer of the net.
        settings: settings of the search or the sampling.
        window: largest number of lines that are read before the first is translated. Lines of similar length among them
            share a batch.
        batch_size: number of sentences of a batch.
        splitter: function that cuts long lines; default: at the largest length of the net.
        live: whether a line that is there is translated without waiting for others (``tasks.translation.stream``).
    """

    def __init__(
        self,
        model: Transformer,
        coder: Tokenizer,
        settings: Beam | Sampling,
        *,
        window: int = 512,
        batch_size: int = 64,
        splitter: Splitter | None = None,
        live: bool = False,
    ) -> None:
        self.model, self.coder, self.settings = model, coder, settings
        self.window, self.batch_size, self.live = window, batch_size, live
        longest = model.layout.max_length - 1
        self.splitter = Splitter(coder, longest, longest) if splitter is None else splitter
        self.in_parts = 0  # lines that were translated in several parts

    def __call__(self, lines: Iterable[str]) -> Iterator[Translated]:
        """Yield the translations in the order of the lines.

        Raises:
            UserError: that of the lines, after the translations of the lines before it.
        """
        first = 1
        for batch in windows(lines, self.window, live=self.live):
            yield from self._translate(batch, first)
            first += len(batch)

    def _translate(self, lines: list[str], first: int) -> Iterator[Translated]:
        """Yield the translations of the lines of a window; ``first`` is the number of the first line."""
        # 1. Tokenise the lines, and cut them into pieces if necessary.
        pieces: list[list[int]] = []
        streams: list[tuple[int, int]] = []  # numbers of the line and of the piece in it
        owners: list[range] = []  # numbers of the pieces of each line
        for number, line in enumerate(lines, first):
            parts = self.splitter(line)
            if len(parts) > 1:
                self._report(number, parts)
            owners.append(range(len(pieces), len(pieces) + len(parts)))
            streams += [(number, i) for i in range(len(parts))]
            pieces += parts
        # 2. Translate the pieces.
        found = self._search(pieces, streams)
        # 3. Join the translations of the pieces of each line: the best ones, the second best ones, and so on.
        for line, own in zip(lines, owners, strict=True):
            if not own:
                yield Translated(line, [""], [0.0], [])
                continue
            count = min(len(found[i]) for i in own)
            texts = [self.splitter.join(self.coder.decode(found[i][n].tokens) for i in own) for n in range(count)]
            scores = [sum(found[i][n].score for i in own) for n in range(count)]
            yield Translated(line, texts, scores, [Part(pieces[i], found[i][0].tokens) for i in own])

    def _report(self, number: int, parts: list[list[int]]) -> None:
        """Print that a line is translated in parts, for the first such line."""
        self.in_parts += 1
        if self.in_parts == 1:
            usual, most = self.splitter.usual, self.splitter.most
            limit = "the limit of the net" if usual == most else "which few sentences of its training exceed"
            print_line(
                f"line {number}: has more than {usual} tokens, {limit}; translated in {len(parts)} parts, at ends of "
                "sentences where possible; further lines likewise"
            )

    def _search(self, pieces: list[list[int]], streams: list[tuple[int, int]]) -> list[list[Hypothesis]]:
        """Return the hypotheses of each piece; pieces of similar length share a batch."""
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
        found: dict[int, list[Hypothesis]] = {}
        device = self.model.encoder_embedding.weight.device
        for rows in chunks(order, self.batch_size):
            source = padded([[*pieces[i], EOS] for i in rows]).to(device)  # (B, S)
            if isinstance(self.settings, Beam):
                results = beam_search(self.model, source, self.settings)
            else:
                results = sample(self.model, source, self.settings, [streams[i] for i in rows])
            found.update(zip(rows, results, strict=True))
        return [found[i] for i in range(len(pieces))]
