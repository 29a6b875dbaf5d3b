"""Translation: text, cleaning, corpus, batches, search, training, commands."""

import gzip
import io
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch
from conftest import environment, on_two_processes, train_and_kill
from test_cli import call
from test_transformer import VOCABULARY, batch, make

import zoo
from tasks.config import InverseSqrt
from tasks.engine import Trainer, rate
from tasks.errors import ConfigError, DataError, UserError
from tasks.plots import read_log
from tasks.run import check, make_task
from tasks.translation import corpus as corpora
from tasks.translation.attention import cross_attention
from tasks.translation.clean import Cleaner, without_control
from tasks.translation.config import CleanSection, CorpusSection
from tasks.translation.corpus import Corpus, prepare
from tasks.translation.data import TokenBatches
from tasks.translation.evaluate import compound_split_bleu, score
from tasks.translation.predict import Translator
from tasks.translation.search import Beam, Sampling, beam_search, sample
from tasks.translation.sources import find_files, find_pairs
from tasks.translation.text import Pair, read_lines, read_pairs, read_segments
from tasks.translation.vocabulary import train_vocabulary
from zoo.text import EOS, PAD, padded
from zoo.transformer import Cache

WORDS = {
    "one": "eins",
    "two": "zwei",
    "three": "drei",
    "four": "vier",
    "five": "fünf",
    "six": "sechs",
    "seven": "sieben",
    "eight": "acht",
}


def lines(path, *texts, ending="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(text + ending for text in texts).encode())
    return path


# -- text -------------------------------------------------------------------------------------------------


def test_lines_end_at_line_feeds_only(tmp_path):
    texts = ["one\u2028two", "three\x0cfour\x85", "", "five"]
    assert list(read_lines(lines(tmp_path / "a.txt", *texts))) == texts
    assert list(read_lines(lines(tmp_path / "b.txt", *texts, ending="\r\n"))) == texts
    (tmp_path / "c.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + "ä\nb".encode()))
    assert list(read_lines(tmp_path / "c.gz")) == ["ä", "b"]


def test_text_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\nb\xe4d\n")
    with pytest.raises(DataError, match=r"a\.txt, line 2: not UTF-8 \(.* at byte 2\); convert it: iconv -f latin1"):
        list(read_lines(path))
    with pytest.raises(DataError, match=r"none\.txt: No such file"):
        list(read_lines(tmp_path / "none.txt"))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"one\ntwo\n" * 9999)[:60])
    with pytest.raises(DataError, match=r"b\.gz, after line \d+: damaged"):
        list(read_lines(tmp_path / "b.gz"))
    (tmp_path / "d.gz").write_bytes(b"plain")
    with pytest.raises(DataError, match=r"d\.gz, after line 0: damaged"):
        list(read_lines(tmp_path / "d.gz"))


def test_wmt_formats(tmp_path):
    sgm = '<refset setid="x">\n<doc><p>\n<seg id="1">Tom &amp; Co. </seg>\n<seg\nid="2">two\nlines</seg></p></doc>'
    (tmp_path / "a.sgm").write_text(sgm)
    assert list(read_segments(tmp_path / "a.sgm", "en")) == ["Tom & Co.", "two lines"]
    xml = (
        '<dataset><doc><src lang="en"><p><seg id="1">a &amp; b</seg></p><p><seg id="2">c</seg></p></src>'
        '<ref lang="de" translator="A"><p><seg id="1">x</seg><seg id="2">y</seg></p></ref>'
        '<ref lang="de" translator="B"><p><seg id="1">u</seg><seg id="2">v</seg></p></ref></doc></dataset>'
    )
    (tmp_path / "a.xml").write_text(xml)
    read = find_pairs(tmp_path, "a.xml", ("en", "de"))
    assert list(read()) == [("a & b", "x"), ("c", "y")]
    assert list(find_pairs(tmp_path, "a.xml", ("de", "en"))()) == [("x", "a & b"), ("y", "c")]
    with pytest.raises(DataError, match=r"a\.xml: document 1 has no text in 'fr', only in de, en"):
        list(find_pairs(tmp_path, "a.xml", ("fr", "en"))())
    (tmp_path / "b.xml").write_text("<dataset><doc>")
    with pytest.raises(DataError, match=r"b\.xml: not XML"):
        list(find_pairs(tmp_path, "b.xml", ("en", "de"))())
    lines(tmp_path / "a.tsv", "a\tx\tmore", "b\ty")
    assert list(find_pairs(tmp_path, "a.tsv", ("en", "de"))()) == [("a", "x"), ("b", "y")]
    lines(tmp_path / "b.tsv", "a\tx", "b y")
    with pytest.raises(DataError, match=r"b\.tsv, line 2: no tab"):
        list(find_pairs(tmp_path, "b.tsv", ("en", "de"))())


