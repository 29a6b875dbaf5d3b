"""Data of the detection task: training sets, augmentation, sampling."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle
from torchvision import tv_tensors

from tasks.detection.coco import repeat_factors
from tasks.detection.config import Augment, DataSection, LargeScaleJitter, ShortSide
from tasks.detection.data import (
    TrainSet,
    aspect_groups,
    describe_objects,
    load_sets,
    make_target,
    train_transform,
)
from tasks.detection.evaluate import coco_metrics
from tasks.detection.masks import Placement, decode_mask
from tasks.errors import DataError
from tests.helpers.coco import BLUE, RED, encoded
from tests.helpers.detection import perfect


def test_images_without_objects(builder):
    builder.image(9, "empty.png")
    data = builder.load()
    assert data.report() == [f"{data.path}: 1 images without annotations: empty.png"]
    target = make_target(data, data.images[-1], masks=True)
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 40, 60)
    section = {"root": str(builder.root), "train_annotations": "instances.json", "train_images": "images"}
    section |= {"val_annotations": "instances.json", "val_images": "images"}
    assert len(load_sets(DataSection(**section), masks=True)[0]) == 3
    kept, val = load_sets(DataSection(**section, empty="keep"), masks=True)
    assert len(kept) == len(val) == 4
    image, target = TrainSet(kept, DataSection(**section), 0, masks=True)[0, 3]
    assert target["masks"].shape == (0, *image.shape[1:])


def test_holdout(builder):
    (builder.root / "held.txt").write_text("b.jpg\n")
    section = {"root": str(builder.root), "train_annotations": "instances.json", "train_images": "images"}
    section |= {"split": "holdout", "holdout": str(builder.root / "held.txt")}
    builder.load()
    train, val = load_sets(DataSection(**section), masks=True)
    assert [i.file_name for i in train.images] == ["a.png", "sub/c.png"]
    assert [i.file_name for i in val.images] == ["b.jpg"]
    (builder.root / "held.txt").write_text("b.jpg\nz.jpg\n")
    with pytest.raises(DataError, match="1 names are not in the training set, e.g. 'z.jpg'"):
        load_sets(DataSection(**section), masks=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": [5, 5, 0, 10]}, "annotations without area inside the image"),
        ({"bbox": [70, 5, 10, 10]}, "annotations without area inside the image"),
        ({"segmentation": [[1, 1, 2, 2]]}, "annotations whose polygons have no area"),
        ({"image_id": 99}, "annotations of images that are not listed"),
    ],
)
def test_defects_that_are_handled_and_counted(builder, change, reason):
    builder.content["annotations"][0] |= change
    data = builder.load()
    assert any(f"1 {reason}" in line and "id 1" in line for line in data.report())
    assert len(data.objects(data.images[0], masks=True)) == 1
    TrainSet(data, DataSection(root="."), 0, masks=True)[0, 0]


RESIZES = {
    "short_side": ShortSide(sizes=(60, 70), max_size=100),
    "lsj": LargeScaleJitter(size=64, scale=(0.3, 2.0)),
}


@pytest.mark.parametrize("resize", list(RESIZES))
def test_boxes_and_masks_follow_the_image(builder, resize):
    """In each augmented sample the red object's mask covers red pixels and its box is the mask's, within a pixel."""
    augment = Augment(resize=RESIZES[resize], flip=0.5, vertical_flip=0.5)
    data = TrainSet(builder.load(), DataSection(root=".", augment=augment), 0, masks=True)
    shapes, count = set(), 0
    for epoch in range(20):
        image, target = data[epoch, 0]
        shapes.add(tuple(image.shape))
        assert image.dtype == torch.uint8
        assert type(image) is type(target["boxes"]) is type(target["masks"]) is torch.Tensor
        for label, box, mask in zip(target["labels"], target["boxes"], target["masks"], strict=True):
            ys, xs = torch.nonzero(mask, as_tuple=True)
            tight = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
            assert float((box - tight).abs().max()) <= 1.01
            colour = torch.tensor(RED if label == 1 else BLUE)
            inside = image[:, mask.bool()].float().median(1).values
            assert float((inside - colour).abs().max()) < 40
            count += 1
    assert count > 20
    assert all(max(shape[1:]) <= 100 for shape in shapes)
    assert shapes == {(3, 64, 64)} if resize == "lsj" else len(shapes) == 2


def test_augmentation_depends_on_epoch_and_index_alone(builder):
    data = TrainSet(builder.load(), DataSection(root=".", augment=Augment(photometric=0.5)), 0, masks=True)
    first = data[1, 2]
    torch.rand(5)
    again = data[1, 2]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1]["masks"], again[1]["masks"])
    assert not all(torch.equal(first[0], data[epoch, 2][0]) for epoch in range(2, 6))


def test_repeat_factors(builder):
    """LVIS's formula: red is in 3 of 3 images, blue in 1; with a threshold of 0.75, blue's factor is sqrt(0.75 * 3)."""
    builder.content["annotations"] = [a for a in builder.content["annotations"] if a["category_id"] == 3]
    builder.annotate(2, 7, (1, 1, 5, 5))
    data = builder.load()
    assert repeat_factors(data.images, 0.75) == pytest.approx([1.0, 2.25**0.5, 1.0])
    assert repeat_factors(data.images, 0.0) == [1.0] * 3


def test_aspect_groups(builder):
    builder.image(9, "tall.png", encoded(Image.new("RGB", (30, 50))), (30, 50))
    assert aspect_groups(builder.load()) == [0, 0, 0, 1]


SECTION = {"train_annotations": "instances.json", "train_images": "images", "val_images": "images"}


def test_evaluation_classes_are_those_of_training_by_name(builder):
    """Other ids, another order, fewer classes, and one more that has no objects."""
    builder.load()
    content = json.loads(json.dumps(builder.content))
    content["categories"] = [{"id": 1, "name": "green"}, {"id": 2, "name": "blue"}]
    content["annotations"] = [{**a, "category_id": 2} for a in content["annotations"] if a["category_id"] == 7]
    (builder.root / "val.json").write_text(json.dumps(content))
    section = DataSection(root=str(builder.root), val_annotations="val.json", **SECTION)
    train, val = load_sets(section, masks=True)
    assert train.names == val.names == ("red", "blue")
    assert make_target(val, val.images[0], masks=True)["labels"].tolist() == [2]
    assert val.categories[1] == 2
    assert val.categories[0] not in (1, 2)  # the file has no red
    report = coco_metrics(val, perfect(val), ("bbox",))["bbox"]
    assert report.per_category == {"red": -1, "blue": pytest.approx(1)}
    assert describe_objects(train, val) == [
        "objects: 6 in train, 3 in val",
        "val has no objects of 1 classes that are in the other set, e.g. 'red'",
    ]
    content["annotations"][0]["category_id"] = 1
    (builder.root / "val.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="val.json: has annotations of 'green', which the training set does not list"):
        load_sets(section, masks=True)


def test_a_share_of_the_images_is_held_out(builder):
    for number in range(20):
        builder.image(10 + number, f"more{number}.png")
        builder.annotate(10 + number, 3, (5, 4, 20, 10))

    def split(**changes):
        builder.load()
        return load_sets(DataSection(root=str(builder.root), split="share", **SECTION, **changes), masks=True)

    train, val = split(val_share=0.3)
    assert (len(train), len(val)) == (16, 7)
    names = {image.file_name for image in val.images}
    assert not names & {image.file_name for image in train.images}
    assert {image.file_name for image in split(val_share=0.3, val_seed=1)[1].images} != names
    # the order of the file does not matter, and one more image replaces one at most
    builder.content["images"].reverse()
    assert {image.file_name for image in split(val_share=0.3)[1].images} == names
    builder.image(99, "new.png")
    builder.annotate(99, 3, (5, 4, 20, 10))
    assert len({image.file_name for image in split(val_share=0.3)[1].images} ^ names) <= 2
    builder.content["images"] = builder.content["images"][-1:]
    with pytest.raises(DataError, match="split=share needs two images or more, it has 1"):
        split()


# -- memory -----------------------------------------------------------------------------------------


def test_records_are_shared_and_equal(builder):
    """After a trip to another process, in parts and in another order."""
    data = builder.load()
    images = pickle.loads(pickle.dumps(data.images))
    assert list(images) == list(data.images)
    assert [image.id for image in images[1:]] == [2, 3]
    assert images[-1].annotations == data.images[2].annotations
    assert [image.file_name for image in images.take([2, 0])] == ["sub/c.png", "a.png"]
    assert images.take([2, 0]).sizes.tolist() == [[60, 40], [60, 40]]
    assert len(images.take([])) == 0
    with pytest.raises(IndexError):
        images[3]


MEMORY = """
import json, resource, sys
from pathlib import Path
from tasks.detection.coco import load_coco
from tasks.detection.config import DataSection
from tasks.detection.data import TrainSet
folder = Path(sys.argv[1])
data = TrainSet(load_coco(folder / "c.json", folder, masks=True, check="none"), DataSection(root="."), 0, masks=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image, target = data[0, 0]
print(json.dumps([target["masks"].nbytes, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)]))
"""


@pytest.mark.parametrize("form", ["polygons", pytest.param("run lengths", marks=pytest.mark.slow)])
def test_masks_of_a_sample_take_the_memory_of_the_result(tmp_path, form):
    """500 objects in a picture of 12 megapixels: as many masks of the picture would take 6 GB."""
    Image.new("RGB", (4000, 3000), "gray").save(tmp_path / "a.jpg")
    annotations = []
    for number in range(500):
        x, y = 150 * (number % 25), 140 * (number // 25)
        segmentation = [[x, y, x + 60, y, x + 60, y + 60, x, y + 60]]
        if form == "run lengths":
            segmentation = rle.frPyObjects(segmentation, 3000, 4000)[0]
            segmentation["counts"] = segmentation["counts"].decode()
        entry = {"id": number, "image_id": 1, "category_id": 1, "bbox": [x, y, 60, 60], "segmentation": segmentation}
        annotations.append(entry)
    content = {"images": [{"id": 1, "file_name": "a.jpg", "width": 4000, "height": 3000}]}
    content |= {"annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "c.json").write_text(json.dumps(content))
    done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=True)
    result, used = json.loads(done.stdout)
    assert result > 2e8
    assert used < 1.5 * result + 2e8  # the picture, decoded and resized, takes 150 MB


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(["short_side", "lsj"]))
def test_masks_are_placed_as_torchvision_places_them(seed, polygon, resize):
    """Those that torchvision's own transforms make of the whole mask, but for pixels at the edge."""
    random = np.random.RandomState(seed)
    height, width = random.randint(30, 200, 2).tolist()
    x, y = random.uniform(0, width / 2), random.uniform(0, height / 2)
    w, h = random.uniform(8, width / 2), random.uniform(8, height / 2)
    segmentation = [[x, y, x + w, y + h / 3, x + w / 2, y + h]]
    if not polygon:
        segmentation = rle.frPyObjects(segmentation, height, width)[0]
    annotation = {"segmentation": segmentation}
    section = DataSection(root=".", augment=Augment(resize=RESIZES[resize], flip=0.5, vertical_flip=0.5))
    points = torch.tensor([(0, 0), (width, 0), (0, height)], dtype=torch.float64)
    target = {
        "points": tv_tensors.KeyPoints(points, canvas_size=(height, width)),
        "masks": tv_tensors.Mask(decode_mask(annotation, height, width)[None]),
    }
    torch.manual_seed(seed)
    image, moved = train_transform(section)(tv_tensors.Image(torch.zeros(3, height, width)), target)
    placed = Placement.of(moved["points"].numpy(), width, height)
    mine = placed.mask(annotation, height, width, tuple(image.shape[-2:]))
    theirs = moved["masks"][0].numpy()
    scale = max(map(abs, placed.scale))
    edge = (
        np.abs(np.diff(np.pad(theirs.astype(int), 1), axis=0)).sum()
        + np.abs(np.diff(np.pad(theirs.astype(int), 1), axis=1)).sum()
    )
    assert (mine != theirs).sum() <= (0.75 + scale) * edge + 3
