"""Evaluation against pycocotools."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import zoo
from tasks.detection.coco import load_coco
from tasks.detection.detector import create_detector
from tasks.detection.evaluate import categories_of, coco_metrics, detect, evaluate_weights, results_of, to_results
from tasks.devices import make_accelerator
from tasks.errors import DataError
from tests.helpers.commands import on_two_processes
from tests.helpers.detection import KINDS, found_of, perfect, read_results, real
from tests.helpers.paths import shared


def noisy(data, seed=0):
    """Ground truth with some objects missing, some doubled, some moved, under random scores."""
    random = np.random.RandomState(seed)
    results = []
    for result in perfect(data):
        for _ in range(random.randint(0, 3)):
            size = result["segmentation"]["size"]
            mask = np.roll(rle.decode(result["segmentation"]), tuple(random.randint(-4, 5, 2)), (0, 1))
            encoded = rle.encode(np.asfortranarray(mask))
            moved = [float(v) for v in np.asarray(result["bbox"]) * random.uniform(0.9, 1.1, 4)]
            segmentation = {"size": size, "counts": encoded["counts"].decode()}
            results.append({**result, "bbox": moved, "score": float(random.rand()), "segmentation": segmentation})
    return results


@pytest.mark.parametrize("name", ["coco", "nuclei"])
@pytest.mark.parametrize("fast", [False, True])
def test_ground_truth_fed_back_has_ap_one(name, fast):
    reports = coco_metrics(real(name), perfect(real(name)), KINDS, fast=fast)
    for kind in KINDS:
        metrics = reports[kind].metrics()
        prefix = "box" if kind == "bbox" else "mask"
        for figure in ("ap", "ap50", "ap75", "ar100"):
            assert metrics[f"{prefix}_{figure}"] == pytest.approx(1, abs=1e-9)
        assert {round(v, 9) for v in reports[kind].per_category.values()} <= {1.0, -1.0}


def alone(data, path, kind):
    """pycocotools as its documentation uses it: two files."""
    truth = path.with_name("truth.json")
    truth.write_text(json.dumps(data.ground_truth()))
    coco = COCO(str(truth))
    evaluation = COCOeval(coco, coco.loadRes(str(path)), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats.tolist()


@pytest.mark.parametrize("fast", [False, True])
def test_figures_are_pycocotools(fast, tmp_path, capsys):
    """On imperfect detections with crowds about; the fast evaluator agrees to 1e-6, the 12 lines are its own."""
    data = real("coco")
    results = noisy(data)
    reports = coco_metrics(data, results, KINDS, fast=fast)
    for kind in KINDS:
        (tmp_path / f"{kind}.json").write_text(json.dumps(results_of(results, kind)))
        capsys.readouterr()
        expected = alone(data, tmp_path / f"{kind}.json", kind)
        assert 0.1 < expected[0] < 0.9
        assert reports[kind].stats == pytest.approx(expected, abs=1e-6)
        assert reports[kind].text.splitlines() == capsys.readouterr().out.splitlines()[-12:]
        values = [v for v in reports[kind].per_category.values() if v >= 0]
        assert np.mean(values) == pytest.approx(expected[0], abs=1e-6)


def scattered(ids, seed=0):
    """A set of rectangles of all sizes, crowds and 130 objects in an image, with detections: ``ids`` makes the ids."""
    random = np.random.RandomState(seed)
    content = {"images": [], "annotations": [], "categories": [{"id": i, "name": f"c{i}"} for i in (90, 3, 17)]}
    results = []
    for image, count in enumerate((0, 130, 12, 30), 1):
        content["images"].append({"id": ids(image), "file_name": f"{image}.png", "width": 640, "height": 480})
        for _ in range(count):
            w, h = random.choice([6, 20, 31, 32, 33, 95, 96, 97, 150], 2).tolist()
            x, y = random.randint(0, 640 - w), random.randint(0, 480 - h)
            number = len(content["annotations"])
            entry = {"image_id": ids(image), "category_id": int(random.choice([90, 3, 17])), "bbox": [x, y, w, h]}
            crowd = int(random.rand() < 0.1)
            content["annotations"].append(
                {**entry, "id": ids(number), "area": w * h, "iscrowd": crowd, "segmentation": rectangle(x, y, w, h)}
            )
            for _ in range(random.choice([0, 1, 1, 2])):
                x2, y2 = min(x + random.randint(0, 3), 640 - w), min(y + random.randint(0, 3), 480 - h)
                score, mask = round(random.rand(), 2), rectangle(x2, y2, w, h)
                results.append({**entry, "bbox": [x2, y2, w, h], "score": score, "segmentation": mask})
    return content, results


def rectangle(x, y, w, h):
    """Its pixels as RLE."""
    mask = np.zeros((480, 640), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    return {"size": [480, 640], "counts": rle.encode(mask)["counts"].decode()}


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    "ids", [lambda i: i, lambda i: i - 9, lambda i: f"a{i}", lambda i: str(i), lambda i: 2**50 + i]
)
def test_figures_of_odd_sets_are_pycocotools(ids, fast, tmp_path):
    """On a copy of the set with ids from 1 in the same order; with every limit."""
    for name, content in zip(("odd", "found"), scattered(ids), strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    data = load_coco(tmp_path / "odd.json", tmp_path, masks=True, check="none")
    results, kinds = read_results(tmp_path / "found.json", data)
    plain, found = scattered(lambda i: i)
    for number, annotation in enumerate(plain["annotations"], 1):  # pycocotools takes the id 0 for "not found"
        annotation["id"] = number
    for limit in (7, 100, 150):
        reports = coco_metrics(data, results, kinds, fast=fast, limit=limit)
        for kind in KINDS:
            truth = COCO()
            truth.dataset = plain
            truth.createIndex()
            detections = truth.loadRes(results_of(found, kind))
            evaluation = COCOeval(truth, detections, kind)
            evaluation.params.maxDets = [1, min(10, limit), limit]
            evaluation.evaluate()
            evaluation.accumulate()
            precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
            parts = [precision[..., 0, 2], precision[0, ..., 0, 2], precision[5, ..., 0, 2]]
            parts += [precision[..., area, 2] for area in (1, 2, 3)]
            parts += [recall[..., 0, number] for number in range(3)] + [recall[..., area, 2] for area in (1, 2, 3)]
            expected = [part[part > -1].mean() for part in parts]
            assert reports[kind].stats == pytest.approx(expected, abs=1e-6 if fast else 0)
            assert 0.1 < expected[0] < 0.9


def test_nothing_found():
    for fast in (False, True):
        reports = coco_metrics(real("sample"), [], KINDS, fast=fast)
        assert reports["segm"].metrics()["mask_ap"] == 0
        assert reports["bbox"].metrics()["box_ar100"] == 0


def test_results_of_a_detector():
    """Boxes as x, y, width, height; COCO's category ids; masks at a probability of one half."""
    masks = torch.zeros(2, 1, 20, 30)
    masks[0, 0, 5:10, 8:20] = 0.51
    masks[1, 0, 0:3, 0:3] = 0.5
    output = {
        "boxes": torch.tensor([[8.0, 5.0, 20.0, 10.5], [0.0, 0.0, 3.0, 3.0]]),
        "labels": torch.tensor([2, 1]),
        "scores": torch.tensor([0.75, 0.5]),
        "masks": masks,
    }
    first, second = to_results(found_of(output), 42, (3, 7))
    assert (first["image_id"], first["category_id"], first["score"]) == (42, 7, 0.75)
    assert first["bbox"] == [8, 5, 12, 5.5]
    assert np.array_equal(rle.decode(first["segmentation"]), masks[0, 0].numpy() > 0.5)
    assert rle.area(second["segmentation"]) == 0
    empty = {key: value[:0] for key, value in output.items()}
    assert to_results(found_of(empty), 42, (3, 7)) == []
    (only,) = to_results(found_of(output), 42, (3, None))
    assert (only["category_id"], only["score"]) == (3, 0.5)


