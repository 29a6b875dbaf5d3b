"""Sets of sentence pairs by name: files, WMT's formats, sacrebleu, the hub."""

import sys
import types

import pytest

from tasks.errors import DataError
from tasks.translation.sources import find_pair_files, find_pairs, read_referenced
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
    with pytest.raises(DataError, match=r"a\.xml: no document has text in 'fr', only in de, en"):
        list(find_pairs(tmp_path, "a.xml", ("fr", "en"))())
    (tmp_path / "b.xml").write_text("<dataset><doc>")
    with pytest.raises(DataError, match=r"b\.xml: not XML"):
        list(find_pairs(tmp_path, "b.xml", ("en", "de"))())
    lines(tmp_path / "a.tsv", "a\tx", "b\ty")
    assert list(find_pairs(tmp_path, "a.tsv", ("en", "de"))()) == [("a", "x"), ("b", "y")]
    lines(tmp_path / "b.tsv", "a\tx", "b y")
    with pytest.raises(DataError, match=r"b\.tsv, line 2: has no tab"):
        list(find_pairs(tmp_path, "b.tsv", ("en", "de"))())


def wmt_xml(ref, more=""):
    return (
        '<dataset id="x"><doc origlang="en" id="d"><src lang="en"><p><seg id="1">A dog runs.</seg>'
        '<seg id="2">A cat sleeps.</seg></p></src>'
        f'<ref lang="de" translator="A"><p>{ref}</p></ref>{more}</doc></dataset>'
    )


DOG, CAT = ("A dog runs.", "Ein Hund rennt."), ("A cat sleeps.", "Eine Katze schläft.")
SEGMENTS = {1: f'<seg id="1">{DOG[1]}</seg>', 2: f'<seg id="2">{CAT[1]}</seg>'}


def test_segments_are_paired_by_their_ids(tmp_path, capsys):
    def pairs(text):
        (tmp_path / "a.xml").write_text(text, encoding="utf-8")
        return list(find_pairs(tmp_path, "a.xml", ("en", "de"))())

    assert pairs(wmt_xml(SEGMENTS[2] + SEGMENTS[1])) == [DOG, CAT]
    assert not capsys.readouterr().err
    assert pairs(wmt_xml(SEGMENTS[2])) == [CAT]
    assert "a.xml: left out: 1 of 2 source segments, which have no reference" in capsys.readouterr().err
    assert pairs(wmt_xml(SEGMENTS[1] + '<seg id="9">x</seg>')) == [DOG]
    assert "left out: 1 references, which have no source segment" in capsys.readouterr().err
    system = '<hyp system="s" language="de"><p><seg id="1">Falsch.</seg></p></hyp>'
    assert pairs(wmt_xml(SEGMENTS[1] + SEGMENTS[2], system)) == [DOG, CAT]
    with pytest.raises(DataError, match="document 'd' has segment '1' twice"):
        pairs(wmt_xml(SEGMENTS[1] * 2))
    with pytest.raises(DataError, match="no segment has the ids of one in"):
        pairs(wmt_xml('<seg id="7">x</seg>'))
    entity = '<!DOCTYPE a [<!ENTITY x "y">]>' + wmt_xml("&x;")
    with pytest.raises(DataError, match="a.xml: declares the entity 'x'"):
        pairs(entity)


def test_references_of_several_translators(tmp_path):
    other = '<ref lang="de" translator="B"><p><seg id="2">Die Katze schläft.</seg></p></ref>'
    (tmp_path / "a.xml").write_text(wmt_xml(SEGMENTS[1] + SEGMENTS[2], other), encoding="utf-8")
    found = read_referenced(tmp_path, "a.xml", ("en", "de"))
    assert [each.references for each in found] == [(DOG[1], None), (CAT[1], "Die Katze schläft.")]
    for name, text in (("src.en", "s"), ("ref.B.de", "b"), ("ref.A.de", "a"), ("ref.C.fr", "c")):
        lines(tmp_path / f"w.en-de.{name}", text)
    assert read_referenced(tmp_path, "w.en-de", ("en", "de")) == [("s", ("a", "b"))]
    assert list(find_pairs(tmp_path, "w.en-de", ("en", "de"))()) == [("s", "a")]
    more = lines(tmp_path / "more.de", "m")
    assert read_referenced(tmp_path, "w.en-de", ("en", "de"), [more]) == [("s", ("a", "b", "m"))]
    lines(more, "m", "n")
    with pytest.raises(DataError, match="more.de: has 2 lines, the set 1: must have a reference for each"):
        read_referenced(tmp_path, "w.en-de", ("en", "de"), [more])


