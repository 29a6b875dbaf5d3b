"""COCO's results format: what is written is what eval writes, what is read is checked."""

import gzip
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle

from tasks.detection.evaluate import beyond_limit, coco_metrics, results_of
from tasks.detection.results import ImageIds
from tasks.errors import DataError
from tests.helpers.commands import call
from tests.helpers.detection import perfect, read_results
from tests.helpers.paths import shared


def written(path, content):
    path.write_text(json.dumps(content))
    return path


# -- reading ----------------------------------------------------------------------------------------


def test_results_of_a_file_are_scored_as_those_of_a_detector(builder, tmp_path):
    """Boxes and masks apart or together, and masks as detectron2's and uncompressed RLE."""
    data = builder.load()
    results = [{**r, "score": 0.9 - 0.1 * i} for i, r in enumerate(perfect(data))][:-1]
    both = coco_metrics(data, results, ("bbox", "segm"))
    loose = [
        {**r, "segmentation": {"size": r["segmentation"]["size"], "counts": runs(rle.decode(r["segmentation"]))}}
        for r in results
    ]
    for content, kinds in (
        (results, ("bbox", "segm")),
        (results_of(results, "bbox"), ("bbox",)),
        (results_of(results, "segm"), ("segm",)),
        ([{**r, "bbox": []} for r in results], ("segm",)),
        (loose, ("bbox", "segm")),
        ([{**r, "id": 7, "iscrowd": 0} for r in results], ("bbox", "segm")),
    ):
        found, of = read_results(written(tmp_path / "r.json", content), data)
        assert of == kinds
        reports = coco_metrics(data, found, of)
        assert [reports[kind].stats for kind in kinds] == [both[kind].stats for kind in kinds]


def runs(mask):
    """Run lengths of a mask, column by column."""
    flat = np.concatenate([[0], mask.flatten(order="F"), [2]])
    ends = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], ends])).tolist()
    return counts if mask[0, 0] == 0 else [0, *counts]


BOX = {"image_id": 1, "category_id": 3, "score": 0.5, "bbox": [1, 2, 3, 4]}
MASK = {"image_id": 1, "category_id": 3, "score": 0.5, "segmentation": {"size": [40, 60], "counts": [2400]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, "results are not those of COCO's format: the list: .*list"),
        ([{**BOX, "score": None}], r"0\.score"),
        ([BOX, {**BOX, "score": "0.5"}], r"1\.score"),
        ([{k: v for k, v in BOX.items() if k != "image_id"}], r"0\.image_id: is missing"),
        ([{**BOX, "image_id": [1]}], r"0\.image_id"),
        ([{**BOX, "bbox": [1, 2, 3]}], r"0\.bbox"),
        ([{**BOX, "bbox": [1, 2, 3, 1e300]}], r"0\.bbox"),
        ([BOX, MASK], "1 of 2 results have 'bbox'; all must have it, or none"),
        ([{k: v for k, v in BOX.items() if k != "bbox"}], "neither 'bbox' nor 'segmentation'"),
        ([{**MASK, "segmentation": [[0, 0, 5, 5, 5, 0]]}], r"0\.segmentation"),
        ([{**MASK, "segmentation": {"size": [60, 40], "counts": [2400]}}], "a mask of 60 x 40, the image has 40 x 60"),
        ([{**MASK, "segmentation": {"size": [40, 60], "counts": [2399]}}], "result 0: the RLE counts do not fill"),
        ([{**MASK, "segmentation": {"size": [40, 60], "counts": "~~"}}], "result 0: the RLE counts do not fill"),
        ([{**BOX, "image_id": 99}], "no result is of the images and categories of"),
    ],
)
def test_wrong_results_are_refused(content, message, builder, tmp_path):
    with pytest.raises(DataError, match=message):
        read_results(written(tmp_path / "r.json", content), builder.load())


def test_results_beside_the_set_are_counted(builder, tmp_path, capsys):
    found, kinds = read_results(
        written(tmp_path / "r.json", [BOX, {**BOX, "image_id": 99}, {**BOX, "category_id": 99}]), builder.load()
    )
    assert (len(found), kinds) == (1, ("bbox",))
    err = capsys.readouterr().err
    assert "1 of 3 results are of images that the set lacks, left out" in err
    assert "1 of 3 results are of categories that the set lacks, left out" in err
    for broken in ("[{", "NaN", "[" * 1000):
        (tmp_path / "b.json").write_text(broken)
        with pytest.raises(DataError, match=r"b\.json: "):
            read_results(tmp_path / "b.json", builder.load())


def test_ids_of_text_are_those_of_the_set(builder, tmp_path):
    """The loader takes "3" for 3; files of results have the ids as their COCO file writes them."""
    for image in builder.content["images"]:
        image["id"] = str(image["id"])
    for annotation in builder.content["annotations"]:
        annotation |= {"image_id": str(annotation["image_id"]), "category_id": str(annotation["category_id"])}
    for category in builder.content["categories"]:
        category["id"] = str(category["id"])
    data = builder.load()
    content = [{**r, "image_id": str(r["image_id"]), "category_id": str(r["category_id"])} for r in perfect(data)]
    found, kinds = read_results(written(tmp_path / "r.json", content), data)
    assert len(found) == len(content)
    assert coco_metrics(data, found, kinds)["segm"].stats[0] == pytest.approx(1)


