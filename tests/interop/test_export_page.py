"""The lines of docs/export.md for detectron2 and fairseq, in these projects (``make test-interop``)."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from PIL import Image
from torchvision.models.feature_extraction import create_feature_extractor

import zoo
from tasks.translation.search import Beam, beam_search
from tests.helpers.export_page import PICTURE, enter, programs_of, published_resnet50, run_commands, run_program
from tests.interop.test_detectron2_detectors import detectron2_detector
from zoo.text import EOS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return enter(tmp_path, monkeypatch)


def test_the_lines_of_detectron2(folder, capsys, monkeypatch):
    """Random weights under the name of torchvision's file, and a detector of detectron2 with narrow heads."""
    net = published_resnet50(folder, monkeypatch)
    proposals = {f"MODEL.RPN.{when}_NMS_TOPK_TEST": 1000 for when in ("PRE", "POST")}
    theirs = detectron2_detector(False, **proposals)
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    (folder / "model_final.pkl").write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}))
    assert run_commands("detectron2", capsys, monkeypatch).count("compared in detectron2") == 2
    body, whole = programs_of("detectron2")
    assert "zoo" not in (body + whole).replace("detectron2.model_zoo", "")
    # the maps of torchvision's net
    scope = run_program(body)
    layers = {f"layer{i}": f"res{i + 1}" for i in range(1, 5)}
    with torch.no_grad():
        found = scope["model"].backbone.bottom_up(scope["images"].tensor)
        expected = create_feature_extractor(net, layers)(scope["images"].tensor)
    assert list(found) == list(expected)
    for name, maps in expected.items():
        assert (found[name] - maps).abs().max() < 1e-5 * maps.abs().max()
    shapes = str({name: tuple(maps.shape) for name, maps in expected.items()})
    assert capsys.readouterr().out.strip() == shapes
    # the objects that the detector of detectron2 finds
    scope = run_program(whole)
    predictor = DefaultPredictor(scope["cfg"])
    predictor.model, predictor.input_format = theirs, "BGR"
    expected = predictor(np.asarray(Image.open(PICTURE))[..., ::-1])["instances"]
    found = scope["objects"]
    assert len(found) == len(expected) > 20
    assert torch.equal(found.pred_classes, expected.pred_classes)
    assert (found.scores - expected.scores).abs().max() < 1e-5
    assert (found.pred_boxes.tensor - expected.pred_boxes.tensor).abs().max() < 0.01  # px


def test_the_lines_of_fairseq(folder, capsys, monkeypatch):
    """fairseq prints the translation that the page names, which is the zoo's."""
    assert "agrees in torch" in run_commands("fairseq", capsys, monkeypatch)
    (program,) = programs_of("fairseq")
    assert "zoo" not in program
    env = {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    entry = zoo.get_weights("rescale_transformer_tiny.multi30k_en_de_pre_ln")
    coder = entry.transform.build()
    (ids,) = coder.encode(["A dog runs across the grass."])
    net = zoo.create_model(entry.config.name, entry.name).eval()
    ((best, *_),) = beam_search(net, torch.tensor([[*ids, EOS]]), Beam(beam=4))
    assert done.stdout.strip() == coder.decode(best.tokens) == "Ein Hund rennt über das Gras."
