"""Every optimizer in every task: rates by level, frozen levels, changes of the gradients, and a step that trains."""

import pytest
import torch

from tasks.engine import Trainer
from tasks.errors import ConfigError
from tasks.spec import check, make_task
from tests.helpers.tasks import BATCHES, MODELS, write_data
from zoo.nets.parameters import parameters_by_level

OPTIMIZERS = {
    "sgd": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
    "adamw": {"name": "adamw", "lr": 0.01},
    "muon": {"name": "muon", "lr": 0.01, "rest": {"name": "adamw", "lr": 0.002}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The data section of each task, over little synthetic data."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def weights(data, tmp_path_factory):
    """Calibrated weights of each task's net."""
    root = tmp_path_factory.mktemp("weights")
    for task in MODELS:
        trainer = make(task, data, root / task)
        trainer.task.save_weights(trainer.bare, root / f"{task}.safetensors", {})
    return {task: str(root / f"{task}.safetensors") for task in MODELS}


def make(task, data, output, model=None, **optimizer):
    train = {"epochs": 1, "batch_size": BATCHES[task], "calibration_batches": 1, "precision": "fp64"}
    train["optimizer"] = optimizer or OPTIMIZERS["sgd"]
    model = {**MODELS[task], **(model or {})}
    content = {"task": task, "output": str(output), "model": model, "data": data[task], "train": train}
    return Trainer(make_task(check(content, "test")))


def moved(trainer):
    """The change of each parameter in the first step."""
    before = {name: parameter.detach().clone() for name, parameter in trainer.bare.named_parameters()}
    trainer.batches.seek(0, 0)
    trainer.bare.train()
    trainer._step([next(iter(trainer.loader))])
    return {name: parameter.detach() - before[name] for name, parameter in trainer.bare.named_parameters()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("task", MODELS)
def test_rates_by_level_and_frozen_levels(data, weights, tmp_path, task, optimizer):
    """The first step of every parameter is proportional to its rate, whatever the optimizer; frozen levels stay."""
    settings = {"model": {"weights": weights[task], "freeze": 1}, **OPTIMIZERS[optimizer]}
    plain = moved(make(task, data, tmp_path / "plain", **settings))
    trainer = make(task, data, tmp_path / "levels", **settings, layer_decay=0.5, head_lr=3.0)
    levels = moved(trainer)
    groups = parameters_by_level(trainer.bare)
    assert len(groups) >= 5
    for distance, (level, names) in enumerate(reversed(groups.items())):
        factor = 3.0 if level == "head" else 0.5**distance
        for name in names:
            if level == next(iter(groups)):
                assert not levels[name].any()
                assert not plain[name].any()
            else:
                torch.testing.assert_close(levels[name], factor * plain[name], rtol=1e-9, atol=1e-12, msg=name)
        trained = any(levels[name].any() for name in names)
        assert trained == (level != next(iter(groups)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("task", MODELS)
def test_changes_of_the_gradients(data, weights, tmp_path, task, optimizer):
    """All at once, all parameters still move and stay finite; the gradients are those that the options describe."""
    changes = {"agc": 1e-3, "centralize": True, "clip_norm": 1.0}
    trainer = make(task, data, tmp_path, {"weights": weights[task]}, **OPTIMIZERS[optimizer], **changes)
    change, seen = trainer.gradients.change, {}

    def spy():
        change()
        seen.update({name: p.grad.clone() for name, p in trainer.bare.named_parameters() if p.grad is not None})

    trainer.gradients.change = spy
    distances = moved(trainer)
    assert all(distance.isfinite().all() for distance in distances.values())
    assert torch.cat([gradient.flatten() for gradient in seen.values()]).norm() <= 1 + 1e-6
    clipped = {id(weight): dims for weight, dims in trainer.gradients.clipped}
    for name, parameter in trainer.bare.named_parameters():
        if (dims := clipped.get(id(parameter))) is not None and name in seen:
            norms = [torch.linalg.vector_norm(x, dim=dims) for x in (seen[name], parameter - distances[name])]
            assert (norms[0] <= 1e-3 * norms[1].clamp(min=1e-3) * (1 + 1e-9)).all(), name
            assert seen[name].sum(dims).abs().max() < 1e-12, name
            assert distances[name].any() == seen[name].any(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agc": 0}, r"train.optimizer.agc=0: Input should be greater than 0"),
        ({"agcc": 0.1}, r"unknown key 'train.optimizer.agcc' \(did you mean agc\?\)"),
        ({"centralize": 3}, r"train.optimizer.centralize=3: "),
        ({"name": "muon"}, r"key 'train.optimizer.rest' is missing"),
        (
            {**OPTIMIZERS["muon"], "rest": {"name": "muon", "lr": 1}},
            r"train.optimizer.rest.name='muon': must be one of 'sgd', 'adamw'",
        ),
        ({**OPTIMIZERS["muon"], "rest": {"name": "adamw"}}, r"key 'train.optimizer.rest.lr' is missing"),
        (
            {**OPTIMIZERS["muon"], "rest": {"name": "adamw", "lr": 1, "bta": 1}},
            r"unknown key 'train.optimizer.rest.bta' \(did you mean betas\?\)",
        ),
        ({**OPTIMIZERS["muon"], "adjust_lr_fn": "moonshot"}, r"train.optimizer.adjust_lr_fn='moonshot': .*'original'"),
        ({**OPTIMIZERS["muon"], "ns_steps": 0}, r"train.optimizer.ns_steps=0: "),
    ],
)
def test_errors_name_the_key(change, message, tmp_path):
    optimizer = change if change.get("name") == "muon" else {**OPTIMIZERS["sgd"], **change}
    content = {"task": "classification", "output": str(tmp_path), "model": MODELS["classification"]}
    content |= {"data": {"root": "x"}, "train": {"epochs": 1, "batch_size": 1, "optimizer": optimizer}}
    with pytest.raises(ConfigError, match=message):
        check(content, "test")
