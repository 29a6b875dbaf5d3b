"""``rescalenet check`` of images: what it counts, what it warns of, and when training would stop."""

import dataclasses
import json

import numpy as np
import pytest
import yaml
from PIL import Image

from tasks.classification.check import check_data, look_at, look_at_all
from tasks.classification.data import folder_images
from tasks.errors import DataError, UserError
from tasks.spec import run_check, task_specs
from tests.helpers.classification import picture
from tests.helpers.commands import call
from tests.helpers.training import config


@pytest.fixture
def faulty(tree):
    """The pictures of ``tree``, and one of each kind of fault."""
    for n, path in enumerate(sorted(tree.glob("val/*/*.png"))):
        picture(path, seed=500 + n)
    (tree / "val/ant/again.png").write_bytes((tree / "train/bee/1.png").read_bytes())
    Image.open(tree / "train/ant/2.png").save(tree / "train/ant/copy.bmp")  # the same pixels in another file
    (tree / "train/ant/bad.jpg").write_text("broken")
    (tree / "val/bee/bad.png").write_text("broken")
    Image.fromarray(np.full((9, 30), 900, np.uint16)).save(tree / "train/bee/dark.png")
    (tree / "train/bee/.hidden.png").write_text("x")
    for n in range(60):
        picture(tree / f"train/ant/more{n}.png", size=(40, 24), mode="L", seed=1000 + n)
    return tree


def test_a_folder_with_faults(faulty, tmp_path, capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "check", faulty, "--out", tmp_path / "out")
    assert code == 1
    lines = out.splitlines()
    assert lines[0] == "train: 71 images in 2 classes; val: 6 images"
    assert lines[1] == "left out: 1 hidden"
    assert (
        "train: 70 of 71 images read; width 20 to 40 (median 40), height 9 to 24 (median 24), modes L 60, RGB 9, I;16 1"
        in out
    )
    assert "train: images smaller than the input of 224 px: 70 of 70" in out
    assert f"{'ant':<32}{66:>9}{3:>9}" in lines
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert warnings == [
        "warning: train: images that are nearly black: 1 of 70: bee/dark.png",
        "warning: val: images that cannot be read: 1 of 6",
        warnings[2],
        "warning: train: the largest class has 66 images, the smallest 5; see data.balanced and class_weights",
        "warning: pictures that occur more than once in a set: 1: train/ant/2.png = train/ant/copy.bmp",
        "warning: pictures in train and in val, of which the evaluation measures what was learned by heart: 1: "
        "train/bee/1.png = val/ant/again.png",
        "warning: pictures that occur with different labels: 1: train/bee/1.png = val/ant/again.png",
    ]
    assert lines[-2] == "stops training: train: images that cannot be read: 1 of 71"
    assert "ant/bad.jpg: cannot be decoded as an image" in lines[-1]
    content = json.loads((tmp_path / "out/check.json").read_text())
    train = content["sets"]["train"]
    assert train["classes"] == {"ant": 66, "bee": 5}
    assert train["width"] == {"min": 20, "median": 40, "max": 40}
    assert list(train["unreadable"]) == ["ant/bad.jpg"]
    assert train["nearly_black"] == ["bee/dark.png"]
    assert train["left_out"]["hidden"] == 1
    assert content["duplicates"]["between"] == [["train/bee/1.png", "val/ant/again.png"]]
    assert len(content["stops"]) == 2
    assert Image.open(tmp_path / "out/samples.png").size == (5 * 232 + 8, 8 * 250 + 26)


def test_pictures_with_several_frames_are_named(tree, capsys, monkeypatch):
    with Image.open(tree / "train/ant/2.png") as first, Image.open(tree / "train/bee/1.png") as second:
        first.save(tree / "train/ant/moving.gif", save_all=True, append_images=[second])
    code, out, _ = call(capsys, monkeypatch, "check", tree / "train")
    assert code == 0
    line = "warning: train: images with several frames, of which the first is read: 1 of 9: ant/moving.gif"
    assert line in out.splitlines()