def test_unequal_numbers_of_lines(tmp_path):
    left, right = lines(tmp_path / "a.en", "1", "2", "3", "4"), lines(tmp_path / "a.de", "1", "2")
    message = r"a\.de has 2 lines, .*a\.en 4: line 3 has no counterpart"
    for pair in ((left, right), (right, left)):
        with pytest.raises(DataError, match=message):
            list(read_pairs(*pair, ("en", "de")))


def test_files_by_name(tmp_path):
    for name in ("a.en", "a.de.gz", "b.tok.en.txt", "b.tok.de.sgm", "c.en"):
        (tmp_path / name).touch()
    assert [p.name for p in find_files(tmp_path, "a", ("en", "de"))] == ["a.en", "a.de.gz"]
    assert [p.name for p in find_files(tmp_path, "b.tok.{lang}", ("en", "de"))] == ["b.tok.en.txt", "b.tok.de.sgm"]
    with pytest.raises(DataError, match=r"c\.de: no such file, nor with \.gz, \.txt or \.sgm after it"):
        find_files(tmp_path, "c", ("en", "de"))
    with pytest.raises(DataError, match=r"x\.tsv: no such file"):
        find_files(tmp_path, "x.tsv", ("en", "de"))


def test_sets_of_sacrebleu_and_of_the_hub(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="sacrebleu:wmt99: no such test set for en-de .*wmt14/full"):
        find_pairs(tmp_path, "sacrebleu:wmt99", ("en", "de"))
    source, target = lines(tmp_path / "s", "a"), lines(tmp_path / "t", "b")
    monkeypatch.setattr("sacrebleu.utils.get_source_file", lambda name, pair: str(source))
    monkeypatch.setattr("sacrebleu.utils.get_reference_files", lambda name, pair: [str(target)])
    assert list(find_pairs(tmp_path, "sacrebleu:wmt14/full", ("en", "de"))()) == [("a", "b")]

    def fail(name, pair):
        raise OSError("no network")

    monkeypatch.setattr("sacrebleu.utils.get_source_file", fail)
    with pytest.raises(DataError, match=r"sacrebleu:wmt14/full: cannot be downloaded \(no network\)"):
        find_pairs(tmp_path, "sacrebleu:wmt14/full", ("en", "de"))

    with pytest.raises(DataError, match="write hf:NAME:SPLIT or hf:NAME@CONFIG:SPLIT"):
        find_pairs(tmp_path, "hf:wmt14", ("en", "de"))
    calls = []

    def load(*arguments, **options):
        calls.append((arguments, options))
        rows = [{"de": "b", "en": "a"}, {"de": "c\r\nd", "en": "e\nf"}, {"de": "d"}]
        return [{"translation": row} for row in rows]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))
    read = find_pairs(tmp_path, "hf:wmt/wmt14@de-en:train[:1%]", ("en", "de"))
    rows = read()
    assert next(rows) == ("a", "b")
    assert next(rows) == ("e f", "c d")
    assert calls == [(("wmt/wmt14", "de-en"), {"split": "train[:1%]", "streaming": True})]
    with pytest.raises(DataError, match="row 2: no 'translation' with en and de"):
        next(rows)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the package datasets \(pip install datasets\)"):
        find_pairs(tmp_path, "hf:wmt14:train", ("en", "de"))


# -- cleaning -------------------------------------------------------------------------------------------


def test_cleaning_counts_what_it_drops():
    pairs = [
        ("a b", "x y"),
        ("a b", "x y"),
        ("a\x00b\u00ad", "x  y"),
        ("", "x"),
        ("a", "\u200b"),
        ("a b c d", "x"),
        ("a " * 6, "x " * 6),
        ("ü\u200cb", "x"),
    ]
    cleaner = Cleaner(CleanSection(max_words=5, max_ratio=3))
    assert list(cleaner(Pair(*p) for p in pairs)) == [("a b", "x y"), ("ü\u200cb", "x")]
    counts = {"read": 8, "kept": 2, "mended": 3, "duplicate": 2, "empty": 2, "ratio": 1, "long": 1}
    assert dict(cleaner.counts) == counts
    assert "8 pairs read, 2 kept" in str(cleaner)
    keeping = Cleaner(CleanSection(duplicates="keep"))
    assert len(list(keeping(Pair(*p) for p in pairs[:2]))) == 2
    assert without_control("a\ufeff b\ue000\tc\n") == "a b c"


# -- corpus ---------------------------------------------------------------------------------------------


def toy(root, count=400, seed=0, reverse=False):
    """Numbers in words, English and German."""
    generator = random.Random(seed)
    for name, size in (("train", count), ("val", 24), ("test", 16)):
        sources = [[generator.choice(list(WORDS)) for _ in range(generator.randint(2, 7))] for _ in range(size)]
        lines(root / f"{name}.en", *(" ".join(s) for s in sources))
        lines(root / f"{name}.de", *(" ".join(WORDS[w] for w in (reversed(s) if reverse else s)) for s in sources))
    return root