def test_two_processes_evaluate_as_one(weights, tmp_path, capsys):
    """Their merged results are those of one process, and pycocotools alone says the same of the written file."""
    data = real("sample")
    model = create_detector("mask_rcnn_rescalenet18_fpn", str(weights))
    one = evaluate_weights(model, zoo.get_weights(str(weights)), data, out=tmp_path / "one")
    root = shared("data", "coco_permissive", "sample")
    arguments = [
        "eval",
        weights,
        root / "instances_val2017.json",
        "--images",
        root / "val2017",
        "--out",
        tmp_path / "two",
    ]
    said = on_two_processes(*arguments)
    for kind in KINDS:
        a, b = (json.loads((tmp_path / n / f"results_{kind}.json").read_text()) for n in ("one", "two"))
        assert len(a) > 100
        assert a == b
    assert said.count("maxDets=100 ]") == 2 * 10  # one process reports, boxes and masks
    for kind in KINDS:
        assert alone(data, tmp_path / "two" / f"results_{kind}.json", kind) == pytest.approx(one[kind].stats, abs=1e-12)


def test_results_have_the_ids_of_the_file(weights, tmp_path):
    """Other programs compare text with text; here it is a number."""
    root = shared("data", "coco_permissive", "sample")
    content = json.loads((root / "instances_val2017.json").read_text())
    content["images"] = content["images"][:2]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    for entry in [*content["images"], *content["categories"]]:
        entry["id"] = str(entry["id"])
    (tmp_path / "c.json").write_text(json.dumps(content))
    data = load_coco(tmp_path / "c.json", root / "val2017", masks=True, check="none")
    model = create_detector("mask_rcnn_rescalenet18_fpn", str(weights))
    evaluate_weights(model, zoo.get_weights(str(weights)), data, out=tmp_path)
    found = json.loads((tmp_path / "results_bbox.json").read_text())
    assert len(found) > 100
    assert {result["image_id"] for result in found} == {image["id"] for image in content["images"]}
    assert {result["category_id"] for result in found} <= {category["id"] for category in content["categories"]}
    assert isinstance(data.categories[0], int)
    assert len(read_results(tmp_path / "results_bbox.json", data)[0]) == len(found)