def test_a_sound_folder(tree, capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "check", tree / "train")
    assert code == 0
    assert out.splitlines()[0] == "8 images in 2 classes"
    assert out.splitlines()[-1] == "nothing found that would stop training"
    assert "warning" not in out


def test_statistics_are_those_of_the_pixels(tree):
    images = folder_images(tree / "train")
    looks = look_at_all("train", images, None).looks.values()
    pixels = np.stack([np.asarray(images.read(i)) for i in range(len(images))]) / 255
    mean = np.mean([look.mean for look in looks], axis=0)
    std = np.sqrt(np.mean([look.square for look in looks], axis=0) - mean**2)
    assert mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-12)
    assert std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-12)
    picture(tree / "train/ant/grey.png", mode="L")
    grey = look_at(folder_images(tree / "train", 1), 4)
    assert (grey.mode, grey.width, grey.height, len(grey.mean)) == ("L", 20, 16, 1)


def test_the_same_pixels_in_another_shape_are_another_picture(tmp_path):
    for name, size in (("a/1.png", (4, 6)), ("b/1.png", (6, 4))):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", size, "red").save(tmp_path / name)
    images = folder_images(tmp_path)
    assert look_at(images, 0).digest != look_at(images, 1).digest


def test_a_limit_and_dark_data(tree, capsys):
    for split in ("train", "val"):
        for path in (tree / split).rglob("*.png"):
            Image.open(path).point(lambda value: value // 8 + 20).save(path)
    assert check_data(tree, None, 2)
    out = capsys.readouterr().out
    assert "train: 2 of 8 images read" in out
    assert (
        "warning: train: mean and std of the data are far from those of the input; a net trained from the start" in out
    )


def test_a_config(images, tmp_path, capsys, monkeypatch):
    content = config(images, tmp_path / "run").model_dump(mode="json")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    code, out, err = call(capsys, monkeypatch, "check", tmp_path / "c.yaml", "--limit", 5)
    assert code == 0, err
    assert "train: 5 of 48 images read; width 12 to 12" in out
    assert not (tmp_path / "run").exists()
    for override, message in (
        ("train.batch_size=64", "the training set has 48 samples, fewer than one batch of 64"),
        ("data.size=2", "data.size=2: must be >= "),
        ("model.options={widht: 1}", "widht"),
    ):
        code, out, err = call(capsys, monkeypatch, "check", tmp_path / "c.yaml", override, "--limit", 1)
        assert code == 1
        assert any(message in line for line in out.splitlines() if line.startswith("stops training: ")), out


def test_what_cannot_be_checked(tree, capsys, monkeypatch):
    with pytest.raises(UserError, match="a folder has no settings to override"):
        run_check(str(tree), ["data.size=3"], None, {})
    specs = task_specs()
    without = {**specs, "translation": dataclasses.replace(specs["translation"], check=None)}
    monkeypatch.setattr("tasks.spec.task_specs", lambda: without)
    with pytest.raises(UserError, match="there is no check of the data of translation yet"):
        run_check("translation/multi30k/en_de", [], None, {})
    with pytest.raises(DataError, match="contains no folder; it must contain one folder of images for each class"):
        run_check(str(tree / "train/ant"), [], None, {})
    (tree / "val/cow").mkdir()
    picture(tree / "val/cow/0.png")
    assert not check_data(tree, None, None)
    assert "stops training: train and val have different classes: cow" in capsys.readouterr().out


def test_sets_of_other_names_are_told(tree, capsys):
    """As Roboflow and Kaggle name them: not as a part of train, and not left out without a word."""
    (tree / "val").rename(tree / "valid")
    picture(tree / "Test/ant/0.png")
    assert check_data(tree, None, None)
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == f"{tree}: not looked at: Test, valid; a config with data.val=Test checks it beside train"
    assert second == "8 images in 2 classes"
