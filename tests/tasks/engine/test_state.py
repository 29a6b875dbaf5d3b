"""Checkpoints: exact resume, runs that were killed, full disks."""

import math
import subprocess
import sys

import pytest
import torch

from tasks import config as cfg
from tasks.classification.config import ClassificationConfig
from tasks.engine import RunFolder, Trainer
from tasks.errors import TrainingError
from tasks.plots import read_log
from tasks.spec import make_task
from tests.helpers.commands import environment, train_and_kill
from tests.helpers.training import EVERYTHING, Crash, config, crash_after_step, fit, fit_until_crash, weights_of


@pytest.mark.parametrize("crash_at", [2, 6, 9, "evaluation"])
def test_resume_repeats_the_uninterrupted_run_to_the_bit(images, tmp_path, monkeypatch, crash_at):
    """Crashes in the first epoch, at its last step, in the second epoch, and between evaluation and checkpoint.

    With everything that is random in a step or a sample.
    """
    random = {"drop_rate": 0.2, "branch_drop_rate": 0.1, "drop_path_rate": 0.3, "branch_noise": 0.1}
    settings = {
        "average": {"name": "ema", "decay": 0.9},
        "model": {"options": {"width": 0.25, "multiplier": "channel", **random}},
        "data": {"augment": {"crop": {"name": "pad", "padding": 2}, **EVERYTHING}},
    }
    fit(images, tmp_path / "whole", **settings)
    trainer = Trainer(make_task(config(images, tmp_path / "broken", **settings)))
    if crash_at == "evaluation":
        monkeypatch.setattr("tasks.engine.trainer.branch_statistics", lambda model: (_ for _ in ()).throw(Crash))
    else:
        crash_after_step(trainer, crash_at, monkeypatch)
    with pytest.raises(Crash):
        trainer.fit()
    monkeypatch.undo()
    fit(images, tmp_path / "broken", resume=True, **settings)
    assert (tmp_path / "whole/log.jsonl").read_text() == (tmp_path / "broken/log.jsonl").read_text()
    for name in ("best", "last"):
        whole, broken = (weights_of(tmp_path / run, name) for run in ("whole", "broken"))
        assert all(torch.equal(whole[key], broken[key]) for key in whole)


def command(*arguments):
    return [sys.executable, "-m", "tasks.cli", *map(str, arguments)]


def test_kill_9_and_resume(images, tmp_path):
    path = tmp_path / "config.yaml"
    settings = config(images, tmp_path / "whole", epochs=6, workers=1)
    path.write_text(cfg.dump(settings))
    fit(images, tmp_path / "whole", epochs=6, workers=1)
    run = tmp_path / "killed"
    arguments = command("train", path, f"output={run}")
    at = train_and_kill(arguments, run / "checkpoints" / "last.pt", after=4)
    assert at["step"] < 36, "it ended before it was killed"
    refused = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
    assert refused.returncode == 1
    assert "contains a run already: add --resume" in refused.stderr
    subprocess.run([*arguments, "--resume"], env=environment(), check=True, stderr=subprocess.DEVNULL)
    assert (tmp_path / "whole/log.jsonl").read_text() == (run / "log.jsonl").read_text()
    whole, killed = weights_of(tmp_path / "whole"), weights_of(run)
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


def test_weights_that_are_not_finite_are_never_saved(images, tmp_path, monkeypatch):
    """The loss is logged every 50 steps only; the check before each checkpoint catches it."""
    trainer = Trainer(make_task(config(images, tmp_path / "run", log_every=50)))
    losses = trainer.task.losses

    def poisoned(*args):
        factor = math.inf if trainer.at.step == 2 else 1
        return {name: factor * value for name, value in losses(*args).items()}

    monkeypatch.setattr(trainer.task, "losses", poisoned)
    with pytest.raises(TrainingError, match="has values that are not finite"):
        trainer.fit()
    state = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert state["position"]["step"] == 2


def test_statistics_that_are_not_finite_are_never_saved(images, tmp_path, monkeypatch):
    """The running variance of a BatchNorm, which no loss of training depends on."""
    trainer = Trainer(make_task(config(images, tmp_path / "run", {"scheme": "bn"}, log_every=50)))
    step = trainer._step

    def poisoned(forwards):
        if trainer.at.step == 2:
            trainer.bare.stem[1].running_var[0] = math.inf
        return step(forwards)

    monkeypatch.setattr(trainer, "_step", poisoned)
    with pytest.raises(TrainingError, match=r"running_var has values that are not finite"):
        trainer.fit()
    assert torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["position"]["step"] == 2
    assert read_log(tmp_path / "run/log.jsonl")[-1]["event"] == "diverged"


def test_a_full_disk_leaves_the_last_checkpoint_whole(images, tmp_path, monkeypatch):
    trainer = Trainer(make_task(config(images, tmp_path / "run")))
    save = torch.save

    def full(state, file):
        if state["position"]["step"] == 3:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=r"No space left on device\); free some space .* last good checkpoint is"):
        trainer.fit()
    folder = tmp_path / "run/checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["last.pt", "previous.pt"]
    assert torch.load(folder / "last.pt", weights_only=True)["position"]["step"] == 2


