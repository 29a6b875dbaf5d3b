"""Detection on the command line."""

import json

import yaml

import zoo
from tests.helpers.commands import call
from tests.helpers.detection import KINDS
from tests.helpers.paths import shared


def test_eval_and_predict_commands(capsys, monkeypatch, weights, tmp_path):
    root = shared("data", "coco_permissive", "sample")
    arguments = ("eval", weights, root / "instances_val2017.json", "--images", root / "val2017")
    code, out, err = call(capsys, monkeypatch, *arguments, "--out", tmp_path / "out", "--fast")
    assert code == 0
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]" in out
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
