"""Greedy search, beam search and sampling for a batch of sentences.

The rules are those of fairseq. A hypothesis ends with </s>; it counts if this candidate is among the best ``beam`` of a
step. A sentence is finished when ``beam`` of its hypotheses have ended. Hypotheses are ranked by log probability
divided by length ** length_penalty, where the length includes </s>.

Six things make the search fast: all beams of a sentence share its encoded source; the first step runs once for each
sentence; keys and values are reordered only if the beams change places; only the best candidates of each row are
normalised; finished sentences leave the batch; the host keeps the books and reads one tensor from the device in a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks.engine import seed_from
from tasks.errors import UserError
from zoo.nets.transformer import Cache, Transformer
from zoo.text import EOS, PAD

LARGEST_PENALTY = 10.0  # of the exponents of lengths, in either direction
TEMPERATURES = (1e-6, 1e6)  # smallest and largest


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

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_ratio) and self.max_ratio >= 0):
            raise UserError(f"max_ratio={self.max_ratio}: must be a finite number >= 0")
        if self.max_extra < 0:
            raise UserError(f"max_extra={self.max_extra}: must be >= 0")

    def limits(self, tokens: Sequence[int], model: Transformer) -> list[int]:
        """Return the largest number of tokens of each translation, without </s>.

        Args:
            tokens: number of tokens of each source with </s>.
            model: net, whose largest length is a limit too.
        """
        numbers = torch.tensor(tokens, dtype=torch.long) * self.max_ratio + self.max_extra
        return numbers.clamp(max=model.layout.max_length - 1).long().tolist()


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
        super().__post_init__()
        if self.beam < 1:
            raise UserError(f"beam={self.beam}: must be >= 1")
        if not abs(self.length_penalty) <= LARGEST_PENALTY:  # not NaN
            raise UserError(
                f"length_penalty={self.length_penalty}: must be from {-LARGEST_PENALTY:g} to {LARGEST_PENALTY:g}"
            )


@torch.inference_mode()
def beam_search(model: Transformer, source: Tensor, settings: Beam) -> list[list[Hypothesis]]:
    """Return the finished hypotheses of each sentence, best first.

    In the shapes below, n is the number of unfinished sentences (at first B), w the number of rows of each (1 in the
    first step, then ``beam``), V the size of the vocabulary, and k the number of candidates of a row or a sentence.

    Args:
        model: net in eval mode.
        source: tokens (B, S), padded at the end.
        settings: settings of the search.

    Raises:
        UserError: the net gives no finite scores.
    """
    beam, device = settings.beam, source.device
    tokens = _lengths(source)
    limits = [max(limit, settings.min_length) for limit in settings.limits(tokens, model)]
    finished: list[list[Hypothesis]] = [[] for _ in limits]
    memory, cache = model.encode(source, padded=min(tokens, default=0) < source.shape[1]), Cache()
    alive = list(range(len(limits)))  # numbers of the n unfinished sentences
    width = 1  # w
    # the tokens of each hypothesis, as nested pairs (tokens before the last one, last token)
    histories: list[Any] = [None] * len(alive)  # n w
    last = torch.full((len(alive), 1), EOS, device=device)  # (n w, 1) last token of each
    scores = torch.zeros(len(alive), 1, device=device)  # (n, w) log probabilities of the hypotheses
    for length in range(max(limits, default=-1) + 1):  # number of tokens of each unfinished hypothesis
        # 1. Compute the logits of the next token and exclude the tokens that may not follow.
        logits = model.step(last, memory, cache).float()  # (n w, V)
        total = torch.logsumexp(logits, 1)  # (n w,)
        logits[:, PAD] = -torch.inf
        full = [limits[number] <= length for number in alive]  # n, whether a translation has reached its limit
        if length < settings.min_length:
            logits[:, EOS] = -torch.inf
        if any(full):
            rows = _to([i * width + j for i, stop in enumerate(full) if stop for j in range(width)], device)
            ends = logits[rows, EOS]
            logits[rows] = -torch.inf
            logits[rows, EOS] = ends

        # 2. Choose the best candidates of each row, then those of each sentence. 2 * beam are enough, because at most
        # beam of them are </s>.
        values, words = logits.topk(min(2 * beam, logits.shape[1]), 1)  # (n w, k)
        values = (values - total[:, None]).view(len(alive), width, -1) + scores[:, :, None]  # (n, w, k)
        count = words.shape[1]
        best, where = values.flatten(1).topk(min(2 * beam, width * count), 1)  # (n, k)
        parents, chosen = where // count, words.view(len(alive), -1).gather(1, where)  # (n, k) rows and tokens

        # 3. Read them. Tokens and rows are exact in float32, which has 24 bits.
        normalised = best / (length + 1) ** settings.length_penalty  # (n, k)
        read = torch.stack([normalised, chosen.float(), parents.float()]).cpu()  # (3, n, k)
        points, found = read[0].tolist(), read[1:].long().tolist()

        # 4. Store the hypotheses that end here, and find the sentences that go on.
        keep = []  # n', places of the sentences that go on
        for i, number in enumerate(alive):
            hypotheses = finished[number]
            for word, parent, value in zip(found[0][i][:beam], found[1][i], points[i], strict=False):
                if word == EOS and math.isfinite(value) and len(hypotheses) < beam:
                    hypotheses.append(Hypothesis(_unfolded(histories[i * width + parent]), value))
            if not full[i] and len(hypotheses) < beam:
                keep.append(i)
        if not keep:
            break

        # 5. Go on with the best hypotheses of these sentences that have not ended.
        picks = [_survivors(found[0][i], beam) for i in keep]  # n' lists of w' candidates
        order = [i * width + found[1][i][j] for i, pick in zip(keep, picks, strict=True) for j in pick]  # n' w' rows
        flat = [i * best.shape[1] + j for i, pick in zip(keep, picks, strict=True) for j in pick]
        histories = [
            (histories[row], found[0][i][j])
            for row, (i, j) in zip(order, ((i, j) for i, p in zip(keep, picks, strict=True) for j in p), strict=True)
        ]
        moved = _to([flat, order], device)  # (2, n' w')
        if len(order) != len(logits) or order != list(range(len(order))):
            cache.select(moved[1])
        last = chosen.flatten()[moved[0]][:, None]  # (n' w', 1)
        scores = best.flatten()[moved[0]].masked_fill(last[:, 0] == EOS, -torch.inf).view(len(keep), -1)  # (n', w')
        width = scores.shape[1]
        if len(keep) != len(alive):
            alive = [alive[i] for i in keep]
            memory = memory.select(_to(keep, device))
    if not all(finished):
        raise UserError("the net gives no finite scores for a sentence: its weights, or their values in this precision")
    return [sorted(hypotheses, key=lambda h: -h.score) for hypotheses in finished]


def _lengths(source: Tensor) -> list[int]:
    """Return the number of tokens of each sentence: source (B, S)."""
    return (source != PAD).sum(1).tolist()


def _to(numbers: Any, device: torch.device) -> Tensor:
    """Return numbers as a tensor on a device, for which the host does not wait."""
    return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)


def _unfolded(history: Any) -> list[int]:
    """Return the tokens of nested pairs."""
    words = []
    while history is not None:
        history, word = history
        words.append(word)
    return words[::-1]


def _survivors(chosen: Sequence[int], beam: int) -> list[int]:
    """Return the places of the ``beam`` best candidates that are not </s>, fewer if there are fewer.

    Candidates with </s> come last; they are chosen only if there are too few others.

    Args:
        chosen: tokens of the candidates, best first.
        beam: number of candidates to return.
    """
    return sorted(range(len(chosen)), key=lambda j: chosen[j] == EOS)[:beam]


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
        super().__post_init__()
        if self.count < 1:
            raise UserError(f"count={self.count}: must be >= 1")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k}: must be >= 0; 0 samples from all tokens")
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature}: must be > 0; beam 1 takes the best token")
        if not TEMPERATURES[0] <= self.temperature <= TEMPERATURES[1]:
            raise UserError(
                f"temperature={self.temperature}: must be from {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g}; "
                "beam 1 takes the best token"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: must be in (0, 1]")


@torch.inference_mode()
def sample(
    model: Transformer, source: Tensor, settings: Sampling, streams: Sequence[Sequence[int]] | None = None
) -> list[list[Hypothesis]]:
    """Return ``count`` random translations of each sentence, best first; the score is the mean log probability.

    Each translation has a stream of random numbers of its own, so it does not depend on the other sentences of the
    batch and their order. In the shapes below, n is the number of unfinished translations, at first B * count.

    Args:
        model: net in eval mode.
        source: tokens (B, S), padded at the end.
        settings: settings of the sampling.
        streams: numbers that identify each sentence, from which its streams are made; default: its place in the batch.

    Raises:
        UserError: the net gives no finite scores.
    """
    # 1. Give each translation a row and a stream of its own.
    device, count, tokens = source.device, settings.count, _lengths(source)
    limits = [limit for limit in settings.limits(tokens, model) for _ in range(count)]  # B count
    keys = [(number,) for number in range(len(source))] if streams is None else streams
    uniforms = _uniforms([(settings.seed, *key, copy) for key in keys for copy in range(count)], max(limits) + 1)
    uniforms = uniforms.to(device, non_blocking=True)  # (n, longest + 1) in [0, 1)
    memory, cache = model.encode(source, padded=min(tokens) < source.shape[1]), Cache()
    memory = memory.select(_to([i for i in range(len(source)) for _ in range(count)], device))
    rows = list(range(len(limits)))  # numbers of the n unfinished translations
    last = torch.full((len(rows), 1), EOS, device=device)  # (n, 1) last token of each
    words: list[list[int]] = [[] for _ in rows]
    scores = [0.0] * len(words)
    for length in range(max(limits) + 1):
        # 2. Draw the next token of each row; </s> where the limit is reached.
        logits = model.step(last, memory, cache).float()  # (n, V)
        log_p = torch.log_softmax(logits, 1)
        logits[:, PAD] = -torch.inf
        last = _drawn(_restricted(logits, settings).softmax(1), uniforms[:, length])
        if full := [i for i, row in enumerate(rows) if limits[row] <= length]:
            last[_to(full, device)] = EOS
        # 3. Read and store it, and remove the finished rows.
        read = torch.cat([last.float(), log_p.gather(1, last)], 1).tolist()  # n pairs
        for row, (word, value) in zip(rows, read, strict=True):
            if not math.isfinite(value):
                raise UserError("the net gives no finite scores for a sentence: its weights, or their precision")
            scores[row] += value
            if int(word) != EOS:
                words[row].append(int(word))
        keep = [i for i, (word, _) in enumerate(read) if int(word) != EOS]
        if not keep:
            break
        if len(keep) < len(rows):
            chosen = _to(keep, device)
            rows, last, uniforms, memory = (
                [rows[i] for i in keep],
                last[chosen],
                uniforms[chosen],
                memory.select(chosen),
            )
            cache.select(chosen)
    # 4. Rank the translations of each sentence.
    found = [Hypothesis(w, s / (len(w) + 1)) for w, s in zip(words, scores, strict=True)]
    return [sorted(found[i : i + count], key=lambda h: -h.score) for i in range(0, len(found), count)]


def _uniforms(keys: Sequence[Sequence[int]], length: int) -> Tensor:
    """Return random numbers in [0, 1), a row of ``length`` for each key, which alone determines it: float32."""
    rows = [np.random.default_rng(seed_from(*key)).random(length, np.float32) for key in keys]
    return torch.from_numpy(np.stack(rows))


def _drawn(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Return the token of each row at which the sum of its probabilities passes a uniform number.

    Args:
        probabilities: probability of each token, (n, V).
        uniforms: numbers in [0, 1), (n,).

    Returns:
        Tokens (n, 1).
    """
    ends = probabilities.cumsum(1)
    total = ends[:, -1:].contiguous()
    found = torch.searchsorted(ends, uniforms[:, None] * total, right=True)
    # rounding may reach the total, which the last token of any probability has first
    return torch.minimum(found, torch.searchsorted(ends, total)).clamp(max=probabilities.shape[1] - 1)


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
