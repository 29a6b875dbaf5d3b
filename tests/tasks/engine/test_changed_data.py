"""A run is bound to its data: classes, samples and their order; and to those fields of its config that matter."""

import shutil

import pytest
import torch
import yaml

from tasks import config as cfg
from tasks.engine import Fingerprint, RunFolder, SetPrint, Trainer
from tasks.errors import ConfigError, TrainingError
from tasks.plots import read_log
from tasks.spec import make_task, task_specs
from tests.helpers.training import config, fit, fit_until_crash, weights_of


@pytest.fixture
def data(images, tmp_path):
    """A copy of the images that may be changed."""
    return shutil.copytree(images, tmp_path / "data")


def begun(data, folder, monkeypatch, step=8, **settings):
    """A run that crashed in its second epoch of six steps."""
    fit_until_crash(data, folder, step, monkeypatch, **settings)


def printed(names, classes=("a", "b")):
    return Fingerprint(tuple(classes), SetPrint.of(names), SetPrint.of(["v"]), "images")


def test_a_fingerprint_depends_on_names_labels_and_order():
    base = printed([("a/1", 0), ("b/1", 1)])
    assert base.changes(printed([("a/1", 0), ("b/1", 1)])) == []
    assert base.changes(printed([("b/1", 1), ("a/1", 0)])) == ["train has other images, or the same in another order"]
    assert base.changes(printed([("a/1", 0), ("b/1", 0)])) == ["train has other images, or the same in another order"]
    assert base.changes(printed([("a/1", 0)])) == ["train has 2 images, had 1"]
    assert Fingerprint.from_dict(base.as_dict()) == base
    assert SetPrint.of(["ab", "c"]) != SetPrint.of(["a", "bc"])


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (("a", "z"), r"last.pt: the classes of the data have changed \('b' gone, 'z' new\); restore them"),
        (("b", "a"), r"\(their order\)"),
        (("a", "b", "c"), r"\('c' new\)"),
        (("a",), r"\('b' gone\)"),
        (("a", *"cdefgh"), r"\('b' gone, 'c', 'd', 'e' and 3 more new\)"),
    ],
)
def test_other_classes_are_refused(now, message):
    with pytest.raises(TrainingError, match=message):
        printed([], now).require_classes(printed([]), "last.pt")


def test_a_class_that_was_renamed_or_added_is_refused_even_with_changed_data(data, tmp_path, monkeypatch):
    begun(data, tmp_path / "run", monkeypatch)
    name = sorted(folder.name for folder in (data / "train").iterdir())[0]
    for split in ("train", "val"):
        (data / split / name).rename(data / split / "zebra")
    for changed_data in (False, True):
        with pytest.raises(TrainingError, match=rf"\('{name}' gone, 'zebra' new\)"):
            Trainer(make_task(config(data, tmp_path / "run")), resume=True, changed_data=changed_data)
    for split in ("train", "val"):
        (data / split / "zebra").rename(data / split / name)
        shutil.copytree(data / split / name, data / split / "zoo")
    with pytest.raises(TrainingError, match=r"\('zoo' new\)"):
        fit(data, tmp_path / "run", resume=True)


def test_samples_that_changed_are_refused_unless_they_are_expected(data, tmp_path, monkeypatch, capsys):
    begun(data, tmp_path / "run", monkeypatch)
    picture = sorted((data / "train").rglob("*.png"))[0]
    count = len(list((data / "train").rglob("*.png")))
    picture.unlink()
    with pytest.raises(TrainingError, match=rf"train has {count - 1} images, had {count}; restore .* --changed-data"):
        fit(data, tmp_path / "run", resume=True)
    trainer = Trainer(make_task(config(data, tmp_path / "run")), resume=True, changed_data=True)
    assert (trainer.at.epoch, trainer.at.batch) == (1, 0)  # each sample once in the epoch that begins anew
    assert trainer.at.best > 0  # the evaluation set is the same
    trainer.fit()
    assert "epoch 2 begins anew" in capsys.readouterr().err
    # the new state knows the new data
    assert Trainer(make_task(config(data, tmp_path / "run")), resume=True).at.epoch == 2


