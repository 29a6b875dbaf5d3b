"""Values of a COCO file that its schema refuses, each in one line with its place."""

import math

import pytest

from tasks.detection.coco import load_coco
from tasks.errors import DataError


def entry(kind, number=0, **changes):
    """A change of an entry of one of the lists."""
    return lambda content: content[kind][number].update(changes)


WRONG = {
    "an image id of nothing": (entry("images", id=None), "images whose id is not valid .*: number 0, None"),
    "an image id without text": (entry("images", id=""), "images whose id is not valid .*: number 0, ''"),
    "an image id of 1.5": (entry("images", id=1.5), "images whose id is not valid .*: number 0, 1.5"),
    "an image id of NaN": (entry("images", id=math.nan), "images whose id is not valid .*: number 0, nan"),
    "the same id as text": (entry("images", id="2"), "images with an id that another has: id 2"),
    "an image id of 1e30": (entry("images", id=10**30), "images whose id is not valid"),
    "a truth value as id": (entry("annotations", id=True), "annotations whose id is not valid .*number 0, True"),
    "an object as id": (entry("annotations", image_id={}), "annotations whose image_id is not valid .*id 1, {}"),
    "a category of text": (entry("categories", id="x"), "categories whose id is not valid"),
    "a name with an escape": (
        entry("categories", name="\x1b[31m"),
        "categories whose name is not valid .must not have control char",
    ),
    "a name of half a character": (entry("categories", name="\ud800"), "categories whose name is not valid"),
    "a name of nothing": (entry("categories", name=None), "categories whose name is not valid"),
    "a file of numbers": (entry("images", file_name=3), "images whose file_name is not valid"),
    "a file outside": (entry("images", file_name="../a.png"), "images whose file_name is not valid .*without '..'"),
    "an absolute file outside": (entry("images", file_name="/../a.png"), "images whose file_name is not valid"),
    "a file outside in Windows": (entry("images", file_name="..\\a.png"), "images whose file_name is not valid"),
    "a folder": (entry("images", file_name="/"), "images whose file_name is not valid"),
    "no file": (entry("images", file_name=""), "images whose file_name is not valid"),
    "a null character": (entry("images", file_name="a\0b"), "images whose file_name is not valid"),
    "a side of text": (entry("images", 1, width="60"), "width and height are not whole numbers above 0: b.jpg"),
    "a side of 2**40": (entry("images", 1, width=2**40), "width and height are not whole numbers above 0: b.jpg"),
    "too many pixels": (entry("images", 1, width=2**30, height=9), "images of more than 2..31 - 1 pixels: b.jpg"),
    "a box of text": (entry("annotations", bbox=["5", 4, 20, 10]), "bbox is not four finite numbers: id 1"),
    "a box of NaN": (entry("annotations", bbox=[math.nan, 4, 20, 10]), "bbox is not four finite numbers: id 1"),
    "a box of 1e300": (entry("annotations", bbox=[5, 4, 1e300, 10]), "bbox is not four finite numbers: id 1"),
    "a box of three": (entry("annotations", bbox=[5, 4, 20]), "bbox is not four finite numbers: id 1"),
    "no box": (entry("annotations", bbox=None), "bbox is not four finite numbers: id 1"),
    "an area of text": (entry("annotations", area="9"), "annotations whose area is not valid .*id 1, '9'"),
    "an area of infinity": (entry("annotations", area=math.inf), "annotations whose area is not valid"),
    "a negative area": (entry("annotations", area=-1), "annotations whose area is not valid"),
    "a crowd of two": (entry("annotations", iscrowd=2), "annotations whose iscrowd is not valid .must be 0 or 1"),
    "a crowd of text": (entry("annotations", iscrowd="0"), "annotations whose iscrowd is not valid"),
    "a crowd of a list": (entry("annotations", iscrowd=[]), "annotations whose iscrowd is not valid"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values(builder, case):
    change, message = WRONG[case]
    change(builder.content)
    with pytest.raises(DataError, match=message) as info:
        builder.load()
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    "rle",
    [
        {"size": 40, "counts": [2400]},
        {"size": None, "counts": [2400]},
        {"size": [40, 60], "counts": None},
        {"size": [40, 60], "counts": ["2400"]},
        {"size": [40, 60], "counts": [[2400]]},
        {"size": [40, 60], "counts": [1.5, 2398.5]},
        {"size": [40, 60], "counts": {"a": 2400}},
        {"size": [40, 60], "counts": "o" * 10**6},
    ],
)
def test_wrong_run_lengths(builder, rle):
    builder.content["annotations"][0]["segmentation"] = rle
    with pytest.raises(DataError, match="1 annotations whose RLE .*: id 1"):
        builder.load()


def test_many_wrong_values_are_counted(builder):
    for annotation in builder.content["annotations"]:
        annotation["area"] = "9"
    with pytest.raises(
        DataError, match="6 annotations whose area is not valid .*: id 1, '9', id 2, '9', id 3, '9', ..."
    ):
        builder.load()


def test_values_in_use_are_taken(builder):
    builder.content["annotations"][0].update(iscrowd=False, area=0, bbox=[-3.5, 4, 20, 10], id=0, score=None)
    builder.content["images"][0]["flickr_url"] = None
    assert len(builder.load().images) == 3


def test_arrays_inside_of_arrays(builder):
    path = builder.root / "instances.json"
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="instances.json: not a COCO 'instances' file: .*too deep"):
        load_coco(path, builder.root, masks=True, check="none")