def test_a_damaged_state_does_not_replace_the_one_before_it(images, tmp_path, monkeypatch, capsys):
    """Resumed from ``previous.pt``, a run whose next save fails still has it."""
    fit_until_crash(images, tmp_path / "run", 4, monkeypatch)
    folder = tmp_path / "run/checkpoints"
    (folder / "last.pt").write_bytes(b"PK half a file")
    trainer = Trainer(make_task(config(images, tmp_path / "run")), resume=True)
    assert trainer.at.step == 2

    def full(state, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match="No space left on device"):
        trainer.fit()
    monkeypatch.undo()
    assert torch.load(folder / "previous.pt", weights_only=True)["position"]["step"] == 2
    fit(images, tmp_path / "run", resume=True)
    fit(images, tmp_path / "whole")
    assert (tmp_path / "whole/log.jsonl").read_text() == (tmp_path / "run/log.jsonl").read_text()


def test_a_run_goes_on_on_another_machine(images, tmp_path, monkeypatch):
    """From another folder, and with data loading processes: the same weights."""
    fit(images, tmp_path / "whole")
    fit_until_crash(images, tmp_path / "begun", 7, monkeypatch)
    (tmp_path / "begun").rename(tmp_path / "moved")
    fit(images, tmp_path / "moved", workers=1, resume=True)
    whole, moved = weights_of(tmp_path / "whole"), weights_of(tmp_path / "moved")
    assert all(torch.equal(whole[key], moved[key]) for key in whole)
    files = RunFolder(tmp_path / "moved")
    stored = cfg.check(cfg.read_yaml(files.config), ClassificationConfig, "stored")
    changed = {"compile": True, "graphs": True, "workers": 3}
    files.check_config(stored.model_copy(update={"train": stored.train.model_copy(update=changed)}), resume=True)
    other = stored.model_copy(update={"train": stored.train.model_copy(update={"precision": "bf16"})})
    with pytest.raises(TrainingError, match=r"train.precision was 'fp32', is 'bf16'"):
        files.check_config(other, resume=True)


def test_refusals(images, tmp_path):
    fit(images, tmp_path / "run", epochs=1)
    with pytest.raises(TrainingError, match="contains a run already: add --resume, or choose another output"):
        fit(images, tmp_path / "run", epochs=1)
    with pytest.raises(TrainingError, match=r"started with another config: train.batch_size was 8, is 4"):
        fit(images, tmp_path / "run", epochs=1, batch_size=4, resume=True)
    for name in ("last.pt", "previous.pt"):
        (tmp_path / "run/checkpoints" / name).write_bytes(b"PK half a file")
    with pytest.raises(TrainingError, match=r"last.pt: not a complete checkpoint.*previous.pt: not a complete"):
        fit(images, tmp_path / "run", epochs=1, resume=True)
    with pytest.raises(TrainingError, match=r"train\.accumulate=9: an epoch has only 6 batches"):
        fit(images, tmp_path / "other", accumulate=9)


def test_half_written_files_of_a_killed_run_are_cleared(images, tmp_path):
    fit(images, tmp_path / "run", epochs=1)
    folder = tmp_path / "run/checkpoints"
    (folder / ".last.pt.123.tmp").write_bytes(b"half")
    fit(images, tmp_path / "run", epochs=1, resume=True)
    kept = ["best.safetensors", "last.pt", "last.safetensors", "previous.pt"]
    assert sorted(p.name for p in folder.iterdir()) == kept


def test_resuming_nothing_starts_anew(images, tmp_path):
    assert fit(images, tmp_path / "run", epochs=1, resume=True)["images"] == 15


def test_what_is_left_of_a_run_is_not_replaced(images, tmp_path):
    """Without its config, and without its state."""
    run = tmp_path / "run"
    fit(images, run, epochs=1)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "config.yaml"}
    content = (run / "config.yaml").read_bytes()
    (run / "config.yaml").unlink()
    for resume in (False, True):
        with pytest.raises(TrainingError, match=r"has checkpoints/last.pt but no config.yaml: restore that, or choose"):
            fit(images, run, epochs=1, resume=resume)
    (run / "config.yaml").write_bytes(content)
    for name in ("last.pt", "previous.pt"):
        (run / "checkpoints" / name).rename(tmp_path / name)
    with pytest.raises(TrainingError, match=r"last.pt is missing, though .*last.safetensors is there: restore it, or"):
        fit(images, run, epochs=1, resume=True)
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).rename(run / "checkpoints" / name)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_log_of_another_program_is_not_replaced(images, tmp_path):
    (tmp_path / "log.jsonl").write_text("{}\n")
    with pytest.raises(TrainingError, match=r"has log.jsonl but no config.yaml"):
        fit(images, tmp_path, epochs=1)
    assert (tmp_path / "log.jsonl").read_text() == "{}\n"
