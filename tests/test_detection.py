"""Detection end to end: evaluation against pycocotools, prediction with tiles, training, the command line."""

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from conftest import on_two_processes, shared
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage
from test_cli import call
from test_detector import SMALL, calibrated, sharpened, small

import zoo
from tasks.detection.coco import decode_mask, load_coco
from tasks.detection.detector import create_detector
from tasks.detection.evaluate import categories_of, coco_metrics, detect, evaluate_weights, results_of, to_results
from tasks.detection.predict import detect_image, draw_results, full_rle, instances, merge_tiles, predict, tile_corners
from tasks.devices import make_accelerator
from tasks.engine import Trainer
from tasks.errors import DataError, UserError
from tasks.plots import read_log
from tasks.run import check, make_task, resolve

KINDS = ("bbox", "segm")


def real(name, check="none"):
    """A real set: nuclei (val), coco (train), or nine pictures of coco."""
    annotations, images = {
        "nuclei": ("nuclei/instances_val.json", "nuclei/val"),
        "coco": ("coco_permissive/annotations/instances_train2017.json", "coco_permissive/train2017"),
        "sample": ("coco_permissive/sample/instances_val2017.json", "coco_permissive/sample/val2017"),
    }[name]
    root = shared("data", "coco_permissive").parent
    return load_coco(root / annotations, root / images, masks=True, check=check)


def perfect(data):
    """The ground truth as detections."""
    results = []
    for image in data.images:
        for a in data.objects(image, masks=True):
            mask = rle.encode(np.asfortranarray(decode_mask(a, image.height, image.width)))
            segmentation = {"size": mask["size"], "counts": mask["counts"].decode()}
            entry = {"image_id": image.id, "category_id": a["category_id"], "bbox": a["bbox"], "score": 1.0}
            results.append({**entry, "segmentation": segmentation})
    return results


def noisy(data, seed=0):
    """Ground truth with some objects missing, some doubled, some moved, under random scores."""
    random = np.random.RandomState(seed)
    results = []
    for result in perfect(data):
        for _ in range(random.randint(0, 3)):
            size = result["segmentation"]["size"]
            mask = np.roll(rle.decode(result["segmentation"]), tuple(random.randint(-4, 5, 2)), (0, 1))
            encoded = rle.encode(np.asfortranarray(mask))
            moved = [float(v) for v in np.asarray(result["bbox"]) * random.uniform(0.9, 1.1, 4)]
            segmentation = {"size": size, "counts": encoded["counts"].decode()}
            results.append({**result, "bbox": moved, "score": float(random.rand()), "segmentation": segmentation})
    return results


# -- evaluation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coco", "nuclei"])
@pytest.mark.parametrize("fast", [False, True])
def test_ground_truth_fed_back_has_ap_one(name, fast):
    reports = coco_metrics(real(name), perfect(real(name)), KINDS, fast=fast)
    for kind in KINDS:
        metrics = reports[kind].metrics()
        prefix = "box" if kind == "bbox" else "mask"
        for figure in ("ap", "ap50", "ap75", "ar100"):
            assert metrics[f"{prefix}_{figure}"] == pytest.approx(1, abs=1e-9)
        assert {round(v, 9) for v in reports[kind].per_category.values()} <= {1.0, -1.0}


