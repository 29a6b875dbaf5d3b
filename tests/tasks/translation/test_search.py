"""Beam search and sampling."""

import itertools
import math

import pytest
import torch

import zoo
from tasks.errors import UserError
from tasks.translation.search import Beam, Sampling, beam_search, sample
from tests.helpers.operations import recorded, waiting
from tests.helpers.transformers import VOCABULARY, batch, make
from tests.helpers.translation import sharp
from zoo.nets.transformer import Cache
from zoo.text import EOS, PAD


def log_probability(model, source, tokens):
    """log P of the tokens and </s>, given a source (S,)."""
    target = torch.tensor([[EOS, *tokens]])
    logits = model(source[None], target).double()
    return logits.log_softmax(-1)[0].gather(1, torch.tensor([*tokens, EOS])[:, None]).sum().item()


@pytest.mark.parametrize("scheme", ["rescale", "post_ln"])
def test_beam_of_one_is_greedy_search(scheme):
    model, (source, _) = sharp(scheme=scheme), batch()
    found = beam_search(model, source, Beam(beam=1, min_length=0, max_ratio=1, max_extra=3))
    for row, hypotheses in enumerate(found):
        tokens = source[row][source[row] != PAD]
        expected = []
        while len(expected) < len(tokens) + 3:
            logits = model(tokens[None], torch.tensor([[EOS, *expected]]))[0, -1]
            logits[PAD] = -math.inf
            if (word := int(logits.argmax())) == EOS:
                break
            expected.append(word)
        assert hypotheses[0].tokens == expected
        assert hypotheses[0].score == pytest.approx(
            log_probability(model, tokens, expected) / (len(expected) + 1), abs=1e-4
        )


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_is_exhaustive_search(penalty):
    """All translations of up to 3 tokens over 7 symbols."""
    torch.manual_seed(5)
    sizes = {"source_vocabulary": 7, "target_vocabulary": 7}
    options = {"dim": 16, "hidden": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "drop_rate": 0.0}
    model = zoo.create_model("rescale_transformer_tiny", **sizes, **options).eval()
    source = torch.tensor([[4, 5, EOS, PAD], [6, 4, 5, EOS], [5, EOS, PAD, PAD]])
    words = [0, 3, 4, 5, 6]  # all but padding and </s>
    beam = len(words) ** 3 * 7
    found = beam_search(model, source, Beam(beam=beam, length_penalty=penalty, min_length=0, max_ratio=0, max_extra=3))
    every = [list(t) for n in range(4) for t in itertools.product(words, repeat=n)]
    for row, hypotheses in enumerate(found):
        tokens = source[row][source[row] != PAD]
        scored = [(log_probability(model, tokens, t) / (len(t) + 1) ** penalty, t) for t in every]
        assert len(hypotheses) == len(every)
        best = sorted(scored, reverse=True)
        assert [h.score for h in hypotheses] == pytest.approx([s for s, _ in best], abs=1e-4)
        assert hypotheses[0].tokens == best[0][1]


@pytest.mark.parametrize("beam", [1, 4])
def test_a_sentence_is_translated_alike_alone_and_among_others(beam):
    model, (source, _) = zoo.fold(sharp()), batch(9, 12)
    settings = Beam(beam=beam, max_ratio=1, max_extra=2)
    together = beam_search(model, source, settings)
    for row, hypotheses in enumerate(together):
        (alone,) = beam_search(model, source[row][source[row] != PAD][None], settings)
        assert [h.tokens for h in hypotheses] == [h.tokens for h in alone]
        assert [h.score for h in hypotheses] == pytest.approx([h.score for h in alone], abs=1e-4)
        assert len(hypotheses) == beam
        scores = [h.score for h in hypotheses]
        assert scores == sorted(scores, reverse=True)
        limit = (source[row] != PAD).sum() + 2
        assert all(len(h.tokens) <= limit for h in hypotheses)
        assert all(PAD not in h.tokens and EOS not in h.tokens for h in hypotheses)


