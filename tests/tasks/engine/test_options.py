"""Options of the optimizer through the loop: unused ones cost nothing; resume; two processes; no waiting."""

from collections import Counter

import pytest
import torch

import zoo
from tasks import config as cfg
from tasks.engine import Trainer
from tasks.plots import read_log
from tasks.spec import make_task
from tests.helpers.commands import on_two_processes
from tests.helpers.operations import no_waits_for_the_gpu, recorded, waiting
from tests.helpers.training import assert_resume_is_exact, config, draw_as_ranks, fit, weights_of

SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
CHANGES = {"agc": 0.02, "centralize": True, "clip_norm": 1.0}
MUON = {"name": "muon", "lr": 0.02, "weight_decay": 0.01, "rest": {"name": "adamw", "lr": 0.003}}
OPTIONS = {"sgd": {**SGD, **CHANGES}, "muon": {**MUON, **CHANGES}}
WARM = {"name": "ema", "decay": 0.9, "warmup": True}


def operations(images, folder, **settings):
    """The operations of a run's second step, in which all state exists."""
    trainer = Trainer(make_task(config(images, folder, **settings)))
    trainer.batches.seek(0, 0)
    batches = iter(trainer.loader)
    trainer.model.train()

    def step(batch):
        trainer._step([batch])
        trainer.at.step += 1
        trainer.average.after_step()

    step(next(batches))
    batch = next(batches)
    return trainer, recorded(lambda: step(batch))


def test_options_that_are_off_add_no_operation(images, tmp_path):
    """A step of the default config has the operations of a loop by hand, also where options say that they are off."""
    off = {**SGD, "agc": None, "centralize": False, "clip_norm": None}
    trainer, default = operations(images, tmp_path / "default", optimizer=SGD)
    assert default == operations(images, tmp_path / "off", optimizer=off, average=None)[1]
    # by hand
    batch = next(iter(trainer.loader))
    groups = [{k: v for k, v in group.items() if k != "names"} for group in zoo.param_groups(trainer.bare, 1e-4)]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    trainer.optimizer.zero_grad()

    def by_hand():
        terms = trainer.task.losses(trainer.bare, batch, torch.float32)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    by_hand()
    expected, found = Counter(recorded(by_hand)), Counter(default)
    assert not expected - found
    # the loss is divided by the number of forwards, which has a gradient, and the terms are averaged for the log
    extra = {"aten.detach.default": 1, "aten.div.Tensor": 2, "aten.stack.default": 1, "aten.mean.default": 1}
    assert found - expected == extra


@pytest.mark.parametrize("name", OPTIONS)
def test_no_option_waits_for_the_device(images, tmp_path, name):
    """torch's AdamW reads its number of steps, a tensor on the CPU; beside it Muon would hide among these reads."""
    optimizer = {**OPTIONS[name], "rest": {"name": "sgd", "lr": 0.05}} if name == "muon" else OPTIONS[name]
    names = operations(images, tmp_path / "run", optimizer=optimizer, average=WARM)[1]
    assert not waiting(names)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "settings", [{}, {"precision": "bf16"}, {"optimizer": {**MUON, "clip_norm": 1.0, "rest": SGD}}]
)
def test_a_step_does_not_wait_for_the_gpu(images, tmp_path, settings):
    trainer = Trainer(make_task(config(images, tmp_path, **settings)))
    trainer.model.train()
    batches = list(trainer.loader)
    trainer._step(batches[:1])
    with no_waits_for_the_gpu():
        trainer._step(batches[1:2])


@pytest.mark.parametrize(("name", "precision"), [("sgd", "fp32"), ("muon", "fp16")])
def test_resume_repeats_the_run_to_the_bit(images, tmp_path, monkeypatch, half_on_cpu, name, precision):
    settings = {"optimizer": OPTIONS[name], "average": WARM, "precision": precision}
    assert_resume_is_exact(images, tmp_path, monkeypatch, 4, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_equal_one(images, tmp_path, name):
    """Same global batch in float64: losses and weights to 1e-10."""
    settings = {"precision": "fp64", "optimizer": OPTIONS[name], "average": WARM, "epochs": 1}
    fit(images, tmp_path / "one", **settings)
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump(config(images, tmp_path / "two", **settings)))
    on_two_processes("train", path)
    losses = [[r["loss"] for r in read_log(tmp_path / run / "log.jsonl") if "loss" in r] for run in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    first, second = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_two_processes_draw_their_own_noise(images, tmp_path, monkeypatch):
    """Noise and stochastic depth; the reference is one process whose halves of a batch draw as the ranks do."""
    settings = {
        "precision": "fp64",
        "epochs": 1,
        "model": {"options": {"width": 0.25, "drop_path_rate": 0.5, "branch_noise": 0.3}},
    }
    trainer = Trainer(make_task(config(images, tmp_path / "one", **settings)))
    draw_as_ranks(trainer, monkeypatch)
    trainer.fit()
    fit(images, tmp_path / "plain", **settings)
    path = tmp_path / "config.yaml"
    for name in ("two", "again"):
        path.write_text(cfg.dump(config(images, tmp_path / name, **settings)))
        on_two_processes("train", path)
    one, plain, two, again = (weights_of(tmp_path / name) for name in ("one", "plain", "two", "again"))
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-10, atol=1e-10)
    assert all(torch.equal(two[key], again[key]) for key in two)
    assert not all(torch.allclose(plain[key], two[key]) for key in plain)
