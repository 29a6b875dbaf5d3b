"""The target detectron2 without detectron2: its files, which are read back, and what is refused."""

import json
import pickle

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import zoo
from tests.helpers import deployments
from tests.helpers.detection import sharpened
from tests.helpers.foreign import disturb, torchvision_net
from tests.helpers.nets import narrow
from tests.helpers.torchvision_detectors import picture
from zoo.convert import from_batchnorm
from zoo.errors import ExportError
from zoo.export import TARGETS, detectron2_layout
from zoo.export.graphs import Settings
from zoo.export.writing import check_graph, export

TARGET = TARGETS["detectron2"]
DETECTOR = {
    "num_classes": 3,
    "min_size": 96,
    "max_size": 160,
    "fpn_channels": 32,
    "box_width": 64,
    "mask_convs": (32, 32),
    "mask_width": 32,
    "proposals_test": 100,
    "conventions": "detectron2",
}


@pytest.fixture(autouse=True)
def without_detectron2(monkeypatch):
    monkeypatch.setattr(detectron2_layout, "find_spec", lambda name: None)


def detector(**options):
    torch.manual_seed(0)
    model = zoo.create_model("mask_rcnn_rescalenet18_fpn", scheme="bn", **{**DETECTOR, **options})
    sharpened(model)
    return model.eval()


