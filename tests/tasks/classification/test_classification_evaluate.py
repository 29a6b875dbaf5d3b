"""Metrics of the classification task."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import zoo
from tasks.classification.data import folder_images
from tasks.classification.evaluate import eval_loader, evaluate, evaluate_weights, write_report
from tasks.classification.predict import classify_images
from tasks.devices import make_accelerator
from tasks.errors import DataError
from tasks.metrics import ClassCounts
from tasks.spec import make_task
from tests.helpers.tasks import predict_all
from tests.helpers.training import config


class Table(nn.Module):
    """Logits by position, to check metrics against scikit-learn's."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, index):
        return self.logits[index]


@pytest.mark.parametrize("classes", [3, 12])
def test_metrics_equal_scikit_learns(classes):
    from sklearn import metrics

    torch.manual_seed(1)
    logits, labels = torch.randn(53, classes), torch.randint(0, classes, (53,))
    data = [(i, int(labels[i])) for i in range(53)]
    accelerator = make_accelerator()
    loader = eval_loader(data, accelerator, 7)
    result = evaluate(Table(logits), loader, classes, accelerator, inputs=lambda batch: batch[0])
    predictions = logits.argmax(1)
    assert np.array_equal(result.confusion, metrics.confusion_matrix(labels, predictions, labels=range(classes)))
    got = result.metrics()
    assert got["images"] == 53
    assert got["top1"] == pytest.approx(100 * metrics.accuracy_score(labels, predictions))
    top5 = metrics.top_k_accuracy_score(labels, logits, k=min(5, classes), labels=range(classes))
    assert got["top5"] == pytest.approx(100 * top5)
    assert got["mean_class"] == pytest.approx(100 * metrics.balanced_accuracy_score(labels, predictions))
    precision, recall, _, support = metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(classes), zero_division=np.nan
    )
    for i, row in enumerate(result.table([str(i) for i in range(classes)])):
        assert row["images"] == support[i]
        assert row["recall"] == pytest.approx(recall[i], nan_ok=True)
        assert row["precision"] is None or row["precision"] == pytest.approx(precision[i])


def test_classes_without_images_or_predictions(tmp_path):
    result = ClassCounts(torch.tensor([[2, 1, 0], [0, 0, 0], [0, 0, 3]]), top5=6)
    rows = result.table(["a", "b", "c"])
    assert rows[0] == {"class": "a", "images": 3, "recall": 2 / 3, "precision": 1.0, "taken_for": "b"}
    assert rows[1] == {"class": "b", "images": 0, "recall": None, "precision": 0.0, "taken_for": ""}
    assert result.metrics()["mean_class"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    write_report(result, ["a", "b", "c"], tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["per_class"] == rows
    assert Image.open(tmp_path / "confusion.png").size[0] > 100


def test_evaluating_weights_matches_classes_by_name(tree, weights):
    model = zoo.create_model("rescalenet20_cifar", weights.name)
    (tree / "val" / "ant").rename(tree / "val" / "cow")
    images = folder_images(tree / "val")
    result = evaluate_weights(model, weights, images)
    assert result.confusion.sum(1).tolist() == [0, 2, 2]
    (tree / "val" / "cow").rename(tree / "val" / "antt")
    with pytest.raises(DataError, match=r"class 'antt' is not one of .* \(did you mean ant\?\)"):
        evaluate_weights(model, weights, folder_images(tree / "val"))


def test_a_line_of_pixels_is_not_resized_to_gigabytes(tree, weights):
    """1 x 1100000 pixels would be 16 x 17600000; in evaluation, prediction and training, by name."""
    Image.new("RGB", (1_100_000, 1)).save(tree / "val/ant/line.png")
    model, failed = zoo.create_model("rescalenet20_cifar", weights.name), {}
    images = folder_images(tree / "val")
    assert evaluate_weights(model, weights, images, failed=failed).metrics()["images"] == 4
    assert list(failed) == ["ant/line.png"]
    assert failed["ant/line.png"].endswith(
        "1100000 x 1 pixels, which have more than the limit for one picture once the short side is resized to 16; "
        "crop or remove it"
    )
    files = [tree / "val/ant/line.png", tree / "val/ant/0.png"]
    predictions, unread = predict_all(classify_images, model, weights, files)
    assert ([p.file for p in predictions], list(unread)) == ([str(files[1])], [str(files[0])])
    content = {"size": 16, "resize": 16, "augment": {"crop": {"name": "pad"}}, "train": "val"}
    task = make_task(config(tree, tree / "run", data=content))
    with pytest.raises(DataError, match="ant/line.png: 1100000 x 1 pixels"):
        task.train_set()[0, task.train_images.names.index("ant/line.png")]
    assert task.evaluate(model, make_accelerator(), torch.float32)["failed"] == 1
    content["augment"] = {"crop": {"name": "random_resized"}}
    task = make_task(config(tree, tree / "run", data=content))
    assert task.train_set()[0, task.train_images.names.index("ant/line.png")][0].shape == (3, 16, 16)
