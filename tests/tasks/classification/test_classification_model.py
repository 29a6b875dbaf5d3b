"""Fine-tuning image nets: the input is that of the weights."""

import hashlib
import shutil

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torchvision.models import ResNet18_Weights, get_model

import zoo
from tasks.devices import make_accelerator
from tasks.engine import Trainer
from tasks.errors import ConfigError, DataError, TrainingError
from tasks.images import read_image
from tasks.plots import read_log
from tasks.spec import make_task
from tests.helpers.training import config
from zoo.headers import HEADER_KEY, Header, write_header

STORED = zoo.InputTransform(14, 16, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "bicubic", "BGR")
WITHOUT_SIZES = {"size": None, "resize": None}


@pytest.fixture
def section(tmp_path):
    """The model section of a run from weights with an uncommon input."""
    model = zoo.create_model("rescalenet20_cifar", num_classes=3, width=0.25)
    path = tmp_path / "w.safetensors"
    zoo.save_weights(model, path, transform=STORED, classes=["blue", "green", "red"])
    return {"weights": str(path), "options": {"width": 0.25}}


def test_training_evaluation_and_deployment_see_the_same(images, tmp_path, section):
    """Bicubic, channels reversed: to the rounding of uint8 pixels before and after the standardisation."""
    centre = {"augment": {"crop": {"name": "centre"}, "flip": 0.0}}
    task = make_task(config(images, tmp_path / "run", model=section, data={**WITHOUT_SIZES, **centre}))
    assert task.transform == STORED
    image = read_image(images / "train/green/3.png")
    expected = STORED.build()(image)
    index = task.train_images.names.index("green/3.png")
    ours = task.inputs((task.train_set()[0, index][0][None],), torch.float32)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    other = zoo.InputTransform(14, 16, STORED.mean, STORED.std).build()(image)
    assert (expected - other).abs().max() > 0.1


def test_the_run_keeps_what_was_chosen(images, tmp_path, section):
    settings = {"model": section, "data": {"size": 12, "resize": None}, "epochs": 1}
    Trainer(make_task(config(images, tmp_path / "run", **settings))).fit()
    stored = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]
    assert stored["mean"] == [0.1, 0.2, 0.3]
    assert (stored["size"], stored["resize"]) == (12, 14)
    transform = zoo.get_weights(str(tmp_path / "run/checkpoints/last.safetensors")).transform
    assert transform == zoo.InputTransform(12, 14, STORED.mean, STORED.std, "bicubic", "BGR")
    assert Trainer(make_task(config(images, tmp_path / "run", **settings)), resume=True).at.epoch == 1
    # a run of an earlier version, which fed these weights with ImageNet's mean, cannot go on with another
    content = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    content["data"]["mean"] = list(zoo.InputTransform.imagenet().mean)
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(
        TrainingError, match=r"another config: data.mean was \[0.485, 0.456, 0.406\], is \[0.1, 0.2, 0.3\]"
    ):
        Trainer(make_task(config(images, tmp_path / "run", **settings)), resume=True)


def test_without_weights_the_input_is_imagenets(images, tmp_path):
    task = make_task(config(images, tmp_path / "run", data=WITHOUT_SIZES))
    assert task.transform == zoo.InputTransform.imagenet()
    assert task.config.data.size == 224


def test_weights_of_torchvision_by_name(images, tmp_path, monkeypatch):
    """A file of random weights under the name that torchvision expects, in its folder: as a recipe starts from it."""
    theirs = ResNet18_Weights.IMAGENET1K_V1
    folder = tmp_path / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    torch.save(get_model("resnet18").state_dict(), folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    (folder / "new.pth").rename(folder / f"resnet18-{digest[:8]}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("RESCALENET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RESCALENET_OFFLINE", "1")
    monkeypatch.setattr(theirs.value, "url", f"https://download.pytorch.org/models/resnet18-{digest[:8]}.pth")
    section = {"name": "rescalenet18", "weights": "torchvision:IMAGENET1K_V1", "options": {}, "freeze": 4}
    task = make_task(config(images, tmp_path / "run", model=section, data={"size": 32, "resize": None}))
    assert task.transform == zoo.InputTransform(32, 37, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    net = task.build_model()
    assert net.fc.out_features == 3
    trained = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {"layer4", "head_bias", "fc"}


def test_contradictions(images, tmp_path, section):
    with pytest.raises(
        ConfigError, match=r"data.mean=\[0.5, 0.5, 0.5\]: weights .* were trained with \[0.1, 0.2, 0.3\]"
    ):
        make_task(config(images, tmp_path / "run", model=section, data={"mean": [0.5] * 3}))
    grey = zoo.create_model("rescalenet20_cifar", num_classes=3, width=0.25, in_chans=1)
    path = tmp_path / "grey.safetensors"
    zoo.save_weights(grey, path, transform=zoo.InputTransform(16, 16, (0.5,), (0.5,)), classes=list("abc"))
    rgb = {"mean": [0.5] * 3, "std": [0.5] * 3}
    with pytest.raises(ConfigError, match=r"data.mean=\[0.5, 0.5, 0.5\]: must have 1, a value for each input channel"):
        make_task(config(images, tmp_path / "run", model={**section, "weights": str(path)}, data=rgb))
    clips = zoo.VideoTransform(4, None, None, 16, 16, (0.5,), (0.5,))
    text = write_header(Header(grey.config, clips, tuple("abc"), {}), path)  # of other origin: save_weights refuses it
    save_file(grey.state_dict(), path, metadata={HEADER_KEY: text})
    with pytest.raises(ConfigError, match=r"model.weights=.*grey.*: expects VideoTransform.*, not images"):
        make_task(config(images, tmp_path / "run", model={**section, "weights": str(path)}))


def test_evaluation_images_that_cannot_be_read_are_counted(images, tmp_path, capsys):
    """In each epoch; their reasons are printed once, and those that are damaged later when they are met."""
    shutil.copytree(images, tmp_path / "data")
    (tmp_path / "data/val/red/3.png").write_bytes(b"no picture")
    task = make_task(config(tmp_path / "data", tmp_path / "run", workers=2))
    metrics = Trainer(task).fit()
    assert (metrics["images"], metrics["failed"]) == (14, 1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines if "3.png" in line] == ["skipped"]
    assert lines.count("1 of 15 evaluation images could not be read") == 1
    epochs = [record for record in read_log(tmp_path / "run/log.jsonl") if record["event"] == "epoch"]
    assert [(record["images"], record["failed"]) for record in epochs] == [(14, 1), (14, 1)]
    meta = zoo.get_weights(str(tmp_path / "run/checkpoints/best.safetensors")).meta
    assert meta["metrics"]["failed"] == 1
    # another one, and then all of them
    model, accelerator = task.build_model(), make_accelerator()
    (tmp_path / "data/val/red/0.png").unlink()
    assert task.evaluate(model, accelerator, torch.float32)["failed"] == 2
    assert [line for line in capsys.readouterr().err.splitlines() if "3.png" in line] == []
    shutil.rmtree(tmp_path / "data/val")
    with pytest.raises(DataError, match="none of the 15 images can be read; the first: .*no such file"):
        task.evaluate(model, accelerator, torch.float32)
