"""Training of video nets."""

import resource
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

import zoo
from tasks import config as engine_cfg
from tasks.engine import Trainer
from tasks.errors import UserError
from tasks.plots import read_log
from tasks.spec import make_task, task_of
from tasks.study.fit import measure_fit_loss
from tasks.video.evaluate import read_predictions
from tests.helpers.commands import environment, on_two_processes
from tests.helpers.video import config, fit, layout


@pytest.mark.slow
def test_it_learns_motion(moving, tmp_path):
    """It fits its training videos, each of which shows the same bar; a third by chance."""
    model = {"options": {"width": 0.5, "projection_gain": 2.0}}
    data = {"clip": {"frames": 8, "interval": None, "fps": None}, "val": "train"}
    optimizer = {"name": "adamw", "lr": 0.005, "clip_norm": 1.0}
    metrics = fit(
        moving,
        tmp_path / "run",
        model=model,
        data=data,
        optimizer=optimizer,
        epochs=25,
        batch_size=4,
        eval_every=25,
        checkpoint_minutes=10,
    )
    assert metrics["top1"] >= 60
    assert (tmp_path / "run/curves.png").exists()
    assert (tmp_path / "run/evaluation/confusion.png").exists()
    assert read_predictions(tmp_path / "run/evaluation/predictions.npz").metrics() == pytest.approx(metrics)
    entry = zoo.get_weights(str(tmp_path / "run/checkpoints/last.safetensors"))
    assert task_of(entry) == "video"
    assert entry.transform.interval is None
    assert entry.transform.frames == 8


@pytest.mark.parametrize(
    ("stored", "rows", "line"),
    [
        (["still", "down", "right"], [1, 2, 0], "classes: in another order"),
        (["still", "up", "right"], [1, 2, 0], "classes: 1 of 3 new, which start as those that they replace"),
        (["down", "right", "still"], [0, 1, 2], ""),
    ],
)
def test_rows_of_the_last_layer_follow_the_names_of_classes(moving, tmp_path, capsys, stored, rows, line):
    model = zoo.create_model("rescale_r3d_10", width=0.25, num_classes=3)
    path = tmp_path / "w.safetensors"
    zoo.save_weights(model, path, transform=layout(4, 2.0, 10.0, 16, 18), classes=stored)
    data = {"clip": None, "size": None, "resize": None}
    section = {"weights": str(path), "options": {}}
    task = make_task(config(moving, tmp_path / "run", model=section, data=data))
    tuned = task.build_model()
    assert task.classes == ("down", "right", "still")
    assert torch.equal(tuned.fc.weight, model.fc.weight[rows])
    assert torch.equal(tuned.fc.bias, model.fc.bias[rows])
    said = " ".join(capsys.readouterr().err.split())
    assert line in said if line else "classes:" not in said


def test_an_added_class_makes_a_new_last_layer(moving, tmp_path, weights):
    root = tmp_path / "data"
    shutil.copytree(moving, root)
    for split in ("train", "val"):
        shutil.copytree(root / split / "down", root / split / "again")
    data = {"clip": None, "size": None, "resize": None}
    section = {"weights": str(weights), "options": {}}
    task = make_task(config(root, tmp_path / "run", model=section, data=data))
    tuned, stored = task.build_model(), zoo.create_model("rescale_r3d_10", weights=str(weights), width=0.25)
    assert task.classes == ("again", "down", "right", "still")
    assert tuned.fc.weight.shape[0] == 4
    assert all(torch.equal(a, stored.state_dict()[key]) for key, a in tuned.state_dict().items() if "fc." not in key)


