"""Detection on the command line."""

import json
import re
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import zoo
from tests.helpers.classification import picture
from tests.helpers.commands import call
from tests.helpers.detection import KINDS
from tests.helpers.paths import ROOT, shared


def test_eval_and_predict_commands(capsys, monkeypatch, weights, tmp_path):
    root = shared("data", "coco_permissive", "sample")
    arguments = ("eval", weights, root / "instances_val2017.json", "--images", root / "val2017")
    code, out, err = call(capsys, monkeypatch, *arguments, "--out", tmp_path / "out", "--fast")
    assert code == 0
    lines = out.splitlines()
    for kind in KINDS:  # a line for each of pycocotools' twelve metrics
        assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]" in lines[lines.index(kind) + 1]
    assert "\\n" not in out
    assert "category" in out
    assert "person" in out
    assert "1 images without annotations" in err
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert set(metrics["per_category"]) == set(KINDS)
    code, out, _ = call(
        capsys, monkeypatch, "predict", weights, root / "val2017", "--out", tmp_path / "p", "--threshold", "0.9"
    )
    assert code == 0
    assert len(out.splitlines()) == 9
    code, _, err = call(capsys, monkeypatch, "eval", weights, root / "instances_val2017.json")
    assert code == 1
    assert "needs --images" in err


def test_an_evaluation_leaves_out_what_it_cannot_read(capsys, monkeypatch, weights, tmp_path):
    """A picture with a good header whose pixels are cut off: its metrics are those of the set without it."""
    annotations, images = [], []
    for number in range(3):
        picture(tmp_path / "images" / f"{number}.jpg", size=(80, 60), seed=number)
        images.append({"id": number + 1, "file_name": f"{number}.jpg", "width": 80, "height": 60})
        outline = [[5, 5, 25, 5, 25, 20, 5, 20]]
        box = {"bbox": [5, 5, 20, 15], "area": 300, "segmentation": outline, "iscrowd": 0}
        annotations.append({"id": number + 1, "image_id": number + 1, "category_id": 1, **box})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (tmp_path / "all.json").write_text(json.dumps(content))
    (tmp_path / "two.json").write_text(json.dumps({**content, "images": images[:2], "annotations": annotations[:2]}))
    path = tmp_path / "images/2.jpg"
    path.write_bytes(path.read_bytes()[:-1500])
    found = {}
    for name in ("all", "two"):
        arguments = ("eval", weights, tmp_path / f"{name}.json", "--images", tmp_path / "images", "--format", "json")
        code, out, err = call(capsys, monkeypatch, *arguments, "--out", tmp_path / name)
        assert code == 0, err
        found[name] = json.loads(out)["metrics"]
        if name == "all":
            assert "2.jpg: cannot be decoded as an image" in err
            assert "1 of 3 images could not be read" in err
    assert found["all"] == {**found["two"], "failed": 1}
    assert list(json.loads((tmp_path / "all/metrics.json").read_text())["failed"]) == ["2.jpg"]


def test_train_command_names_what_is_wrong(capsys, monkeypatch, sample_config, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(sample_config()))
    for override, message in (
        ("data.train_images=/none", "error: /none: no such folder, and no zip file none.zip beside it"),
        ("data.flip=1", "unknown key 'data.flip'"),
        ("data.augment.resize.name=lsg", "resize"),
        ("model.name=mask_rcnn_fpn", "unknown detector 'mask_rcnn_fpn'"),
        ("model.options={fpn_channel: 3}", "no option 'fpn_channel' (did you mean fpn_channels"),
    ):
        code, _, err = call(capsys, monkeypatch, "train", path, override)
        assert code == 1
        assert message in err, err
        assert "Traceback" not in err


def test_info_and_list(capsys, monkeypatch, weights):
    code, out, _ = call(capsys, monkeypatch, "info", weights)
    assert code == 0
    assert json.loads(out)["transform"]["min_size"] == 128
    code, out, _ = call(capsys, monkeypatch, "info", "mask_rcnn_rescalenet50_fpn")
    assert code == 0
    content = json.loads(out)
    assert content["strides"] == [4, 8, 16, 32, 64]
    assert 40e6 < content["parameters"] < 46e6
    code, out, _ = call(capsys, monkeypatch, "list", "mask_*", "--pretrained")
    assert code == 0
    assert out.splitlines() == ["mask_rcnn_rescalenet18_fpn  [nuclei]"]
    code, out, _ = call(capsys, monkeypatch, "list", "mask_*")
    assert len(out.splitlines()) == len(zoo.list_models(input_kind="images"))


# -- what predict reports ---------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    for number in range(2):
        picture(tmp_path / "images" / f"{number}.png", size=(160, 120), seed=number)
    return tmp_path / "images"


