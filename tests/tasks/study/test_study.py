"""A whole study by the command line: killed in the middle it goes on, and gives the same tables."""

import errno
import os
import signal
import subprocess
import sys
import time

import filelock
import pytest

from tasks import config as cfg
from tasks.errors import ConfigError, TrainingError, UserError
from tasks.spec import make_task
from tasks.study.config import read_study
from tasks.study.plan import screening_runs, trials_of
from tasks.study.results import read_result
from tasks.study.runner import Slots
from tasks.study.study import Study
from tests.helpers.commands import call, environment
from zoo.files import write_text


def run_study(make_study, *arguments, check=True):
    """Run ``rescalenet study`` in a process of its own."""
    line = [sys.executable, "-m", "tasks.cli", "study", str(make_study.path), "--jobs", "2", *arguments]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=580)
    assert not check or done.returncode == 0, done.stderr
    return done


def test_the_plan_states_the_cost_and_trains_nothing(make_study, tmp_path):
    make_study(trials=None, schemes={"bn": {}}, finals={"seeds": [0]})
    lines = run_study(make_study, "--plan").stdout.splitlines()
    assert lines[0].split() == ["stage", "scheme", "runs", "done", "epochs", "min/epoch", "core-minutes", "left"]
    assert lines[1].split()[:4] == ["finals", "bn", "1", "0"]
    assert "core-minutes are left" in lines[-1]
    assert not (tmp_path / "study").exists()