def test_nothing_found_is_a_result(builder, tmp_path):
    data = builder.load()
    found, kinds = read_results(written(tmp_path / "r.json", []), data)
    assert coco_metrics(data, found, kinds)["bbox"].stats[0] == 0


# -- the limit --------------------------------------------------------------------------------------


def test_the_limit_of_the_metrics_is_stated_and_can_be_raised(builder, tmp_path, capsys, monkeypatch):
    builder.content["annotations"] = []
    for i in range(150):
        builder.annotate(1, 3, (i % 15 * 4, i // 15 * 4, 3, 3))
    data = builder.load()
    results = written(tmp_path / "r.json", perfect(data))
    figures = {}
    for limit in (5, 100, 150):
        code, out, err = call(
            capsys,
            monkeypatch,
            "score",
            results,
            builder.root / "instances.json",
            "--max-dets",
            limit,
            "--format",
            "json",
        )
        assert code == 0
        figures[limit] = json.loads(out)["metrics"]
        assert ("1 of 3 images have more than" in err) == (limit < 150)
    assert "(up to 150)" in beyond_limit(data)
    assert figures[150]["box_ap"] == figures[150]["mask_ap"] == figures[150]["box_ar150"] == pytest.approx(1)
    assert figures[100]["box_ar100"] == pytest.approx(100 / 150)
    assert figures[5]["box_ar5"] == pytest.approx(5 / 150)
    assert figures[100]["box_ap"] < 0.7
    assert "box_ar10" not in figures[5]  # no recall of ten detections where five are counted


# -- writing ----------------------------------------------------------------------------------------


def test_ids_are_found_by_the_end_of_the_path(tmp_path):
    images = [
        {"id": 0, "file_name": "a.jpg"},
        {"id": "text", "file_name": "val/b.jpg"},
        {"id": 7, "file_name": "train/b.jpg"},
        {"id": 8, "file_name": "c.jpg"},
        {"id": 9, "file_name": "c.jpg"},
    ]
    ids = ImageIds(written(tmp_path / "c.json", {"images": images, "categories": [{"id": 5, "name": "cat"}]}))
    expected = {"x/a.jpg": 0, "/d/val/b.jpg": "text", "train/b.jpg": 7, "b.jpg": None, "c.jpg": None, "d.jpg": None}
    assert {name: ids.of(Path(name)) for name in expected} == expected
    assert ids.categories == {"cat": 5}
    with pytest.raises(DataError, match="has none of the pictures by its file_name"):
        ids.require_some([Path("e.jpg")], ["cat"])
    with pytest.raises(DataError, match="has none of the classes"):
        ids.require_some([Path("a.jpg")], ["dog"])
    with pytest.raises(DataError, match="images are not those of COCO's format"):
        ImageIds(written(tmp_path / "d.json", {"categories": []}))


def test_ids_of_a_file_as_tools_write_them(tmp_path):
    """Numbers as floats and text, LVIS's addresses, names of Windows and of a Mac; a class has its first id."""
    images = [
        {"id": 3.0, "coco_url": "http://images.cocodataset.org/val2017/a.jpg"},
        {"id": "12", "file_name": ".\\sub\\b.jpg"},
        {"id": 4, "file_name": unicodedata.normalize("NFD", "später.jpg")},
    ]
    categories = [{"id": 9, "name": "cat"}, {"id": "2", "name": "cat"}, {"id": 5, "name": "dog"}]
    content = json.dumps({"images": images, "categories": categories}).encode("utf-16")
    (tmp_path / "c.json").write_bytes(gzip.compress(content))
    ids = ImageIds(tmp_path / "c.json")
    assert ids.of(Path("/data/val2017/a.jpg")) == 3.0
    assert ids.of(Path("/data/sub/b.jpg")) == "12"
    assert ids.of(Path("/data") / unicodedata.normalize("NFC", "später.jpg")) == 4
    assert ids.categories == {"cat": "2", "dog": 5}


def test_predict_writes_the_results_of_eval(capsys, monkeypatch, weights, tmp_path):
    root = shared("data", "coco_permissive", "sample")
    truth = root / "instances_val2017.json"
    evaluated = call(capsys, monkeypatch, "eval", weights, truth, "--images", root / "val2017", "--out", tmp_path / "e")
    assert evaluated[0] == 0
    arguments = ("predict", weights, root / "val2017", "--threshold", "0", "--coco", truth, "--out", tmp_path / "p")
    code, _, err = call(capsys, monkeypatch, *arguments)
    assert code == 0
    assert "have 100 objects, the most that are reported of a picture" in err
    expected = json.loads((tmp_path / "e/metrics.json").read_text())["metrics"]
    for kind in ("bbox", "segm"):
        both = [json.loads((tmp_path / f"{folder}/results_{kind}.json").read_text()) for folder in "ep"]
        assert len(both[0]) > 100
        assert as_set(both[0]) == as_set(both[1])
        arguments = ("score", tmp_path / f"p/results_{kind}.json", truth, "--format", "json", "--out", tmp_path / kind)
        code, out, _ = call(capsys, monkeypatch, *arguments)
        assert code == 0
        found = json.loads(out)["metrics"]
        assert {name: found[name] for name in found if name in expected and name != "images"} == {
            name: value for name, value in expected.items() if name.startswith("box" if kind == "bbox" else "mask")
        }
        assert json.loads((tmp_path / kind / "metrics.json").read_text())["per_category"].keys() == {kind}


def as_set(results):
    return {(r["image_id"], r["category_id"], json.dumps(r.get("bbox", r.get("segmentation")))) for r in results}
