"""Thresholds, limits, suppression and views: against the detections that are chosen from all by hand."""

import itertools

import pytest
import torch
from torchvision.ops import box_iou

from tasks.detection.choice import LEFT_OUT, Choice
from tasks.detection.views import View, parse_views
from tasks.errors import UserError
from tests.helpers.detection import calibrated, sample, sharpened, small


@pytest.fixture(scope="module")
def model():
    found = small(proposals_test=800)
    calibrated(found)
    return sharpened(found).eval()


@pytest.fixture(scope="module")
def image():
    return sample(96, 128, seed=3)[0]


def objects(found):
    return [
        (tuple(box), label, score)
        for box, label, score in zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
    ]


def test_thresholds_by_class_and_the_limit(model, image):
    with Choice((0.0, 0.0, 0.0), detections=400).applied(model):
        (every,) = model.detect([image])
    all_of = objects(every)
    assert len(all_of) > 100  # more than the detector's own limit
    assert len({label for _, label, _ in all_of}) == 3
    lowest = sorted(score for _, label, score in all_of if label == 2)[-5]
    wanted = [one for one in all_of if (one[1] == 2 and one[2] >= lowest) or (one[1] == 3 and one[2] >= 0.3)]
    with Choice((LEFT_OUT, lowest, 0.3), detections=400).applied(model):
        (chosen,) = model.detect([image])
    assert objects(chosen) == wanted
    with Choice((LEFT_OUT, 0.0, LEFT_OUT), detections=7).applied(model):  # other classes do not use up the limit
        (few,) = model.detect([image])
    assert objects(few) == [one for one in all_of if one[1] == 2][:7]
    assert len(few.masks) == 7


def test_a_choice_ends_with_its_context(model, image):
    before = objects(model.detect([image])[0])
    limits = dict(model.rpn._post_nms_top_n)
    with Choice((0.0,) * 3, detections=500, nms=0.9, views=parse_views("flip")).applied(model):
        assert model.rpn._post_nms_top_n["testing"] == 1000
        assert len(model.detect([image])[0].scores) > len(before)
    assert objects(model.detect([image])[0]) == before
    assert model.rpn._post_nms_top_n == limits


@pytest.mark.parametrize("nms", [0.2, 0.7])
def test_suppression(model, image, nms):
    with Choice((0.0,) * 3, detections=400, nms=nms).applied(model):
        (found,) = model.detect([image])
    ious = []
    for label in (1, 2, 3):
        boxes = found.boxes[found.labels == label]
        ious += [float(box_iou(a[None], b[None])) for a, b in itertools.combinations(boxes[:40], 2)]
    assert max(ious) <= nms + 1e-5
    assert max(ious) > nms - 0.15


# -- views ------------------------------------------------------------------------------------------


def test_one_view_is_the_image_itself(model, image):
    (plain,) = model.detect([image])
    with Choice(views=(View(),)).applied(model):
        (seen,) = model.detect([image])
    torch.testing.assert_close(seen.boxes, plain.boxes, rtol=0, atol=1e-3)
    assert torch.equal(seen.labels, plain.labels)
    torch.testing.assert_close(seen.scores, plain.scores)
    assert [mask.array().shape for mask in seen.masks] == [mask.array().shape for mask in plain.masks]


def test_the_mirror_image_is_found_mirrored(model, image):
    """The view of a mirrored image is that of the image; boxes and masks are turned back."""
    with Choice(views=(View(flip=True),)).applied(model):
        (found,) = model.detect([image])
    (mirrored,) = model.detect([image.flip(-1)])
    x1, y1, x2, y2 = mirrored.boxes.unbind(1)
    torch.testing.assert_close(found.boxes, torch.stack([128 - x2, y1, 128 - x1, y2], 1), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.scores, mirrored.scores)
    areas = [(int(a.array().sum()), int(b.array().sum())) for a, b in zip(found.masks, mirrored.masks, strict=True)]
    assert sum(abs(a - b) for a, b in areas) <= 0.1 * sum(b for _, b in areas) + 2 * len(areas)


def test_a_symmetric_image_gains_symmetric_objects(model):
    half = sample(96, 64, seed=5)[0]
    image = torch.cat([half, half.flip(-1)], -1)
    with Choice((0.0,) * 3, views=parse_views("flip,0.8,1.25"), detections=400).applied(model):
        (found,) = model.detect([image])
    x1, y1, x2, y2 = found.boxes.unbind(1)
    mirrored = torch.stack([128 - x2, y1, 128 - x1, y2], 1)
    distance = torch.cdist(mirrored, found.boxes, p=torch.inf) + 1e6 * (found.labels[:, None] != found.labels)
    # the best objects and their mirror images, but where both have the same score and overlap: one stays
    assert (distance.min(1).values[:40] < 1e-2).float().mean() > 0.8


def test_views_are_named():
    assert parse_views(None) == ()
    assert parse_views("flip") == (View(), View(flip=True))
    assert parse_views("0.5") == (View(), View(scale=0.5))
    assert parse_views("1.5,flip,1") == (View(), View(True), View(False, 1.5), View(True, 1.5))
    for wrong in ("rotate", "flip,", "0", "nan", "11"):
        with pytest.raises(UserError, match="must be flip, or a factor of the size"):
            parse_views(wrong)


def test_masks_are_the_same_some_at_a_time(model, image, monkeypatch):
    with Choice((0.0,) * 3, detections=300).applied(model):
        (expected,) = model.detect([image])
        monkeypatch.setattr("tasks.detection.rcnn.AT_ONCE", 7)
        (found,) = model.detect([image])
    assert objects(found) == objects(expected)
    assert len(found.masks) > 100
    differ = sum(a != b for a, b in zip(found.masks, expected.masks, strict=True))
    assert differ <= 3  # a probability of one half may round to the other side
