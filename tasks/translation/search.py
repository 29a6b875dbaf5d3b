"""Greedy and beam search, and sampling, over a batch of sentences.

The rules are fairseq's: a hypothesis ends with </s>, whose candidates count if they are among the best ``beam`` of a
step; a sentence is done when ``beam`` hypotheses of it have ended; hypotheses are ranked by their log probability over
length ** length_penalty, </s> counted. What makes it fast: the beams of a sentence share its encoded source, the first
step runs once a sentence, keys and values are reordered only when the beams change places, only each row's best
candidates are normalised, and sentences leave the batch when they are done.
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
    """A translation: token ids without </s>, and its log probability over length ** length_penalty."""

    tokens: list[int]
    score: float


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long translations may be.

    Attributes:
        max_ratio, max_extra: at most max_ratio * source tokens + max_extra tokens.
    """

    max_ratio: float = 1.5
    max_extra: int = 20

    def limit(self, source: Tensor, model: Transformer) -> Tensor:
        """Most tokens (B,) of each translation, </s> not counted."""
        lengths = (source != PAD).sum(1)
        return (lengths * self.max_ratio + self.max_extra).long().clamp(max=model.layout.max_length - 1)


@dataclass(frozen=True, kw_only=True)
class Beam(Lengths):
    """Beam search; with ``beam`` 1 greedy search.

    Attributes:
        beam: hypotheses of a sentence that are followed.
        length_penalty: exponent of the length; above 1 favours long translations.
        min_length: of a translation, in tokens without </s>.
    """

    beam: int = 4
    length_penalty: float = 1.0
    min_length: int = 1

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise UserError(f"beam={self.beam}: must be at least 1")


@torch.inference_mode()
def beam_search(model: Transformer, source: Tensor, settings: Beam) -> list[list[Hypothesis]]:
    """The ended hypotheses of each sentence, best first.

    Args:
        model: in eval mode.
        source: tokens (B, S), padded at the end.
    """
    beam, device = settings.beam, source.device
    limits = settings.limit(source, model).clamp(min=settings.min_length)
    limit = int(limits.max())
    done: list[list[Hypothesis]] = [[] for _ in range(len(source))]
    memory, cache = model.encode(source), Cache()
    alive = torch.arange(len(source), device=device)  # numbers of the sentences still in the batch
    width = 1  # rows of each
    tokens = torch.full((len(source), 1, limit + 2), PAD, device=device)
    tokens[:, :, 0] = EOS
    scores = torch.zeros(len(source), 1, device=device)  # of the unfinished hypotheses
    for length in range(limit + 1):  # tokens that they have
        logits = model.step(tokens[:, :, length].reshape(-1, 1), memory, cache).float()
        total = torch.logsumexp(logits, 1)
        logits[:, PAD] = -torch.inf
        last = limits[alive] <= length
        if length < settings.min_length:
            logits[:, EOS] = -torch.inf
        if last.any():  # only </s> may follow
            rows = last.repeat_interleave(width)
            ends = logits[rows, EOS]
            logits[rows] = -torch.inf
            logits[rows, EOS] = ends
        values, words = logits.topk(min(2 * beam, logits.shape[1]), 1)
        values = (values - total[:, None]).view(len(alive), width, -1) + scores[:, :, None]
        count = words.shape[1]
        best, where = values.flatten(1).topk(min(2 * beam, width * count), 1)
        parents, chosen = where // count, words.view(len(alive), -1).gather(1, where)
        ended = (chosen == EOS) & torch.isfinite(best)
        normal = best / (length + 1) ** settings.length_penalty
        for i, j in ended[:, :beam].nonzero().tolist():
            sentence = done[int(alive[i])]
            if len(sentence) < beam:
                words_ = tokens[i, parents[i, j], 1 : length + 1].tolist()
                sentence.append(Hypothesis(words_, float(normal[i, j])))
        numbers = zip(alive.tolist(), last.tolist(), strict=True)
        going = [i for i, (number, full) in enumerate(numbers) if not full and len(done[number]) < beam]
        if not going:
            break
        keep = torch.tensor(going, dtype=torch.long, device=device)
        # the best beam hypotheses that have not ended
        rank = torch.where(chosen == EOS, chosen.shape[1], 0) + torch.arange(chosen.shape[1], device=device)
        pick = rank.topk(min(beam, chosen.shape[1]), 1, largest=False, sorted=True).indices[keep]
        parents, chosen, scores = (values[keep].gather(1, pick) for values in (parents, chosen, best))
        scores = scores.masked_fill(chosen == EOS, -torch.inf)
        order = (keep[:, None] * width + parents).flatten()
        if len(order) != len(logits) or not torch.equal(order, torch.arange(len(order), device=device)):
            cache.select(order)
        tokens = tokens.flatten(0, 1)[order].view(len(keep), -1, tokens.shape[2])
        tokens[:, :, length + 1] = chosen
        width = tokens.shape[1]
        if len(keep) != len(alive):
            alive = alive[keep]
            memory = memory.select(keep)
    return [sorted(sentence, key=lambda h: -h.score) for sentence in done]


