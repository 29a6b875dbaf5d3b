"""The command line, as a user calls it."""

import json

import onnx
import pytest
import torch
from typer.testing import CliRunner

import zoo
from tasks import config as cfg
from tests.helpers.classification import picture
from tests.helpers.commands import call
from tests.helpers.training import config


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.safetensors"
    model = zoo.create_model("rescalenet20_cifar", num_classes=2, width=0.25)
    transform = zoo.InputTransform(16, 16, (0.5,) * 3, (0.3,) * 3)
    zoo.save_weights(model, path, transform=transform, classes=["ant", "bee"], meta={"licence": "MIT"})
    return path


def test_list_and_info(capsys, monkeypatch, weights):
    _, out, _ = call(capsys, monkeypatch, "list", "rescalevgg*")
    assert out.split() == ["rescalevgg11", "rescalevgg13", "rescalevgg16", "rescalevgg19"]
    _, out, _ = call(capsys, monkeypatch, "info", "rescalenet50")
    assert json.loads(out)["parameters"] == 25_528_568
    _, out, _ = call(capsys, monkeypatch, "info", weights)
    assert json.loads(out)["meta"] == {"licence": "MIT"}


def test_predict_eval_export(capsys, monkeypatch, weights, tmp_path):
    for name in ("ant", "bee"):
        picture(tmp_path / "val" / name / "0.png")
    code, out, _ = call(capsys, monkeypatch, "predict", weights, tmp_path / "val", "--out", tmp_path / "p")
    assert code == 0
    assert out.count("0.png: ") == 2
    assert (tmp_path / "p/contact_sheet.png").exists()
    code, out, _ = call(capsys, monkeypatch, "eval", weights, tmp_path / "val", "--out", tmp_path / "e")
    assert code == 0
    assert "top1 " in out
    assert json.loads((tmp_path / "e/metrics.json").read_text())["metrics"]["images"] == 2
    code, out, _ = call(capsys, monkeypatch, "export", weights, "--out", tmp_path / "n")
    assert code == 0
    assert "agrees in onnxruntime" in out
    code, out, _ = call(capsys, monkeypatch, "export", weights, "--no-fold", "--out", tmp_path / "m")
    assert code == 0
    folded, trained = ({n.op_type for n in onnx.load(tmp_path / f / "model.onnx").graph.node} for f in ("n", "m"))
    assert folded == {"Add", "AveragePool", "Conv", "Gemm", "ReduceMean", "Relu"}
    assert "Mul" in trained


def test_print_config_and_train(capsys, monkeypatch, images, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(cfg.dump(config(images, tmp_path / "run", epochs=1)))
    code, out, _ = call(capsys, monkeypatch, "train", path, "train.batch_size=4", "--print-config")
    assert code == 0
    assert "batch_size: 4" in out
    assert not (tmp_path / "run").exists()
    code, out, err = call(capsys, monkeypatch, "train", path, "train.batch_size=4", "--device", "cpu")
    assert code == 0
    assert "epoch 1/1" in err
    found = json.loads(out)  # one line on stdout, progress on stderr
    assert found["output"] == str(tmp_path / "run")
    assert found["metrics"].keys() >= {"top1", "top5", "images"}
    assert (tmp_path / "run/checkpoints/last.safetensors").exists()


def test_convert(capsys, monkeypatch, tmp_path):
    from tests.helpers.reference import LAYOUTS

    state = {key: torch.zeros(shape) for key, shape in LAYOUTS["rescale50"]().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "a.pth")
    target = tmp_path / "a.safetensors"
    code, _, _ = call(capsys, monkeypatch, "convert", tmp_path / "a.pth", target, "--name", "rescalenet50")
    assert code == 0
    assert zoo.create_model("rescalenet50", str(target)).num_classes == 10
    torch.save({"state_dict": CliRunner()}, tmp_path / "evil.pth")  # a pickle of more than tensors is refused
    code, _, err = call(capsys, monkeypatch, "convert", tmp_path / "evil.pth", target, "--overwrite")
    assert code == 1
    assert "evil.pth: contains typer.testing.CliRunner, and nothing of it was executed" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "rescalenet51"], "error: unknown model 'rescalenet51' (did you mean"),
        (["info", "rescalenet50.imagenet"], "error: unknown weights 'rescalenet50.imagenet'"),
        (["predict", "none.safetensors", "a.png"], "error: none.safetensors: no such file"),
        (["train", "none.yaml"], "error: no config file 'none.yaml'"),
        (["train", "classification/cifar10/rescalenet20", "data.root=/none"], "error: /none/train: no such folder"),
    ],
)
def test_errors_are_one_line(capsys, monkeypatch, arguments, message):
    code, _, err = call(capsys, monkeypatch, *arguments)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_unknown_export_target(capsys, monkeypatch, weights):
    code, _, err = call(capsys, monkeypatch, "export", weights, "--to", "onxx")
    assert code == 1
    assert "error: export target 'onxx'" in err
