"""Sets of sentence pairs by name: files, WMT's formats, sacrebleu, the hub."""

import sys
import types

import pytest

from tasks.errors import DataError
from tasks.translation.sources import find_pair_files, find_pairs
from tasks.translation.text import read_segments
from tests.helpers.translation import lines


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
    with pytest.raises(DataError, match=r"b\.tsv, line 2: has no tab"):
        list(find_pairs(tmp_path, "b.tsv", ("en", "de"))())


def test_files_by_name(tmp_path):
    for name in ("a.en", "a.de.gz", "b.tok.en.txt", "b.tok.de.sgm", "c.en"):
        (tmp_path / name).touch()
    assert [p.name for p in find_pair_files(tmp_path, "a", ("en", "de"))] == ["a.en", "a.de.gz"]
    assert [p.name for p in find_pair_files(tmp_path, "b.tok.{lang}", ("en", "de"))] == ["b.tok.en.txt", "b.tok.de.sgm"]
    with pytest.raises(DataError, match=r"c\.de: no such file, nor with \.gz, \.txt or \.sgm after it"):
        find_pair_files(tmp_path, "c", ("en", "de"))
    with pytest.raises(DataError, match=r"x\.tsv: no such file"):
        find_pair_files(tmp_path, "x.tsv", ("en", "de"))


def test_sets_of_sacrebleu_and_of_the_hub(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="sacrebleu:wmt99: no such test set for en-de; known: .*wmt14/full"):
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
    with pytest.raises(DataError, match=r"requires the package datasets \(pip install datasets\)"):
        find_pairs(tmp_path, "hf:wmt14:train", ("en", "de"))