def objects(capsys, monkeypatch, *arguments):
    """The objects that predict prints, by file, and what it prints on stderr."""
    code, out, err = call(capsys, monkeypatch, "predict", *arguments, "--format", "json", "--no-files")
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    return {Path(one["file"]).name: one["instances"] for one in found}, err


def test_thresholds_classes_and_limits(capsys, monkeypatch, weights, pictures):
    every, err = objects(capsys, monkeypatch, weights, pictures, "--threshold", "0.05", "--detections", "1000")
    assert "most that are reported" not in err
    counts = Counter(instance["label"] for found in every.values() for instance in found)
    (first, _), (second, _) = counts.most_common(2)
    limited, err = objects(capsys, monkeypatch, weights, pictures, "--threshold", "0.05", "--detections", "3")
    assert "2 of 2 pictures have 3 objects, the most that are reported of a picture" in err
    assert {name: len(found) for name, found in limited.items()} == dict.fromkeys(every, 3)
    options = ("--threshold", f"0.05,{first}=0.1", "--classes", f"{first},{second}", "--detections", "1000")
    chosen, _ = objects(capsys, monkeypatch, weights, pictures, *options)
    lowest = {first: 0.1, second: 0.05}
    for name, found in every.items():
        expected = [i["score"] for i in found if i["score"] >= lowest.get(i["label"], 2)]
        assert [i["score"] for i in chosen[name]] == expected
        assert {i["label"] for i in chosen[name]} <= {first, second}
    few, _ = objects(
        capsys, monkeypatch, weights, pictures, "--threshold", "0.05", "--detections", "1000", "--nms", "0.1"
    )
    assert sum(map(len, few.values())) < sum(map(len, every.values()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--threshold", "2"), "--threshold 2: must be a number from 0 to 1, or also by class, as in 0.5,cat=0.3"),
        (("--threshold", "0.5,0.6"), "--threshold 0.5,0.6: must be a number"),
        (("--threshold", "nan"), "--threshold nan: must be a number"),
        (("--threshold", "persom=0.5"), "--threshold: 'persom' is not a class of"),
        (("--tta", "rotate"), "--tta rotate: 'rotate' must be flip, or a factor of the size"),
        (("--overlap", "5"), "--overlap 5: is that of tiles; give their side with --tile too"),
        (("--coco", "no.json"), "no.json: no such file"),
    ],
)
def test_wrong_options_are_one_line(capsys, monkeypatch, weights, pictures, tmp_path, options, message):
    code, _, err = call(capsys, monkeypatch, "predict", weights, pictures, *options, "--out", tmp_path / "out")
    assert code == 1
    assert message in err
    assert "Traceback" not in err


def test_views_on_the_command_line(capsys, monkeypatch, weights, pictures, tmp_path):
    plain, _ = objects(capsys, monkeypatch, weights, pictures, "--threshold", "0.2")
    seen, _ = objects(capsys, monkeypatch, weights, pictures, "--threshold", "0.2", "--tta", "flip,1.25")
    assert plain.keys() == seen.keys()
    assert plain != seen
    arguments = ("predict", weights, pictures, "--tta", "flip", "--tile", "100", "--out", tmp_path / "out")
    assert call(capsys, monkeypatch, *arguments)[0] == 0


def test_a_scan_is_read_by_region(capsys, monkeypatch, weights, tmp_path):
    """The objects of a large TIFF are those of the picture that is cut as a whole; it is drawn reduced."""
    pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    picture(tmp_path / "a.png", size=(500, 300), seed=1)
    Image.open(tmp_path / "a.png").save(tmp_path / "b.tif", compression="tiff_lzw")
    options = ("--tile", "200", "--overlap", "50", "--threshold", "0.3")
    whole, _ = objects(capsys, monkeypatch, weights, tmp_path / "a.png", *options)
    monkeypatch.setattr("tasks.scans.FROM", 1000)
    monkeypatch.setattr("tasks.detection.predict.OVERVIEW", 250)
    found, _ = objects(capsys, monkeypatch, weights, tmp_path / "b.tif", *options)
    assert found["b.tif"] == whole["a.png"]
    assert len(found["b.tif"]) > 3
    assert (
        call(capsys, monkeypatch, "predict", weights, tmp_path / "b.tif", *options, "--out", tmp_path / "out")[0] == 0
    )
    assert Image.open(tmp_path / "out/b.objects.png").size[0] >= 250
    content = bytearray((tmp_path / "b.tif").read_bytes())
    content[3000:-3000] = b"\xff" * (len(content) - 6000)  # a damaged part costs this picture, not the others
    (tmp_path / "b.tif").write_bytes(content)
    code, out, err = call(
        capsys, monkeypatch, "predict", weights, tmp_path / "b.tif", tmp_path / "a.png", *options, "--no-files"
    )
    assert code == 0
    assert "a.png: " in out
    assert "1 of 2 files could not be read" in err


