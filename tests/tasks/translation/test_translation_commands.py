"""Translation on the command line."""

import io
import json
import os
import re

import pytest
import torch

import zoo
from tasks.translation.scores import score
from tasks.translation.text import read_lines
from tests.helpers.commands import call, on_two_processes
from tests.helpers.translation import config, lines


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
    assert "give their folder with --out FOLDER" in err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\nb\xe4d\n")))
    code, _, err = call(capsys, monkeypatch, "predict", weights, "-")
    assert code == 1
    assert "error: standard input, line 2: not UTF-8" in err


def test_arguments_that_are_pipes_folders_or_no_files(capsys, monkeypatch, weights, tmp_path):
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "a.en", "one two", "three")
    expected = call(capsys, monkeypatch, "predict", weights, "a.en")[1]
    reading, writing = os.pipe()
    os.write(writing, b"one two\nthree\n")
    os.close(writing)
    assert call(capsys, monkeypatch, "predict", weights, f"/dev/fd/{reading}")[:2] == (0, expected)
    os.close(reading)
    (tmp_path / "folder").mkdir()
    for name in ("folder", "./one", "data/a.en", "b.de", "b.txt.gz", "~/b"):
        code, out, err = call(capsys, monkeypatch, "predict", weights, "one", name)
        assert (code, out) == (1, ""), name
        assert "is a folder" in err or "no such file; to translate this text itself" in err
    for text in ("one two.", "one/two", "3.5", "http://a.de/b.en", "a.en b.en", "..." * 200):
        assert call(capsys, monkeypatch, "predict", weights, text)[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sample", "--temperature", "0"], "temperature=0.0: must be > 0"),
        (["--sample", "--top-p", "0"], "top_p=0.0: must be in (0, 1]"),
        (["--sample", "--beam", "3"], "--beam is for beam search, not with --sample"),
        (["--top-k", "3"], "--top-k is for --sample"),
        (["--nbest", "3", "--beam", "2"], "--nbest 3: must not exceed --beam (2)"),
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
    assert "none: has no sentences" in err


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
    code, out, _ = call(capsys, monkeypatch, "export", weights, "--to", "fairseq", "--out", tmp_path / "fairseq")
    assert code == 0
    assert " to 0.0e+00 at " in out
    assert sorted(p.name for p in (tmp_path / "fairseq").iterdir()) == [
        "de.model",
        "dict.de.txt",
        "dict.en.txt",
        "en.model",
        "manifest.json",
        "model.pt",
    ]
    code, _, err = call(capsys, monkeypatch, "export", weights, "--to", "torchvision")
    assert re.search("is of translation, which has onnx, .*fairseq", err)
    _, out, _ = call(capsys, monkeypatch, "info", weights)
    assert json.loads(out)["transform"]["source_model"].endswith(" characters")
    _, out, _ = call(capsys, monkeypatch, "list", "--input-kind", "text")
    assert len(out.splitlines()) == len(zoo.list_models(input_kind="text")) == 4
    import tasks.config as cfg

    path = tmp_path / "c.yaml"
    path.write_text(cfg.dump(config(prepared, tmp_path / "run")))
    code, out, _ = call(capsys, monkeypatch, "prepare", path, f"data.folder={tmp_path / 'corpus'}")
    assert code == 0
    assert "corpus: ready for rescalenet train" in out
    code, _, err = call(capsys, monkeypatch, "prepare", "classification/digits/rescalenet20")
    assert code == 1
    assert "whose data needs no preparation; that of translation and video does" in err


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


def test_columns_in_evaluation(prepared, weights, tmp_path, capsys, monkeypatch):
    """An exchanged set is evaluated as the same set in two files."""
    sides = [list(read_lines(prepared / f"text/test.{code}")) for code in ("en", "de")]
    lines(tmp_path / "x.tsv", *(f"{target}\t{source}" for source, target in zip(*sides, strict=True)))
    lines(tmp_path / "y.tsv", "de\ten", *(read_lines(tmp_path / "x.tsv")))
    _, plain, _ = call(capsys, monkeypatch, "eval", weights, prepared / "text/test")
    assert call(capsys, monkeypatch, "eval", weights, tmp_path / "x.tsv", "--columns", "2,1")[1] == plain
    assert call(capsys, monkeypatch, "eval", weights, tmp_path / "y.tsv")[1] == plain
    for data, columns, message in (
        (tmp_path / "x.tsv", "2", "--columns 2: must be two different columns"),
        (tmp_path / "x.tsv", "3,1", "column 3: must be 1 to 2"),
        (prepared / "text/test", "2,1", "--columns is for .tsv files"),
    ):
        code, _, err = call(capsys, monkeypatch, "eval", weights, data, "--columns", columns)
        assert (code, message in err) == (1, True)
    code, _, err = call(capsys, monkeypatch, "predict", weights, tmp_path / "x.tsv")
    assert (code, "x.tsv: has several columns; write the sentences alone to a file: cut -f1" in err) == (1, True)


def test_convert_fairseq_again(capsys, monkeypatch, weights, tmp_path):
    """A conversion of the same checkpoint is replaced, with a word; other files are not."""
    monkeypatch.chdir(tmp_path)
    assert call(capsys, monkeypatch, "export", weights, "--to", "fairseq", "--out", "f")[0] == 0
    dictionary, model = next(tmp_path.glob("f/dict.*")), next(tmp_path.glob("f/*.model"))
    files = ("--dictionary", dictionary, "--sentencepiece", model)
    convert = ("convert-fairseq", "f/model.pt", "en-de", "o.safetensors", *files)
    code, out, _ = call(capsys, monkeypatch, *convert)
    assert (code, "earlier" in out) == (0, False)
    code, out, _ = call(capsys, monkeypatch, *convert)
    assert code == 0
    assert out.endswith("; replaces the earlier conversion of this checkpoint\n")
    converted = zoo.get_weights("o.safetensors")
    # another checkpoint of the same name, and weights that state more than a conversion
    content = torch.load("f/model.pt", weights_only=False)
    torch.save({**content, "extra_state": {"epoch": 2}}, "f/model.pt")
    refused = (1, "error: o.safetensors: exists; choose another name, or give --overwrite\n")
    assert call(capsys, monkeypatch, *convert)[::2] == refused
    assert call(capsys, monkeypatch, *convert, "--overwrite")[:2] == (0, out.partition("; replaces")[0] + "\n")
    model = zoo.create_model(converted.config.name, "o.safetensors")
    meta = {**zoo.get_weights("o.safetensors").meta, "metrics": {"bleu": 30.0}}
    zoo.save_weights(model, "o.safetensors", transform=converted.transform, classes=(), meta=meta)
    assert call(capsys, monkeypatch, *convert)[::2] == refused
