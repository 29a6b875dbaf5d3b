"""Detected masks beside the true ones, against pycocotools."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tasks.detection.coco import load_coco
from tasks.detection.compare import RIGHT, WRONG, compare, draw_comparison, mask_iou, match
from tasks.detection.found import Packed
from tasks.files import pictures_dir
from tests.helpers.detection import perfect


@pytest.fixture
def nuclei():
    folder = pictures_dir() / "nuclei"
    return load_coco(folder / "instances.json", folder, masks=True, check="none")


def moved(data, seed):
    """The true objects shifted by up to four pixels, some twice, some not at all, with random scores."""
    random = np.random.RandomState(seed)
    results = []
    for result in perfect(data):
        for _ in range(random.randint(0, 3)):
            mask = np.roll(rle.decode(result["segmentation"]), tuple(random.randint(-4, 5, 2)), (0, 1))
            encoded = rle.encode(np.asfortranarray(mask))
            segmentation = {"size": encoded["size"], "counts": encoded["counts"].decode()}
            results.append({**result, "score": float(random.rand()), "segmentation": segmentation})
    return results


@pytest.mark.parametrize("iou", [0.5, 0.75])
def test_matches_are_those_of_pycocotools(nuclei, iou):
    results = moved(nuclei, seed=1)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = nuclei.ground_truth()
        truth.createIndex()
        evaluation = COCOeval(
            truth, truth.loadRes([{k: v for k, v in r.items() if k != "bbox"} for r in results]), "segm"
        )
        evaluation.params.iouThrs = np.array([iou])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    assert any(e["dtMatches"].any() for e in evaluation.evalImgs)
    right = {e["image_id"]: e["dtMatches"][0] > 0 for e in evaluation.evalImgs}
    compared = compare(nuclei, results, threshold=0.0, iou=iou)
    assert [c.image.id for c in compared] == [i.id for i in nuclei.images]
    for c in compared:
        assert [number is not None for number in c.matches] == right[c.image.id].tolist()
        assert c.right < len(c.found)
        hit = [number for number in c.matches if number is not None]
        assert len(set(hit)) == len(hit)  # no object is found twice


def test_overlaps_of_masks():
    first, second = np.zeros((2, 4, 6), dtype=bool), np.zeros((3, 4, 6), dtype=bool)
    first[0, :2, :3], first[1, 3] = True, True  # 6 pixels, 6 pixels
    second[0, 1:3, 1:3], second[1], second[2, :2, :3] = True, True, True  # 4, 24, 6
    first, second = ([Packed.of(mask).in_image(6, 4) for mask in masks] for masks in (first, second))
    np.testing.assert_allclose(mask_iou(first, second), [[2 / 8, 6 / 24, 1], [0, 6 / 24, 0]])
    assert mask_iou(first[:0], second).shape == (0, 3)
    assert mask_iou(first, second[:0]).shape == (2, 0)


def test_the_best_detection_chooses_first():
    assert match(np.array([[0.6, 0.7], [0.6, 0.9], [0.2, 0.3]]), 0.5) == [1, 0, None]
    assert match(np.zeros((2, 0)), 0.5) == [None, None]
    assert match(np.zeros((0, 2)), 0.5) == []


def test_the_true_objects_as_detections(builder):
    """All are found and AP is 1; of another category or below the threshold none is."""
    data = builder.load()
    right = compare(data, perfect(data))
    assert [(c.right, len(c.true), c.report.stats[0]) for c in right] == [(2, 2, pytest.approx(1.0))] * 3
    red, blue = 3, 7
    swapped = [{**r, "category_id": {red: blue, blue: red}[r["category_id"]]} for r in perfect(data)]
    assert [(c.right, len(c.found), c.report.stats[0]) for c in compare(data, swapped)] == [(0, 2, 0.0)] * 3
    unsure = [{**r, "score": 0.4} for r in perfect(data)]
    assert [(c.right, len(c.found), c.report.stats[0]) for c in compare(data, unsure)] == [
        (0, 0, pytest.approx(1.0))
    ] * 3
    assert [c.report.stats[0] for c in compare(data, [])] == [0.0] * 3


def test_drawing(builder):
    """Found objects are blue on both sides, a missed one orange among the true ones, a wrong one among the detected."""
    data = builder.load()
    red, blue, *_ = perfect(data)
    (compared, *_) = compare(data, [red, {**blue, "category_id": red["category_id"]}])
    panels, captions = draw_comparison(Image.new("RGB", (60, 40), "white"), compared)
    scale = panels[0].width // 60
    colours = [{panel.getpixel((scale * x, scale * y)) for x, y in ((5, 4), (30, 8))} for panel in panels]
    assert colours == [{(255, 255, 255)}, {RIGHT, WRONG}, {RIGHT, WRONG}]
    assert [p.getpixel((scale * 15, scale * 9)) for p in panels] == [(255, 255, 255)] * 3  # only the outline is drawn
    assert captions[1:] == [
        "2 true masks\n1 found (blue), 1 missed (orange)",
        "2 detections\n1 right (blue), 1 wrong (orange)",
    ]