def section(root, **changes):
    content = {
        "root": str(root),
        "source": "en",
        "target": "de",
        "train": ["train"],
        "val": "val",
        "test": {"t": "test"},
    }
    vocabulary = {"size": 60, **changes.pop("vocabulary", {})}
    return CorpusSection.model_validate({**content, "vocabulary": vocabulary, **changes})


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("share", ["joint", "separate"])
def test_a_corpus_holds_the_cleaned_text(tmp_path, kind, share):
    root = toy(tmp_path / "text")
    size = {"bpe": 60, "unigram": 38}[kind] if share == "joint" else {"bpe": 36, "unigram": 24}[kind]
    wanted = section(root, vocabulary={"kind": kind, "share": share, "size": size}, clean={"duplicates": "keep"})
    corpus = prepare(wanted, tmp_path / "corpus")
    assert corpus.info["pairs"] == {"train": 400, "val": 24, "t": 16}
    assert (corpus.vocabularies[0] is corpus.vocabularies[1]) == (share == "joint")
    assert [len(v) for v in corpus.vocabularies] == corpus.info["sizes"] == [size, size]
    for name in ("train", "val"):
        for sentences, vocabulary, language in zip(
            corpus.sentences(name), corpus.vocabularies, ("en", "de"), strict=True
        ):
            texts = list(read_lines(root / f"{name}.{language}"))
            assert [vocabulary.decode(sentences[i]) for i in range(len(sentences))] == texts
            assert [len(sentences[i]) for i in range(len(texts))] == sentences.lengths.tolist()
    assert corpus.text("t") == list(read_pairs(root / "test.en", root / "test.de", ("en", "de")))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "text"]
    assert "train.tsv" not in {p.name for p in (tmp_path / "corpus").iterdir()}
    assert prepare(wanted, tmp_path / "corpus").info == corpus.info
    assert type(corpus.sentences("train")[0].ids) is np.memmap


def test_held_out_pairs(tmp_path):
    corpus = prepare(section(toy(tmp_path / "text"), holdout=10, clean={"duplicates": "keep"}), tmp_path / "corpus")
    assert corpus.info["pairs"] == {"train": 360, "val": 40, "t": 16}
    texts = list(read_pairs(tmp_path / "text/train.en", tmp_path / "text/train.de", ("en", "de")))
    assert corpus.text("val") == texts[9::10]


def test_other_settings_are_refused(tmp_path):
    root = toy(tmp_path / "text")
    prepare(section(root), tmp_path / "corpus")
    with pytest.raises(DataError, match=r"prepared with another data\.corpus \(holdout, vocabulary\); delete it"):
        prepare(section(root, holdout=5, vocabulary={"size": 50}), tmp_path / "corpus")
    prepare(section("moved"), tmp_path / "corpus")  # where the text lay does not matter
    with pytest.raises(DataError, match=r"none: no prepared corpus; make it with: rescalenet prepare CONFIG"):
        Corpus(tmp_path / "none")
    ids = tmp_path / "corpus" / "train.source.ids"
    ids.write_bytes(ids.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"train\.source\.ids: has another size"):
        Corpus(tmp_path / "corpus").sentences("train")
    info = json.loads((tmp_path / "corpus/corpus.json").read_text())
    (tmp_path / "corpus/corpus.json").write_text(json.dumps({**info, "version": 99}))
    with pytest.raises(DataError, match="a corpus of version 99; prepare it again"):
        Corpus(tmp_path / "corpus")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"test": {"t": "none"}}, "none has no pairs"), ({"holdout": 10**6}, "holdout=1000000: one of 1000000 pairs")],
)
def test_a_set_without_pairs(tmp_path, change, message):
    root = toy(tmp_path / "text")
    lines(root / "none.en"), lines(root / "none.de")
    with pytest.raises(DataError, match=message):
        prepare(section(root, **change), tmp_path / "corpus")


