"""``rescalenet check`` for parallel text."""

import json

import pytest

from tasks.errors import UserError
from tasks.translation.check import _spread, check_data
from tasks.translation.text import Pair
from tests.helpers.translation import config, lines, toy


def check(prepared, tmp_path, capsys, *, out=None, limit=None, **corpus):
    corpus = {
        "root": str(tmp_path / "text"),
        "source": "en",
        "target": "de",
        "train": ["train"],
        "val": "val",
        **corpus,
    }
    data = {"corpus": corpus, "folder": str(tmp_path / "corpus")}
    fine = check_data(config(prepared, tmp_path / "run", data=data), out, limit)
    return fine, capsys.readouterr().out


def test_what_is_found(prepared, tmp_path, capsys):
    toy(tmp_path / "text", 100)
    text = tmp_path / "text"
    lines(text / "val.en", "one two", "a rare one", "same", "caf\u00c3\u00a9 &amp; \ufffd", "one two")
    lines(text / "val.de", "eins zwei", "selten", "same", "x", "eins zwei")
    lines(text / "train.en", *(text / "train.en").read_text().split("\n")[:-1], "a rare one", "", "only one here now")
    lines(text / "train.de", *(text / "train.de").read_text().split("\n")[:-1], "selten", "leer", "eins")
    fine, out = check(prepared, tmp_path, capsys, out=tmp_path / "out")
    assert fine
    found = json.loads((tmp_path / "out/check.json").read_text())
    train, val = found["sets"]["train"], found["sets"]["val"]
    assert (train["pairs"], val["pairs"]) == (103, 5)
    assert (train["source"]["empty"], val["copies"], val["repeated"], val["in_train"]) == (1, 1, 1, 1)
    assert len(val["odd"]) == 3
    assert set(val["odd"].values()) == {1}
    assert list(val["source"]["scripts"]) == ["LATIN"]
    assert (found["cleaning"]["empty"], found["cleaning"]["ratio"]) == (1, 1)
    assert "val: 5 pairs; median length: en 2 words" in out
    assert "warning: val: sources that are in train, of which" in out
    assert "learned by heart: 1 of 4" in out
    assert out.endswith("nothing found that would stop training\n")
    assert len((tmp_path / "out/samples.txt").read_text().splitlines()) > 10
    with pytest.raises(UserError, match="--overwrite"):
        check(prepared, tmp_path, capsys, out=tmp_path / "out")


def test_sides_that_are_exchanged(prepared, tmp_path, capsys):
    for name in ("train", "val"):
        lines(tmp_path / f"text/{name}.en", "собака бежит", "кошка спит")
        lines(tmp_path / f"text/{name}.ru", "a dog runs", "a cat sleeps")
    _, out = check(prepared, tmp_path, capsys, target="ru")
    assert "train: the source is written in Cyrillic, not en; are source and target exchanged?" in out


def test_columns_of_one_file(prepared, tmp_path, capsys):
    toy(tmp_path / "text", 10)
    rows = zip(*((tmp_path / f"text/train.{code}").read_text().splitlines() for code in ("de", "en")), strict=True)
    lines(tmp_path / "text/train.tsv", *(f"1.0\t{target}\t{source}" for target, source in rows))
    _, plain = check(prepared, tmp_path, capsys)
    assert check(prepared, tmp_path, capsys, train=["train.tsv"], columns=[3, 2])[1] == plain
    fine, out = check(prepared, tmp_path, capsys, train=["train.tsv"])
    assert not fine
    assert "train.tsv: has 3 columns, and its first line" in out


def test_what_stops_training(prepared, tmp_path, capsys):
    toy(tmp_path / "text", 10)
    lines(tmp_path / "text/val.de", "eins")
    fine, out = check(prepared, tmp_path, capsys, test={"t": "gone"}, clean={"max_words": 1})
    assert not fine
    assert "stops training: val: " in out
    assert "val.de has 1 lines" in out
    assert "gone.en: no such file" in out
    assert "stops training: cleaning drops every training pair" in out
    assert "train: 10 pairs" in out
    assert "train: 3 pairs" in check(prepared, tmp_path, capsys, limit=3)[1]


@pytest.mark.parametrize(("count", "limit"), [(1, 1), (7, 3), (40, 7), (40, 40), (9, 40), (10**4, 100)])
def test_pairs_of_a_limit_are_spread_evenly(count, limit):
    chosen = [int(pair.source) for pair in _spread((Pair(str(i), "") for i in range(count)), limit)]
    assert len(chosen) == min(count, limit)
    gaps = [after - before for before, after in zip(chosen, [*chosen[1:], count], strict=True)]
    assert chosen[0] == 0
    assert min(gaps) >= 1
    assert max(gaps) <= 2 * count / len(chosen) + 1


def test_faults_behind_the_pairs_of_a_limit(prepared, tmp_path, capsys):
    toy(tmp_path / "text", 50)
    with (tmp_path / "text/train.de").open("ab") as file:
        file.write(b"eins\n")
    fine, out = check(prepared, tmp_path, capsys, limit=5)
    assert not fine
    assert "train: 5 pairs" in out
    assert "train.de 51: line 51 has no counterpart" in out