def test_the_files_of_a_net(tmp_path):
    """detectron2 takes a pickle of numpy arrays with an author; the keys are those of its ResNet."""
    net = from_batchnorm(disturb(torchvision_net("resnet18")))
    transform = zoo.InputTransform(64, 64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    result = export(deployments.images(net, transform=transform), TARGET, tmp_path / "out")
    assert 0 < result.differences["model"].relative < 1e-5
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "detectron2 is not installed" in manifest["remark"]
    assert manifest["remark"] in str(result)
    content = pickle.loads((tmp_path / "out/model.pkl").read_bytes())
    assert content.keys() == {"model", "__author__", "matching_heuristics"}
    assert content["matching_heuristics"]
    state = content["model"]
    assert {type(value) for value in state.values()} == {np.ndarray}
    assert {str(value.dtype) for value in state.values()} == {"float32"}
    assert {"stem.conv1.norm.running_var", "res3.0.shortcut.weight", "res5.1.conv2.norm.bias"} < state.keys()
    assert state["linear.weight"].shape == (10, 512)
    lines = yaml.safe_load((tmp_path / "out/model.yaml").read_text())
    resnet = lines["MODEL"]["RESNETS"]
    assert (resnet["DEPTH"], resnet["NORM"], resnet["STRIDE_IN_1X1"]) == (18, "FrozenBN", False)
    assert lines["MODEL"]["PIXEL_MEAN"] == [127.5, 102.0, 76.5]
    assert lines["INPUT"] == {"FORMAT": "RGB"}


def test_the_input_is_left_out_where_it_is_not_known(tmp_path):
    net = zoo.create_model("rescalenet18", scheme="bn", num_classes=3)
    export(deployments.images(net), TARGET, tmp_path / "out")
    lines = yaml.safe_load((tmp_path / "out/model.yaml").read_text())
    assert lines["MODEL"].keys() == {"RESNETS"}
    assert lines.keys() == {"VERSION", "MODEL"}


def test_a_file_that_changed_is_noticed(tmp_path):
    deployment = deployments.images(from_batchnorm(disturb(torchvision_net("resnet18"))))
    export(deployment, TARGET, tmp_path / "out")
    path = tmp_path / "out/model.pkl"
    content = pickle.loads(path.read_bytes())
    content["model"]["res4.0.conv1.weight"] *= 1.1
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ExportError, match="model: outputs differ by"):
        check_graph(deployment.graphs[0], TARGET, tmp_path / "out", Settings())


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_a_whole_detector(tmp_path, order):
    model = detector()
    if order == "BGR":
        model.input = zoo.DetectionTransform(96, 160, (0.4, 0.45, 0.48), (0.2, 0.2, 0.3), "BGR")
        model.transform.image_mean, model.transform.image_std = [0.4, 0.45, 0.48], [0.2, 0.2, 0.3]
        model.transform.reverse = True
    pictures = [picture(96, 160), picture(96, 128), picture(150, 100)]
    result = export(deployments.whole_detector(model, pictures), TARGET, tmp_path / "out")
    assert result.differences["model"].relative <= 1e-4
    content = pickle.loads((tmp_path / "out/model.pkl").read_bytes())
    assert not content["matching_heuristics"]
    assert {"backbone.bottom_up.res2.0.conv1.weight", "backbone.fpn_lateral2.weight"} < content["model"].keys()
    assert content["model"]["roi_heads.box_predictor.bbox_pred.weight"].shape == (12, 64)
    text = (tmp_path / "out/model.yaml").read_text()
    assert "&" not in text  # no anchors of YAML
    lines = yaml.safe_load(text)
    assert lines["INPUT"] == {"FORMAT": order, "MIN_SIZE_TEST": 96, "MAX_SIZE_TEST": 160}
    assert lines["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 3


def net(name="rescalenet18", **options):
    return zoo.create_model(name, **{"scheme": "bn", "num_classes": 3, **options})


def shifted():
    model = net(scheme="rescale", shortcut="conv")
    nn.init.constant_(model.layer2[0].conv2.pre_bias, -0.5)
    return model


def cut_off():
    model = net()
    model.truncate(3)
    model.reset_classifier(3, "avg")
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (shifted, r"1 of its padded convolutions have a bias before the padding \(up to 0.5, after layer2.0.act1\)"),
        (lambda: net(scheme="rescale"), "shortcut='avgpool'"),
        (lambda: net(stem="deep"), "stem='deep'"),
        (lambda: net(width=0.5), "basic blocks of 32 channels in the first stage, it has 64"),
        (lambda: net("rescalenet50", width=0.03), "gives stages of .* channels; its stages double"),
        (lambda: net("rescalenet26"), r"bottleneck blocks \(2, 2, 2, 2\), which no MODEL.RESNETS.DEPTH gives"),
        (lambda: net(global_pool="max"), "global_pool='max', it takes the mean"),
        (lambda: net(scheme="gn"), "GroupNorm, which depends on the input; detectron2 has BatchNorm"),
        (lambda: narrow("cifar", scheme="bn"), "stem='cifar'"),
        (lambda: narrow("vgg", scheme="bn"), "rescalevgg16 is no ResNet"),
        (lambda: zoo.FeatureExtractor(net(), (0, 4)), "its stem ends behind the max pool; leave feature level 0 out"),
        (lambda: zoo.FeatureExtractor(net(), (1, 2)), "that was cut off is compared in detectron2 alone; install it"),
        (cut_off, "the net was cut off after a stage"),
    ],
)
def test_refused_nets(tmp_path, make, reason):
    with pytest.raises(ExportError, match=reason):
        export(deployments.images(make().eval()), TARGET, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"conventions": "torchvision"}, "conventions='torchvision', its anchors, RoI pooling and masks are others"),
        ({"heads": "4conv1fc"}, "heads='4conv1fc', it has two linear layers"),
        ({"canonical_size": 112}, "canonical_size=112, it has 224"),
        ({"mask_width": 16}, "its mask head has one number of channels"),
        ({"out_indices": (2, 3, 4)}, "a pyramid on res3, res4, res5; it has one on res2, res3, res4, res5"),
        ({"body": {"stem": "deep"}}, "stem='deep'"),
    ],
)
def test_refused_detectors(tmp_path, options, reason):
    with pytest.raises(ExportError, match=reason):
        export(deployments.whole_detector(detector(**options), [picture(96, 128)]), TARGET, tmp_path / "out")
    assert not list(tmp_path.iterdir())
