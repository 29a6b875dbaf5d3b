"""Detectors in detectron2's keys, and its conventions; tests/interop compares with detectron2 itself."""

import math
import re

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

import zoo
from tasks.detection.conventions import AlignedPool, ExactAnchors, paste_at_centres
from tests.helpers.detection import calibrated, sample, sharpened, small
from tests.helpers.exports import export_detector
from tests.helpers.torchvision_detectors import LIMITS, SIZES, picture, torchvision_detector
from zoo.convert import convert_batchnorm, from_batchnorm
from zoo.errors import WeightsError
from zoo.transforms import IMAGENET_MEAN, IMAGENET_STD

NAME = "mask_rcnn_rescalenet50_fpn"
RGB = {"mean": IMAGENET_MEAN[::-1], "std": IMAGENET_STD[::-1]}  # the input of torchvision's nets, in BGR


def detectron2_state(model):
    """The state of a detector of torchvision in detectron2's keys, for images in BGR."""
    state = {}
    for key, value in model.state_dict().items():
        key = re.sub(r"^backbone\.body\.(conv1|bn1)\.", r"backbone.bottom_up.stem.\1.", key)
        key = re.sub(r"^backbone\.body\.layer(\d)", lambda m: f"backbone.bottom_up.res{int(m[1]) + 1}", key)
        key = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", key)
        key = key.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        for theirs, blocks in (("lateral", "inner_blocks"), ("output", "layer_blocks")):
            key = re.sub(rf"fpn\.{blocks}\.(\d)\.0\.", lambda m, theirs=theirs: f"fpn_{theirs}{int(m[1]) + 2}.", key)
        key = key.replace("rpn.head.conv.0.0.", "proposal_generator.rpn_head.conv.")
        key = key.replace("rpn.head.cls_logits.", "proposal_generator.rpn_head.objectness_logits.")
        key = key.replace("rpn.head.bbox_pred.", "proposal_generator.rpn_head.anchor_deltas.")
        key = key.replace("box_head.fc6.", "box_head.fc1.").replace("box_head.fc7.", "box_head.fc2.")
        key = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", key)
        key = key.replace("mask_predictor.conv5_mask.", "mask_head.deconv.")
        key = key.replace("mask_predictor.mask_fcn_logits.", "mask_head.predictor.")
        # the background is last in the scores, and has no box and no mask
        if ".cls_score." in key:
            value = torch.cat([value[1:], value[:1]])
        elif ".box_predictor.bbox_pred." in key:
            value = value[4:]
        elif ".mask_head.predictor." in key:
            value = value[1:]
        if not key.endswith("num_batches_tracked"):
            state[key] = value
    state["backbone.bottom_up.stem.conv1.weight"] = state["backbone.bottom_up.stem.conv1.weight"].flip(1)
    return state


@pytest.fixture(scope="module")
def original():
    return torchvision_detector("resnet50", classes=81)


@pytest.fixture(scope="module")
def state(original):
    return detectron2_state(original)


def convert(state, **options):
    body = {"stride_in_1x1": False}
    return convert_batchnorm(state, NAME, body=body, **{**RGB, **LIMITS, **SIZES, **options})


def test_weights_are_placed_as_in_torchvisions_detector(original, state):
    """With torchvision's conventions the same tensors in detectron2's keys make the same detections."""
    done = convert(state, conventions="torchvision")
    assert done.layout == "detectron2 Faster or Mask R-CNN"
    assert done.eps == 1e-5
    with torch.no_grad():
        found, expected = done.model([picture()])[0], original([picture()])[0]
    assert len(expected["scores"]) > 20
    assert torch.equal(found["labels"], expected["labels"])
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=0, atol=1e-3)
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found["masks"], expected["masks"], rtol=0, atol=1e-3)