@pytest.mark.parametrize("where", ["train_vocabulary", "write_json"])
def test_an_interrupted_prepare_leaves_nothing(tmp_path, monkeypatch, where):
    root = toy(tmp_path / "text")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(corpora, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(section(root), tmp_path / "corpus")
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


def test_a_killed_prepare_is_cleared_away(tmp_path):
    root = toy(tmp_path / "text")
    script = (
        "import time\nfrom pathlib import Path\nfrom tasks.translation import corpus\n"
        "from test_translation import section\n"
        "corpus.train_vocabulary = lambda *a, **k: time.sleep(600)\n"
        f"corpus.prepare(section({str(root)!r}), Path({str(tmp_path / 'corpus')!r}))\n"
    )
    paths = os.pathsep.join([os.path.dirname(__file__), str(zoo.checkpoint.weights_dir().parent)])
    process = subprocess.Popen([sys.executable, "-c", script], env={**environment(), "PYTHONPATH": paths})
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".corpus.*.tmp/train.tsv")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "corpus").exists()
    assert len(list(tmp_path.glob(".corpus.*.tmp"))) == 1
    prepare(section(root), tmp_path / "corpus")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "text"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary": {"size": 5000}}, "vocabulary of 5000 bpe pieces: .*set vocabulary.size lower"),
        ({"train": ["other"]}, r"other\.en: no such file"),
        ({"test": {"t": "gone"}}, r"gone\.en: no such file"),
        ({"clean": {"max_words": 1}}, "no pair is left of the training text"),
    ],
)
def test_a_corpus_that_cannot_be_made(tmp_path, change, message):
    root = toy(tmp_path / "text", 40)
    with pytest.raises(DataError, match=message):
        prepare(section(root, **change), tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


# -- batches --------------------------------------------------------------------------------------------


def test_batches_cover_each_pair_once_within_the_budget():
    random_ = np.random.default_rng(0)
    source, target = random_.integers(2, 40, (2, 1000))
    batches = TokenBatches(source, target, 160, seed=3, ranks=1)
    epochs = []
    for epoch in (0, 1):
        batches.seek(epoch, 0)
        found = list(batches)
        assert len(found) == len(batches)
        assert all(e == epoch for keys in found for e, _ in keys)
        assert sorted(i for keys in found for _, i in keys) == list(range(1000))
        for keys in found:
            rows = [i for _, i in keys]
            assert max(source[rows].max(), target[rows].max()) * len(rows) <= 160
        epochs.append([[i for _, i in keys] for keys in found])
        padding = sum(target[rows].max() * len(rows) for rows in epochs[-1]) / target.sum()
        assert padding < 1.15
        batches.seek(epoch, 7)
        assert list(batches) == found[7:]
    assert {frozenset(b) for b in epochs[0]} != {frozenset(b) for b in epochs[1]}
    three = TokenBatches(source, target, 160, seed=3, ranks=3)
    assert len(three) == len(batches) // 3 * 3
    with pytest.raises(DataError, match="a sentence of 39 tokens is longer than a batch of 30"):
        TokenBatches(source, target, 30, 0, 1)
    with pytest.raises(DataError, match="2 pairs make fewer batches of 160 tokens than there are processes"):
        TokenBatches(source[:2], target[:2], 160, 0, 4)


def test_inverse_square_root():
    schedule = InverseSqrt(warmup_steps=40)
    for step in range(300):
        vaswani = min((step + 1) ** -0.5, (step + 1) * 40**-1.5) * 40**0.5
        assert rate(schedule, step / 25, 12, 25) == pytest.approx(vaswani, rel=1e-9)


# -- search ---------------------------------------------------------------------------------------------


def sharp(**options):
    """A net whose distributions are far from uniform, so that search has something to find."""
    model = make(**options).float()
    with torch.no_grad():
        model.encoder_embedding.weight.mul_(1.7)
    return model.eval()


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


def test_attention_is_what_the_net_pays():
    model, (source, target) = make(), batch()
    values = {}
    for i, layer in enumerate(model.decoder):
        layer.cross_attn.out.register_forward_pre_hook(lambda m, args, i=i: values.__setitem__(i, args[0]))
    weights = cross_attention(model, source, target)
    assert weights.shape == (3, 5, 4, 8, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 5, 4, 8, dtype=torch.float64))
    memory = model.encode(source)
    for i in range(3):
        mixed = (weights[i] @ memory.keys_values[i][1]).transpose(1, 2).flatten(2)
        torch.testing.assert_close(mixed, values[i], rtol=1e-9, atol=1e-9)
    assert (weights[:, 4, :, :, 5:] == 0).all()  # its padding


# -- scores ---------------------------------------------------------------------------------------------


def test_scores_are_sacrebleus():
    import sacrebleu

    hypotheses = ["Der Hund läuft schnell.", "Ein Mann sitzt auf der Bank ."]
    references = ["Der Hund rennt schnell.", "Ein Mann sitzt auf einer Bank."]
    bleu, chrf = score(hypotheses, references)
    assert bleu.value == sacrebleu.corpus_bleu(hypotheses, [references]).score
    assert chrf.value == sacrebleu.corpus_chrf(hypotheses, [references]).score
    assert bleu.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    words, _, split = score(hypotheses, references, tokenized=True)
    assert "tok:none" in words.signature
    assert split.name == "compound-split BLEU"
    assert split.value == words.value  # no hyphens
    hyphens = compound_split_bleu(["the rock-solid old house is here"], ["the rock-solid new house is here"])
    expected = sacrebleu.corpus_bleu(
        ["the rock ##AT##-##AT## solid old house is here"],
        [["the rock ##AT##-##AT## solid new house is here"]],
        tokenize="none",
        force=True,
    )
    assert hyphens.value == expected.score


# -- translating ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translation")
    prepare(section(toy(folder / "text"), clean={"duplicates": "keep"}), folder / "corpus")
    return folder


