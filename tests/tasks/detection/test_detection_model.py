"""Training of detectors."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from pycocotools import mask as rle
from safetensors.torch import load_file

import zoo
from tasks.detection.detector import create_detector
from tasks.detection.evaluate import evaluate_weights
from tasks.detection.found import Found, Packed
from tasks.devices import make_accelerator
from tasks.engine import Trainer, training_loss
from tasks.errors import ConfigError
from tasks.plots import read_log
from tasks.spec import check, make_task, resolve
from tests.helpers.coco import Builder
from tests.helpers.commands import environment, on_two_processes
from tests.helpers.detection import config, perfect, real
from tests.helpers.paths import shared


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


def test_accumulation_freezing_and_repeats(sample_config, tmp_path):
    settings = {"train__accumulate": 2, "train__epochs": 1, "train__batch_size": 1, "data__repeat_threshold": 0.2}
    with pytest.raises(ConfigError, match=r"model.freeze=2: .*requires model.weights or model.weights_backbone"):
        check(sample_config(model__freeze=2), "test")
    fresh = make_task(check(sample_config(**settings), "test"))
    path, model = tmp_path / "fresh.safetensors", fresh.build_model()
    zoo.save_weights(model, path, transform=model.input, classes=fresh.train_data.names)
    task = make_task(check(sample_config(**settings, model__weights=str(path), model__freeze=2), "test"))
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


def launched(run, content, **variables):
    """Train on two processes in a folder; the end of ``counted_reads`` and the files that each process opened."""
    run.mkdir()
    path = run / "c.yaml"
    path.write_text(yaml.safe_dump({**content, "output": str(run / "out")}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.helpers.counted_reads", "train", str(path)]
    variables = {**environment(), "COUNTS": str(run), **variables}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    counts = {name: run / f"{name}.json" for name in ("main", "other")}
    return done, {name: json.loads(path.read_text()) for name, path in counts.items() if path.exists()}


@pytest.mark.slow
def test_two_processes_read_the_set_once(builder, tmp_path):
    """The main process does, longer than the time-out of the group; the weights are those of two that read each."""
    builder.load()
    file, images = builder.root / "instances.json", builder.root / "images"
    changes = {"data__split": "share", "data__val_share": 0.34, "train__epochs": 1, "train__timeout_minutes": 0.1}
    content = config(tmp_path, images, file, **changes)
    for key in ("val_annotations", "val_images"):
        del content["data"][key]
    weights = []
    for name, variables in (("once", {"SECONDS": "12"}), ("each", {"EACH": "1"})):
        done, opened = launched(tmp_path / name, content, **variables)
        assert done.returncode == 0, done.stderr
        pictures = [str(images / image["file_name"]) for image in builder.content["images"]]
        expected = {str(file): 1} | dict.fromkeys(pictures, 1)
        for rank, paths in opened.items():
            found = Counter(path for path in paths if path.startswith(str(builder.root)))
            assert found == (expected if rank == "main" or name == "each" else {})
        weights.append(load_file(tmp_path / name / "out/checkpoints/last.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.slow
def test_a_set_that_is_refused_ends_two_processes_with_one_line(builder, tmp_path):
    builder.content["annotations"][0]["bbox"] = [1, 2]
    (builder.root / "instances.json").write_text(json.dumps(builder.content))
    done, _ = launched(tmp_path / "run", config(tmp_path, builder.root / "images", builder.root / "instances.json"))
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "1 annotations whose bbox is not four finite numbers: id 1" in line
    assert "[rank" not in done.stderr


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


@pytest.mark.parametrize("scheme", ["rescale", "bn"])
def test_the_training_loss_in_evaluation_mode(sample_config, scheme):
    """The detector's layers are in evaluation mode (BatchNorm does not move) while it returns losses."""
    content = sample_config()
    content["model"]["scheme"] = scheme
    task = make_task(check(content, "test").without_augmentation())
    model = task.build_model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = [training_loss(task, model, make_accelerator(), 2) for _ in range(2)]
    assert found[0] == found[1] > 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    with task.loss_mode(model):
        assert all(part.training for part in (model, model.rpn, model.roi_heads))
        assert not any(module.training for module in model.backbone.modules())


def test_evaluation_images_that_cannot_be_read_are_counted(tmp_path, capsys, monkeypatch):
    """As of image classification; and a drawing that fails costs a line, not the metrics."""
    built = Builder(tmp_path)
    (tmp_path / "instances.json").write_text(json.dumps(built.content))
    task = make_task(check(config(tmp_path / "run", tmp_path / "images", tmp_path / "instances.json"), "test"))
    (tmp_path / "images/b.jpg").write_bytes(b"no picture")

    def broken(*arguments):
        raise OSError("no fonts")

    monkeypatch.setattr("tasks.detection.model.draw_results", broken)
    model, accelerator = task.build_model(), make_accelerator()
    for _ in range(2):
        metrics = task.evaluate(model, accelerator, torch.float32)
        assert (metrics["images"], metrics["failed"]) == (2, 1)
    lines = capsys.readouterr().err.splitlines()
    assert sum("b.jpg" in line for line in lines) == 1
    assert lines.count("1 of 3 evaluation images could not be read") == 1
    assert sum("pictures: cannot be drawn (no fonts)" in line for line in lines) == 2


def test_the_limit_of_the_metrics_is_the_runs(tmp_path, capsys):
    """A detector that finds all of 150 objects, and whose own limit is 100, reports as many as the metrics count."""
    built = Builder(tmp_path)
    built.content |= {"annotations": [], "images": built.content["images"][:1]}
    for i in range(150):
        built.annotate(1, 3, (i % 15 * 4, i // 15 * 4, 3, 3))
    truth = perfect(built.load())
    masks = [Packed.of(rle.decode(result["segmentation"]).astype(bool)) for result in truth]
    boxes = torch.tensor([(x, y, x + w, y + h) for x, y, w, h in (result["bbox"] for result in truth)])

    def metrics_at(limit):
        data = {"data__max_dets": limit}
        task = make_task(check(config(tmp_path, tmp_path / "images", tmp_path / "instances.json", **data), "test"))
        model, label = task.build_model(), 1 + task.train_data.names.index("red")

        def perfect_detections(images):
            n = min(model.roi_heads.detections_per_img, len(boxes))
            return [Found(boxes[:n], torch.full((n,), label), torch.ones(n), (40, 60), masks[:n])]

        model.detect = perfect_detections
        found = task.evaluate(model, make_accelerator(), torch.float32)
        assert model.roi_heads.detections_per_img == 100
        return found, capsys.readouterr().err

    metrics, lines = metrics_at(100)
    assert metrics["mask_ar100"] == pytest.approx(100 / 150)
    assert "(up to 150), " in lines
    assert "raise the limit with data.max_dets\n" in lines
    metrics, lines = metrics_at(150)
    assert metrics["mask_ar150"] == metrics["box_ap"] == metrics["mask_ap"] == pytest.approx(1)
    assert "raise the limit" not in lines
    with pytest.raises(ConfigError, match=r"data\.max_dets"):
        metrics_at(0)


def test_what_a_run_trains_on_is_told(tmp_path):
    built = Builder(tmp_path)
    (tmp_path / "instances.json").write_text(json.dumps(built.content))
    task = make_task(check(config(tmp_path / "run", tmp_path / "images", tmp_path / "instances.json"), "test"))
    assert task.describe_data(task.fingerprint()) == [
        "train: 3 images in 2 classes; val: 3 images",
        "objects: 6 in train, 6 in val",
    ]