def test_what_a_checkpoint_shows(state):
    done = convert(state)
    assert done.model.config.options["conventions"] == "detectron2"
    assert done.transform.channel_order == "BGR"
    assert done.transform.mean == IMAGENET_MEAN[::-1]
    assert done.classes is not None
    assert len(done.classes) == 80
    assert done.classes[-1] == "toothbrush"
    assert convert(state, classes="all").classes is None
    # without the name of a detector the body alone is converted
    body = from_batchnorm(state, stride_in_1x1=False)
    assert isinstance(body, zoo.Backbone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"backbone.fpn_lateral2.norm.weight": torch.ones(32)}, "norms or convolutions in pyramid"),
        (lambda s: s | {"roi_heads.box_predictor.bbox_pred.weight": torch.ones(4, 64)}, "4 rows; must be 320"),
        (lambda s: {k: v for k, v in s.items() if "cls_score" not in k}, "cls_score.weight is missing"),
        (lambda s: {k: v for k, v in s.items() if "fc2" not in k}, "fc7"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("backbone.fpn_output5")}, "3 levels"),
    ],
)
def test_what_does_not_fit_is_refused(state, change, message):
    with pytest.raises(WeightsError, match=message):
        convert(change(dict(state)))


def test_an_unknown_input_is_refused(state):
    with pytest.raises(WeightsError, match="does not show its input; give mean= and std="):
        convert_batchnorm(state, NAME, body={"stride_in_1x1": False})


# -- conventions ------------------------------------------------------------------------------------


def test_anchors_keep_their_fractions_and_strides():
    anchors = ExactAnchors((32.0, 64.0), (0.5, 1.0, 2.0), (4, 8))
    images = ImageList(torch.zeros(2, 3, 24, 40), [(24, 40)] * 2)
    first, second = anchors(images, [torch.zeros(2, 1, 6, 10), torch.zeros(2, 1, 4, 5)])  # 4 > 24 / 8
    assert torch.equal(first, second)
    assert first.shape == (3 * (6 * 10 + 4 * 5), 4)
    width, height = 32 * math.sqrt(2), 32 / math.sqrt(2)
    torch.testing.assert_close(first[0], torch.tensor([-width / 2, -height / 2, width / 2, height / 2]))
    torch.testing.assert_close(first[-1, :2] + first[-1, 2:], 2 * torch.tensor([4 * 8.0, 3 * 8.0]))


def test_pooling_takes_each_box_from_its_level():
    torch.manual_seed(0)
    features = {"0": torch.randn(2, 3, 64, 64), "1": torch.randn(2, 3, 32, 32)}
    boxes = [
        torch.tensor([[10.0, 20.0, 200.0, 150.0], [3.0, 3.0, 60.0, 80.0]]),
        torch.tensor([[5.0, 5.0, 230.0, 240.0], [7.5, 8.25, 30.0, 31.0]]),
    ]
    pool = AlignedPool(["0", "1"], [4, 8], 7, 224)
    found = pool(features, boxes, [(256, 256)] * 2)
    levels = [[1, 0], [1, 0]]  # 157, 66, 230 and 23 px; 112 px and more are of stride 8
    row = 0
    for image, (per_image, level) in enumerate(zip(boxes, levels, strict=True)):
        for box, index in zip(per_image, level, strict=True):
            roi = torch.cat([torch.tensor([float(image)]), box])[None]
            expected = roi_align(features[str(index)], roi, 7, 1 / [4, 8][index], -1, aligned=True)
            torch.testing.assert_close(found[row : row + 1], expected)
            row += 1


def test_masks_are_sampled_at_the_centres_of_pixels():
    """In a box of twice the mask's size, a position's probability reaches its centre."""
    mask = torch.rand(2, 1, 4, 4)
    boxes = torch.tensor([[2.0, 1.0, 6.0, 5.0], [0.0, 0.0, 12.0, 12.0]])
    found = paste_at_centres(mask, boxes, (12, 16))
    assert found.shape == (2, 1, 12, 16)
    torch.testing.assert_close(found[0, 0, 1:5, 2:6], mask[0, 0])
    assert float(found[0].sum()) == pytest.approx(float(mask[0].sum()), rel=1e-5)
    torch.testing.assert_close(found[1, 0, 1:12:3, 1:12:3], mask[1, 0])
    assert paste_at_centres(mask[:0], boxes[:0], (12, 16)).shape == (0, 1, 12, 16)


def test_onnx_with_these_conventions(tmp_path):
    model = small(conventions="detectron2", detections=30)
    calibrated(model)
    sharpened(model).eval()
    images = [picture(*size, seed=3) for size in ((96, 128), (150, 210))]
    made = export_detector(model, images, tmp_path / "detector")
    assert made.worst < 1e-3


def test_training_with_these_conventions():
    model = small(conventions="detectron2").train()
    image, target = sample()
    sum(model([image], [target]).values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
