"""Exports for detectron2's own classes, loaded by its checkpointer, without a line of the zoo in the model."""

import json

import pytest
import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_backbone, build_model

import zoo
from tests.helpers import deployments
from tests.helpers.detection import sharpened
from tests.helpers.torchvision_detectors import picture
from tests.interop.test_detectron2_detectors import HEIGHT, WIDTH, detectron2_detector
from zoo.convert import convert_batchnorm, from_batchnorm
from zoo.errors import ExportError
from zoo.export import TARGETS
from zoo.export.graphs import Settings
from zoo.export.writing import check_graph, export

TARGET = TARGETS["detectron2"]
NAMES = {
    "rescalenet18": {},
    "rescalenet34": {},
    "rescalenet50": {"width": 0.25, "stride_in_1x1": True},
    "rescalenet101": {"width": 0.125},
    "rescalenext50_32x4d": {"width": 0.5},
    "rescale_wide_resnet50_2": {"width": 0.125},
}


def net_of(name, scheme="converted", **options):
    """A net that detectron2's classes can compute, with norms or with biases that act on the zeros around the input."""
    torch.manual_seed(0)
    net = zoo.create_model(name, scheme="bn", num_classes=5, **{**NAMES[name], **options})
    net.train()(2 * torch.randn(8, net.config.in_chans, 64, 64) + 0.5)
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            if "norm" in key:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return net.eval() if scheme == "bn" else from_batchnorm(net.eval())


def written(tmp_path, net, transform=None):
    result = export(deployments.images(net, transform=transform), TARGET, tmp_path / "out")
    assert "compared in detectron2 0.6" in str(result)
    return result, tmp_path / "out/model.pkl", tmp_path / "out/model.yaml"


@pytest.mark.parametrize("scheme", ["bn", "converted"])
@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_the_net(tmp_path, name, scheme):
    """In detectron2's ResNet alone and below its pyramid; every tensor of the body comes from the file."""
    net = net_of(name, scheme)
    transform = zoo.InputTransform(64, 64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), channel_order="BGR")
    result, weights, lines = written(tmp_path, net, transform)
    assert result.differences["model"].relative < 1e-5
    cfg = get_cfg()
    cfg.merge_from_file(str(lines))
    assert (cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN) == ("BGR", [127.5, 102.0, 76.5])
    x = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        expected = net.forward_levels(x, (1, 2, 3, 4))
    for builder in ("build_resnet_backbone", "build_resnet_fpn_backbone"):
        cfg.MODEL.BACKBONE.NAME = builder
        cfg.MODEL.FPN.IN_FEATURES = cfg.MODEL.RESNETS.OUT_FEATURES
        model = build_backbone(cfg).eval()
        body = getattr(model, "bottom_up", model)
        for value in body.state_dict().values():
            value.fill_(torch.nan)
        DetectionCheckpointer(torch.nn.ModuleDict({"backbone": model})).load(str(weights))
        with torch.no_grad():
            found = body(x)
        assert list(found) == ["res2", "res3", "res4", "res5"]
        for a, b in zip(found.values(), expected, strict=True):
            assert float((a - b).abs().max() / b.abs().max()) < 1e-5


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"num_classes": 0, "global_pool": ""}, {"in_chans": 1}])
def test_nets_without_classes_and_of_one_channel(tmp_path, options):
    net = zoo.create_model("rescalenet50", scheme="bn", width=0.125, **{"num_classes": 3, **options}).eval()
    result, _, _ = written(tmp_path, net)
    assert result.differences["model"].relative < 1e-5


def test_feature_extractors_have_their_maps(tmp_path):
    net = net_of("rescalenet50")
    _, _, lines = written(tmp_path, zoo.FeatureExtractor(net, (2, 3)))
    assert yaml.safe_load(lines.read_text())["MODEL"]["RESNETS"]["OUT_FEATURES"] == ["res3", "res4"]


