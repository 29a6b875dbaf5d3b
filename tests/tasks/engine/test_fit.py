"""The loss of training samples in evaluation mode, and the measured pace of a run."""

import json
import time

import pytest
import torch
import torch.nn.functional as F

import zoo
from tasks import config as cfg
from tasks.classification.data import EvalSet, eval_transform
from tasks.devices import make_accelerator
from tasks.engine import Trainer, training_loss
from tasks.engine.state import RunFolder
from tasks.errors import DataError
from tasks.plots import read_log
from tasks.spec import make_task
from tasks.study.fit import measure_fit_loss
from tests.helpers.commands import on_two_processes
from tests.helpers.training import config, fit

AUGMENT = {"crop": {"name": "pad", "padding": 4}, "flip": 0.5, "mixup": 0.4}


def test_it_is_the_cross_entropy_of_plain_images(images, tmp_path):
    """The whole training set: the mean over the pictures as evaluation shows them to the net."""
    fit(images, tmp_path / "run", model={"options": {"width": 0.25, "drop_rate": 0.5}}, data={"augment": AUGMENT})
    found = measure_fit_loss(tmp_path / "run", batches=100)
    task = make_task(config(images, tmp_path / "other"))
    model = zoo.create_model("rescalenet20_cifar", str(tmp_path / "run/checkpoints/last.safetensors")).eval()
    total = 0.0
    for pixels, label in EvalSet(task.train_images, eval_transform(task.transform)):
        logits = model(task.inputs((pixels[None],), torch.float32))
        total += float(F.cross_entropy(logits, torch.tensor([label])))
    assert found == pytest.approx(total / len(task.train_images), rel=1e-5)
    assert json.loads((tmp_path / "run/fit_loss.json").read_text()) == {"loss": found, "batches": 100}


def test_it_is_the_same_each_time_and_changes_nothing(images, tmp_path):
    task = make_task(config(images, tmp_path / "run", model={"scheme": "bn"}).without_augmentation())
    model = task.build_model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = [training_loss(task, model, make_accelerator(), 3) for _ in range(2)]
    assert found[0] == found[1]
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(DataError, match="no weights in it"):
        measure_fit_loss(tmp_path, 1)


def test_a_run_that_diverges_is_marked_in_its_log(images, tmp_path):
    from tasks.errors import TrainingError

    with pytest.raises(TrainingError, match="not finite|is nan|is inf"):
        fit(images, tmp_path / "run", optimizer={"name": "sgd", "lr": 1e30})
    last = read_log(tmp_path / "run/log.jsonl")[-1]
    assert last["event"] == "diverged"
    assert last["reason"]


def test_the_pace_is_that_of_the_steps(images, tmp_path, monkeypatch):
    """Steps that wait are timed as long as they wait; nothing is stored but the config, and no file stays open."""
    trainer = Trainer(make_task(config(images, tmp_path / "run", epochs=7)))
    step = trainer._step

    def slow(forwards):
        time.sleep(0.2)
        return step(forwards)

    monkeypatch.setattr(trainer, "_step", slow)
    closed = []
    monkeypatch.setattr(trainer.log, "close", lambda: closed.append(True))
    pace = trainer.measure(3)
    assert closed
    assert (pace.steps_per_epoch, pace.epochs) == (6, 7)
    assert pace.seconds_per_step > 0.2
    assert pace.seconds == pytest.approx(42 * pace.seconds_per_step)
    files = RunFolder(tmp_path / "run")
    assert not files.last.exists()
    assert not files.state.exists()


@pytest.mark.slow
def test_two_processes_print_one_pace(images, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump(config(images, tmp_path / "run")))
    assert json.loads(on_two_processes("train", path, "--measure", 1))["steps_per_epoch"] == 6
