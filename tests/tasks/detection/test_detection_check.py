"""``rescalenet check`` for detection: a config, a COCO file, or the folder of an annotation tool."""

import json
import shutil

import pytest
import yaml
from PIL import Image

import zoo
from tasks.cli import main
from tasks.detection import coco
from tasks.detection.layouts import find_sets, is_coco
from tasks.errors import DataError
from tests.helpers.coco import encoded
from tests.helpers.detection import config, small


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command: exit code and output."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["rescalenet", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        found = capsys.readouterr()
        return stop.value.code or 0, found.out + found.err

    return call


def test_a_file(builder, run, tmp_path):
    builder.annotate(1, 3, (0, 0, 2, 2), segmentation=[[1, 1, 2, 2]])
    builder.annotate(2, 3, (0, 0, 30, 40), iscrowd=1, segmentation={"size": [40, 60], "counts": [0, 1200, 1200]})
    builder.image(9, "deep.png", encoded(Image.new("RGB", (60, 40), (3, 2, 1))))
    builder.load()
    code, out = run(builder.root / "instances.json", "--out", tmp_path / "out")
    assert code == 0
    for line in (
        "train: 4 images, 4 read; width 60 to 60 (median 60), height 40 to 40 (median 40)",
        "train: 6 objects in 2 classes, 0 to 2 in an image (median 2), 1 crowds; masks; areas by COCO's",
        f"{'red':<32}{3:>9}",
        "1 annotations whose polygons have no area inside the image, left out: id 7",
        "train: images that are nearly black: 1 of 4 (16-bit pictures",
        "nothing found that would stop training",
    ):
        assert line in out
    content = json.loads((tmp_path / "out/check.json").read_text())
    found = content["sets"]["train"]
    assert (found["objects"], found["crowds"], found["classes"]) == (6, 1, {"red": 3, "blue": 3})
    assert found["problems"]["annotations whose polygons have no area inside the image, left out"] == ["id 7"]
    assert content["masks"]
    with Image.open(tmp_path / "out/samples.png") as sheet:
        assert sheet.width > 4 * 320
    assert run(builder.root / "instances.json", "--out", tmp_path / "out")[0] == 1  # has results


def test_what_stops_training(builder, run):
    builder.load()
    (builder.root / "images/b.jpg").write_bytes(b"no picture")
    code, out = run(builder.root / "instances.json")
    assert code == 1
    assert "stops training: " in out
    assert "1 images that cannot be decoded: b.jpg" in out
    builder.content["annotations"][0]["bbox"] = None
    (builder.root / "instances.json").write_text(json.dumps(builder.content))
    code, out = run(builder.root / "instances.json")
    assert (code, "bbox is not four finite numbers: id 1" in out) == (1, True)


def test_a_config(builder, run, tmp_path):
    builder.load()
    content = config(tmp_path / "run", builder.root / "images", builder.root / "instances.json")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    code, out = run(tmp_path / "c.yaml", "--out", tmp_path / "out")
    assert code == 0
    assert (
        "images in train and in val, of which the evaluation measures what was learned by heart: 2: train/a.png" in out
    )
    assert "images have more than" not in out
    code, out = run(tmp_path / "c.yaml", "train.batch_size=8", "data.max_dets=1")
    assert code == 1
    assert "images have more than 1 objects" in out
    assert "stops training: the training set has 3 samples, fewer than one batch of 8" in out


def test_a_config_is_read_once_and_has_the_sizes_of_its_weights(builder, run, tmp_path, monkeypatch):
    builder.load()
    (builder.root / "val.json").write_bytes((builder.root / "instances.json").read_bytes())
    model = small(num_classes=2, min_size=32, max_size=48)
    zoo.save_weights(model, tmp_path / "w.safetensors", transform=model.input, classes=("red", "blue"))
    content = config(tmp_path / "run", builder.root / "images", builder.root / "instances.json")
    for key in ("min_size", "max_size", "augment"):
        del content["data"][key]
    content["data"]["val_annotations"] = "val.json"
    content["data"]["train_annotations"] = "instances.json"
    content["data"]["root"] = str(builder.root)
    content["model"] = {"name": "mask_rcnn_rescalenet18_fpn", "weights": str(tmp_path / "w.safetensors")}
    builder.annotate(1, 3, (30, 30, 4, 4))
    builder.load()
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    read, files = coco.read_object, []
    monkeypatch.setattr(coco, "read_object", lambda path: files.append(path.name) or read(path))
    code, out = run(tmp_path / "c.yaml")
    assert (code, files) == (0, ["instances.json", "val.json"])
    assert "train: objects of less than 4 pixels at the input of the net (short side 32, long side at most 48)" in out


def test_an_image_in_both_sets_and_a_folder_of_roboflow(builder, run):
    """Each set has its file beside its images; without masks."""
    builder.content["annotations"] = [{**a, "segmentation": []} for a in builder.content["annotations"]]
    builder.load(masks=False)
    root = builder.root / "robo"
    for name in ("train", "valid", "test"):
        shutil.copytree(builder.root / "images", root / name)
        shutil.copy(builder.root / "instances.json", root / name / "_annotations.coco.json")
    Image.new("RGB", (60, 40), "red").save(root / "valid/a.png")
    assert is_coco(root)
    assert {name: (found.annotations.parent.name, found.images) for name, found in find_sets(root).items()} == {
        "train": ("train", root / "train"),
        "val": ("valid", root / "valid"),
    }
    code, out = run(root)
    assert code == 0
    assert "train: 6 objects in 2 classes, 2 to 2 in an image (median 2), 0 crowds; boxes only" in out
    assert "= val/sub/c.png, train/b.jpg = val/b.jpg" in out


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("instances.json", "images"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_default.json", "images"),  # CVAT
        ("result.json", "."),  # Label Studio
        ("labels/a.coco.json", "data"),
    ],
)
def test_images_are_found_where_tools_put_them(builder, tmp_path, annotations, images):
    builder.load()
    (tmp_path / "x" / annotations).parent.mkdir(parents=True)
    shutil.copy(builder.root / "instances.json", tmp_path / "x" / annotations)
    shutil.copytree(builder.root / "images", tmp_path / "x" / images, dirs_exist_ok=True)
    found = find_sets(tmp_path / "x")
    assert list(found) == ["train"]
    assert found["train"].annotations == tmp_path / "x" / annotations
    assert found["train"].images.resolve() == (tmp_path / "x" / images).resolve()


def test_sets_that_are_not_found(builder, tmp_path):
    builder.load()
    tmp_path = tmp_path / "x/y"
    tmp_path.mkdir(parents=True)
    shutil.copy(builder.root / "instances.json", tmp_path / "a.json")
    with pytest.raises(DataError, match=r"a.json: the images are not found in .*/images, .*; give --images FOLDER"):
        find_sets(tmp_path / "a.json")
    shutil.copy(builder.root / "instances.json", tmp_path / "b.json")
    with pytest.raises(DataError, match=r"has several COCO files \(a.json, b.json.*; give one of them, or a config"):
        find_sets(tmp_path)


def test_other_files_are_no_coco(tmp_path):
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant/meta.json").write_text('{"images": 3}')
    (tmp_path / "c.yaml").write_text("task: detection")
    assert not is_coco(tmp_path)
    assert not is_coco(tmp_path / "c.yaml")
    assert not is_coco(tmp_path / "ant/meta.json")