def test_another_evaluation_set_begins_the_best_anew(data, tmp_path, monkeypatch):
    begun(data, tmp_path / "run", monkeypatch)
    picture = sorted((data / "val").rglob("*.png"))[0]
    picture.rename(picture.with_name("new.png"))
    with pytest.raises(TrainingError, match=r"val has other images, or the same in another order"):
        fit(data, tmp_path / "run", resume=True)
    assert Trainer(make_task(config(data, tmp_path / "run")), resume=True, changed_data=True).at.best == -float("inf")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_run_that_has_ended_stays_as_it_is(data, tmp_path, capsys, split):
    """Its state is that of the earlier data; more epochs train on the new ones."""
    metrics = fit(data, tmp_path / "run")
    sorted((data / split).rglob("*.png"))[0].unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.safetensors")}
    capsys.readouterr()
    trainer = Trainer(make_task(config(data, tmp_path / "run")), resume=True, changed_data=True)
    assert trainer.at.best > 0
    assert trainer.fit() == metrics
    shown = " ".join(capsys.readouterr().err.split())
    assert f"{split} has " in shown
    assert "; the run has ended and stays as it is: raise train.epochs to train on them" in shown
    assert "begins anew" not in shown
    assert before == {path: path.read_bytes() for path in before}
    # what the line advises
    longer = Trainer(make_task(config(data, tmp_path / "run", epochs=3)), resume=True, changed_data=True)
    longer.fit()
    assert longer.at.epoch == 3
    assert "epoch 3 begins anew" in " ".join(capsys.readouterr().err.split())
    assert fit(data, tmp_path / "run", epochs=3, resume=True) == longer.at.metrics


def test_a_run_that_stopped_early_goes_on_with_another_evaluation_set(data, tmp_path, capsys):
    """It counts from there; with other training samples alone it has ended."""
    rule = {"early_stopping": {"patience": 1, "min_delta": 1000.0}, "epochs": 9}
    fit(data, tmp_path / "run", **rule)
    sorted((data / "train").rglob("*.png"))[0].unlink()
    trainer = Trainer(make_task(config(data, tmp_path / "run", **rule)), resume=True, changed_data=True)
    trainer.fit()
    assert trainer.at.epoch == 2
    assert "stays as it is: raise train.early_stopping.patience to" in " ".join(capsys.readouterr().err.split())
    sorted((data / "val").rglob("*.png"))[0].unlink()
    trainer = Trainer(make_task(config(data, tmp_path / "run", **rule)), resume=True, changed_data=True)
    trainer.fit()
    assert trainer.at.epoch == 4
    assert fit(data, tmp_path / "run", resume=True, **rule) == trainer.at.metrics


def test_data_that_moved_are_the_same_data(data, tmp_path, monkeypatch):
    fit(data, tmp_path / "whole")
    begun(data, tmp_path / "run", monkeypatch)
    data.rename(tmp_path / "moved")
    fit(tmp_path / "moved", tmp_path / "run", resume=True, log_every=5, checkpoint_minutes=10, data={"cache": True})
    whole, moved = weights_of(tmp_path / "whole"), weights_of(tmp_path / "run")
    assert all(torch.equal(whole[key], moved[key]) for key in whole)


def test_a_state_of_an_earlier_version_has_no_fingerprint(data, tmp_path, capsys):
    fit(data, tmp_path / "run", epochs=1)
    path = tmp_path / "run/checkpoints/last.pt"
    state = torch.load(path, weights_only=True)
    del state["data"]
    del state["position"]["stale"]
    torch.save(state, path)
    fit(data, tmp_path / "run", epochs=1, resume=True)
    assert "of an earlier version, which did not store what the data were" in " ".join(capsys.readouterr().err.split())


# -- fields that bind a run, and versions of the config --------------------------------------------------


FREE = {
    "classification": {"root", "train", "val", "holdout", "cache", "eval_batch_size"},
    "video": {"root", "train", "val", "videos", "holdout", "index", "max_failed", "eval_batch_size"},
    "translation": {"folder", "eval_batch_size"},
}
FREE_OF_TRAIN = {
    *("channels_last", "compile", "graphs", "workers", "eval_every", "early_stopping", "checkpoint_minutes"),
    *("timeout_minutes", "log_every", "sinks", "diagnose"),
}