def test_sgm_of_wmt(tmp_path, capsys):
    """Documents in another order, entities, tags in capitals, several references; text that is not valid XML."""
    source = (
        '<srcset setid="newstest2014" srclang="any">\n<doc sysid="ref" docid="x" genre="news">\n<hl>\n'
        '<seg id="1">R&amp;D & more </seg></hl><p>\n<SEG ID="2">a < b</SEG></p></doc>'
        "<doc docid='y'><seg id=1>c</seg></doc></srcset>"
    )
    reference = (
        '<refset setid="newstest2014" srclang="any" trglang="en"><doc sysid="r1" docid="y"><seg id="1">C</seg></doc>'
        '<doc sysid="r1" docid="x"><seg id="2">A</seg><seg id="1">R</seg></doc>'
        '<doc sysid="r2" docid="y"><seg id="1">CC</seg></doc></refset>'
    )
    (tmp_path / "newstest2014-deen-src.de.sgm").write_text(source)
    (tmp_path / "newstest2014-deen-ref.en.sgm").write_text(reference)
    languages = ("de", "en")
    expected = [("R&D & more", "R"), ("a < b", "A"), ("c", "C")]
    assert list(find_pairs(tmp_path, "newstest2014-deen", languages)()) == expected
    found = read_referenced(tmp_path, "newstest2014-deen", languages)
    assert [each.references for each in found] == [("R", None), ("A", None), ("C", "CC")]
    assert not capsys.readouterr().err
    for cut in (reference[:-20], reference[:-30], reference.replace("A</seg>", "A")):
        (tmp_path / "newstest2014-deen-ref.en.sgm").write_text(cut)
        with pytest.raises(DataError, match=r"(has no </seg>|ends within a (segment|document)); get it again"):
            list(find_pairs(tmp_path, "newstest2014-deen", languages)())


def test_tmx(tmp_path):
    content = (
        '<?xml version="1.0"?><!DOCTYPE tmx SYSTEM "tmx14.dtd"><tmx version="1.4"><header srclang="EN-US"/><body>'
        '<tu><tuv xml:lang="EN-US"><seg>Click <bpt i="1">&lt;b&gt;</bpt>here</seg></tuv>'
        '<tuv xml:lang="de"><seg>Hier klicken</seg></tuv></tu>'
        '<tu><tuv xml:lang="de"><seg>Nein</seg></tuv><tuv xml:lang="EN-US"><seg>No</seg></tuv></tu></body></tmx>'
    )
    (tmp_path / "a.tmx").write_text(content)
    found = [("Click here", "Hier klicken"), ("No", "Nein")]
    assert list(find_pairs(tmp_path, "a.tmx", ("en", "de"))()) == found
    assert list(find_pairs(tmp_path, "a.tmx", ("de", "en"))()) == [pair[::-1] for pair in found]


@pytest.mark.parametrize(
    ("names", "entry"),
    [
        (("train.en", "train.de"), "train"),
        (("train.en", "train.de"), "train.en"),
        (("train.en", "train.de"), "train.de"),
        (("train.en.gz", "train.de.gz"), "train.en.gz"),
        (("Europarl.de-en.en", "Europarl.de-en.de"), "Europarl.de-en"),
        (("source.txt", "target.txt"), "source.txt::target.txt"),
        (("a/x", "b/y"), "a/x::b/y"),
        (("t-src.en.sgm", "t-ref.de.sgm"), "t"),
        (("t.src.en", "t.ref.de"), "t"),
        (("t.src.en.xz", "t.ref.A.de.xz"), "t"),
        (("tok.en.bz2", "tok.de.bz2"), "tok.{lang}"),
    ],
)
def test_names_of_files(tmp_path, names, entry):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_pair_files(tmp_path, entry, ("en", "de")) == tuple(tmp_path / name for name in names)


def test_files_by_name(tmp_path):
    for name in ("a.en", "a.de.gz", "b.tok.en.txt", "b.tok.de.sgm", "c.en"):
        (tmp_path / name).touch()
    assert [p.name for p in find_pair_files(tmp_path, "a", ("en", "de"))] == ["a.en", "a.de.gz"]
    assert [p.name for p in find_pair_files(tmp_path, "b.tok.{lang}", ("en", "de"))] == ["b.tok.en.txt", "b.tok.de.sgm"]
    with pytest.raises(DataError, match=r"c\.de: no such file, nor with \.txt or \.sgm, \.gz, .* after it"):
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