def translator(prepared, settings, max_length=32, **options):
    coder = Corpus(prepared / "corpus").transform.build()
    sizes = {"source_vocabulary": len(coder.source), "target_vocabulary": len(coder.target)}
    model = sharp(**sizes, max_length=max_length, calibrated=False)
    return Translator(model, coder, settings, **options)


def test_lines_are_translated_in_order_as_they_come(prepared):
    texts = ["one two", "", "three", "four five six seven", "eight one", "   ", "two"]
    one = [next(iter(translator(prepared, Beam(beam=2))([text]))) for text in texts]
    read = []

    def reading():
        for text in texts:
            read.append(text)
            yield text

    stream = translator(prepared, Beam(beam=2), window=3, batch_size=2)(reading())
    first = next(stream)
    assert len(read) == 3
    found = [first, *stream]
    assert [r.texts for r in found] == [r.texts for r in one]
    assert [r.scores for r in found] == [pytest.approx(r.scores, abs=1e-4) for r in one]
    assert one[1].texts == one[5].texts == [""]
    assert [r.source for r in one] == texts


def test_a_line_longer_than_the_net_is_translated_in_parts(prepared, capsys):
    long = translator(prepared, Beam(beam=2), max_length=12)
    assert len(long.parts("one " * 10_000)) > 500
    (patient,) = translator(prepared, Beam(beam=1, max_ratio=0, max_extra=3), max_length=250)(["one " * 10_000])
    assert patient.texts[0]
    assert all(1 <= len(part) <= 11 for part in long.parts("one " * 1000 + "x" * 500))
    text = "one two three four five six seven eight"
    (result,) = long([text])
    assert "line 1: more than the net's 11 tokens, translated in" in capsys.readouterr().err
    assert len(result.texts) == 2
    whole = long.parts("one two three four five six seven eight")
    assert [i for part in whole for i in part] == long.coder.source.encode(["one two three four five six seven eight"])[
        0
    ]


# -- training -------------------------------------------------------------------------------------------


TINY = {"dim": 32, "hidden": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}


def config(prepared, output, model=None, data=None, **train):
    content = {
        "task": "translation",
        "output": str(output),
        "model": {
            "name": "rescale_transformer_tiny",
            "options": {
                "dim": 32,
                "hidden": 64,
                "heads": 2,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "drop_rate": 0.1,
            },
            **(model or {}),
        },
        "data": {
            "corpus": section(prepared / "text", clean={"duplicates": "keep"}).model_dump(),
            "folder": str(prepared / "corpus"),
            "eval_batch_size": 8,
            "search": {"beam": 2},
            **(data or {}),
        },
        "train": {
            "epochs": 2,
            "batch_size": 600,
            "optimizer": {"name": "adamw", "lr": 3e-3, "betas": [0.9, 0.98]},
            "schedule": {"name": "inverse_sqrt", "warmup_steps": 5},
            "log_every": 1,
            "checkpoint_minutes": 0,
            "calibration_batches": 2,
            **train,
        },
    }
    return check(content, "test")


def fit(*args, resume=False, **kwargs):
    return Trainer(make_task(config(*args, **kwargs)), resume=resume).fit()


def weights_of(folder, name="last"):
    return zoo.get_weights(str(folder / "checkpoints" / f"{name}.safetensors")).load()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns(prepared, tmp_path, precision):
    schedule = {"name": "onecycle", "up": 0.2}
    metrics = fit(
        prepared,
        tmp_path / "run",
        epochs=30,
        precision=precision,
        schedule=schedule,
        checkpoint_minutes=10,
        eval_every=30,
    )
    assert metrics["perplexity"] < 2.5  # 8 words: a net that knows the length and no word is above 4
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["val_loss"]))
    assert metrics["bleu"] > 10
    run = tmp_path / "run"
    texts = (run / "evaluation/hypotheses.txt").read_text().splitlines()
    references = [pair.target for pair in Corpus(prepared / "corpus").text("val")]
    assert score(texts, references)[0].value == metrics["bleu"]
    assert (run / "curves.png").stat().st_size > 1000


class Crash(Exception):
    pass