def test_scans_and_pictures_by_any_number_of_processes(capsys, monkeypatch, weights, tmp_path):
    """The same objects in the same order; scans and pictures that are damaged are named."""
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    monkeypatch.setattr("tasks.scans.FROM", 100_000)
    folder = tmp_path / "in"
    pixels = [picture(folder / name, size=(420, 300), seed=i) for i, name in enumerate(("b.png", "e.png"))]
    kind = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
    for number, name in enumerate(("a.svs", "c.btf", "d.tif", "f.tif")):
        tifffile.imwrite(folder / name, np.roll(pixels[0], 50 * number, 0), bigtiff=name == "c.btf", **kind)
    content = (folder / "d.tif").read_bytes()
    (folder / "d.tif").write_bytes(content[:9000] + b"\xff" * (len(content) - 18000) + content[-9000:])
    (folder / "g.svs").write_bytes(content[:2000])
    (folder / "h.png").write_bytes(b"no picture")
    results = []
    for workers in (0, 1, 2):
        out = tmp_path / f"out{workers}"
        options = ("--tile", "200", "--threshold", "0.3", "--workers", workers, "--out", out)
        code, lines, err = call(capsys, monkeypatch, "predict", weights, folder, *options)
        assert code == 0
        assert "3 of 8 files could not be read" in err
        assert len(list(out.glob("*.objects.png"))) == 5
        results.append((lines, (out / "predictions.json").read_text()))
    assert results[0] == results[1] == results[2]
    names = [Path(line.partition(": ")[0]).name for line in results[0][0].splitlines()]
    assert names == ["a.svs", "b.png", "c.btf", "e.png", "f.tif"]
    assert {Path(path).name for path in json.loads(results[0][1])["failed"]} == {"d.tif", "g.svs", "h.png"}


def test_pictures_that_are_shrunk_are_counted(capsys, monkeypatch, weights, tmp_path):
    """The net takes 128 to 200 px: a picture of 500 px, and tiles of it of 450 px, lose what is small."""
    picture(tmp_path / "a.png", size=(500, 300))
    for options, shrunk in (((), True), (("--tile", "450"), True), (("--tile", "200"), False)):
        _, _, err = call(capsys, monkeypatch, "predict", weights, tmp_path / "a.png", *options, "--no-files")
        assert ("were shrunk to less than half to fit the net; give --tile 128 to see small objects" in err) == shrunk


# -- the page on fine-tuning ------------------------------------------------------------------------


def nuclei_set(folder):
    """The first pictures of the nuclei as the page has them, fewer of them."""
    root = shared("data", "nuclei")
    for split, count in (("train", 4), ("val", 2)):
        content = json.loads((root / f"instances_{split}.json").read_text())
        images = [{**i, "file_name": Path(i["file_name"]).name} for i in content["images"] if i["height"] == 256][
            :count
        ]
        chosen = {image["id"] for image in images}
        content |= {"images": images, "annotations": [a for a in content["annotations"] if a["image_id"] in chosen]}
        (folder / split).mkdir(parents=True)
        (folder / f"{split}.json").write_text(json.dumps(content))
        with zipfile.ZipFile(root / f"{split}.zip") as archive:
            members = {Path(name).name: name for name in archive.namelist()}
            for image in images:
                (folder / split / image["file_name"]).write_bytes(archive.read(members[image["file_name"]]))


@pytest.mark.slow
def test_the_page_on_fine_tuning_runs(capsys, monkeypatch, tmp_path):
    page = (ROOT / "docs/finetune_detector.md").read_text()
    monkeypatch.chdir(tmp_path)
    nuclei_set(tmp_path / "cells")
    Path("mine.yaml").write_text(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    commands = re.findall(r"^\$ rescalenet (.*)", page, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["check", "train", "eval", "score", "predict", "export"]
    outputs = {}
    for command in commands:
        code, out, err = call(capsys, monkeypatch, *command.split())
        assert code == 0, err
        outputs[command.split()[0]] = out
    assert outputs["check"].endswith("nothing found that would stop training\n")
    assert Path("out/check/samples.png").exists()
    assert json.loads(outputs["train"])["metrics"]["mask_ap50"] > 0.5
    assert json.loads(Path("out/cells/metrics.json").read_text())["metrics"]["mask_ap50"] > 0.5
    assert "results" in outputs["score"]
    assert len(outputs["predict"].splitlines()) == len(list(Path("out/found").glob("*.objects.png"))) == 2
    assert re.match(r"out/cells-onnx: agrees in onnxruntime .* objects\)", outputs["export"])
    assert Path("out/cells-onnx/model.onnx").stat().st_size > 1e6