def test_the_fields_that_do_not_bind_a_run(data, tmp_path):
    resolved = config(data, tmp_path / "run")
    bound = cfg.binding(resolved)
    assert "output" not in bound
    assert bound["data"]["size"] == 12
    assert bound["train"]["optimizer"] == resolved.train.optimizer.model_dump(mode="json")
    assert set(cfg.TrainSection.model_fields) - set(bound["train"]) == FREE_OF_TRAIN
    for task, names in FREE.items():
        module = __import__(f"tasks.{task}.config", fromlist=["DataSection"])
        fields = module.DataSection.model_fields
        assert {name for name, field in fields.items() if cfg.FREE in field.metadata} >= names
    assert set(FREE) < set(task_specs())


def test_a_config_of_a_newer_version_is_refused(data, tmp_path):
    fit(data, tmp_path / "run", epochs=1)
    path = tmp_path / "run/config.yaml"
    content = yaml.safe_load(path.read_text())
    assert content["config_version"] == cfg.VERSION
    content["config_version"] = cfg.VERSION + 1
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(
        ConfigError, match=r"config_version=2: made by a newer rescalenet-zoo, this one reads up to ver"
    ):
        fit(data, tmp_path / "run", epochs=1, resume=True)


def test_a_newer_version_of_the_format_resumes_what_an_earlier_one_began(data, tmp_path):
    """What changes between versions changes where a config is read; the number itself binds no run."""
    fit(data, tmp_path / "run", epochs=1)
    newer = make_task(config(data, tmp_path / "run", epochs=1)).config.model_copy(
        update={"config_version": cfg.VERSION + 1}
    )
    RunFolder(tmp_path / "run").check_config(newer, resume=True)


def test_a_finished_run_gets_more_epochs(data, tmp_path, capsys):
    fit(data, tmp_path / "run")
    metrics = fit(data, tmp_path / "run", epochs=3, resume=True)
    assert "train.epochs was 2, is 3: from epoch 3 on the rate follows the new schedule" in " ".join(
        capsys.readouterr().err.split()
    )
    records = read_log(tmp_path / "run/log.jsonl")
    assert [r["epoch"] for r in records if r["event"] == "epoch"] == [0, 1, 2]
    last = [r for r in records if r["event"] == "step"][-6:]
    factors = [cfg.Cosine().factor(2 + i / 6, 3, 6) for i in range(6)]
    assert [r["lr"] for r in last] == pytest.approx([0.05 * factor for factor in factors])
    assert metrics["images"] == 15
    with pytest.raises(TrainingError, match=r"train.epochs=2: must be at least 4, as 3 are trained"):
        fit(data, tmp_path / "run", epochs=2, resume=True)


def test_a_run_is_not_cut_off_at_an_epoch_that_was_not_evaluated(data, tmp_path, monkeypatch):
    """It would have ended without metrics."""
    begun(data, tmp_path / "run", monkeypatch, eval_every=2)
    with pytest.raises(TrainingError, match=r"train.epochs=1: must be at least 2, as 1 are trained"):
        fit(data, tmp_path / "run", epochs=1, eval_every=2, resume=True)


def test_an_average_of_the_last_epochs_that_cannot_be_right_is_refused(data, tmp_path):
    """The weights of the epochs before are in one mean, of another length."""
    settings = {"average": {"name": "last_epochs", "epochs": 2}}
    fit(data, tmp_path / "run", epochs=3, **settings)
    with pytest.raises(TrainingError, match=r"train.epochs=4: the mean of the last 2 epochs would begin with the wei"):
        fit(data, tmp_path / "run", epochs=4, resume=True, **settings)
    # a mean of all epochs goes on
    settings = {"average": {"name": "last_epochs", "epochs": 9}}
    fit(data, tmp_path / "all", **settings)
    fit(data, tmp_path / "all", epochs=3, resume=True, **settings)
    assert torch.load(tmp_path / "all/checkpoints/last.pt", weights_only=True)["average"]["n_averaged"] == 3


def test_the_average_of_the_last_epochs_begins_anew_in_a_longer_run(data, tmp_path):
    average = {"name": "last_epochs", "epochs": 1}
    fit(data, tmp_path / "run", average=average)
    fit(data, tmp_path / "run", average=average, epochs=3, resume=True)
    trained = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["model"]
    assert all(torch.equal(trained[key], value) for key, value in weights_of(tmp_path / "run").items())
