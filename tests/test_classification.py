"""Data, metrics and prediction of the classification task."""

import json

import numpy as np
import pytest
import torch
from conftest import narrow
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import zoo
from tasks.classification.config import DataSection
from tasks.classification.data import TrainSet, eval_transform, folder_images, load_images
from tasks.classification.evaluate import Result, eval_loader, evaluate, evaluate_weights, write_report
from tasks.classification.predict import predict
from tasks.devices import make_accelerator
from tasks.errors import DataError
from tasks.images import find_images, read_image


def picture(path, size=(20, 16), mode="RGB", seed=0, **save):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **save)
    return pixels


@pytest.fixture
def tree(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        for c, name in enumerate(("ant", "bee")):
            for n in range(count):
                picture(tmp_path / split / name / f"{n}.png", seed=10 * c + n)
    return tmp_path


def section(root, **extra):
    return DataSection(root=str(root), size=16, resize=16, **extra)


# -- reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "ending"), [("CMYK", "jpg"), ("L", "png"), ("RGBA", "png"), ("P", "gif"), ("1", "png")]
)
def test_all_modes_become_rgb(tmp_path, mode, ending):
    picture(tmp_path / f"a.{ending}", mode=mode)
    assert read_image(tmp_path / f"a.{ending}").mode == "RGB"


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    pixels = picture(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), np.rot90(pixels, -1))


def test_files_that_cannot_be_read_are_named(tmp_path):
    picture(tmp_path / "whole.jpg", size=(64, 64))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:700])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    for name in ("cut.jpg", "text.png", "empty.png"):
        with pytest.raises(DataError, match=rf"{name}: cannot be decoded as an image .*; remove or replace it"):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")


def test_folders(tree):
    train, val = load_images(section(tree))
    assert train.classes == ("ant", "bee")
    assert train.labels == [0] * 4 + [1] * 4
    assert train.names[4] == "bee/0.png"
    assert len(val) == 4
    assert np.asarray(val.read(3)).shape == (16, 20, 3)


def test_folder_mistakes(tree, tmp_path):
    with pytest.raises(DataError, match=r"/nowhere: no such folder; one folder of images for each class"):
        folder_images(tmp_path / "nowhere")
    (tmp_path / "flat").mkdir()
    with pytest.raises(DataError, match="flat"):
        folder_images(tmp_path / "flat")
    (tmp_path / "train" / "cow").mkdir()
    with pytest.raises(DataError, match="cow"):
        folder_images(tmp_path / "train")
    picture(tmp_path / "train" / "cow" / "0.png")
    with pytest.raises(DataError, match="train and val have different classes, e.g. 'cow'"):
        load_images(section(tree))


def test_holdout_splits_train_by_a_list(tree):
    listed = tree / "held.txt"
    listed.write_text("ant/1.png\nbee/3.png\n")
    train, val = load_images(section(tree, holdout=str(listed), split="holdout"))
    assert val.names == ["ant/1.png", "bee/3.png"]
    assert val.labels == [0, 1]
    assert sorted(train.names + val.names) == sorted(load_images(section(tree))[0].names)
    assert np.array_equal(np.asarray(val.read(1)), np.asarray(read_image(tree / "train/bee/3.png")))
    listed.write_text("ant/9.png\n")
    with pytest.raises(DataError, match=r"held.txt: 1 names are not in the training set, e.g. 'ant/9.png'"):
        load_images(section(tree, holdout=str(listed), split="holdout"))
    with pytest.raises(DataError, match=r"data.split=holdout needs data.holdout"):
        load_images(section(tree, split="holdout"))


