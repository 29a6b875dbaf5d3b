"""What a classifier trains on: lists, shares, classes of different size, channels, and what is said about it."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import zoo
from tasks.classification.balance import balanced_repeats, class_weights
from tasks.classification.config import DataSection
from tasks.classification.data import Images, list_images, load_images, look_at_sample, read_set, spread
from tasks.errors import ConfigError, DataError
from tasks.spec import check, make_task, resolve
from tests.helpers.classification import picture
from tests.helpers.commands import call
from tests.helpers.training import config, fit


def section(root, **extra):
    return DataSection(root=str(root), size=16, resize=16, **extra)


def with_list(tree, name="all.csv", content=None):
    lines = [
        f"{split}/{c}/{n}.png,{c}"
        for split, count in (("train", 4), ("val", 2))
        for c in ("bee", "ant")
        for n in range(count)
    ]
    (tree / name).write_text(content or "\n".join(["path,label", *lines]))
    return tree / name


def test_lists_of_images(tree):
    images = list_images(with_list(tree), tree)
    assert images.classes == ("ant", "bee")
    assert images.names[0] == "train/bee/0.png"
    assert images.labels[:5] == [1, 1, 1, 1, 0]
    assert np.array_equal(np.asarray(images.read(1)), np.asarray(Image.open(tree / "train/bee/1.png")))
    assert read_set(tree / "all.csv").names == images.names
    train, val = load_images(section(tree, source="list", train="all.csv", split="share", val_share=0.3))
    assert (train.class_counts(), val.class_counts()) == ([4, 4], [2, 2])
    assert not set(train.names) & set(val.names)
    again = load_images(section(tree, source="list", train="all.csv", split="share", val_share=0.3, val_seed=1))
    assert again[1].names != val.names


def test_mistakes_in_lists_have_a_line(tree):
    for content, message in (
        (
            "path,label\ntrain/ant/0.png,ant\ngone.png,bee\nx.png,bee",
            r"line 3: .*gone\.png: no such file \(2 such lines\)$",
        ),
        (
            "image_id,label\ntrain/ant/0.png,ant\n",
            r"line 1: .*image_id: no such file; if this line is a header, call its columns path and label$",
        ),
        ("path,label\ntrain/ant/0.png,ant\ntrain/ant/0.png,bee", r"line 3: 'train/ant/0.png' has the label 'bee', in"),
    ):
        with pytest.raises(DataError, match=rf"bad\.csv, {message}"):
            list_images(with_list(tree, "bad.csv", content), tree)
    with_list(tree)
    with_list(tree, "val.csv", "path,label\nval/ant/0.png,ant\nval/bee/0.png,wasp")
    with pytest.raises(DataError, match=r"val\.csv, line 3: class 'wasp' is not one of ant, bee"):
        load_images(section(tree, source="list", train="all.csv", val="val.csv"))
    with pytest.raises(DataError, match=r"train: not a text file|train: .*directory"):
        load_images(section(tree, source="list"))


def test_a_repeated_line_is_one_image(tree):
    listed = with_list(tree, "twice.csv", "path,label\ntrain/ant/0.png,ant\ntrain/bee/0.png,bee\ntrain/ant/0.png,ant")
    assert list_images(listed, tree).names == ["train/ant/0.png", "train/bee/0.png"]


def test_sets_from_which_nothing_can_be_learned(tree):
    (tree / "up/images").mkdir(parents=True)
    (tree / "train").rename(tree / "up/images/train")
    with pytest.raises(
        DataError, match=r"up/images: has one class only \('train'\), from which .* a folder of its own"
    ):
        load_images(section(tree, train="up/images"))
    (tree / "up/images/train").rename(tree / "train")
    shutil.rmtree(tree / "up")
    with pytest.raises(DataError, match=r": its folders train, val are sets by their names, not classes; give the"):
        load_images(section(tree, train="."))
    with pytest.raises(DataError, match=r": its folders train, val are sets by their names, not classes; give the"):
        read_set(tree)  # what ``eval`` reads
    held = tree / "held.txt"
    held.write_text("".join(f"ant/{n}.png\n" for n in range(4)))
    with pytest.raises(
        DataError, match=r"data.split=holdout: no images are left to train on of 1 of 2 classes, e.g. 'ant'"
    ):
        load_images(section(tree, split="holdout", holdout=str(held)))
    for c in ("ant", "bee"):
        for n in range(1, 4):
            (tree / f"train/{c}/{n}.png").unlink()
    with pytest.raises(DataError, match=r"data.split=share: there are no images to evaluate; raise data.val_share"):
        load_images(section(tree, split="share"))


def test_what_is_trained_on_is_told(tree, tmp_path):
    def told(**changes):
        task = make_task(config(tree, tmp_path / "run", **changes))
        return task.describe_data(task.fingerprint())

    for name in ("train/ant/.x.png", "train/.cache/0.png", "val/bee/._0.png", "val/bee/a.heic", "val/bee/a.txt"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text("x")
    Image.fromarray(np.full((9, 9), 4000, np.uint16)).save(tree / "train/ant/12bit.png")
    first, second, third = told()
    assert first == "train: 9 images in 2 classes; val: 4 images"
    assert second == "left out: 3 hidden, 2 with other endings (.heic, .txt)"
    assert third.startswith("pictures that are nearly black as they are read: 1 of 13, e.g. ant/12bit.png;")
    held = tree / "held.txt"
    held.write_text("ant/1.png\n")
    assert told(data={"split": "holdout", "holdout": str(held)})[:3] == [
        "train: 8 images in 2 classes; val: 1 images",
        "val has no images of 1 of 2 classes, e.g. 'bee'",
        "left out: 2 hidden",
    ]


def test_the_sample_is_spread_and_leaves_faults_to_others(tree):
    assert spread(10, 3) == [0, 3, 6]
    assert spread(2, 5) == [0, 1]
    assert spread(3, None) == [0, 1, 2]
    (tree / "train/ant/0.png").write_text("broken")
    images, _ = load_images(section(tree))
    assert look_at_sample(images) == []


def test_eval_and_predict_report_what_they_found(tree, weights, tmp_path, capsys, monkeypatch):
    (tree / "val/ant/.hidden.png").write_text("x")
    code, _, err = call(capsys, monkeypatch, "eval", weights.name, tree / "val")
    assert code == 0
    assert err.splitlines()[:2] == ["4 images in 2 classes", "left out: 1 hidden"]
    code, out, err = call(capsys, monkeypatch, "predict", weights.name, tree / "val", "--out", tmp_path / "p")
    assert (code, len(out.splitlines())) == (0, 4)
    assert err.splitlines()[0] == "left out: 1 hidden"
    listed = with_list(tree)
    code, out, _ = call(capsys, monkeypatch, "eval", weights.name, listed)
    assert code == 0


# -- classes of different size ----------------------------------------------------------------------


def uneven(counts=(9, 3, 2)):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return Images(list("abc"), labels, [str(i) for i in range(len(labels))], lambda i: None)


def test_balanced_sampling_draws_every_class_equally_often(images, tmp_path):
    found = uneven()
    repeats = balanced_repeats(found)
    assert int(sum(repeats)) == len(found)
    task = make_task(config(images, tmp_path / "run", data={"balanced": True}))
    task.train_images = found
    drawn = torch.zeros(3)
    for epoch in range(40):
        sampler = task.batches(2, 0)
        sampler.seek(epoch, 0)
        for batch in sampler:
            for _, index in batch:
                drawn[found.labels[index]] += 1
    assert drawn.sum() == 40 * 14
    assert (drawn / drawn.sum() - 1 / 3).abs().max() < 0.02  # each count is its share rounded, in every epoch
    assert make_task(config(images, tmp_path / "run")).batches(2, 0).repeats is None


def test_weights_of_the_classes():
    found = uneven()
    balanced = class_weights("balanced", found)
    assert balanced == pytest.approx((14 / 27, 14 / 9, 14 / 6))
    assert sum(balanced[label] for label in found.labels) == pytest.approx(len(found))  # mean 1
    assert class_weights({"b": 3}, found) == (1.0, 3.0, 1.0)
    assert class_weights(None, found) is None
    with pytest.raises(ConfigError, match=r"class_weights.bb: no class of the training images.*did you mean.*b"):
        class_weights({"bb": 1.0}, found)
    with pytest.raises(ConfigError, match="all are 0"):
        class_weights({"a": 0.0, "b": 0.0, "c": 0.0}, found)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("even", r"class_weights='even': must be balanced, or a factor for each class"),
        (3, r"class_weights=3: must be balanced, or a factor for each class"),
        ({"a": 1, "b": -2}, r"class_weights: b=-2: must be a class and a number >= 0"),
        ({"a": "x"}, r"class_weights: a='x': must be a class and a number >= 0"),
        ({"a": float("nan")}, r"class_weights: a=nan: must be a class and a number >= 0"),
        ({"a": True}, r"class_weights: must be a number, not true"),
        ({3: 1.0}, r"class_weights: 3=1.0: must be a class and a number >= 0"),
    ],
)
def test_class_weights_that_are_no_factors(images, tmp_path, value, message):
    content = config(images, tmp_path).model_dump(mode="json")
    with pytest.raises(ConfigError, match=rf"^test: {message}$"):
        check({**content, "class_weights": value}, "test")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss(images, tmp_path, smoothing):
    """The mean over images of weight times loss, so that shares of a batch average to the loss of the whole."""
    content = config(images, tmp_path / "run").model_dump(mode="json")
    content |= {"class_weights": {"green": 5.0, "red": 0.5}, "label_smoothing": smoothing}
    task = make_task(check(content, "test"))
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 1, 0, 0])
    batch = torch.zeros(6, 3, 12, 12, dtype=torch.uint8), labels
    found = task.losses(lambda x: logits, batch, torch.float32)["loss"]
    each = F.cross_entropy(logits, labels, torch.tensor([1.0, 5.0, 0.5]), reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(found, each.mean())
    assert task.class_weights == (1.0, 5.0, 0.5)  # blue, green, red
    assert task.config.without_augmentation().class_weights is None


# -- channels ---------------------------------------------------------------------------------------


def test_grey_images_train_and_predict(images, tmp_path, capsys, monkeypatch):
    fit(images, tmp_path / "run", model={"options": {"width": 0.25, "in_chans": 1}}, epochs=1)
    last = tmp_path / "run/checkpoints/last.safetensors"
    entry = zoo.get_weights(str(last))
    assert (entry.config.in_chans, entry.transform.mean, entry.transform.std) == (1, (0.449,), (0.226,))
    code, out, _ = call(capsys, monkeypatch, "eval", last, images / "val")
    assert code == 0
    code, out, _ = call(capsys, monkeypatch, "predict", last, images / "val/red", "--out", tmp_path / "p")
    assert (code, len(out.splitlines())) == (0, 5)
    # weights decide the channels, and may be adapted
    task = make_task(config(images, tmp_path / "b", model={"weights": str(last)}))
    assert task.train_set()[0, 0][0].shape[0] == 1
    model = {"weights": str(last), "options": {"width": 0.25, "in_chans": 3}}
    with pytest.raises(ConfigError, match=r"data.mean is missing: nets with 3 input channels need one value for each"):
        make_task(config(images, tmp_path / "c", model=model))
    task = make_task(config(images, tmp_path / "c", model=model, data={"mean": [0.4] * 3, "std": [0.2] * 3}))
    assert task.build_model().config.in_chans == 3
    assert task.transform.mean == (0.4, 0.4, 0.4)


def test_arrays_of_six_channels_train_and_predict(tmp_path, capsys, monkeypatch):
    random = np.random.RandomState(0)
    for split, count in (("train", 4), ("val", 2)):
        for c in ("field", "wood"):
            (tmp_path / "data" / split / c).mkdir(parents=True)
            for n in range(count):
                values = random.randint(0, 65536, (14, 16, 6)).astype(np.uint16)
                np.save(tmp_path / "data" / split / c / f"{n}.npy", values)
    model = {"options": {"width": 0.25, "in_chans": 6}}
    with pytest.raises(
        ConfigError, match=r"data.mean is missing: nets with 6 input channels .*rescalenet check prints"
    ):
        make_task(config(tmp_path / "data", tmp_path / "run", model=model))
    with pytest.raises(ConfigError, match=r"data.mean=\[0.5\]: must have 6, a value for each input channel"):
        make_task(config(tmp_path / "data", tmp_path / "run", model=model, data={"mean": [0.5]}))
    data = {"mean": [0.5] * 6, "std": [0.3] * 6, "augment": {"crop": {"name": "pad", "padding": 1}, "erasing": {}}}
    fit(tmp_path / "data", tmp_path / "run", model=model, data=data, epochs=1)
    last = tmp_path / "run/checkpoints/last.safetensors"
    code, _, err = call(capsys, monkeypatch, "eval", last, tmp_path / "data/val")
    assert code == 0, err
    code, out, _ = call(capsys, monkeypatch, "predict", last, tmp_path / "data/val", "--out", tmp_path / "p")
    assert (code, len(out.splitlines())) == (0, 4)
    picture(tmp_path / "rgb.png")
    code, _, err = call(capsys, monkeypatch, "predict", last, tmp_path / "rgb.png", "--out", tmp_path / "p")
    assert code == 1
    assert err.splitlines()[-1].startswith("error: ")
    policy = {**data, "augment": {"auto_augment": {"name": "trivial"}}}
    with pytest.raises(ConfigError, match=r"data.augment.auto_augment: .* take 1 or 3 channels, the net takes 6"):
        make_task(config(tmp_path / "data", tmp_path / "b", model=model, data=policy))


@pytest.mark.parametrize("value", [0, -1, True, "one", 1.5])
def test_numbers_of_channels_that_are_none(images, tmp_path, value):
    with pytest.raises(ConfigError, match=r"model.options.in_chans=.*: must be a whole number >= 1"):
        make_task(config(images, tmp_path, model={"options": {"in_chans": value}}))


# -- settings that do not go together ----------------------------------------------------------------


@pytest.mark.parametrize("key", ["num_classes", "scheme", "weights", "features_only", "out_indices", "name"])
def test_arguments_of_create_model_have_their_own_place(images, tmp_path, key):
    with pytest.raises(ConfigError, match=rf"model.options: {key}=5 is no option of a net: "):
        config(images, tmp_path, model={"options": {key: 5}})


@pytest.mark.parametrize("name", ["video/finetune/ucf101", "translation/multi30k/en_de"])
def test_other_tasks_read_rgb_or_text(name):
    with pytest.raises(ConfigError, match=r"model.options: in_chans=1: leave it out, only image classification reads"):
        resolve(name, ["model.options={in_chans: 1}"])


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_mixing_requires_two_images(images, tmp_path, key):
    with pytest.raises(
        ConfigError, match=rf"data.augment.{key}=0.2: .*train.batch_size=1 has one; raise the batch size"
    ):
        make_task(config(images, tmp_path, data={"augment": {key: 0.2}}, batch_size=1))
    with pytest.raises(ConfigError, match=r"train.batch_size=2 with data.augment.copies=2 has one"):
        make_task(config(images, tmp_path, data={"augment": {key: 0.2, "copies": 2}}, batch_size=2))
    make_task(config(images, tmp_path, data={"augment": {key: 0.2}}, batch_size=2))


def test_batch_norm_of_one_value(images, tmp_path):
    model = {"name": "rescalenet18", "scheme": "bn", "options": {"width": 0.125}}
    data = {"size": 32, "resize": 32}
    with pytest.raises(ConfigError, match=r"train.batch_size=1: a BatchNorm of rescalenet18 would have one value"):
        make_task(config(images, tmp_path, model=model, data=data, batch_size=1)).build_model()
    make_task(config(images, tmp_path, model=model, data=data, batch_size=2)).build_model()
    make_task(config(images, tmp_path, model=model, data={"size": 64, "resize": 64}, batch_size=1)).build_model()
    make_task(config(images, tmp_path, model={**model, "scheme": "gn"}, data=data, batch_size=1)).build_model()


@pytest.mark.parametrize("value", [".inf", ".nan", "-.inf"])
def test_numbers_are_finite(images, tmp_path, value):
    with pytest.raises(ConfigError, match=r"train.optimizer.lr="):
        config(images, tmp_path, optimizer={"name": "sgd", "lr": float(value.replace(".", ""))})
