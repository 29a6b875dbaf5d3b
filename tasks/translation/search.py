"""Greedy search, beam search and sampling for a batch of sentences.

The rules are those of fairseq. A hypothesis ends with </s>; it counts if this candidate is among the best ``beam`` of a
step. A sentence is finished when ``beam`` of its hypotheses have ended. Hypotheses are ranked by log probability
divided by length ** length_penalty, where the length includes </s>.

Five things make the search fast: all beams of a sentence share its encoded source; the first step runs once for each
sentence; keys and values are reordered only if the beams change places; only the best candidates of each row are
normalised; finished sentences leave the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.errors import UserError
from zoo.nets.transformer import Cache, Transformer
from zoo.text import EOS, PAD


class Hypothesis(NamedTuple):
    """A translation.

    Attributes:
        tokens: token ids without </s>.
        score: log probability divided by length ** length_penalty.
    """

    tokens: list[int]
    score: float


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Limit of the length of translations: max_ratio * source tokens + max_extra.

    Attributes:
        max_ratio: number of tokens of a translation for each token of its source.
        max_extra: number of tokens of a translation that do not depend on the source.
    """

    max_ratio: float = 1.5
    max_extra: int = 20

    def limit(self, source: Tensor, model: Transformer) -> Tensor:
        """Return the largest number of tokens of each translation, without </s>: source (B, S) -> (B,)."""
        lengths = (source != PAD).sum(1)
        return (lengths * self.max_ratio + self.max_extra).long().clamp(max=model.layout.max_length - 1)


@dataclass(frozen=True, kw_only=True)
class Beam(Lengths):
    """Settings of beam search; ``beam`` 1 is greedy search.

    Attributes:
        beam: number of hypotheses of each sentence.
        length_penalty: exponent of the length; values above 1 favour long translations.
        min_length: smallest number of tokens of a translation, without </s>.
    """

    beam: int = 4
    length_penalty: float = 1.0
    min_length: int = 1

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise UserError(f"beam={self.beam}: must be >= 1")


@torch.inference_mode()
def beam_search(model: Transformer, source: Tensor, settings: Beam) -> list[list[Hypothesis]]:
    """Return the finished hypotheses of each sentence, best first.

    In the shapes below, n is the number of unfinished sentences (at first B), w the number of rows of each (1 in the
    first step, then ``beam``), V the size of the vocabulary, and k the number of candidates of a row or a sentence.

    Args:
        model: net in eval mode.
        source: tokens (B, S), padded at the end.
        settings: settings of the search.
    """
    beam, device = settings.beam, source.device
    limits = settings.limit(source, model).clamp(min=settings.min_length)  # (B,)
    limit = int(limits.max())
    finished: list[list[Hypothesis]] = [[] for _ in range(len(source))]
    memory, cache = model.encode(source), Cache()
    alive = torch.arange(len(source), device=device)  # (n,) numbers of the unfinished sentences
    width = 1  # w
    tokens = torch.full((len(source), 1, limit + 2), PAD, device=device)  # (n, w, limit + 2), begins with </s>
    tokens[:, :, 0] = EOS
    scores = torch.zeros(len(source), 1, device=device)  # (n, w) log probabilities of the hypotheses
    for length in range(limit + 1):  # number of tokens of each unfinished hypothesis
        # 1. Compute the logits of the next token and exclude the tokens that may not follow.
        logits = model.step(tokens[:, :, length].reshape(-1, 1), memory, cache).float()  # (n w, V)
        total = torch.logsumexp(logits, 1)  # (n w,)
        logits[:, PAD] = -torch.inf
        full = limits[alive] <= length  # (n,) sentences whose translations have reached their limit
        _end(logits, full, too_short=length < settings.min_length)

        # 2. Choose the best candidates of each row, then those of each sentence. 2 * beam are enough, because at most
        # beam of them are </s>.
        values, words = logits.topk(min(2 * beam, logits.shape[1]), 1)  # (n w, k)
        values = (values - total[:, None]).view(len(alive), width, -1) + scores[:, :, None]  # (n, w, k)
        count = words.shape[1]
        best, where = values.flatten(1).topk(min(2 * beam, width * count), 1)  # (n, k)
        parents, chosen = where // count, words.view(len(alive), -1).gather(1, where)  # (n, k) rows and tokens

        # 3. Store the hypotheses that end here, and find the sentences that go on.
        ended = (chosen == EOS) & torch.isfinite(best)  # (n, k)
        normalised = best / (length + 1) ** settings.length_penalty  # (n, k)
        for i, j in ended[:, :beam].nonzero().tolist():
            hypotheses = finished[int(alive[i])]
            if len(hypotheses) < beam:
                ids = tokens[i, parents[i, j], 1 : length + 1].tolist()
                hypotheses.append(Hypothesis(ids, float(normalised[i, j])))
        numbers = zip(alive.tolist(), full.tolist(), strict=True)
        unfinished = [i for i, (number, stop) in enumerate(numbers) if not stop and len(finished[number]) < beam]
        if not unfinished:
            break
        keep = torch.tensor(unfinished, dtype=torch.long, device=device)  # (n',) sentences that go on

        # 4. Go on with the best hypotheses of these sentences that have not ended.
        pick = _survivors(chosen, beam)[keep]  # (n', w')
        parents, chosen, scores = (x[keep].gather(1, pick) for x in (parents, chosen, best))  # (n', w')
        scores = scores.masked_fill(chosen == EOS, -torch.inf)
        order = (keep[:, None] * width + parents).flatten()  # (n' w',) rows of the parents
        if len(order) != len(logits) or not torch.equal(order, torch.arange(len(order), device=device)):
            cache.select(order)
        tokens = tokens.flatten(0, 1)[order].view(len(keep), -1, tokens.shape[2])  # (n', w', limit + 2)
        tokens[:, :, length + 1] = chosen
        width = tokens.shape[1]
        if len(keep) != len(alive):
            alive = alive[keep]
            memory = memory.select(keep)
    return [sorted(hypotheses, key=lambda h: -h.score) for hypotheses in finished]