def test_an_option_that_a_net_lacks_ends_the_plan(make_study, tmp_path):
    make_study(schemes={"bn": {"overrides": {"model.options": {"projection_gain": 2.0}}}})
    done = run_study(make_study, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "finals/bn/base/seed0: rescalenet20_cifar with scheme 'bn' has no option 'projection_gain'" in last
    assert not [path for path in (tmp_path / "study").rglob("*") if path.name != ".lock"]


@pytest.mark.slow
def test_a_killed_study_goes_on_and_gives_the_same_tables(make_study, tmp_path):
    study = make_study(finals={"seeds": [0, 1], "overrides": {"train.epochs": 3, "train.checkpoint_minutes": 0}})
    run_study(make_study, "--out", str(tmp_path / "whole"))
    # the same again, killed (with whatever it started) when the third run is under way
    line = [sys.executable, "-m", "tasks.cli", "study", str(make_study.path), "--jobs", "2"]
    process = subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    runs = screening_runs(study)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not any((run.folder / "log.jsonl").exists() for run in runs[2:]):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert any(read_result(run).status == "unfinished" for run in runs)
    time.sleep(1.5)  # its children end by themselves
    assert not running(tmp_path / "study")
    run_study(make_study)
    for name in ("report.md", "results.csv"):
        whole, resumed = ((tmp_path / folder / name).read_text() for folder in ("whole", "study"))
        assert whole.replace(str(tmp_path / "whole"), "") == resumed.replace(str(tmp_path / "study"), "")
    # a finished study has nothing left to do, and changes nothing
    contents = {
        path: path.read_bytes() for path in (tmp_path / "study").rglob("*") if path.suffix in (".md", ".csv", ".jsonl")
    }
    assert len(contents) == 2 + len(runs) + 4  # two tables, and the logs of all runs
    assert run_study(make_study).stdout.count("| ") > 20
    assert all(path.read_bytes() == content for path, content in contents.items())


def running(folder):
    """Command lines of processes that work in a folder."""
    found = subprocess.run(["ps", "-eo", "stat=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if str(folder) in line and not line.startswith("Z")]


@pytest.mark.slow
def test_trials_alone_and_more_trials_later(make_study, tmp_path):
    make_study(schemes={"rescale": {}, "bn": {}}, trials={"a": {}, "b": {"label_smoothing": 0.1}})
    run_study(make_study, "--trials")
    assert not (tmp_path / "study/finals").exists()
    logs = {path: path.read_bytes() for path in (tmp_path / "study").rglob("log.jsonl")}
    assert len(logs) == 4
    trials = {"a": {}, "b": {"label_smoothing": 0.1}, "c": {"train.optimizer.lr": 0.1}}
    make_study(schemes={"rescale": {}, "bn": {}}, trials=trials)
    run_study(make_study, "--trials")
    assert len(list((tmp_path / "study").rglob("log.jsonl"))) == 6
    assert all(path.read_bytes() == content for path, content in logs.items())


def test_a_second_study_in_the_folder_is_refused(make_study, tmp_path):
    study = make_study()
    (tmp_path / "study").mkdir()
    lock, refused = (
        filelock.FileLock(tmp_path / "study/.lock"),
        pytest.raises(UserError, match="another process has a study in it"),
    )
    with lock, refused, Study(study, Slots(1, 1)).locked():
        pass


def evaluated(run):
    """Let a run look as if it had been evaluated at its end."""
    write_text(cfg.dump(make_task(run.config).config), run.folder / "config.yaml")
    write_text("", run.folder / "checkpoints/best.safetensors")


def test_final_runs_of_a_changed_setting_are_refused(make_study):
    """A study without trials: neither another config nor another name looks at the test set a second time."""
    plain = {"trials": None, "schemes": {"bn": {"trials": {"a": {}}}}, "finals": {"seeds": [0]}}
    evaluated(Study(make_study(**plain), Slots(1, 1)).finals[0])
    Study(make_study(**plain), Slots(1, 1))
    changed = {**plain, "schemes": {"bn": {"trials": {"a": {"label_smoothing": 0.1}}}}}
    with pytest.raises(TrainingError, match="was started with another config: label_smoothing was 0.0, is 0.1"):
        Study(make_study(**changed), Slots(1, 1))
    renamed = {**plain, "schemes": {"bn": {"trials": {"b": {}}}}}
    with pytest.raises(UserError, match="finals/bn/a: the test set was evaluated for this setting"):
        Study(make_study(**renamed), Slots(1, 1))


def test_a_study_of_another_recipe_is_refused(make_study, tmp_path):
    study = make_study()
    write_text("recipe: other.yaml\n", tmp_path / "study/study.yaml")
    with pytest.raises(ConfigError, match=r"has a study of other.yaml, not of .*; choose another output"):
        Study(study, Slots(1, 1))


def test_a_report_that_cannot_be_written_is_an_error_at_the_end(make_study, monkeypatch):
    """And costs a line while runs end."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    study = Study(make_study(trials=None, schemes={"bn": {}}), Slots(1, 1))
    monkeypatch.setattr("tasks.study.study.write_reports", full)
    monkeypatch.setattr(study.runner, "execute", lambda runs, on_end, on_poll: None)
    with pytest.raises(UserError, match=r"study: the report cannot be written \(No space left on device\); the same"):
        study.run()


def test_torchrun_is_refused(make_study, monkeypatch, capsys):
    make_study()
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, errors = call(capsys, monkeypatch, "study", make_study.path)
    assert (code, "without torchrun" in errors) == (1, True)


def test_the_time_that_is_left(make_study):
    """Of 4 trials of 2 epochs and 4 final runs of 3: what a scheme, or a trial that was trained, takes for an epoch."""
    study = Study(make_study(), Slots(2, 1))
    study.paces = {"rescale": 10.0, "bn": 1.0}
    study.paces_of_trials = {trial: 2.0 for trial in trials_of(study.config, "bn") if trial.name == "smooth"}
    runs = [*study.screening, *study.expected]
    assert sum(map(study._seconds_left, runs)) == 2 * 2 * 10 + 2 * 1 + 2 * 2 + 2 * 3 * 10 + 2 * 3 * 1


def test_the_file_is_read_with_the_folder_of_the_command_line(make_study, tmp_path):
    make_study()
    assert read_study(str(make_study.path), (), tmp_path / "other").output == str(tmp_path / "other")
    assert os.environ.get("RESCALENET_PARENT") is None