@pytest.mark.parametrize("crash_at", [3, 14, "average"])
def test_resume_repeats_the_uninterrupted_run_to_the_bit(prepared, tmp_path, monkeypatch, crash_at):
    settings = {"average": {"name": "last_epochs", "epochs": 2}, "epochs": 3, "accumulate": 2, "batch_size": 300}
    fit(prepared, tmp_path / "whole", **settings)
    trainer = Trainer(make_task(config(prepared, tmp_path / "broken", **settings)))
    if crash_at == "average":
        evaluate, calls = trainer.task.evaluate, []

        def crash(*args):
            calls.append(1)
            if len(calls) == 3:
                raise Crash
            return evaluate(*args)

        monkeypatch.setattr(trainer.task, "evaluate", crash)
    else:
        log_step = trainer._log_step

        def crash(loss):
            log_step(loss)
            if trainer.at.step == crash_at:
                raise Crash

        monkeypatch.setattr(trainer, "_log_step", crash)
    with pytest.raises(Crash):
        trainer.fit()
    trainer.log.flush()
    monkeypatch.undo()
    fit(prepared, tmp_path / "broken", resume=True, **settings)
    assert (tmp_path / "whole/log.jsonl").read_text() == (tmp_path / "broken/log.jsonl").read_text()
    whole, broken = (weights_of(tmp_path / run) for run in ("whole", "broken"))
    assert all(torch.equal(whole[key], broken[key]) for key in whole)


@pytest.mark.slow
def test_kill_9_and_resume(prepared, tmp_path):
    import tasks.config as cfg

    settings = {"epochs": 4, "batch_size": 300, "workers": 1}
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump(config(prepared, tmp_path / "whole", **settings)))
    fit(prepared, tmp_path / "whole", **settings)
    run = tmp_path / "killed"
    arguments = [sys.executable, "-m", "tasks.cli", "train", str(path), f"output={run}"]
    at = train_and_kill(arguments, run / "checkpoints" / "last.pt", after=20)
    assert at["epoch"] < 4, "it ended before it was killed"
    subprocess.run([*arguments, "--resume"], env=environment(), check=True, stderr=subprocess.DEVNULL)
    assert (tmp_path / "whole/log.jsonl").read_text() == (run / "log.jsonl").read_text()
    whole, killed = weights_of(tmp_path / "whole"), weights_of(run)
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


def test_the_last_epochs_are_averaged(prepared, tmp_path):
    settings = {"average": {"name": "last_epochs", "epochs": 2}, "epochs": 3}
    trainer = Trainer(make_task(config(prepared, tmp_path / "run", **settings)))
    ends, end = [], trainer._end_of_epoch

    def record(progress):
        ends.append({k: v.clone() for k, v in trainer.bare.state_dict().items()})
        end(progress)

    trainer._end_of_epoch = record
    trainer.fit()
    kept = weights_of(tmp_path / "run")
    for key, value in kept.items():
        torch.testing.assert_close(value, (ends[1][key] + ends[2][key]) / 2, rtol=1e-6, atol=1e-7)
    assert not torch.equal(kept["decoder_end.bias"], ends[2]["decoder_end.bias"])


def test_two_processes_equal_one_and_steps_are_weighted_by_tokens(prepared, tmp_path):
    """Batches of 300 tokens: two accumulated by one process, one on each of two. float64, to 1e-10."""
    settings = {"precision": "fp64", "model": {"options": {**TINY, "drop_rate": 0.0}}}
    one = {"batch_size": 300, "accumulate": 2, "calibration_batches": 4}
    fit(prepared, tmp_path / "one", **settings, **one)
    path = tmp_path / "config.yaml"
    import tasks.config as cfg

    path.write_text(cfg.dump(config(prepared, tmp_path / "two", **settings, batch_size=600, calibration_batches=2)))
    on_two_processes("train", path)
    first, second = (read_log(tmp_path / run / "log.jsonl") for run in ("one", "two"))
    assert len(first) == len(second)
    compared = 0
    for a, b in zip(first, second, strict=True):
        for key in a.keys() & {"loss", "train_loss", "bleu", "chrf", "val_loss", "perplexity"}:
            assert a[key] == pytest.approx(b[key], rel=1e-10), (a["step"], key)
            compared += 1
    assert compared > 20
    one_, two_ = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for key in one_:
        torch.testing.assert_close(one_[key], two_[key], rtol=1e-6, atol=1e-9)  # stored in single precision


def test_a_step_is_the_mean_over_all_its_tokens(prepared, tmp_path):
    trainer = Trainer(make_task(config(prepared, tmp_path / "run", precision="fp64", accumulate=3, batch_size=200)))
    batches = list(itertools.islice(iter(trainer.loader), 3))
    weights = [trainer.task.weight(b) for b in batches]
    assert len(set(weights)) > 1
    shares = trainer._shares(batches)
    assert shares == pytest.approx([3 * w / sum(weights) for w in weights])
    trainer.bare.eval()
    terms = [trainer.task.losses(trainer.bare, b, torch.float64)["loss"] for b in batches]
    mean = sum(t * s for t, s in zip(terms, shares, strict=True)) / 3
    assert weights == [int((b.labels != PAD).sum()) for b in batches]
    whole = sum(trainer.bare(*b[:3], 0.1)[0] for b in batches) / sum(weights)
    torch.testing.assert_close(mean, whole)