def test_categories_are_found_by_name(weights):
    """A set with fewer categories, in another order and with other ids: the rest of what is found does not count."""
    entry = zoo.get_weights(str(weights))
    model = create_detector("mask_rcnn_rescalenet18_fpn", str(weights))
    data = real("sample")
    keep = [name for name in ("train", "person", "cat") if name in data.names]
    ids = dict(zip(data.names, data.categories, strict=True))
    found = detect(model, data, make_accelerator())
    fewer = dataclasses.replace(data, names=tuple(keep), categories=(900, 17, 5))
    categories = categories_of(fewer, entry.classes, entry.name)
    assert len(categories) == len(entry.classes)
    assert len([c for c in categories if c is not None]) == len(keep)
    renamed = {ids[name]: id for name, id in zip(keep, (900, 17, 5), strict=True)}
    expected = [{**r, "category_id": renamed[r["category_id"]]} for r in found if r["category_id"] in renamed]
    assert detect(model, fewer, make_accelerator(), categories=categories) == expected
    with pytest.raises(DataError, match="category 'persn' is not one of .* .did you mean person"):
        evaluate_weights(model, entry, dataclasses.replace(data, names=("persn",), categories=(1,)))


def test_evaluation_restores_the_mode_and_takes_any_batch_size(weights):
    data = real("sample").subset(lambda image: image.id in (5001, 6818, 30213))
    model = create_detector("mask_rcnn_rescalenet18_fpn", str(weights)).train()
    accelerator = make_accelerator()
    one, three = (detect(model, data, accelerator, batch_size=n) for n in (1, 3))
    assert model.training
    assert [r["image_id"] for r in one] == [r["image_id"] for r in three]
    for a, b in zip(one, three, strict=True):
        assert a["bbox"] == pytest.approx(b["bbox"], abs=0.02)
