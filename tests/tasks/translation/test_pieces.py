"""Long lines in pieces."""

import dataclasses
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.translation.corpus import Corpus
from tasks.translation.pieces import USUAL, Splitter
from zoo.cleaning import clean
from zoo.transforms import TextTransform


@pytest.fixture(scope="module")
def coder(prepared):
    return Corpus(prepared / "corpus").transform.build()


def test_a_paragraph_is_cut_at_ends_of_sentences(coder):
    text = "One two. Three four! Five six? Seven."
    (ids,) = coder.encode([text])
    split = Splitter(coder, len(ids), 99)
    assert split(text) == [ids]
    apart = coder.encode(["One two.", "Three four!", "Five six?", "Seven."])
    assert dataclasses.replace(split, usual=len(ids) - 1)(text) == dataclasses.replace(split, usual=1)(text) == apart
    assert Splitter(coder, 1, 99)("one two three") == coder.encode(["one two three"])  # no end: whole
    assert Splitter(coder, 1, 99)("") == Splitter(coder, 1, 99)(" \u200b ") == []


@given(st.text(st.sampled_from("one tw.!?。，あ\u00ad"), max_size=200), st.integers(1, 20), st.integers(1, 20))  # noqa: RUF001
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_character_is_lost(coder, text, usual, more):
    most = usual + more
    pieces = Splitter(coder, usual, most)(text)
    assert all(1 <= len(piece) <= most for piece in pieces)
    whole = [i for ids in coder.encode([text]) for i in ids]
    # unknown characters in a row are one token, of which a cut may make two
    plain = "".join(coder.source.pieces(whole)).replace("▁", "")
    cut = "".join("".join(coder.source.pieces(piece)) for piece in pieces).replace("▁", "")
    assert plain.replace("<unk>", "") == cut.replace("<unk>", "")
    assert bool(pieces) == bool(whole)
    assert clean(text) or not pieces


def entry(coder, config, longest=None, target="de"):
    transform = TextTransform.from_vocabularies(("en", target), coder.source, coder.target, longest=longest)
    return SimpleNamespace(meta={} if config is None else {"config": config}, transform=transform)


@pytest.mark.parametrize(
    ("config", "longest", "given_length", "expected"),
    [
        (None, None, None, (USUAL, 1023)),
        ({"data": {"max_length": 256}}, None, None, (USUAL, 255)),
        ({"data": {"max_length": 256}}, 40, None, (40, 255)),
        ({"data": {"max_length": 32}}, 40, None, (31, 31)),
        ({"data": {"max_length": 4096}}, None, 7, (7, 1023)),
        ({"data": {"max_length": "x"}}, None, None, (USUAL, 1023)),
        ({"data": [1]}, None, None, (USUAL, 1023)),
        ("x", None, 5000, (1023, 1023)),
    ],
)
def test_what_weights_state(coder, config, longest, given_length, expected):
    model = SimpleNamespace(layout=SimpleNamespace(max_length=1024))
    split = Splitter.of(entry(coder, config, longest), model, coder, given_length)
    assert (split.usual, split.most) == expected


def test_the_text_between_pieces(coder):
    model = SimpleNamespace(layout=SimpleNamespace(max_length=1024))
    assert Splitter.of(entry(coder, None), model, coder).join(["a", "", "b"]) == "a b"
    assert Splitter.of(entry(coder, None, target="zh_CN"), model, coder).join(["a", "b"]) == "ab"