def test_training_that_does_not_fit_the_corpus(prepared, tmp_path):
    run = tmp_path / "run"
    corpus = section(prepared / "text", clean={"duplicates": "keep"}, holdout=7).model_dump()
    with pytest.raises(DataError, match=r"prepared with another data\.corpus \(holdout\)"):
        fit(prepared, run, data={"corpus": corpus})
    with pytest.raises(ConfigError, match=r"model.name=rescalenet18: takes images, not text"):
        fit(prepared, run, model={"name": "rescalenet18", "options": {}})
    with pytest.raises(DataError, match=r"data.max_length=2: no training pair is as short"):
        fit(prepared, run, data={"max_length": 2})
    with pytest.raises(ConfigError, match=r"data.max_length=256: the net takes 64"):
        fit(prepared, run, model={"options": {"max_length": 64}})
    with pytest.raises(DataError, match=r"is longer than a batch of 10"):
        fit(prepared, run, batch_size=10)


def test_fine_tuning_wants_the_vocabulary_of_the_weights(prepared, tmp_path):
    fit(prepared, tmp_path / "first", epochs=1)
    path = str(tmp_path / "first/checkpoints/last.safetensors")
    toy(tmp_path / "text", 100, seed=3, reverse=True)
    again = section(tmp_path / "text", vocabulary={"weights": path})
    corpus = prepare(again, tmp_path / "corpus")
    assert corpus.transform == zoo.get_weights(path).transform
    options = {"name": "rescale_transformer_tiny", "weights": path, "options": {}}
    data = {"corpus": again.model_dump(), "folder": str(tmp_path / "corpus")}
    fit(prepared, tmp_path / "second", model=options, data=data, epochs=1, batch_size=200)
    other = section(tmp_path / "text", vocabulary={"size": 50})
    prepare(other, tmp_path / "other")
    data = {"corpus": other.model_dump(), "folder": str(tmp_path / "other")}
    with pytest.raises(ConfigError, match=r"vocabularies are not those of the corpus in .*other; prepare one"):
        fit(prepared, tmp_path / "third", model=options, data=data, batch_size=200)
    with pytest.raises(DataError, match="vocabulary.share=separate: the weights .* have joint vocabularies"):
        prepare(section(tmp_path / "text", vocabulary={"weights": path, "share": "separate"}), tmp_path / "fourth")


# -- commands -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(prepared):
    fit(prepared, prepared / "run", epochs=12, schedule={"name": "onecycle", "up": 0.2}, eval_every=12)
    return prepared / "run/checkpoints/last.safetensors"


def test_predict(capsys, monkeypatch, weights, tmp_path):
    path = lines(tmp_path / "in.txt", "one two", "", "three")
    code, from_file, _ = call(capsys, monkeypatch, "predict", weights, path)
    assert code == 0
    texts = from_file.split("\n")
    assert len(texts) == 4
    assert texts[1] == ""
    _, by_argument, _ = call(
        capsys, monkeypatch, "predict", weights, "one two", "three", "--out", tmp_path / "o", "--attention"
    )
    assert by_argument.split("\n")[:2] == [texts[0], texts[2]]
    record = json.loads((tmp_path / "o/translations.json").read_text())
    assert [r["source"] for r in record] == ["one two", "three"]
    assert (tmp_path / "o/attention_1.png").stat().st_size > 3000
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one two\n\nthree\n")))
    _, piped, _ = call(capsys, monkeypatch, "predict", weights)
    assert piped == from_file
    _, best, _ = call(capsys, monkeypatch, "predict", weights, "one two", "--nbest", "3")
    rows = [row.split("\t") for row in best.splitlines()]
    assert [row[0] for row in rows] == ["1"] * 3
    assert [float(row[1]) for row in rows] == sorted((float(row[1]) for row in rows), reverse=True)
    assert rows[0][2] == texts[0]
    options = ["--sample", "--nbest", "2", "--seed", "4", "--top-k", "5", "--top-p", "0.9", "--temperature", "0.7"]
    first, second = (call(capsys, monkeypatch, "predict", weights, "one two", *options)[1] for _ in range(2))
    assert first == second
    code, _, err = call(capsys, monkeypatch, "predict", weights, "one", "--top", "3")
    assert code == 1
    assert "error: --top is not for translation" in err
    code, _, err = call(capsys, monkeypatch, "predict", weights, "one", "--attention")
    assert "say where with --out FOLDER" in err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\nb\xe4d\n")))
    code, _, err = call(capsys, monkeypatch, "predict", weights, "-")
    assert code == 1
    assert "error: standard input, line 2: not UTF-8" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sample", "--temperature", "0"], "temperature=0.0: must be greater than 0"),
        (["--sample", "--top-p", "0"], "top_p=0.0: must be in (0, 1]"),
        (["--sample", "--beam", "3"], "--beam is for beam search, not with --sample"),
        (["--top-k", "3"], "--top-k is for --sample"),
        (["--nbest", "3", "--beam", "2"], "--nbest 3: more than --beam 2 gives"),
    ],
)
def test_options_of_predict_that_do_not_go_together(capsys, monkeypatch, weights, options, message):
    code, out, err = call(capsys, monkeypatch, "predict", weights, "one two", *options)
    assert code == 1
    assert f"error: {message}" in err
    assert not out