def _end(logits: Tensor, full: Tensor, *, too_short: bool) -> None:
    """Exclude </s> from translations that are too short and all other tokens from those that may not grow, in place.

    Args:
        logits: logits of the next token (n w, V).
        full: mask (n,) of the sentences whose translations may not grow.
        too_short: whether all translations are too short.
    """
    if too_short:
        logits[:, EOS] = -torch.inf
    if full.any():
        rows = full.repeat_interleave(len(logits) // len(full))  # (n w,)
        ends = logits[rows, EOS]
        logits[rows] = -torch.inf
        logits[rows, EOS] = ends


def _survivors(chosen: Tensor, beam: int) -> Tensor:
    """Return the places of the ``beam`` best candidates that are not </s>: (n, k) -> (n, w).

    Candidates with </s> come last; they are chosen only if there are too few others.

    Args:
        chosen: tokens of the candidates, best first.
        beam: number of candidates to return, fewer if there are fewer.
    """
    count = chosen.shape[1]
    rank = torch.where(chosen == EOS, count, 0) + torch.arange(count, device=chosen.device)  # (n, k)
    return rank.topk(min(beam, count), 1, largest=False, sorted=True).indices


@dataclass(frozen=True, kw_only=True)
class Sampling(Lengths):
    """Settings of ancestral sampling.

    Attributes:
        count: number of translations of each sentence.
        temperature: temperature of the softmax.
        top_k: number of best tokens to sample from; 0: all tokens.
        top_p: probability mass of the best tokens to sample from; 1: all tokens.
        seed: seed of the random draws.
    """

    count: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"count={self.count}: must be >= 1")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k}: must be >= 0; 0 samples from all tokens")
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature}: must be > 0; beam 1 takes the best token")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: must be in (0, 1]")


@torch.inference_mode()
def sample(model: Transformer, source: Tensor, settings: Sampling) -> list[list[Hypothesis]]:
    """Return ``count`` random translations of each sentence, best first; the score is the mean log probability.

    In the shapes below, n is the number of unfinished translations, at first B * count.

    Args:
        model: net in eval mode.
        source: tokens (B, S), padded at the end.
        settings: settings of the sampling.
    """
    # 1. Give each translation a row of its own.
    device, count = source.device, settings.count
    generator = torch.Generator(device).manual_seed(settings.seed)
    limits = settings.limit(source, model).repeat_interleave(count)  # (B count,)
    memory, cache = model.encode(source), Cache()
    memory = memory.select(torch.arange(len(source), device=device).repeat_interleave(count))
    rows = torch.arange(len(limits), device=device)  # (n,) numbers of the unfinished translations
    last = torch.full((len(rows), 1), EOS, device=device)  # (n, 1) last token of each
    words: list[list[int]] = [[] for _ in rows]
    scores = [0.0] * len(words)
    while len(rows):
        # 2. Draw the next token of each row; </s> where the limit is reached.
        logits = model.step(last, memory, cache).float()  # (n, V)
        log_p = torch.log_softmax(logits, 1)
        logits[:, PAD] = -torch.inf
        last = torch.multinomial(_restricted(logits, settings).softmax(1), 1, generator=generator)
        full = limits[rows] <= cache.length - 1
        last[full] = EOS
        # 3. Store it, and remove the finished rows.
        chosen = log_p.gather(1, last)  # (n, 1)
        for row, word, value in zip(rows.tolist(), last[:, 0].tolist(), chosen[:, 0].tolist(), strict=True):
            scores[row] += value
            if word != EOS:
                words[row].append(word)
        keep = (last[:, 0] != EOS).nonzero().flatten()
        if len(keep) < len(rows):
            rows, last, memory = rows[keep], last[keep], memory.select(keep)
            cache.select(keep)
    # 4. Rank the translations of each sentence.
    found = [Hypothesis(w, s / (len(w) + 1)) for w, s in zip(words, scores, strict=True)]
    return [sorted(found[i : i + count], key=lambda h: -h.score) for i in range(0, len(found), count)]


def _restricted(logits: Tensor, settings: Sampling) -> Tensor:
    """Return the logits (n, V) divided by the temperature, with -inf for tokens outside of top_k and top_p."""
    logits = logits / settings.temperature
    if settings.top_k:
        least = logits.topk(min(settings.top_k, logits.shape[1]), 1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if settings.top_p < 1:
        ordered, where = logits.sort(1, descending=True)
        before = ordered.softmax(1).cumsum(1) - ordered.softmax(1)  # mass of the better tokens
        ordered = ordered.masked_fill(before >= settings.top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter_(1, where, ordered)
    return logits
