"""Text files: class names, held-out samples, dictionaries, sentencepiece models, parallel text."""

from __future__ import annotations

import bz2
import gzip
import lzma

from hypothesis import strategies as st

from tests.fuzz.artefacts import FOLDER
from tests.fuzz.harness import FAST
from tests.fuzz.structures import TEXTS, damaged

LINES = (
    *TEXTS,
    *("a", "a/0.png", "one 5", "zwei 1", "a\tb", "a\tb\tc", "a\u2028b", "\x85", "\x0b", "\x1a", "<s> 1"),
    *("one -1", "one 1e5", "one 1 #x"),
)
ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "shift-jis")


@st.composite
def texts(draw, valid: str):
    """A text file with odd lines, ends of lines and encodings, or damaged bytes."""
    lines = valid.split("\n")
    for line in draw(st.lists(st.sampled_from(LINES), max_size=3)):
        lines.insert(draw(st.integers(0, len(lines))), line)
    text = draw(st.sampled_from(("\n", "\n", "\r\n", "\r", "\n\n"))).join(lines)
    content = text.encode(draw(st.sampled_from(ENCODINGS)), "replace")
    return draw(damaged(content)) if draw(st.booleans()) else content


def test_lists(harness, fuzz):
    """Names of classes, of held-out samples and a dictionary of fairseq."""

    def run(content):
        checkpoint = f"{harness.fixed}/weights/image_bn.safetensors"
        convert = ["convert", checkpoint, "out/o.safetensors", "--classes", "l.txt"]
        harness.check({"l.txt": content}, ["@holdout", "l.txt"], ["@dictionary", "l.txt"], convert)

    fuzz(texts("a/0.png\nb/1.png\nc 3"), run, FAST // 2)


def test_vocabularies(harness, fuzz):
    valid = (FOLDER / "corpus/joint.model").read_bytes()
    fuzz(damaged(valid), lambda content: harness.check({"v.model": content}, ["@vocabulary", "v.model"]), FAST // 2)


PACKED = {"gz": lambda text: gzip.compress(text, mtime=0), "bz2": bz2.compress, "xz": lzma.compress}


@st.composite
def documents(draw, valid: str, ending: str):
    """A file of sentences with ids, of which elements, attributes or bytes are changed."""
    segments = "".join(f'<seg id="{i}">{line}</seg>' for i, line in enumerate(valid.split("\n")))
    content = {
        "sgm": f'<srcset setid="x" srclang="en"><doc docid="a" sysid="r"><p>{segments}</p></doc></srcset>',
        "xml": f'<dataset><doc id="a"><src lang="en"><p>{segments}</p></src>'
        f'<ref lang="de" translator="A"><p>{segments}</p></ref></doc></dataset>',
        "tmx": '<tmx><body><tu><tuv xml:lang="en"><seg>one</seg></tuv><tuv xml:lang="de"><seg>eins</seg></tuv></tu>'
        '<tu><tuv xml:lang="de"><seg>a<ph>b</ph></seg></tuv><tuv xml:lang="en"><seg>b</seg></tuv></tu></body></tmx>',
    }[ending]
    for _ in range(draw(st.integers(0, 3))):
        old = draw(
            st.sampled_from(("</seg>", "<doc", "</doc>", "<tu>", "</tuv>", 'id="1"', "lang=", "<src", "<ref", ">"))
        )
        new = draw(
            st.sampled_from(
                ("", "<seg>", "<doc>", "&x;", "&#0;", 'id="1" id="1"', 'id="\u202e"', "<tuv>", "]]>", *TEXTS)
            )
        )
        content = content.replace(old, new, draw(st.integers(1, 2)))
    encoded = content.encode(draw(st.sampled_from(ENCODINGS)), "replace")
    return draw(damaged(encoded)) if draw(st.booleans()) else encoded


def test_documents(harness, fuzz):
    """WMT's and TMX files, as training text and as a text that is looked at."""
    weights = f"{harness.fixed}/weights/text.safetensors"
    val = {"t/val.en": b"one two\n", "t/val.de": b"eins zwei\n"}
    cases = st.sampled_from(("xml", "tmx", "sgm")).flatmap(
        lambda ending: st.tuples(
            st.just(ending), documents("one two\nthree\n", ending), documents("eins\nzwei", ending)
        )
    )

    def run(case):
        ending, first, second = case
        name = "train" if ending == "sgm" else f"train.{ending}"
        files = {"t/train.en.sgm": first, "t/train.de.sgm": second} if ending == "sgm" else {f"t/{name}": first}
        harness.check({**files, **val}, ["@prepare_corpus", "t", weights, "out/c", name])

    fuzz(cases, run, FAST // 2)


@st.composite
def parallel_texts(draw, english: str, german: str):
    """Files of parallel text, of which one is changed, and sometimes compressed or in WMT's form."""
    source = draw(st.one_of(st.just(english.encode()), texts(english)))
    target = draw(texts(german))
    form = draw(st.sampled_from(("plain", "plain", *PACKED, "tsv", "sgm", "xml")))
    if form in PACKED:
        packed = PACKED[form](target)
        return {"t/train.en": source, f"t/train.de.{form}": draw(st.one_of(st.just(packed), damaged(packed)))}, "train"
    if form == "tsv":
        rows = zip(source.split(b"\n"), target.split(b"\n"), strict=False)
        return {"t/train.tsv": b"\n".join(b"\t".join(row) for row in rows)}, "train.tsv"
    if form in ("sgm", "xml"):
        files = {}
        for language, text in (("en", source), ("de", target)):
            segments = b"".join(b'<seg id="%d">%s</seg>' % (i, line) for i, line in enumerate(text.split(b"\n")))
            content = b'<doc docid="a">' + segments + b"</doc>"
            files[f"t/train.{language}.{form}"] = draw(damaged(content)) if draw(st.booleans()) else content
        return files, f"train.*.{form}"
    return {"t/train.en": source, "t/train.de": target}, "train"


ENTITIES = (
    b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(b'<!ENTITY %c "&%c;&%c;&%c;&%c;&%c;&%c;&%c;&%c;">' % (i, *[i - 1] * 8) for i in range(98, 108))
    + b']><dataset><doc id="1"><src lang="en"><p><seg id="1">&k;</seg></p></src></doc></dataset>'
)


def test_parallel_text(harness, fuzz):
    english, german = "one two\nthree\n" * 10, "eins zwei\ndrei\n" * 10
    weights = f"{harness.fixed}/weights/text.safetensors"
    val = {"t/val.en": b"one two\n", "t/val.de": b"eins zwei\n"}

    def run(case):
        files, _ = case
        harness.check({**files, **val}, ["@prepare_corpus", "t", weights, "out/c"])

    fuzz(parallel_texts(english, german), run, FAST // 4)


def test_translation(harness, fuzz):
    """Sentences of a file that is translated and scored."""
    weights = f"{harness.fixed}/weights/text.safetensors"

    def run(case):
        content, name = case
        predict = ["predict", weights, name, "--out", "out/p"]
        evaluate = ["eval", weights, "s", "--out", "out/e"]
        harness.check({name: content, "s.en": content, "s.de": b"eins\n" * 3}, predict, evaluate, seconds=20)

    names = st.sampled_from(("s.txt", "s.txt", "s.gz", "s.xml", "s.sgm", "s"))
    xml = st.one_of(texts("one two\nthree\nfour"), texts("one two\nthree\nfour"), st.just(ENTITIES))
    fuzz(st.tuples(xml, names), run, FAST // 20)
