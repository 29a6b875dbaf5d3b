"""Prepared corpora."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tasks.errors import DataError
from tasks.translation import corpus as corpora
from tasks.translation.corpus import Corpus, prepare
from tasks.translation.text import read_lines, read_pairs
from tests.helpers.commands import environment
from tests.helpers.paths import ROOT
from tests.helpers.translation import lines, section, toy


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


def test_columns_of_one_file(tmp_path):
    """Both orders of the columns give the same corpus, and a pair of words for languages is no header later."""
    root = toy(tmp_path / "text")
    for side, word in (("en", "english"), ("de", "german")):
        lines(root / f"train.{side}", word, *read_lines(root / f"train.{side}"))
    for name in ("train", "val"):
        pairs = read_pairs(root / f"{name}.en", root / f"{name}.de", ("en", "de"))
        lines(root / f"{name}.tsv", "score\tt\ts", *(f"0.5\t{target}\t{source}" for source, target in pairs))
    plain = prepare(section(root, test={}), tmp_path / "plain")
    wanted = section(root, train=["train.tsv"], val="val.tsv", test={}, columns=["s", "t"])
    found = prepare(wanted, tmp_path / "columns")
    assert found.info["settings"]["columns"] == ["s", "t"]
    same = {"pairs", "cleaning", "sizes"}
    assert {key: found.info[key] for key in same} == {key: plain.info[key] for key in same}
    for file in ("joint.model", "train.source.ids", "train.target.ids", "val.target.txt"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "columns" / file).read_bytes()
    with pytest.raises(DataError, match=r"val\.tsv: has 3 columns"):
        prepare(section(root, train=["train.tsv"], val="val.tsv", test={}), tmp_path / "other")


def test_columns_are_two_of_a_file(tmp_path):
    with pytest.raises(ValueError, match="two different columns"):
        section(tmp_path, train=["a.tsv"], columns=["en", "en"])
    with pytest.raises(ValueError, match=r"is for \.tsv files, and no text of train, val and test is one"):
        section(tmp_path, columns=[1, 2])
    assert section(tmp_path, train=["a.tsv.gz"], columns=[3, 2]).columns == ("3", "2")


@pytest.mark.parametrize("holdout", [0, 2])
def test_evaluation_sentences_in_the_training_text_are_counted(tmp_path, capsys, holdout):
    """Equal sources with other targets count, and what the cleaning drops does not; two equal ones count as one."""
    root = toy(tmp_path / "text", 30)
    extra = [("one rare", "a"), ("one rare", "b"), ("two  rare", "c"), ("three rare", "d " * 9), ("four rare", "e")]
    for i, side in enumerate(("en", "de")):
        lines(root / f"train.{side}", *(pair[i] for pair in extra))
    lines(root / "val.en", "one rare", "two\u00ad rare", "three rare", "one rare", "new")
    lines(root / "val.de", "A", "B", "C", "D", "E")
    lines(root / "test.en", "nobody"), lines(root / "test.de", "niemand")
    wanted = section(root, holdout=holdout, vocabulary={"size": 30})
    corpus = prepare(wanted, tmp_path / "corpus")
    found = [line for line in capsys.readouterr().err.splitlines() if "learned by heart" in line]
    if holdout:
        assert [pair.target for pair in corpus.text("val")] == ["b", "e"]
    message = "sources that are in train, of which the evaluation measures what was learned by heart"
    assert found == [f"val: {message}: {'1 of 2' if holdout else '2 of 4'}"]


def test_training_pairs_without_tokens_are_reported(tmp_path, capsys):
    """The vocabulary has no token for U+2581, which is its mark of a blank."""
    root = toy(tmp_path / "text", 30)
    lines(root / "train.en", *read_lines(root / "train.en"), "\u2581", "one")
    lines(root / "train.de", *read_lines(root / "train.de"), "eins", "\u2581 \u2581")
    corpus = prepare(section(root, vocabulary={"size": 40}, clean={"duplicates": "keep"}), tmp_path / "corpus")
    assert corpus.info["pairs"]["train"] == 30
    assert corpus.info["cleaning"]["untokenisable"] == 2
    said = capsys.readouterr().err
    assert "32 pairs read, 32 kept" in said
    assert "train: dropped 2 pairs more, of which a side has no tokens" in said


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
    with pytest.raises(DataError, match=r"train\.source\.ids: size does not match train\.source\.ends\.npy"):
        Corpus(tmp_path / "corpus").sentences("train")
    info = json.loads((tmp_path / "corpus/corpus.json").read_text())
    (tmp_path / "corpus/corpus.json").write_text(json.dumps({**info, "version": 99}))
    with pytest.raises(DataError, match="corpus of version 99, must be 1; delete it and prepare again"):
        Corpus(tmp_path / "corpus")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": {"t": "none"}}, "none has no pairs"),
        ({"holdout": 10**6}, r"data\.corpus\.holdout=1000000 needs at least 1000000 pairs, the corpus has \d+"),
    ],
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
        "from tests.helpers.translation import section\n"
        "corpus.train_vocabulary = lambda *a, **k: time.sleep(600)\n"
        f"corpus.prepare(section({str(root)!r}), Path({str(tmp_path / 'corpus')!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], env={**environment(), "PYTHONPATH": str(ROOT)})
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
        ({"vocabulary": {"size": 5000}}, "vocabulary of 5000 bpe pieces: .*lower data.corpus.vocabulary.size"),
        ({"train": ["other"]}, r"other\.en: no such file"),
        ({"test": {"t": "gone"}}, r"gone\.en: no such file"),
        ({"clean": {"max_words": 1}}, "cleaning drops every training pair"),
    ],
)
def test_a_corpus_that_cannot_be_made(tmp_path, change, message):
    root = toy(tmp_path / "text", 40)
    with pytest.raises(DataError, match=message):
        prepare(section(root, **change), tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


# -- corpora of unknown origin -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    prepare(section(toy(folder / "text", 40), vocabulary={"size": 50}), folder / "corpus")
    return folder / "corpus"


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "corpus")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("share", "../joint", r"share='../joint': .*'joint' or 'separate'"),
        ("share", ["joint"], "share="),
        ("languages", ["../../en", "de"], r"languages.0='../../en': .*pattern"),
        ("languages", ["en\n", "de"], r"languages.0="),
        ("languages", ["en"], r"languages.1: is missing"),
        ("dtypes", ["uint16", "object"], r"dtypes.1='object': .*'uint16' or 'int32'"),
        ("dtypes", ["float64", "uint16"], r"dtypes.0='float64'"),
        ("pairs", {"../x": 3}, r"pairs.*'../x'.*pattern"),
        ("pairs", {"train": -1}, r"pairs.train=-1: .*greater than or equal to 0"),
        ("pairs", {"train": 1e3}, r"pairs.train=1000.0: .*valid integer"),
        ("sizes", [50, -1], r"sizes.1=-1"),
        ("version", "1", r"version='1'"),
        ("version", None, r"version=None"),
        ("settings", 3, r"settings=3: .*valid dictionary"),
    ],
)
def test_a_description_that_is_not_valid(copied, key, value, reason):
    info = json.loads((copied / "corpus.json").read_text())
    (copied / "corpus.json").write_text(json.dumps({**info, key: value}))
    with pytest.raises(DataError, match=rf"corpus.json: not the description of a corpus \({reason}.*; delete .* again"):
        Corpus(copied)


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 10**5, b'{"version": 1, "version": 1}', b"{}"])
def test_a_description_that_is_something_else(copied, content):
    (copied / "corpus.json").write_bytes(content)
    with pytest.raises(DataError, match=r"corpus.json: not the description of a corpus \(.*; delete .* again"):
        Corpus(copied)


def test_vocabularies_that_are_missing_or_others(copied):
    info = json.loads((copied / "corpus.json").read_text())
    (copied / "corpus.json").write_text(json.dumps({**info, "sizes": [60, 50]}))
    with pytest.raises(DataError, match=r"corpus.json states sizes=\[60, 50\], not \[50, 50\]; delete"):
        Corpus(copied)
    (copied / "joint.model").unlink()
    with pytest.raises(DataError, match=r"joint.model: No such file or directory; delete"):
        Corpus(copied)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda ends: ends.astype(np.float64), "must be an int64 array of 40 ends"),
        (lambda ends: ends.astype(object), "cannot be read"),  # a pickle, which runs what is in it
        (lambda ends: ends[:-1], "must be an int64 array of 40 ends"),
        (lambda ends: ends[None], "must be an int64 array of 40 ends"),
        (lambda ends: np.where(np.arange(40) == 3, 0, ends), "its ends do not rise"),
        (lambda ends: ends - ends[0] - 1, "its ends do not rise"),
        (lambda ends: ends + 10**15, "size does not match"),
        (None, "cannot be read"),
    ],
)
def test_ends_of_sentences_that_are_not_valid(copied, change, reason):
    path = copied / "train.source.ends.npy"
    if change is None:
        path.write_bytes(b"\x93NUMPY\x01\x00\xff\xff{")
    else:
        np.save(path, change(np.load(path)), allow_pickle=True)
    with pytest.raises(DataError, match=rf"train.source.*{reason}.*; delete .* and prepare again") as caught:
        Corpus(copied).sentences("train")
    assert len(str(caught.value).splitlines()) == 1


def test_ids_outside_of_the_vocabulary(copied):
    path = copied / "train.target.ids"
    ids = np.fromfile(path, np.uint16)
    ids[0] = 50  # the vocabulary has 0 to 49
    ids.tofile(path)
    target = Corpus(copied).sentences("train")[1]
    assert target[1].max() < 50
    with pytest.raises(DataError, match=r"train.target.ids: sentence 0 has ids outside of its vocabulary of 50 pieces"):
        target[0]


def test_an_empty_folder_counts_as_none(tmp_path):
    text = toy(tmp_path / "text", 40)
    (tmp_path / "corpus").mkdir()
    assert prepare(section(text, vocabulary={"size": 50}), tmp_path / "corpus").info["pairs"]["val"] == 24
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"other: has files but no corpus.json; choose another, or empty it"):
        prepare(section(text), tmp_path / "other")
    with pytest.raises(DataError, match=r"notes.txt: is a file; choose another"):
        prepare(section(text), tmp_path / "other/notes.txt")
    assert (tmp_path / "other/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", ".x", "", "train", "val", "a" * 101, "a\n"])
def test_names_of_sets_cannot_become_paths(name):
    with pytest.raises(ValueError, match="test"):
        section("text", test={name: "t"})
    assert section("text", test={"newstest2014.full": "t"}).test
