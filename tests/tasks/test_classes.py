"""Classes are matched by name between weights and data."""

import pytest
import torch

import zoo
from tasks.classes import matching_rows
from tasks.classification.data import folder_images
from tasks.spec import make_task
from tests.helpers.training import config

T = zoo.InputTransform(12, 12, (0.5,) * 3, (0.3,) * 3)


@pytest.mark.parametrize(
    ("stored", "classes", "rows"),
    [
        ("abc", "abc", [0, 1, 2]),
        ("abc", "cab", [2, 0, 1]),
        ("abc", "xay", [1, 0, 2]),
        ("abc", "xyz", [0, 1, 2]),
    ],
)
def test_rows(stored, classes, rows):
    assert matching_rows(list(stored), list(classes)) == rows


@pytest.mark.parametrize("net", ["rescalenet20_cifar", "rescalevgg11"])
def test_fine_tuning_on_classes_in_another_order_keeps_their_outputs(images, tmp_path, capsys, net):
    """The data are blue, green, red in the order of their folders; the weights have them in another."""
    options = {"width": 0.25 if net == "rescalenet20_cifar" else 0.0625}
    model = zoo.create_model(net, num_classes=3, **options).eval()
    stored = ["red", "blue", "green"]
    size = zoo.model_info(net).min_size
    transform = zoo.InputTransform(max(size, 12), max(size, 12), (0.5,) * 3, (0.3,) * 3)
    zoo.save_weights(model, tmp_path / "w.safetensors", transform=transform, classes=stored)
    section = {"name": net, "weights": str(tmp_path / "w.safetensors"), "options": {}}
    data = {"size": transform.size, "resize": transform.size}
    task = make_task(config(images, tmp_path / "run", model=section, data=data))
    assert task.classes == folder_images(images / "train").classes == ("blue", "green", "red")
    tuned = task.build_model().eval()
    assert "classes: in another order; the rows of the last layer of" in " ".join(capsys.readouterr().err.split())
    x = torch.randn(2, 3, transform.size, transform.size)
    with torch.no_grad():
        before, after = model(x), tuned(x)
    for name in stored:
        assert torch.equal(before[:, stored.index(name)], after[:, task.classes.index(name)])
    assert not torch.equal(before, after)


def test_new_classes_are_reported(images, tmp_path, capsys):
    model = zoo.create_model("rescalenet20_cifar", num_classes=3, width=0.25)
    zoo.save_weights(model, tmp_path / "w.safetensors", transform=T, classes=["red", "white", "green"])
    section = {"name": "rescalenet20_cifar", "weights": str(tmp_path / "w.safetensors"), "options": {}}
    tuned = make_task(config(images, tmp_path / "run", model=section)).build_model()
    assert "classes: 1 of 3 new, which start as those that they replace" in " ".join(capsys.readouterr().err.split())
    assert torch.equal(tuned.fc.weight, model.fc.weight[[1, 2, 0]])
    assert torch.equal(tuned.fc.bias, model.fc.bias[[1, 2, 0]])