def test_finished_sentences_leave_the_batch(monkeypatch):
    model, (source, _) = sharp(), batch(6, 12)
    rows = []
    step = type(model).step

    def counted(self, target, memory, cache):
        rows.append(len(target))
        assert len(memory.keys_values[0][0]) in (len(target), len(target) // 3)
        return step(self, target, memory, cache)

    monkeypatch.setattr(type(model), "step", counted)
    beam_search(model, source, Beam(beam=3, max_ratio=1, max_extra=0))
    assert rows[:2] == [6, 18]
    assert rows[1:] == sorted(rows[1:], reverse=True)
    assert rows[-1] == 3


def test_least_and_greatest_lengths():
    model, (source, _) = sharp(), batch()
    for hypotheses in beam_search(model, source, Beam(beam=3, min_length=6, max_ratio=0, max_extra=9)):
        assert all(6 <= len(h.tokens) <= 9 for h in hypotheses)
    assert len(beam_search(model, source, Beam(beam=2, max_ratio=0, max_extra=0))[0][0].tokens) == 1
    short = make(max_length=12).float()
    assert all(len(h[0].tokens) <= 11 for h in beam_search(short, source, Beam(beam=2, max_extra=100)))


def test_samples_follow_the_distribution():
    model = make(seed=2).float()
    source = torch.tensor([[7, 9, 4, EOS]])
    memory, cache = model.encode(source), Cache()
    logits = model.step(torch.tensor([[EOS]]), memory, cache)[0].detach()
    logits[PAD] = -math.inf
    draws = sample(model, source.expand(1, -1), Sampling(count=4000, max_ratio=0, max_extra=1, seed=1))[0]
    counts = torch.zeros(VOCABULARY)
    for hypothesis in draws:
        counts[hypothesis.tokens[0] if hypothesis.tokens else EOS] += 1
    expected = logits.softmax(0)
    assert (counts / 4000 - expected).abs().max() < 0.04
    again = sample(model, source, Sampling(count=5, seed=1, max_extra=3))
    assert again == sample(model, source, Sampling(count=5, seed=1, max_extra=3))
    assert again != sample(model, source, Sampling(count=5, seed=2, max_extra=3))
    found = sample(model, source, Sampling(count=300, top_k=3, max_ratio=0, max_extra=1))[0]
    assert {h.tokens[0] if h.tokens else EOS for h in found} <= set(logits.topk(3).indices.tolist())
    ordered = expected.sort(descending=True)
    kept = set(ordered.indices[: int((ordered.values.cumsum(0) < 0.5).sum()) + 1].tolist())
    found = sample(model, source, Sampling(count=300, top_p=0.5, max_ratio=0, max_extra=1))[0]
    assert {h.tokens[0] if h.tokens else EOS for h in found} <= kept
    cold = sample(model, source, Sampling(temperature=1e-4, max_extra=5))[0][0]
    assert cold.tokens == beam_search(model, source, Beam(beam=1, min_length=0, max_extra=5))[0][0].tokens


def test_a_sample_depends_on_its_stream_alone():
    """Not on the batch, its order, or the number of translations of a sentence before it."""
    model, (source, _) = make(seed=2).float().eval(), batch(6, 12)
    settings = Sampling(count=2, max_ratio=1, max_extra=3, seed=5, temperature=3.0)
    keys = [(10 + row,) for row in range(6)]
    together = sample(model, source, settings, keys)
    order = [4, 0, 5, 2, 1, 3]
    shuffled = sample(model, source[order], settings, [keys[row] for row in order])
    for place, row in enumerate(order):
        alone = sample(model, source[row][source[row] != PAD][None], settings, [keys[row]])[0]
        assert [h.tokens for h in together[row]] == [h.tokens for h in shuffled[place]] == [h.tokens for h in alone]
    same = sample(model, source[:1].expand(8, -1), settings, [(row,) for row in range(8)])
    assert len({tuple(h.tokens) for found in same for h in found}) > 8


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Beam, {"length_penalty": math.nan}, "length_penalty=nan: must be from -10 to 10"),
        (Beam, {"length_penalty": 400.0}, "length_penalty=400.0"),
        (Beam, {"max_ratio": math.inf}, "max_ratio=inf: must be a finite number >= 0"),
        (Beam, {"max_ratio": -1.0}, "max_ratio=-1.0"),
        (Sampling, {"max_extra": -1}, "max_extra=-1: must be >= 0"),
        (Sampling, {"temperature": math.nan}, "temperature=nan: must be > 0"),
        (Sampling, {"temperature": math.inf}, "temperature=inf: must be from 1e-06 to 1e[+]06"),
        (Sampling, {"temperature": 1e-40}, "temperature=1e-40: must be from"),
        (Sampling, {"top_p": math.nan}, "top_p=nan"),
    ],
)
def test_numbers_out_of_range(kind, values, message):
    with pytest.raises(UserError, match=message):
        kind(**values)


def test_extreme_numbers_that_are_allowed():
    model, (source, _) = sharp(), batch()
    for penalty in (-10.0, 10.0):
        assert all(found for found in beam_search(model, source, Beam(beam=2, length_penalty=penalty, max_extra=3)))
    assert all(len(h[0].tokens) < 1024 for h in beam_search(model, source, Beam(beam=1, max_ratio=1e300)))
    for temperature in (1e-6, 1e6):
        assert sample(model, source, Sampling(temperature=temperature, max_extra=3))


def test_scores_that_are_not_finite():
    model, (source, _) = sharp(), batch()
    with torch.no_grad():
        model.output_weight.fill_(math.nan)
    for search in (lambda: beam_search(model, source, Beam(beam=2)), lambda: sample(model, source, Sampling())):
        with pytest.raises(UserError, match="no finite scores"):
            search()


@pytest.mark.parametrize("settings", [Beam(beam=3, max_ratio=1, max_extra=0), Sampling(count=3, max_ratio=1)])
def test_the_host_reads_one_tensor_in_a_step(settings, monkeypatch):
    """On a CPU, reading a whole tensor is no operation: those that read single values are all that can be counted."""
    model, (source, _) = sharp(), batch(6, 12)
    search = beam_search if isinstance(settings, Beam) else sample
    assert not waiting(recorded(lambda: search(model, source, settings)))