def test_more_hypotheses_than_the_usual_beam(capsys, monkeypatch, weights):
    _, out, _ = call(capsys, monkeypatch, "predict", weights, "one two", "--nbest", "7")
    assert len(out.splitlines()) == 7


def test_a_sentence_too_long_for_the_name_of_a_file(capsys, monkeypatch, weights):
    _, short, _ = call(capsys, monkeypatch, "predict", weights, "one " * 50)
    code, long, _ = call(capsys, monkeypatch, "predict", weights, "one " * 50 + " " * 300)
    assert (code, long) == (0, short)


def test_eval_of_an_empty_set(capsys, monkeypatch, weights, tmp_path):
    lines(tmp_path / "none.en"), lines(tmp_path / "none.de")
    code, _, err = call(capsys, monkeypatch, "eval", weights, tmp_path / "none")
    assert code == 1
    assert "none: no sentences" in err


def test_eval_export_info_prepare(capsys, monkeypatch, prepared, weights, tmp_path):
    code, out, _ = call(
        capsys, monkeypatch, "eval", weights, prepared / "text/test", "--beam", "2", "--out", tmp_path / "e"
    )
    assert code == 0
    assert "16 sentences, beam 2, length penalty 1" in out
    metrics = json.loads((tmp_path / "e/metrics.json").read_text())
    assert f"BLEU {metrics['BLEU']['score']:.2f}  {metrics['BLEU']['signature']}" in out
    hypotheses = (tmp_path / "e/hypotheses.txt").read_text().splitlines()
    references = list(read_lines(prepared / "text/test.de"))
    assert score(hypotheses, references)[0].value == metrics["BLEU"]["score"]
    _, out, _ = call(capsys, monkeypatch, "eval", weights, prepared / "text/test", "--tokenized")
    assert "compound-split BLEU" in out
    assert "tok:none" in out
    code, out, _ = call(capsys, monkeypatch, "export", weights, "--out", tmp_path / "fairseq")
    assert code == 0
    assert "checkpoint.pt and dictionaries, largest difference 0" in out
    assert sorted(p.name for p in (tmp_path / "fairseq").iterdir()) == [
        "checkpoint.pt",
        "de.model",
        "dict.de.txt",
        "dict.en.txt",
        "en.model",
    ]
    code, _, err = call(capsys, monkeypatch, "export", weights, "--to", "onnx")
    assert "is of translation, which has fairseq" in err
    _, out, _ = call(capsys, monkeypatch, "info", weights)
    assert json.loads(out)["transform"]["source_model"].endswith(" characters")
    _, out, _ = call(capsys, monkeypatch, "list", "--takes", "text")
    assert len(out.splitlines()) == len(zoo.list_models(takes="text")) == 4
    import tasks.config as cfg

    path = tmp_path / "c.yaml"
    path.write_text(cfg.dump(config(prepared, tmp_path / "run")))
    code, out, _ = call(capsys, monkeypatch, "prepare", path, f"data.folder={tmp_path / 'corpus'}")
    assert code == 0
    assert "corpus: ready for rescalenet train" in out
    code, _, err = call(capsys, monkeypatch, "prepare", "classification/digits/rescalenet20")
    assert code == 1
    assert "only translation has a corpus to prepare" in err


def test_two_processes_evaluate_as_one(capsys, monkeypatch, prepared, weights, tmp_path):
    """Batches of three sentences on one process, of one or two on each of two."""
    arguments = ["eval", weights, prepared / "text/test", "--beam", "2", "--batch-size", "3", "--out"]
    _, out, _ = call(capsys, monkeypatch, *arguments, tmp_path / "one")
    assert on_two_processes(*arguments, tmp_path / "two") == out  # one process reports
    for name in ("hypotheses.txt", "metrics.json"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()


def test_empty_lines_in_evaluation_sets(prepared, weights, tmp_path, capsys, monkeypatch):
    lines(tmp_path / "x.en", "one two", "", "three")
    lines(tmp_path / "x.de", "eins zwei", "", "drei")
    code, out, _ = call(capsys, monkeypatch, "eval", weights, tmp_path / "x")
    assert code == 0
    assert "3 sentences" in out
    lines(tmp_path / "x.de", "eins zwei", "")
    code, _, err = call(capsys, monkeypatch, "eval", weights, tmp_path / "x")
    assert code == 1
    assert "x.de has 2 lines" in err


def test_user_errors_are_user_errors():
    assert issubclass(DataError, UserError)
    assert padded([[5], [6, 7]]).tolist() == [[5, PAD], [6, 7]]
    with pytest.raises(DataError, match="set vocabulary.size lower"):
        train_vocabulary(["a b"], 500, "unigram")