def alone(data, path, kind):
    """pycocotools as its documentation uses it: two files."""
    truth = path.with_name("truth.json")
    truth.write_text(json.dumps(data.ground_truth()))
    coco = COCO(str(truth))
    evaluation = COCOeval(coco, coco.loadRes(str(path)), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats.tolist()


@pytest.mark.parametrize("fast", [False, True])
def test_figures_are_pycocotools(fast, tmp_path, capsys):
    """On imperfect detections with crowds about; the fast evaluator agrees to 1e-6, the 12 lines are its own."""
    data = real("coco")
    results = noisy(data)
    reports = coco_metrics(data, results, KINDS, fast=fast)
    for kind in KINDS:
        (tmp_path / f"{kind}.json").write_text(json.dumps(results_of(results, kind)))
        capsys.readouterr()
        expected = alone(data, tmp_path / f"{kind}.json", kind)
        assert 0.1 < expected[0] < 0.9
        assert reports[kind].stats == pytest.approx(expected, abs=1e-6)
        assert reports[kind].text.splitlines() == capsys.readouterr().out.splitlines()[-12:]
        values = [v for v in reports[kind].per_category.values() if v >= 0]
        assert np.mean(values) == pytest.approx(expected[0], abs=1e-6)


def test_nothing_found():
    for fast in (False, True):
        reports = coco_metrics(real("sample"), [], KINDS, fast=fast)
        assert reports["segm"].metrics()["mask_ap"] == 0
        assert reports["bbox"].metrics()["box_ar100"] == 0


def test_results_of_a_detector():
    """Boxes as x, y, width, height; COCO's category ids; masks at a probability of one half."""
    masks = torch.zeros(2, 1, 20, 30)
    masks[0, 0, 5:10, 8:20] = 0.51
    masks[1, 0, 0:3, 0:3] = 0.5
    output = {
        "boxes": torch.tensor([[8.0, 5.0, 20.0, 10.5], [0.0, 0.0, 3.0, 3.0]]),
        "labels": torch.tensor([2, 1]),
        "scores": torch.tensor([0.75, 0.5]),
        "masks": masks,
    }
    first, second = to_results(output, 42, (3, 7))
    assert (first["image_id"], first["category_id"], first["score"]) == (42, 7, 0.75)
    assert first["bbox"] == [8, 5, 12, 5.5]
    assert np.array_equal(rle.decode(first["segmentation"]), masks[0, 0].numpy() > 0.5)
    assert rle.area(second["segmentation"]) == 0
    empty = {key: value[:0] for key, value in output.items()}
    assert to_results(empty, 42, (3, 7)) == []


@pytest.fixture
def weights(tmp_path):
    """A file of a small random detector for coco's classes that finds a lot."""
    data = real("sample")
    model = small(num_classes=len(data.names), proposals_test=200, score_thresh=0.0, min_size=128, max_size=200)
    calibrated(model)
    sharpened(model).eval()
    path = tmp_path / "detector.safetensors"
    zoo.save_weights(model, path, transform=model.input, classes=data.names)
    return path


def test_two_processes_evaluate_as_one(weights, tmp_path, capsys):
    """Their merged results are those of one process, and pycocotools alone says the same of the written file."""
    data = real("sample")
    model = create_detector("mask_rcnn_rescalenet18_fpn", str(weights))
    one = evaluate_weights(model, zoo.get_weights(str(weights)), data, out=tmp_path / "one")
    root = shared("data", "coco_permissive", "sample")
    arguments = [
        "eval",
        weights,
        root / "instances_val2017.json",
        "--images",
        root / "val2017",
        "--out",
        tmp_path / "two",
    ]
    said = on_two_processes(*arguments)
    for kind in KINDS:
        a, b = (json.loads((tmp_path / n / f"results_{kind}.json").read_text()) for n in ("one", "two"))
        assert len(a) > 100
        assert a == b
    assert said.count("maxDets=100 ]") == 2 * 10  # one process reports, boxes and masks
    for kind in KINDS:
        assert alone(data, tmp_path / "two" / f"results_{kind}.json", kind) == pytest.approx(one[kind].stats, abs=1e-12)


def test_categories_are_found_by_name(weights):
    """A set with fewer categories, in another order and with other ids: the rest of what is found does not count."""
    entry = zoo.get_weights(str(weights))
    model = create_detector("mask_rcnn_rescalenet18_fpn", str(weights))
    data = real("sample")
    keep = [name for name in ("train", "person", "cat") if name in data.names]
    ids = dict(zip(data.names, data.categories, strict=True))
    found = detect(model, data, make_accelerator())
    fewer = dataclasses.replace(data, names=tuple(keep), categories=(900, 17, 5))
    categories = categories_of(fewer, entry.classes, entry.name)
    assert len(categories) == len(entry.classes)
    assert len([c for c in categories if c is not None]) == len(keep)
    renamed = {ids[name]: id for name, id in zip(keep, (900, 17, 5), strict=True)}
    expected = [{**r, "category_id": renamed[r["category_id"]]} for r in found if r["category_id"] in renamed]
    assert detect(model, fewer, make_accelerator(), categories=categories) == expected
    with pytest.raises(DataError, match="category 'persn' is not one of .* .did you mean person"):
        evaluate_weights(model, entry, dataclasses.replace(data, names=("persn",), categories=(1,)))


def test_evaluation_restores_the_mode_and_takes_any_batch_size(weights):
    data = real("sample").subset(lambda image: image.id in (5001, 6818, 30213))
    model = create_detector("mask_rcnn_rescalenet18_fpn", str(weights)).train()
    accelerator = make_accelerator()
    one, three = (detect(model, data, accelerator, batch_size=n) for n in (1, 3))
    assert model.training
    assert [r["image_id"] for r in one] == [r["image_id"] for r in three]
    for a, b in zip(one, three, strict=True):
        assert a["bbox"] == pytest.approx(b["bbox"], abs=0.02)


# -- prediction -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(0, 5), st.integers(0, 5))
def test_rle_of_a_part_is_that_of_the_whole(seed, height, width, x, y):
    mask = np.random.RandomState(seed).rand(height, width) < 0.5
    whole = np.zeros((height + 7, width + 6), dtype=np.uint8)
    whole[y : y + height, x : x + width] = mask
    expected = rle.encode(np.asfortranarray(whole))
    assert full_rle(mask, (x, y), width + 6, height + 7) == {
        "size": list(expected["size"]),
        "counts": expected["counts"].decode(),
    }


@given(st.integers(1, 3000), st.integers(2, 700), st.floats(0, 0.9))
def test_tiles_cover_the_picture(length, tile, share):
    overlap = int(share * tile)
    corners = tile_corners(length, tile, overlap)
    assert corners[0] == 0
    assert corners[-1] == max(0, length - tile)
    assert all(0 < b - a <= tile - overlap for a, b in pairwise(corners))


class Blobs(torch.nn.Module):
    """A detector that is right: connected white regions, scored by their area."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.input = zoo.DetectionTransform(100, 100, (0.0,) * 3, (1.0,) * 3)

    def forward(self, images):
        outputs = []
        for image in images:
            labelled, count = ndimage.label((image[0] > 0.5).cpu().numpy())
            masks = [labelled == i for i in range(1, count + 1)]
            boxes = [(s[1].start, s[0].start, s[1].stop, s[0].stop) for s in ndimage.find_objects(labelled)]
            outputs.append(
                {
                    "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                    "labels": torch.ones(count, dtype=torch.int64),
                    "scores": torch.tensor([float(m.sum()) / 1000 for m in masks]),
                    "masks": torch.from_numpy(np.array(masks).reshape(-1, *image.shape[1:])).float()[:, None],
                }
            )
        return outputs


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(60, 110))
def test_tiles_find_what_the_whole_picture_shows(seed, tile):
    """Objects smaller than the overlap: found once each, with the mask they have, wherever tiles cut."""
    random = np.random.RandomState(seed)
    pixels = np.zeros((190, 260), dtype=np.uint8)
    for _ in range(30):
        y, x, h, w = *random.randint(0, 170, 2), *random.randint(3, 14, 2)
        if not pixels[max(0, y - 1) : y + h + 1, max(0, x - 1) : x + w + 1].any():
            pixels[y : y + h, x : x + w] = 255
    image, model = Image.fromarray(pixels).convert("RGB"), Blobs()

    def found(**options):
        result = detect_image(model, image, ["blob"], threshold=0.0, **options)
        return {(i.box, json.dumps(i.to_json(260, 190)["segmentation"])) for i in result}, len(result)

    whole, tiled = found(), found(tile=tile, overlap=20)
    assert tiled == whole


def test_objects_larger_than_the_overlap_stay():
    """Cut by every tile, a long object is still reported; the parts that overlap are merged."""
    pixels = np.zeros((40, 300), dtype=np.uint8)
    pixels[10:20, 5:295] = 255
    result = detect_image(
        Blobs(), Image.fromarray(pixels).convert("RGB"), ["blob"], threshold=0.0, tile=100, overlap=20
    )
    assert result
    assert min(i.box[0] for i in result) == 5
    assert max(i.box[2] for i in result) == 295


def test_classes_do_not_suppress_each_other():
    output = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 9]]),
        "labels": torch.tensor([1, 2, 1]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
    }
    parts = [(instance, False) for instance in instances(output, ["a", "b"], 0.5)]
    assert [(i.label, round(i.score, 3)) for i in merge_tiles(parts)] == [("a", 0.9), ("b", 0.8)]
    assert len(instances(output, ["a", "b"], 0.85)) == 1


def test_drawn_results(tmp_path):
    """True masks of COCO pictures: drawn copies differ from the pictures inside the objects and their boxes only."""
    data = real("sample")
    draw_results(data, perfect(data), tmp_path, count=2)
    names = sorted(path.stem for path in tmp_path.iterdir())
    assert len(names) == 2
    for record in (image for image in data.images if image.file_name[:-4] in names):
        drawn, plain = np.asarray(Image.open(tmp_path / f"{record.file_name[:-4]}.png")), np.asarray(data.read(record))
        changed = (drawn != plain).any(2)
        covered = np.zeros_like(changed)
        for annotation in data.objects(record, masks=True):
            x, y, w, h = annotation["bbox"]
            covered[int(y) : int(y + h) + 13, int(x) : int(x + w) + 2] = True
            inside = decode_mask(annotation, record.height, record.width).astype(bool)
            assert changed[inside].mean() > 0.9
        assert not changed[~covered].any()


def test_a_wrong_overlap_is_refused():
    with pytest.raises(UserError, match="overlap=50: 0 to 49 pixels"):
        detect_image(Blobs(), Image.new("RGB", (200, 200)), ["blob"], tile=50, overlap=50)


def test_predict_writes_pictures_and_json(weights, tmp_path, capsys):
    entry = zoo.get_weights(str(weights))
    model = create_detector(entry.config.name, str(weights))
    for name in ("one/a.png", "two/a.png"):
        path = tmp_path / name
        path.parent.mkdir()
        Image.effect_noise((150, 100), 90).convert("RGB").save(path)
    (tmp_path / "two/b.png").write_bytes(b"nothing")
    files = [tmp_path / "one/a.png", tmp_path / "two/a.png", tmp_path / "two/b.png"]
    predictions, failed = predict(model, entry, files, threshold=0.1, out=tmp_path / "out")
    assert [p.file for p in predictions] == [str(f) for f in files[:2]]
    assert list(failed) == [str(files[2])]
    assert "1 of 3 files could not be read" in capsys.readouterr().err
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"predictions.json", "a.png", "a_2.png"}
    written = json.loads((tmp_path / "out/predictions.json").read_text())
    for prediction, content in zip(predictions, written["predictions"], strict=True):
        assert len(prediction.instances) == len(content["instances"]) > 0
        for instance, stored in zip(prediction.instances, content["instances"], strict=True):
            assert stored["score"] >= 0.1
            assert stored["label"] in entry.classes
            mask = rle.decode(stored["segmentation"])
            assert mask.shape == (100, 150)
            assert mask.sum() == instance.mask.sum()
    drawn = np.asarray(Image.open(tmp_path / "out/a.png"))
    assert drawn.shape == (300, 450, 3)  # small pictures are enlarged
    plain = np.asarray(Image.open(files[0]).resize((450, 300)))
    assert (drawn != plain).any()


# -- training ---------------------------------------------------------------------------------------


def config(output, images, annotations, **changes):
    content = {
        "task": "detection",
        "output": str(output),
        "model": {
            "name": "mask_rcnn_rescalenet18_fpn",
            "options": {
                "body": {"width": 0.125},
                **{k: list(v) if isinstance(v, tuple) else v for k, v in SMALL.items()},
            },
        },
        "data": {
            "root": str(images.parent),
            "train_annotations": str(annotations),
            "train_images": str(images),
            "val_annotations": str(annotations),
            "val_images": str(images),
            "min_size": 96,
            "max_size": 160,
            "augment": {"resize": {"name": "short_side", "sizes": [80, 96], "max_size": 160}},
        },
        "train": {
            "epochs": 2,
            "batch_size": 2,
            "optimizer": {"name": "adamw", "lr": 0.001},
            "log_every": 1,
            "checkpoint_minutes": 0,
            "calibration_batches": 2,
        },
    }
    for key, value in changes.items():
        section, name = key.split("__")
        content[section][name] = value
    return content


@pytest.fixture
def sample_config(tmp_path):
    root = shared("data", "coco_permissive", "sample")
    return lambda **changes: config(tmp_path / "run", root / "val2017", root / "instances_val2017.json", **changes)


def test_training_evaluates_saves_and_resumes(sample_config, tmp_path):
    """A run that was interrupted goes on to the bit; what it saves gives what the engine measured."""
    whole = Trainer(make_task(check(sample_config(), "test")))
    metrics = whole.fit()
    assert set(metrics) >= {"box_ap", "box_ap50", "mask_ap", "mask_ar_small"}
    assert len(list((tmp_path / "run" / "pictures").glob("*.png"))) == 4
    steps = [r for r in read_log(tmp_path / "run" / "log.jsonl") if r["event"] == "step"]
    terms = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    assert all(sum(r[t] for t in terms) == pytest.approx(r["loss"], rel=1e-5) for r in steps)
    path = str(tmp_path / "run/checkpoints/last.safetensors")
    again = create_detector("mask_rcnn_rescalenet18_fpn", path)
    data = whole.task.val_data
    assert evaluate_weights(again, zoo.get_weights(path), data)["segm"].metrics()["mask_ar100"] == pytest.approx(
        metrics["mask_ar100"]
    )

    content = sample_config()
    content["output"] = str(tmp_path / "cut")
    first = Trainer(make_task(check(content, "test")))

    class Stop(Exception):
        pass

    def stop(progress):
        raise Stop

    first._end_of_epoch = stop
    with pytest.raises(Stop):
        first.fit()
    second = Trainer(make_task(check(content, "test")), resume=True)
    second.fit()
    for (name, a), b in zip(whole.bare.state_dict().items(), second.bare.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_accumulation_freezing_and_repeats(sample_config):
    task = make_task(
        check(
            sample_config(
                train__accumulate=2, train__epochs=1, train__batch_size=1, model__freeze=2, data__repeat_threshold=0.2
            ),
            "test",
        )
    )
    trainer = Trainer(task)
    before = {k: v.clone() for k, v in trainer.bare.state_dict().items()}
    trainer.fit()
    assert len(trainer.batches) == int(sum(trainer.batches.repeats)) > len(task.train_data)
    for key, value in trainer.bare.state_dict().items():
        if key.startswith(("backbone.body.body.stem", "backbone.body.body.layer1")):
            assert torch.equal(value, before[key]), key
    assert not torch.equal(
        before["rpn.head.cls_logits.weight"], trainer.bare.state_dict()["rpn.head.cls_logits.weight"]
    )


def test_two_processes_train(sample_config, tmp_path):
    """Under torchrun; what both measured at the end is what one process measures on the weights they saved."""
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(sample_config(train__epochs=1, data__holdout=None)))
    on_two_processes("train", path)
    (measured,) = [r for r in read_log(tmp_path / "run" / "log.jsonl") if r["event"] == "epoch"]
    path = str(tmp_path / "run/checkpoints/last.safetensors")
    model = create_detector("mask_rcnn_rescalenet18_fpn", path)
    for report in evaluate_weights(model, zoo.get_weights(path), real("sample")).values():
        for key, value in report.metrics().items():
            assert measured[key] == pytest.approx(value, abs=1e-12), key


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_precisions(sample_config, precision):
    metrics = Trainer(make_task(check(sample_config(train__precision=precision, train__epochs=1), "test"))).fit()
    assert all(np.isfinite(v) for v in metrics.values())


@pytest.mark.slow
def test_overfits_eight_images(tmp_path):
    """Eight true COCO images with objects of 32 x 32 px and more: box AP50 of 0.9 on them."""
    root = shared("data", "coco_permissive")
    content = json.loads((root / "annotations/instances_train2017.json").read_text())
    large = [a for a in content["annotations"] if a["area"] >= 32**2 and not a["iscrowd"]]
    ids = sorted({a["image_id"] for a in large})[:8]
    content["images"] = [i for i in content["images"] if i["id"] in ids]
    content["annotations"] = [a for a in large if a["image_id"] in ids]
    path = tmp_path / "eight.json"
    path.write_text(json.dumps(content))
    changes = {
        "model__options": {
            "body": {"width": 0.5, "projection_gain": 2.0},
            "fpn_channels": 64,
            "box_width": 256,
            "mask_convs": [32, 32],
            "mask_width": 32,
            "box_samples": 128,
            "proposals_train": 300,
            "proposals_test": 300,
        },
        "data__min_size": 256,
        "data__max_size": 384,
        "data__augment": {"resize": {"name": "short_side", "sizes": [256], "max_size": 384}, "flip": 0.0},
        "data__cache": True,
        "train__epochs": 120,
        "train__eval_every": 120,
        "train__optimizer": {"name": "adamw", "lr": 1e-3, "clip_norm": 1.0},
        "train__checkpoint_minutes": 60,
    }
    metrics = Trainer(make_task(check(config(tmp_path / "run", root / "train2017", path, **changes), "test"))).fit()
    assert metrics["box_ap50"] >= 0.9
    assert metrics["mask_ap50"] >= 0.8


@pytest.mark.slow
def test_batch_size_one_learns(tmp_path):
    """One image a step, the nuclei recipe's learning rate: over 300 steps the loss on sixteen images falls.

    The losses of the steps themselves differ more by their images than by what was learnt.
    """
    changes = [f"data.root={shared('data', 'nuclei')}", f"output={tmp_path / 'run'}", "data.split=holdout"]
    changes += ["train.batch_size=1", "train.epochs=1"]
    task = make_task(resolve("detection/nuclei/mask_rcnn_rescalenet18", changes))
    trainer = Trainer(task)
    fixed = [task.collate([task.train_set()[0, i]]) for i in range(16)]

    def loss():
        torch.manual_seed(0)  # of the sampling of anchors and proposals
        with torch.no_grad():
            return np.mean(
                [float(sum(task.losses(trainer.bare.train(), batch, torch.float32).values())) for batch in fixed]
            )

    before = loss()
    trainer.steps_per_epoch = 300
    trainer.fit()
    assert loss() < 0.75 * before


# -- the command line -------------------------------------------------------------------------------


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
        ("data.train_images=/none", "error: /none: no such folder, and no zip file of that name"),
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
    code, out, _ = call(capsys, monkeypatch, "list", "mask_*")
    assert code == 0
    assert out.splitlines() == ["mask_rcnn_rescalenet18_fpn  [nuclei]"]
