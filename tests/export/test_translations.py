"""Exported translation nets: the search with their files alone finds the hypotheses of ours."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

import zoo
from tasks.exporting import check_again, export_weights
from tasks.translation.lines import read_lines
from tasks.translation.search import Beam, beam_search
from tests.helpers.paths import shared
from zoo.errors import ExportError
from zoo.export.translate import Translator
from zoo.text import EOS

WEIGHTS = "rescale_transformer_tiny.multi30k_de_en"
SETTINGS = {"fold": True, "data": None, "half": False, "int8": False, "overwrite": False, "options": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("exports") / "onnx"
    made = export_weights(WEIGHTS, "onnx", path, **SETTINGS)
    assert "4 of 4 sentences have the same 4 hypotheses" in str(made)
    return path


@pytest.fixture(scope="module")
def sentences():
    return list(islice(read_lines(shared("data", "multi30k", "test_2016_flickr.de.gz")), 40))


@pytest.mark.parametrize("settings", [Beam(beam=4), Beam(beam=1), Beam(beam=5, length_penalty=0.6, max_extra=5)])
def test_hypotheses_are_ours(folder, sentences, settings):
    entry = zoo.get_weights(WEIGHTS)
    net, coder = zoo.create_model(entry.config.name, WEIGHTS).eval(), entry.transforms()
    translate = Translator(
        folder, beam=settings.beam, length_penalty=settings.length_penalty, max_extra=settings.max_extra
    )
    for ids in coder.encode(sentences):
        (ours,) = beam_search(net, torch.tensor([[*ids, EOS]]), settings)
        found = translate.search([*ids, EOS])
        assert [tokens for tokens, _ in found] == [hypothesis.tokens for hypothesis in ours]
        assert [score for _, score in found] == pytest.approx([hypothesis.score for hypothesis in ours], abs=1e-4)


def test_the_folder_translates_without_torch_and_without_this_package(folder, tmp_path):
    for name in ("torch", "zoo", "tasks"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')")
    text = "  Ein brauner\u00ad Hund springt ins Wasser. \n\n"
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, folder / "translate.py"], input=text, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["A brown dog jumping into the water.", ""]


def test_a_sentence_that_is_too_long_is_refused(folder):
    translate = Translator(folder)
    longest = json.loads((folder / "manifest.json").read_text())["max_length"]
    with pytest.raises(ValueError, match=rf"a sentence of {longest + 1} tokens: must be <= {longest}"):
        translate.search([5] * longest + [EOS])


def test_an_export_is_checked_again(folder, tmp_path):
    assert "4 of 4 sentences" in str(check_again(folder, None))
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in (path for path in folder.iterdir() if path.is_file()):
        (changed / path.name).write_bytes(path.read_bytes())
    (changed / "decoder.onnx").write_bytes((folder / "encoder.onnx").read_bytes())
    with pytest.raises(ExportError, match=r"decoder.onnx: is not the file that was exported \(sha256\)"):
        check_again(changed, None)


def test_half_precision_is_smaller_and_translates(folder, tmp_path):
    made = export_weights(WEIGHTS, "onnx", tmp_path / "half", **{**SETTINGS, "half": True})
    assert 1e-6 < made.worst < 1e-2
    sizes = [(path / "encoder.onnx").stat().st_size for path in (tmp_path / "half", folder)]
    assert sizes[0] < 0.6 * sizes[1]
    assert Translator(Path(tmp_path / "half")).manifest["half"] is True
