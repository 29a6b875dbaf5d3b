"""The weights that ship still give the outputs that were recorded when they were published."""

import dataclasses
import json

import pytest
import torch

import zoo
from tasks.detection.detector import create_detector
from tasks.spec import load_model
from tests.helpers.nets import narrow
from tests.helpers.paths import ROOT
from tests.helpers.weights import TOLERANCE, far
from zoo.fingerprint import COUNT, fingerprint, tokens, waves

INDEX = json.loads((ROOT / "weights" / "index.json").read_text())


@pytest.mark.parametrize("name", zoo.list_weights())
def test_the_weights_give_the_recorded_output(name):
    entry = zoo.get_weights(name)
    assert far(fingerprint(load_model(entry), entry.transform), INDEX[name]["logits"]) <= TOLERANCE


@pytest.mark.parametrize("name", zoo.list_weights())
def test_every_part_of_the_net_shows(name):
    """A change of 1 % in the first or the last weight moves the numbers by more than the tolerance."""
    entry = zoo.get_weights(name)
    expected = INDEX[name]["logits"]
    for place in (0, -1):
        model = load_model(entry)
        weight = [p for p in model.parameters() if p.ndim > 1][place]
        with torch.no_grad():
            weight.mul_(1.01)
        assert far(fingerprint(model, entry.transform), expected) > 10 * TOLERANCE


def test_the_input_is_what_the_formula_says():
    """sin(0.1 n) for n = 0, 1, 2, 3 is 0, 0.09983, 0.19867, 0.29552; in steps of 1/255 around one half."""
    assert waves(2, 2).flatten().mul(255).tolist() == pytest.approx([128, 140, 153, 165], abs=1e-4)
    assert tokens(3, 100) == [7, 14, 21]
    assert len(set(tokens(9, 30))) == 9


def test_any_net_has_a_fingerprint():
    """Two classes, grey images, boxes without masks, a tiny vocabulary."""
    image = zoo.InputTransform(32, 32, (0.5,), (0.25,))
    assert len(fingerprint(narrow("cifar", in_chans=1), image)) == COUNT
    video = zoo.VideoTransform(4, None, None, 32, 32, (0.5,) * 3, (0.25,) * 3)
    assert len(fingerprint(zoo.create_model("rescale_r3d_10", num_classes=2, width=0.25), video)) == COUNT
    options = {"body": {"width": 0.125}, "fpn_channels": 8, "box_width": 8}
    detector = create_detector("faster_rcnn_rescalenet18_fpn", num_classes=1, **options)
    assert len(fingerprint(detector, dataclasses.replace(detector.input, min_size=64))) == COUNT
    sizes = {"source_vocabulary": 20, "target_vocabulary": 20}
    text = zoo.TextTransform("en", "de", "", None)
    assert len(fingerprint(zoo.create_model("rescale_transformer_tiny", **sizes), text)) == COUNT
