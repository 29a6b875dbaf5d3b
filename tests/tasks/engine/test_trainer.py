"""The training loop: several processes, accumulation, fine-tuning, and how it fails."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from tasks import config as cfg
from tasks.config import AdamW
from tasks.engine import Trainer
from tasks.errors import ConfigError, TrainingError
from tasks.plots import read_log
from tasks.spec import make_task
from tests.helpers.commands import on_two_processes
from tests.helpers.training import EVERYTHING, config, draw_as_ranks, fit, weights_of


@pytest.mark.parametrize("scheme", ["rescale", pytest.param("gn", marks=pytest.mark.slow)])
def test_two_processes_equal_one(images, tmp_path, scheme):
    """Same global batch in float64: losses, metrics and weights to 1e-10, through torchrun."""
    settings = {"precision": "fp64", "average": {"name": "ema", "decay": 0.5}, "model": {"scheme": scheme}}
    fit(images, tmp_path / "one", **settings)
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump(config(images, tmp_path / "two", **settings)))
    on_two_processes("train", path)
    assert torch.load(tmp_path / "two/checkpoints/last.pt", weights_only=True)["ranks"] == 2
    one, two = (read_log(tmp_path / run / "log.jsonl") for run in ("one", "two"))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        for key in a.keys() & {"loss", "train_loss", "top1", "top5", "images"}:
            assert a[key] == pytest.approx(b[key], rel=1e-10)
    first, second = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_two_processes_draw_their_own_mixing(images, tmp_path, monkeypatch):
    """With all augmentations; the reference is one process that mixes the halves of a batch as the ranks do."""
    augment = {"crop": {"name": "pad", "padding": 2}, **EVERYTHING}
    settings = {"precision": "fp64", "epochs": 1, "data": {"augment": augment}}
    task = make_task(config(images, tmp_path / "one", **settings))
    trainer = Trainer(task)
    targets = []

    def watch(x, labels):
        mixed, target = mixing(x, labels)
        targets.append(target.max(1).values.min().item())  # the share of the samples that stays
        return mixed, target

    mixing = task.mixing
    draw_as_ranks(trainer, monkeypatch)
    monkeypatch.setattr(task, "mixing", watch)
    trainer.fit()
    assert len(set(targets)) > 6  # of 2 x 6 draws; some shares are 1
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump(config(images, tmp_path / "two", **settings)))
    on_two_processes("train", path)
    one, two = ([r["loss"] for r in read_log(tmp_path / run / "log.jsonl") if "loss" in r] for run in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-10)
    first, second = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-10, atol=1e-10)


def test_accumulation_equals_the_large_batch(images, tmp_path):
    fit(images, tmp_path / "large", precision="fp64", batch_size=8, calibration_batches=2)
    fit(images, tmp_path / "small", precision="fp64", batch_size=4, calibration_batches=4, accumulate=2)
    large, small = weights_of(tmp_path / "large"), weights_of(tmp_path / "small")
    for key in large:
        torch.testing.assert_close(large[key], small[key], rtol=1e-10, atol=1e-10)
    losses = [[r["loss"] for r in read_log(tmp_path / run / "log.jsonl") if "loss" in r] for run in ("large", "small")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


def test_a_remainder_that_fills_no_step_is_left_out(images, tmp_path):
    fit(images, tmp_path / "run", accumulate=4, epochs=3)  # 6 batches an epoch
    records = read_log(tmp_path / "run/log.jsonl")
    assert [(r["epoch"], r["step"]) for r in records if r["event"] == "step"] == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_it_learns(images, tmp_path, half_on_cpu, precision):
    optimizer = {"name": "adamw", "lr": 3e-3, "clip_norm": 1.0}
    metrics = fit(images, tmp_path / "run", epochs=8, precision=precision, optimizer=optimizer, checkpoint_minutes=10)
    assert metrics["top1"] > 60  # a third by chance


@pytest.mark.slow
def test_compiled_training_equals_eager(images, tmp_path):
    """float64: what is left is the order of sums in fused loops."""
    for compiled in (False, True):
        fit(images, tmp_path / str(compiled), precision="fp64", compile=compiled, epochs=1, checkpoint_minutes=10)
    eager, compiled = weights_of(tmp_path / "False"), weights_of(tmp_path / "True")
    for key in eager:
        torch.testing.assert_close(eager[key], compiled[key], rtol=1e-9, atol=1e-10)


def test_a_run_equals_a_loop_in_plain_torch(images, tmp_path, monkeypatch):
    """The steps, the rates and the groups in full, in float64; only the order of the pictures is the engine's."""
    schedule = {"name": "cosine", "warmup_epochs": 0.5, "final": 0.1}
    optimizer = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    optimizer |= {"clip_norm": 0.5, "multiplier_lr": 0.3}
    settings = {"precision": "fp64", "optimizer": optimizer, "schedule": schedule}
    data = {"augment": {"crop": {"name": "pad", "padding": 0}, "flip": 0.0}}
    trainer = Trainer(make_task(config(images, tmp_path / "run", data=data, **settings)))
    model = copy.deepcopy(trainer.bare)  # calibrated
    losses, batches = trainer.task.losses, []
    monkeypatch.setattr(trainer.task, "losses", lambda net, *rest: batches.append(rest[0]) or losses(net, *rest))
    trainer.fit()
    assert len(batches) == 12  # two epochs of 48 pictures

    def group(name, parameter):
        if name.endswith("multiplier"):
            return {"params": [parameter], "weight_decay": 0, "scale": 0.3}
        return {"params": [parameter], "weight_decay": 0.01 if parameter.ndim > 1 else 0, "scale": 1}

    sgd = torch.optim.SGD([group(*named) for named in model.named_parameters()], lr=0, momentum=0.9, nesterov=True)
    transform = trainer.task.transform
    mean, std = (torch.tensor(x, dtype=torch.float64).view(3, 1, 1) for x in (transform.mean, transform.std))
    model.train()
    for step, (pixels, labels) in enumerate(batches):
        epoch = step / 6
        factor = epoch / 0.5 if epoch < 0.5 else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (epoch - 0.5) / 1.5))
        for group in sgd.param_groups:
            group["lr"] = 0.05 * factor * group["scale"]
        logits = model((pixels.double() / 255 - mean) / std)
        F.cross_entropy(logits, labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        sgd.step()
        sgd.zero_grad()
    for (name, found), expected in zip(trainer.bare.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(
            found, expected, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_groups_have_their_own_rates(images, tmp_path):
    optimizer = AdamW(lr=0.1, multiplier_lr=0.5, bias_lr=0.0).model_dump()
    task = make_task(config(images, tmp_path / "run", optimizer=optimizer, epochs=1))
    trainer = Trainer(task)
    before = {name: p.detach().clone() for name, p in trainer.bare.named_parameters()}
    trainer.fit()
    moved = {name: not torch.equal(p, before[name]) for name, p in trainer.bare.named_parameters()}
    for name, changed in moved.items():
        assert changed == (name == "fc.bias" or not name.endswith("bias")), name


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(images, tmp_path, monkeypatch):
    task = make_task(config(images, tmp_path / "run"))
    losses, calls = task.losses, []

    def poisoned(model, batch, dtype):
        calls.append(1)
        terms = losses(model, batch, dtype)
        return {name: value * math.nan for name, value in terms.items()} if len(calls) == 4 else terms

    monkeypatch.setattr(task, "losses", poisoned)
    with pytest.raises(TrainingError, match=r"step 4: the loss is nan; the last good checkpoint is .*last.pt"):
        Trainer(task).fit()
    state = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert state["position"]["step"] == 3
    assert all(v.isfinite().all() for v in state["model"].values())


def test_fine_tuning_calibrates_only_the_new_head(images, tmp_path, capsys):
    model = zoo.create_model("rescalevgg16", num_classes=4, width=0.0625)
    zoo.calibrate(model, [torch.randn(2, 3, 32, 32)])
    path = tmp_path / "vgg.safetensors"
    zoo.save_weights(model, path, transform=zoo.InputTransform(32, 32, (0.5,) * 3, (0.5,) * 3), classes=list("abcd"))
    section = {"name": "rescalevgg16", "weights": str(path), "options": {}}
    with pytest.raises(ConfigError, match=r"data.size=12: must be >= 32 for rescalevgg16"):
        Trainer(make_task(config(images, tmp_path / "small", model=section, epochs=1)))
    data = {"size": 32, "resize": 32}
    Trainer(make_task(config(images, tmp_path / "run", model=section, data=data, epochs=1)))
    assert "1 biases initialised from data, 14 kept from a checkpoint" in " ".join(capsys.readouterr().err.split())


def test_what_a_run_trains_on_is_told(images, tmp_path, capsys):
    fit(images, tmp_path / "run", epochs=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("device cpu, ")
    assert lines[1] == "train: 48 images in 3 classes; val: 15 images"
