"""Masks in their boxes: the pixels of the masks of whole images, and their RLE."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from torchvision.models.detection.roi_heads import paste_masks_in_image

from tasks.detection.conventions import paste_at_centres
from tasks.detection.found import full_rle, masks_in_boxes
from tests.helpers.detection import calibrated, sample, sharpened, small


def whole(mask, corner, size):
    """The mask of an image with this part."""
    x, y = corner
    image = np.zeros(size, dtype=bool)
    image[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return image


def assert_parts_of(parts, masks, size):
    """Parts that make the masks of whole images (N, 1, H, W), and no part is larger than its object."""
    assert len(parts) == len(masks)
    for part, mask in zip(parts, masks, strict=True):
        expected = (mask[0] > 0.5).numpy()
        assert np.array_equal(whole(part.array(), part.corner, size), expected)
        assert np.array_equal(rle.decode(part.in_image(size[1], size[0])), expected)
        rows, columns = np.flatnonzero(expected.any(1)), np.flatnonzero(expected.any(0))
        assert part.size == part.array().shape
        assert part.size == ((np.ptp(rows) + 1, np.ptp(columns) + 1) if len(rows) else (0, 0))


@pytest.mark.parametrize("at_centres", [False, True])
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 40, 300]))
@settings(max_examples=60, deadline=None)
def test_parts_are_the_masks_of_the_whole_image(at_centres, seed, largest):
    generator = torch.Generator().manual_seed(seed)
    size = (90, 170)
    masks = torch.rand(5, 1, 4, 4, generator=generator)
    masks[4] = 1  # to the border of its box
    corners = torch.rand(5, 2, generator=generator) * torch.tensor([170.0, 90.0])
    limits = torch.tensor([170.0, 90.0])
    sides = 0.02 + largest * torch.rand(5, 2, generator=generator)
    boxes = torch.cat([corners, torch.minimum(corners + sides, limits)], 1)
    expected = (paste_at_centres if at_centres else paste_masks_in_image)(masks, boxes, size)
    assert_parts_of(masks_in_boxes(masks, boxes, size, at_centres=at_centres), expected, size)


def test_large_masks_are_sampled_some_rows_at_a_time(monkeypatch):
    monkeypatch.setattr("tasks.detection.found.PIXELS", 1000)
    masks, boxes, size = torch.rand(1, 1, 28, 28), torch.tensor([[3.0, 5.5, 250.0, 300.0]]), (310, 260)
    parts = masks_in_boxes(masks, boxes, size, at_centres=True)
    assert_parts_of(parts, paste_at_centres(masks, boxes, size), size)


@pytest.mark.parametrize("conventions", ["torchvision", "detectron2"])
@pytest.mark.parametrize("detector", ["mask", "faster"])
def test_what_is_detected_is_what_a_forward_returns(detector, conventions):
    model = small(detector=detector, conventions=conventions)
    calibrated(model)
    sharpened(model).eval()
    images = [sample(96, 128, seed=1)[0], sample(80, 144, seed=2)[0]]
    with torch.inference_mode():
        outputs, every = model(images), model.detect(images)
        threshold = float(outputs[0]["scores"].median())
        best = model.detect(images, threshold)
        again = model(images)
    assert len(outputs[0]["scores"]) > 5
    for image, output, found, kept, after in zip(images, outputs, every, best, again, strict=True):
        assert after.keys() == output.keys()  # the next forward has masks of the whole image again
        assert all(torch.equal(after[key], output[key]) for key in output)
        assert found.size == tuple(image.shape[-2:])
        number = int((output["scores"] >= threshold).sum())
        for one, count in ((found, len(output["scores"])), (kept, number)):
            assert torch.equal(one.boxes, output["boxes"][:count])
            assert torch.equal(one.labels, output["labels"][:count])
            assert torch.equal(one.scores, output["scores"][:count])
            if detector == "mask":
                assert_parts_of(one.masks, output["masks"][:count], found.size)
            else:
                assert one.masks is None


@given(st.integers(0, 2**32 - 1), *[st.integers(0, 12)] * 2, *[st.integers(0, 5)] * 4, st.sampled_from([0.1, 0.5, 1]))
@settings(max_examples=200, deadline=None)
def test_rle_of_a_part_is_that_of_the_whole(seed, height, width, x, y, right, below, share):
    mask = np.random.RandomState(seed).rand(height, width) < share
    size = (height + y + below, width + x + right)
    expected = rle.encode(np.asfortranarray(whole(mask, (x, y), size).astype(np.uint8)))
    found = full_rle(mask, (x, y), size[1], size[0])
    assert found == {"size": list(size), "counts": expected["counts"].decode()}
