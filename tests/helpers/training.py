"""Short training runs on three classes of images."""

import pytest
import torch
from accelerate.utils import set_seed

import zoo
from tasks.engine import Trainer, seed_from
from tasks.spec import check, make_task

EVERYTHING = {  # of data.augment, beside crop and flip
    "auto_augment": {"name": "rand", "ops": 1, "magnitude": 12},
    "erasing": {"probability": 0.5, "value": "random"},
    "mixup": 0.2,
    "cutmix": 1.0,
    "copies": 2,
}


class Crash(Exception):
    """What ends a run in the middle."""


def crash_after_step(trainer, step, monkeypatch):
    """Let a run crash when it has logged this step."""
    log_step = trainer._log_step

    def crash(terms):
        log_step(terms)
        if trainer.at.step == step:
            raise Crash

    monkeypatch.setattr(trainer, "_log_step", crash)


def draw_as_ranks(trainer, monkeypatch, ranks=2):
    """Let one process draw at random what several would: each share of a batch with the random state of its rank."""
    losses, seed = trainer.task.losses, trainer.train.seed

    def by_rank(model, batch, dtype):
        terms = []
        for rank, share in enumerate(zip(*(part.chunk(ranks) for part in batch), strict=True)):
            set_seed(seed_from(seed, trainer.at.step, rank) % 2**32)
            terms.append(losses(model, share, dtype)["loss"])
        return {"loss": torch.stack(terms).mean()}

    monkeypatch.setattr(trainer.task, "losses", by_rank)


def config(images, output, model=None, data=None, **train):
    base = {
        "epochs": 2,
        "batch_size": 8,
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "log_every": 1,
        "checkpoint_minutes": 0,
        "calibration_batches": 2,
    }
    content = {
        "task": "classification",
        "output": str(output),
        "model": {"name": "rescalenet20_cifar", "options": {"width": 0.25}, **(model or {})},
        "data": {
            "root": str(images),
            "size": 12,
            "resize": 12,
            "augment": {"crop": {"name": "pad", "padding": 2}},
            "eval_batch_size": 4,
            **(data or {}),
        },
        "train": {**base, **train},
    }
    return check(content, "test")


def fit(*args, resume=False, **kwargs):
    return Trainer(make_task(config(*args, **kwargs)), resume=resume).fit()


def weights_of(folder, name="last"):
    return zoo.create_model("rescalenet20_cifar", str(folder / "checkpoints" / f"{name}.safetensors")).state_dict()


def fit_until_crash(images, folder, step, monkeypatch, **settings):
    """Train a run that crashes when it has logged this step."""
    trainer = Trainer(make_task(config(images, folder, **settings)))
    crash_after_step(trainer, step, monkeypatch)
    with pytest.raises(Crash):
        trainer.fit()
    monkeypatch.undo()


def assert_resume_is_exact(images, folder, monkeypatch, crash_at, **settings):
    """Train once whole and once with a crash and a resume: the same log and weights, to the bit."""
    fit(images, folder / "whole", **settings)
    fit_until_crash(images, folder / "broken", crash_at, monkeypatch, **settings)
    fit(images, folder / "broken", resume=True, **settings)
    assert (folder / "whole/log.jsonl").read_text() == (folder / "broken/log.jsonl").read_text()
    whole, broken = weights_of(folder / "whole"), weights_of(folder / "broken")
    assert all(torch.equal(whole[key], broken[key]) for key in whole)
