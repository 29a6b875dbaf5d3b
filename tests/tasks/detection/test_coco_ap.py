"""Ground truth that is fed back as detections has AP 1, whatever the file looks like."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from tasks.detection.coco import load_coco
from tasks.detection.data import make_target
from tasks.detection.evaluate import coco_metrics, kinds_of
from tests.helpers.detection import KINDS

IDS = {
    "from 0": lambda random, n: list(range(n)),
    "with gaps": lambda random, n: random.permutation(10 * n)[:n].tolist(),
    "text": lambda random, n: [f"{i:012}" for i in range(n)],
    "numbers as text": lambda random, n: [str(i) for i in range(n)],
    "floats": lambda random, n: [float(i) for i in range(n)],
    "both": lambda random, n: [i if i % 2 else f"x{i}" for i in range(n)],
}


def segment(random, form, height, width):
    """The segmentation of an object of any shape and place in an image."""
    centre, radius = random.uniform(0, 1, 2) * (width, height), random.uniform(0.7, max(width, height) / 2, 2)
    angles = np.sort(random.uniform(0, 2 * np.pi, random.randint(3, 9)))
    corners = centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    parts = [corners.ravel().tolist()]
    if random.rand() < 0.3:
        parts.append((corners / 2).ravel().tolist())
    if random.rand() < 0.2:  # what annotation tools leave behind
        parts += [[], [1.0, 2.0], [3, 3, 4, 4]]
    if form == "polygons":
        return parts
    mask = rle.decode(rle.merge(rle.frPyObjects([part for part in parts if len(part) >= 6], height, width)))
    if form == "compressed":
        return {"size": [height, width], "counts": rle.encode(np.asfortranarray(mask))["counts"].decode()}
    flat = mask.flatten(order="F")
    runs = [len(run) for run in np.split(flat, np.flatnonzero(np.diff(flat)) + 1)]
    return {"size": [height, width], "counts": runs if not flat[0] else [0, *runs]}


def box_of(segmentation, height, width):
    """The box that a tool writes: of the polygons' points, or of the pixels."""
    if isinstance(segmentation, list):
        corners = np.concatenate([np.reshape(part, (-1, 2)) for part in segmentation if len(part) >= 6])
        low, high = corners.min(0), corners.max(0)
        return [*low.tolist(), *(high - low).tolist()]
    encoded = segmentation
    if isinstance(segmentation["counts"], list):
        encoded = rle.frPyObjects(segmentation, height, width)
    return rle.toBbox(encoded).tolist()


def coco_file(random, ids, *, masks):
    """A file with images of any size, some without objects or with crowds only."""
    count, categories = random.randint(1, 5), random.randint(1, 4)
    image_ids = IDS[ids](random, count)
    content = {"images": [], "annotations": [], "categories": []}
    numbers = random.permutation(20)[:categories].tolist()
    content["categories"] = [{"id": number, "name": f"class {number}"} for number in numbers]
    for number, id in enumerate(image_ids):
        height, width = random.randint(4, 300, 2).tolist()
        content["images"].append({"id": id, "file_name": f"{number}.png", "width": width, "height": height})
        only_crowds = random.rand() < 0.2
        for _ in range(random.randint(0, 8)):
            crowd = only_crowds or random.rand() < 0.2
            form = str(random.choice(["polygons", "compressed", "uncompressed"]))
            found = segment(random, form, height, width)
            entry = {"image_id": id, "category_id": int(random.choice(numbers)), "bbox": box_of(found, height, width)}
            if masks or random.rand() < 0.5:
                entry["segmentation"] = found
            if crowd or random.rand() < 0.5:
                entry["iscrowd"] = int(crowd)
            if random.rand() < 0.5:
                entry["area"] = float(random.choice([0, 1, entry["bbox"][2] * entry["bbox"][3], 1e5]))
            content["annotations"].append(entry)
    new = IDS[ids](random, len(content["annotations"]))
    content["annotations"] = [{**a, "id": id} for a, id in zip(content["annotations"], new, strict=True)]
    return content


def fed_back(data, *, masks):
    """The targets of training as detections, in random order of their scores."""
    results = []
    for image in data.images:
        target = make_target(data, image, masks=masks)
        for i, (label, (x1, y1, x2, y2)) in enumerate(
            zip(target["labels"].tolist(), target["boxes"].double().tolist(), strict=True)
        ):
            result = {"image_id": image.id, "category_id": data.categories[label - 1], "score": 1 / (i + 1)}
            result["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            if masks:
                encoded = rle.encode(np.asfortranarray(target["masks"][i].numpy()))
                result["segmentation"] = {"size": encoded["size"], "counts": encoded["counts"].decode()}
            results.append(result)
    return results


def check_file(folder, seed, ids, *, masks, fast):
    random = np.random.RandomState(seed)
    (folder / "c.json").write_text(json.dumps(coco_file(random, ids, masks=masks)))
    data = load_coco(folder / "c.json", folder, masks=masks, check="none")
    results = fed_back(data, masks=masks)
    for kind, report in coco_metrics(data, results, kinds_of(masks=masks), fast=fast).items():
        assert kind in KINDS
        counts = data.counts()
        expected = 1 if any(counts.values()) else -1
        for name, value in zip(("ap", "ap50", "ap75", "ar100"), np.asarray(report.stats)[[0, 1, 2, 8]], strict=True):
            assert value == pytest.approx(expected), (name, kind)
        # by size: where two objects overlap, the evaluator may give one the detection of the other, of another size
        areas = [a["area"] for a in data.ground_truth()["annotations"] if not a["iscrowd"]]
        for (low, high), value in zip(((0, 32**2), (32**2, 96**2), (96**2, 1e10)), report.stats[3:6], strict=True):
            assert (value > 0.5) if any(low <= area <= high for area in areas) else (value == -1)
        assert report.per_category == {name: pytest.approx(1 if count else -1) for name, count in counts.items()}


@pytest.mark.parametrize("ids", IDS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_ground_truth_fed_back_has_ap_one(tmp_path_factory, ids, seed, masks, fast):
    check_file(tmp_path_factory.getbasetemp(), seed, ids, masks=masks, fast=fast)


@pytest.mark.slow
@pytest.mark.parametrize("ids", IDS)
@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_ground_truth_of_many_files_fed_back_has_ap_one(tmp_path_factory, ids, seed, masks, fast):
    check_file(tmp_path_factory.getbasetemp(), seed, ids, masks=masks, fast=fast)


def test_crowds_alone_and_nothing_at_all(builder):
    """No object to find: no figure, and none is wrong; detections in crowds do not count as wrong."""
    for annotation in builder.content["annotations"]:
        annotation["iscrowd"] = 1
    for _ in range(2):
        data = builder.load()
        assert coco_metrics(data, [], KINDS)["segm"].stats == [-1] * 12
        builder.content["annotations"] = []