def test_a_file_that_changed_is_noticed(tmp_path):
    deployment = deployments.images(net_of("rescalenet18"))
    export(deployment, TARGET, tmp_path / "out")
    lines = tmp_path / "out/model.yaml"
    lines.write_text(lines.read_text().replace("DEPTH: 18", "DEPTH: 34"))
    with pytest.raises(ExportError, match="model: outputs differ by"):
        check_graph(deployment.graphs[0], TARGET, tmp_path / "out", Settings())


# -- whole detectors -------------------------------------------------------------------------------------


def converted_detector(masks, **options):
    """A detector that is converted from one of detectron2, so that its classes can compute it."""
    theirs = detectron2_detector(masks)
    name = f"{'mask' if masks else 'faster'}_rcnn_rescalenet50_fpn"
    sizes = {"min_size": HEIGHT, "max_size": WIDTH, "proposals_test": 200, "body": {"stride_in_1x1": True}}
    return theirs, convert_batchnorm(theirs.state_dict(), name, classes="all", **sizes, **options).model.eval()


PICTURES = [picture(HEIGHT, WIDTH), picture(WIDTH, HEIGHT, seed=3), picture(200, 300, seed=4)]


@pytest.mark.parametrize("masks", [True, False])
def test_detectors_find_the_same_objects(tmp_path, masks):
    """There and back: the tensors are those of the detector of detectron2 that it was converted from."""
    theirs, detector = converted_detector(masks)
    result = export(deployments.whole_detector(detector, PICTURES), TARGET, tmp_path / "out")
    assert result.differences["model"].relative <= 1e-4
    assert json.loads((tmp_path / "out/manifest.json").read_text())["remark"] == "compared in detectron2 0.6"
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "out/model.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.DATASETS.TEST = "cpu", str(tmp_path / "out/model.pkl"), ()
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    state = model.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        if "bottom_up" not in key:  # norms of the body have been folded
            torch.testing.assert_close(state[key], value, rtol=1e-6, atol=1e-7)
    # the pyramid, and what its predictor finds
    image = PICTURES[0]
    with torch.no_grad():
        found = model.backbone(model.preprocess_image([{"image": 255 * image.flip(0)}]).tensor)
        expected = detector.backbone(detector.transform([image])[0].tensors)
    assert list(found) == ["p2", "p3", "p4", "p5", "p6"]
    for a, b in zip(found.values(), expected.values(), strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < 1e-4
    objects = DefaultPredictor(cfg)((255 * image).round().permute(1, 2, 0).numpy()[..., ::-1])["instances"]
    assert len(objects) > 20
    assert objects.has("pred_masks") == masks


def test_a_detector_of_ours_with_norms(tmp_path):
    """Fresh heads, RGB input, gains of 1 in the pyramid, two convolutions in the RPN and other anchors."""
    torch.manual_seed(0)
    detector = zoo.create_model(
        "mask_rcnn_rescalenet18_fpn",
        scheme="bn",
        num_classes=3,
        min_size=96,
        max_size=160,
        fpn_channels=32,
        box_width=64,
        mask_convs=(32, 32),
        mask_width=32,
        rpn_convs=2,
        anchor_scale=4.0,
        aspect_ratios=(0.5, 1.0),
        conventions="detectron2",
        proposals_test=100,
    )
    sharpened(detector)
    result = export(
        deployments.whole_detector(detector, [picture(96, 160), picture(96, 128)]), TARGET, tmp_path / "out"
    )
    assert result.differences["model"].relative <= 1e-4


def test_gains_of_the_pyramid_are_in_its_weights(tmp_path):
    _, detector = converted_detector(True)
    with torch.no_grad():
        for number, lateral in enumerate(detector.backbone.fpn.laterals):
            lateral.gain.gain.fill_(1 + 0.2 * number)
    result = export(deployments.whole_detector(detector, PICTURES[:1]), TARGET, tmp_path / "out")
    assert result.differences["model"].relative <= 1e-4
