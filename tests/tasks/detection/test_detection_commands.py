"""Detection on the command line."""

import json

import yaml

import zoo
from tests.helpers.classification import picture
from tests.helpers.commands import call
from tests.helpers.detection import KINDS
from tests.helpers.paths import shared


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