def test_cifar_without_files_or_network(tmp_path, monkeypatch):
    from torchvision import datasets

    def offline(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", offline)
    with pytest.raises(DataError, match=r"cifar10 is not there and cannot be downloaded \(no network\)"):
        load_images(DataSection(source="cifar10", root=str(tmp_path)))


def test_cifar_in_torchvisions_layout(tmp_path, monkeypatch):
    """Pickled batches as torchvision stores them; only its download check is left out."""
    import pickle

    from torchvision import datasets

    random = np.random.RandomState(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        data = {"data": random.randint(0, 256, (3, 3072)).astype(np.uint8), "labels": [0, 1, 9]}
        (folder / name).write_bytes(pickle.dumps(data))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{i}" for i in range(10)]}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *a: True)
    train, val = load_images(DataSection(source="cifar10", root=str(tmp_path)))
    assert (len(train), len(val)) == (15, 3)
    assert len(train.classes) == 10
    assert train.read(0).size == (32, 32)


@pytest.mark.parametrize(
    "augment",
    [
        {"crop": {"name": "pad", "padding": 3}},
        {"crop": {"name": "random_resized", "scale": (0.3, 1.0)}, "flip": 0.0},
        {"crop": {"name": "centre"}, "flip": 1.0},
    ],
)
@pytest.mark.parametrize("cache", [False, True])
def test_training_images(tree, augment, cache):
    images, _ = load_images(section(tree))
    data = TrainSet(images, section(tree, augment=augment, cache=cache), seed=3)
    image, label = data[0, 5]
    assert image.shape == (3, 16, 16)
    assert image.dtype == torch.uint8
    assert label == 1
    again = TrainSet(images, section(tree, augment=augment, cache=not cache), seed=3)
    assert torch.equal(again[0, 5][0], image)


def test_workers_and_the_main_process_read_the_same(tree):
    images, _ = load_images(section(tree))
    data = TrainSet(images, section(tree), seed=0)
    keys = [[(1, i), (2, i)] for i in range(8)]
    alone = [batch[0] for batch in DataLoader(data, batch_sampler=keys)]
    workers = [batch[0] for batch in DataLoader(data, batch_sampler=keys, num_workers=2)]
    assert all(torch.equal(a, b) for a, b in zip(alone, workers, strict=True))


def test_an_unreadable_training_image_stops_with_one_line(tree):
    (tree / "train/ant/0.png").write_text("broken")
    data = TrainSet(load_images(section(tree))[0], section(tree), seed=0)
    from tasks.cli import _last_line

    with pytest.raises(DataError) as caught:
        list(DataLoader(data, batch_sampler=[[(0, 0)]], num_workers=1))
    line = _last_line(caught.value)
    assert "\n" not in line
    assert line.endswith("remove or replace it")
    assert "ant/0.png: cannot be decoded" in line


# -- metrics ----------------------------------------------------------------------------------------


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
    result = Result(torch.tensor([[2, 1, 0], [0, 0, 0], [0, 0, 3]]), top5=6)
    rows = result.table(["a", "b", "c"])
    assert rows[0] == {"class": "a", "images": 3, "recall": 2 / 3, "precision": 1.0, "taken_for": "b"}
    assert rows[1] == {"class": "b", "images": 0, "recall": None, "precision": 0.0, "taken_for": ""}
    assert result.metrics()["mean_class"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    write_report(result, ["a", "b", "c"], tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["per_class"] == rows
    assert Image.open(tmp_path / "confusion.png").size[0] > 100


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.safetensors"
    model = zoo.create_model("rescalenet20_cifar", num_classes=3, width=0.25)
    transform = zoo.InputTransform(16, 16, (0.5,) * 3, (0.3,) * 3)
    zoo.save_weights(model, path, transform=transform, classes=["ant", "bee", "cow"])
    return zoo.get_weights(str(path))


def test_evaluating_weights_matches_classes_by_name(tree, weights):
    model = zoo.create_model("rescalenet20_cifar", weights.name)
    (tree / "val" / "ant").rename(tree / "val" / "cow")
    images = folder_images(tree / "val")
    result = evaluate_weights(model, weights, images)
    assert result.confusion.sum(1).tolist() == [0, 2, 2]
    (tree / "val" / "cow").rename(tree / "val" / "antt")
    with pytest.raises(DataError, match=r"class 'antt' is not one of .* \(did you mean ant\?\)"):
        evaluate_weights(model, weights, folder_images(tree / "val"))


def test_training_and_deployment_see_the_same_image(tree):
    """uint8 transforms then standardising on the device, as in training, equal ``weights.transforms()``."""
    data = section(tree)
    transform = zoo.InputTransform(data.size, data.resize, data.mean, data.std).build()
    image = read_image(tree / "val/ant/0.png")
    from torchvision.transforms import v2

    mean, std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
    ours = (eval_transform(data)(v2.functional.pil_to_tensor(image)).float() / 255 - mean) / std
    torch.testing.assert_close(ours, transform(image), rtol=1e-5, atol=1e-5)


# -- prediction -------------------------------------------------------------------------------------


def test_predict_files_and_folders(tree, weights, tmp_path, capsys):
    model = zoo.create_model("rescalenet20_cifar", weights.name)
    (tree / "val/bee/x.jpg").write_text("broken")
    files = find_images([str(tree / "val"), str(tree / "train/ant/0.png")])
    assert len(files) == 6
    predictions, failed = predict(model, weights, files, top=2, batch_size=2, out=tmp_path / "out")
    assert [p.file for p in predictions] == [str(f) for f in files if f.name != "x.jpg"]
    assert list(failed) == [str(tree / "val/bee/x.jpg")]
    assert "1 of 6 files could not be read" in capsys.readouterr().err
    logits = model.eval()(weights.transforms()(read_image(files[-1]))[None])
    scores, order = logits.softmax(1)[0].topk(2)
    assert predictions[-1].classes == [weights.classes[i] for i in order]
    assert predictions[-1].scores == pytest.approx(scores.tolist(), rel=1e-4)
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert len(content["predictions"]) == 5
    assert content["failed"].keys() == failed.keys()
    assert Image.open(tmp_path / "out/contact_sheet.png").size[0] > 200
    with pytest.raises(DataError, match=r"/none: no such file or folder"):
        find_images([str(tmp_path / "none")])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="no images in .*nothing; known endings"):
        find_images([str(tmp_path / "nothing")])


def test_narrow_net_takes_grey_and_large_pictures(tmp_path):
    picture(tmp_path / "grey.png", size=(640, 480), mode="L")
    model = narrow("cifar")
    path = tmp_path / "w.safetensors"
    zoo.save_weights(model, path, transform=zoo.InputTransform(32, 36, (0.5,) * 3, (0.3,) * 3), classes=list("abcde"))
    predictions, failed = predict(model, zoo.get_weights(str(path)), [tmp_path / "grey.png"])
    assert len(predictions) == 1
    assert not failed
