"""Data of the detection task: training sets, augmentation, sampling."""

import pytest
import torch
from PIL import Image

from tasks.detection.coco import repeat_factors
from tasks.detection.config import Augment, DataSection, LargeScaleJitter, ShortSide
from tasks.detection.data import TrainSet, aspect_groups, load_sets, make_target
from tasks.errors import DataError
from tests.helpers.coco import BLUE, RED, encoded


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