def test_a_run_does_not_resume_with_a_renamed_class(moving, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(moving, root)
    fit(root, tmp_path / "run", epochs=1)
    for split in ("train", "val"):
        (root / split / "still").rename(root / split / "at rest")
    with pytest.raises(UserError, match="class"):
        Trainer(make_task(config(root, tmp_path / "run", epochs=2)), resume=True).fit()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_resumes_to_the_bit(moving, tmp_path, workers):
    fit(moving, tmp_path / "whole", workers=workers)
    task = make_task(config(moving, tmp_path / "cut", workers=workers))
    trainer = Trainer(task)
    losses = task.losses

    def stop(*arguments):
        if trainer.at.step == 4:
            raise KeyboardInterrupt
        return losses(*arguments)

    task.losses = stop
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    Trainer(make_task(config(moving, tmp_path / "cut", workers=workers)), resume=True).fit()
    whole, cut = (read_log(tmp_path / run / "log.jsonl") for run in ("whole", "cut"))
    assert whole == cut
    for name in ("last", "best"):
        a, b = ((tmp_path / run / f"checkpoints/{name}.safetensors") for run in ("whole", "cut"))
        a, b = (zoo.get_weights(str(path)).load() for path in (a, b))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_two_processes_give_what_one_gives(moving, tmp_path):
    """Same global batch in float64, three crops of two clips: losses, metrics, predictions and weights."""
    root = tmp_path / "data"
    shutil.copytree(moving, root)
    (root / "val/down/1.mp4").write_bytes(b"broken")
    settings = {"precision": "fp64", "data": {"eval_clips": 2, "eval_crops": 3}}
    fit(root, tmp_path / "one", **settings)
    path = tmp_path / "config.yaml"
    path.write_text(engine_cfg.dump(config(root, tmp_path / "two", **settings)))
    on_two_processes("train", path)
    one, two = (read_log(tmp_path / run / "log.jsonl") for run in ("one", "two"))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"event", "blocks"}:
            assert a[key] == pytest.approx(b[key], rel=1e-9), key
    assert one[-2]["failed"] == 1
    assert one[-2]["videos"] == 8
    first, second = (read_predictions(tmp_path / run / "evaluation/predictions.npz") for run in ("one", "two"))
    assert first.names == second.names
    assert first.failures == second.failures
    torch.testing.assert_close(first.multi, second.multi, rtol=1e-8, atol=1e-10)


def test_image_weights_are_inflated(moving, tmp_path):
    source = zoo.create_model("rescalenet50", width=0.125, num_classes=4)
    zoo.calibrate(source, [torch.randn(2, 3, 64, 64)])
    path = tmp_path / "images.safetensors"
    transform = zoo.InputTransform(64, 64, (0.5,) * 3, (0.25,) * 3)
    zoo.save_weights(source, path, transform=transform, classes=list("abcd"))
    model = {"name": "rescale_i3d_r50", "weights": str(path), "options": {"drop_rate": 0.1}}
    task = make_task(config(moving, tmp_path / "run", model=model, data={"size": 16}, epochs=1))
    net = task.build_model()
    assert net.fc.out_features == net.config.num_classes == 3
    assert torch.equal(net.stem.conv1.weight[:, :, 2], source.stem.conv1.weight)
    assert Trainer(task).fit()["videos"] == 9


@pytest.mark.slow
def test_a_disk_that_fills(moving, tmp_path):
    """No file may grow beyond what a first checkpoint took: the second cannot be written, the first stays whole."""
    fit(moving, tmp_path / "run", epochs=1)
    before = (tmp_path / "run/checkpoints/last.pt").read_bytes()
    path = tmp_path / "config.yaml"
    path.write_text(engine_cfg.dump(config(moving, tmp_path / "run", epochs=1)))
    stored = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    stored["train"]["epochs"] = 2  # go on for longer
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(stored))
    limit = len(before) // 2

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "tasks.cli", "train", str(path), "train.epochs=2", "--resume"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, preexec_fn=little_room)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "cannot be written (File too large); free some space and continue with --resume" in last
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run/checkpoints/last.pt").read_bytes() == before
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_training_loss_in_evaluation_mode(moving, tmp_path):
    fit(moving, tmp_path / "run", model={"options": {"width": 0.25, "drop_rate": 0.5}})
    first, second = (measure_fit_loss(tmp_path / "run", batches=3) for _ in range(2))
    assert first == second
    assert 0 < first < 3


def test_what_a_run_trains_on_is_told(moving, tmp_path):
    shutil.copytree(moving, tmp_path / "data")
    (tmp_path / "data/val/down/notes.txt").write_text("x")
    task = make_task(config(tmp_path / "data", tmp_path / "run"))
    assert task.describe_data(task.fingerprint()) == [
        "train: 24 videos in 3 classes; val: 9 videos",
        "left out: 1 with another ending (.txt)",
    ]
