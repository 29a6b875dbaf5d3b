"""Translation of lines as they come."""

import pytest

from tasks.translation.corpus import Corpus
from tasks.translation.predict import Translator
from tasks.translation.search import Beam
from tests.helpers.translation import sharp


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
    parts = long.splitter
    assert len(parts("one " * 10_000)) > 500
    (patient,) = translator(prepared, Beam(beam=1, max_ratio=0, max_extra=3), max_length=250)(["one " * 10_000])
    assert patient.texts[0]
    assert all(1 <= len(part) <= 11 for part in parts("one " * 1000 + "x" * 500))
    text = "one two three four five six seven eight"
    (result,) = long([text])
    assert "line 1: has more than 11 tokens, the limit of the net; translated in" in capsys.readouterr().err
    assert len(result.texts) == 2
    whole = parts("one two three four five six seven eight")
    assert [i for part in whole for i in part] == long.coder.source.encode(["one two three four five six seven eight"])[
        0
    ]
