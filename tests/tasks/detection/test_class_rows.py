"""Fine-tuning on classes in another order, with fewer or with more: each class starts as the class of its name."""

import pytest
import torch

import zoo
from tasks.detection.class_rows import follow_names
from tasks.detection.detector import create_detector
from tasks.detection.model import Detection
from tasks.spec import check
from tests.helpers.coco import Builder
from tests.helpers.detection import calibrated, config, sample, sharpened, small

STORED = ("a", "b", "c")
NAME = "mask_rcnn_rescalenet18_fpn"


@pytest.fixture(scope="module", params=["2fc", "4conv1fc"])
def weights(request, tmp_path_factory):
    heads = {"heads": request.param, **({"rpn_convs": 1} if request.param == "2fc" else {})}
    model = small(score_thresh=0.0, **heads)
    calibrated(model)
    sharpened(model).eval()
    path = tmp_path_factory.mktemp("rows") / "w.safetensors"
    zoo.save_weights(model, path, transform=model.input, classes=STORED)
    return str(path)


def followed(weights, classes):
    model = create_detector(NAME, weights, num_classes=len(classes))
    follow_names(model, zoo.get_weights(weights), classes)
    return model.eval()


def rows(model, count):
    """The rows of each class, background first, of all last layers: (count + 1, ...) each."""
    heads = model.roi_heads
    layers = (heads.box_predictor.cls_score, heads.box_predictor.bbox_pred, heads.mask_predictor.mask_fcn_logits)
    return [p.detach().unflatten(0, (count + 1, -1)) for layer in layers for p in (layer.weight, layer.bias)]


@pytest.mark.parametrize("classes", [("c", "a", "b"), ("b", "a", "c"), ("a", "b", "c")])
def test_another_order_detects_the_same(weights, classes):
    before, after = create_detector(NAME, weights).eval(), followed(weights, classes)
    with torch.no_grad():
        for seed in range(3):
            image, _ = sample(seed=seed)
            (one,), (two,) = before([image]), after([image])
            names = [[of[label - 1] for label in out["labels"]] for of, out in ((STORED, one), (classes, two))]
            assert len(set(names[0])) > 1
            assert names[0] == names[1]
            for key in ("boxes", "scores", "masks"):
                assert torch.allclose(one[key], two[key], atol=1e-5)


@pytest.mark.parametrize("classes", [("c", "x"), ("x", "c", "a", "y", "b"), ("b",), ("c", "x", "a"), ("x", "y", "z")])
def test_classes_that_are_known_keep_their_rows(weights, classes, capsys):
    old, new = rows(create_detector(NAME, weights), 3), rows(followed(weights, classes), len(classes))
    for before, after in zip(old, new, strict=True):
        assert torch.equal(after[0], before[0])  # the background
        for number, name in enumerate(classes, 1):
            if name in STORED:
                assert torch.equal(after[number], before[STORED.index(name) + 1])
            elif len(classes) != 3:
                assert not any(torch.equal(after[number], row) for row in before) or not before.any()
    lost = [name for name in classes if name not in STORED]
    said = capsys.readouterr().err
    if lost:
        start = "start as those that they replace" if len(classes) == 3 else "start fresh"
        assert f"classes: {len(lost)} of {len(classes)} new, which {start}" in said
    assert "follow their names" in said


def test_the_upsampling_of_masks_is_kept(weights):
    old, new = create_detector(NAME, weights), followed(weights, ("b", "x"))
    for a, b in zip(
        old.roi_heads.mask_predictor.conv5_mask.parameters(),
        new.roi_heads.mask_predictor.conv5_mask.parameters(),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_a_run_starts_from_classes_by_name_and_the_sizes_of_the_weights(tmp_path):
    """The set lists red and blue, the weights blue and red; the config gives no sizes."""
    built = Builder(tmp_path)
    built.load()
    model = small(num_classes=2, min_size=72, max_size=110)
    calibrated(model)
    sharpened(model)
    path = tmp_path / "w.safetensors"
    zoo.save_weights(model, path, transform=model.input, classes=("blue", "red"))
    content = config(tmp_path / "run", tmp_path / "images", tmp_path / "instances.json", model__weights=str(path))
    del content["model"]["options"], content["data"]["augment"], content["data"]["min_size"]
    del content["data"]["max_size"]
    task = Detection(check(content, "test"))
    data = task.config.data
    assert (data.min_size, data.max_size) == (72, 110)
    assert data.augment.resize.sizes == (58, 60, 63, 66, 69, 72)
    assert data.augment.resize.max_size == 110
    for before, after in zip(rows(model, 2), rows(task.build_model(), 2), strict=True):
        assert torch.equal(after, before[[0, 2, 1]])
    assert task.config.without_augmentation().data.augment.resize.factors == (1.0,)
    image, _ = Detection(check(content, "test").without_augmentation()).train_set()[0, 0]
    assert min(image.shape[1:]) == 72


def test_sizes_without_weights(tmp_path):
    built = Builder(tmp_path)
    built.load()
    content = config(tmp_path / "run", tmp_path / "images", tmp_path / "instances.json")
    for key in ("augment", "min_size", "max_size"):
        del content["data"][key]
    data = Detection(check(content, "test")).config.data
    assert (data.min_size, data.max_size) == (800, 1333)
    assert data.augment.resize.sizes == (640, 672, 704, 736, 768, 800)  # detectron2's
    content["data"]["min_size"] = 1500
    data = Detection(check(content, "test")).config.data
    assert (data.min_size, data.max_size, data.augment.resize.max_size) == (1500, 1500, 1500)