@dataclass(frozen=True, kw_only=True)
class Sampling(Lengths):
    """Ancestral sampling.

    Attributes:
        count: translations of each sentence.
        temperature: of the softmax; top_k and top_p: sample from the best k tokens, from those that hold p of the mass;
            0 and 1: from all.
        seed: of the draws.
    """

    count: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.top_k < 0:
            raise UserError(f"count={self.count}, top_k={self.top_k}: must be at least 1 and 0")
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature}: must be greater than 0; beam 1 takes the best token")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: must be in (0, 1]")


@torch.inference_mode()
def sample(model: Transformer, source: Tensor, settings: Sampling) -> list[list[Hypothesis]]:
    """``count`` translations of each sentence, with their mean log probability a token, best first."""
    device, count = source.device, settings.count
    generator = torch.Generator(device).manual_seed(settings.seed)
    limits = settings.limit(source, model).repeat_interleave(count)
    memory, cache = model.encode(source), Cache()
    memory = memory.select(torch.arange(len(source), device=device).repeat_interleave(count))
    rows = torch.arange(len(limits), device=device)
    last = torch.full((len(rows), 1), EOS, device=device)
    words: list[list[int]] = [[] for _ in rows]
    scores = [0.0] * len(words)
    while len(rows):
        logits = model.step(last, memory, cache).float()
        log_p = torch.log_softmax(logits, 1)
        logits[:, PAD] = -torch.inf
        last = torch.multinomial(_restricted(logits, settings).softmax(1), 1, generator=generator)
        full = limits[rows] <= cache.length - 1
        last[full] = EOS
        chosen = log_p.gather(1, last)
        for row, word, value in zip(rows.tolist(), last[:, 0].tolist(), chosen[:, 0].tolist(), strict=True):
            scores[row] += value
            if word != EOS:
                words[row].append(word)
        keep = (last[:, 0] != EOS).nonzero().flatten()
        if len(keep) < len(rows):
            rows, last, memory = rows[keep], last[keep], memory.select(keep)
            cache.select(keep)
    found = [Hypothesis(w, s / (len(w) + 1)) for w, s in zip(words, scores, strict=True)]
    return [sorted(found[i : i + count], key=lambda h: -h.score) for i in range(0, len(found), count)]


def _restricted(logits: Tensor, settings: Sampling) -> Tensor:
    """Logits over the temperature, -inf outside of top_k and top_p."""
    logits = logits / settings.temperature
    if settings.top_k:
        least = logits.topk(min(settings.top_k, logits.shape[1]), 1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if settings.top_p < 1:
        ordered, where = logits.sort(1, descending=True)
        before = ordered.softmax(1).cumsum(1) - ordered.softmax(1)
        ordered = ordered.masked_fill(before >= settings.top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter_(1, where, ordered)
    return logits
