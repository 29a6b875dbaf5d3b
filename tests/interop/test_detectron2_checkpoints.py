"""Checkpoints that detectron2 itself reads or writes, read by us: equal features, and equal parts of detectors."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model

import zoo
from tests.helpers.batchnorm import relative_error, train_statistics_
from tests.helpers.foreign_detectron2 import CAFFE2, Trunk, blobs, make_affine
from tests.helpers.pickles import python2
from zoo.convert.batchnorm import convert_batchnorm
from zoo.convert.checkpoints import read_checkpoint
from zoo.convert.layouts.detectron2 import split


def detector(**resnets):
    """detectron2's Mask R-CNN with an eighth of the trunk's channels."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8, 32
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    for key, value in resnets.items():
        setattr(cfg.MODEL.RESNETS, key, value)
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = ["res2", "res3", "res4", "res5"], 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "StandardROIHeads", 3
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 2
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 20, 7
    cfg.MODEL.ROI_MASK_HEAD.NAME, cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = "MaskRCNNConvUpsampleHead", 4
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    return build_model(cfg).eval()


def train_frozen_statistics_(model):
    """Random statistics for detectron2's own frozen norms."""
    for module in model.modules():
        if type(module).__name__ == "FrozenBatchNorm2d":
            module.running_var.uniform_(0.5, 2.0)
            for value in (module.running_mean, module.weight, module.bias):
                value.normal_(0.3, 0.3)
    return model


def assert_equal_features(model, converted):
    bottom = model.backbone.bottom_up
    x = torch.randn(1, 3, 97, 65)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 3e-6)):
        with torch.no_grad():
            theirs = list(bottom.to(dtype)(x.to(dtype)).values())
            ours = converted(dtype).forward_levels(x.to(dtype), (1, 2, 3, 4))
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape
            assert relative_error(a, b) <= tolerance


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("depth", [50, 101])
def test_a_checkpoint_that_detectron2_writes(tmp_path, depth, first):
    model = train_frozen_statistics_(detector(DEPTH=depth, STRIDE_IN_1X1=first))
    DetectionCheckpointer(model, str(tmp_path)).save("net")
    state = read_checkpoint(tmp_path / "net.pth")
    assert any(key.startswith("roi_heads.mask_head.") for key in state)

    def converted(dtype):
        own = {key: value.to(dtype) for key, value in state.items()}
        return zoo.convert.from_batchnorm(own, f"rescalenet{depth}", stride_in_1x1=first)

    assert_equal_features(model, converted)


@pytest.mark.parametrize("statistics", [True, False])
def test_weights_of_caffe2_that_detectron2_reads(tmp_path, statistics):
    """detectron2 reads MSRA's file into its net by its heuristics; its features are those of our conversion."""
    trunk = train_statistics_(Trunk((3, 4, 6, 3), classes=10))
    trunk = trunk if statistics else make_affine(trunk)
    found = {key: value.numpy() for key, value in blobs(trunk, statistics=statistics).items()}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(python2(found))
    model = detector(STRIDE_IN_1X1=True)
    DetectionCheckpointer(model).load(str(path))
    state = read_checkpoint(path)
    assert convert_batchnorm(state).model.config.options["stride_in_1x1"]

    def converted(dtype):
        return zoo.convert.from_batchnorm({key: value.to(dtype) for key, value in state.items()})

    assert_equal_features(model, converted)


def test_a_detector_of_caffe2_that_detectron2_reads(tmp_path):
    """The names of its parts, and the place of the background, are those that detectron2 gives them."""
    model = detector(STRIDE_IN_1X1=True)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    found = blobs(make_affine(train_statistics_(Trunk((3, 4, 6, 3)))), statistics=False)
    for blob, name in CAFFE2.items():
        for short, leaf in (("w", "weight"), ("b", "bias")):
            rows, *rest = shapes[f"{name}.{leaf}"]
            rows += {"bbox_pred": 4, "mask_fcn_logits": 1}.get(blob, 0)  # the background, which detectron2 drops
            found[f"{blob}_{short}"] = torch.randn(rows, *rest)
    path = tmp_path / "model_final.pkl"
    path.write_bytes(python2({key: value.numpy() for key, value in found.items()}, "blobs"))
    DetectionCheckpointer(model).load(str(path))
    theirs = model.state_dict()
    trunk, rest = split(read_checkpoint(path))
    ours = {**rest, **{f"backbone.bottom_up.{key}": value for key, value in trunk.items()}}
    assert set(ours) == set(theirs) - {"pixel_mean", "pixel_std"}
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key
