"""What is trained is on the disk before anything else is tried; and runs that end early."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from tasks import config as cfg
from tasks.engine import RunFolder, Trainer
from tasks.engine.signals import Signals
from tasks.errors import DataError, Interrupted, TrainingError, out_of_memory
from tasks.plots import read_log
from tasks.spec import make_task
from tests.helpers.commands import environment
from tests.helpers.training import config, fit, weights_of
from zoo.method import branch_statistics


class PowerCut(BaseException):
    """What no code catches."""


def test_state_and_weights_are_on_the_disk_before_the_evaluation(images, tmp_path, monkeypatch):
    task = make_task(config(images, tmp_path / "run", checkpoint_minutes=10))
    positions = []

    def evaluate(model, accelerator, dtype):
        stored = weights_of(tmp_path / "run")
        assert all(torch.equal(stored[key], value) for key, value in model.state_dict().items())
        position = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["position"]
        positions.append((position["epoch"], position["batch"]))
        raise PowerCut

    monkeypatch.setattr(task, "evaluate", evaluate)
    with pytest.raises(PowerCut):
        Trainer(task).fit()
    assert positions == [(0, 6)]
    # resumed, the epoch is evaluated and not trained again
    fit(images, tmp_path / "run", checkpoint_minutes=10, resume=True)
    fit(images, tmp_path / "whole", checkpoint_minutes=10)
    assert (tmp_path / "run/log.jsonl").read_text() == (tmp_path / "whole/log.jsonl").read_text()


def test_no_weights_are_on_the_disk_without_a_state(images, tmp_path, monkeypatch):
    """Also where the first epoch is not evaluated: the run goes on."""
    settings = {"checkpoint_minutes": 10, "eval_every": 2}
    task = make_task(config(images, tmp_path / "run", **settings))
    save = task.save_weights

    def cut(*arguments):
        save(*arguments)
        raise PowerCut

    monkeypatch.setattr(task, "save_weights", cut)
    with pytest.raises(PowerCut):
        Trainer(task).fit()
    fit(images, tmp_path / "run", resume=True, **settings)
    fit(images, tmp_path / "whole", **settings)
    assert (tmp_path / "run/log.jsonl").read_text() == (tmp_path / "whole/log.jsonl").read_text()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DataError("val/a.png: cannot be decoded"), "val/a.png: cannot be decoded"),
        (ValueError("two\nlines"), "ValueError: two lines"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), "out of memory .*: lower data.eval_batch_size"),
    ],
)
def test_an_evaluation_that_fails_costs_a_line(images, tmp_path, monkeypatch, capsys, error, reason):
    task = make_task(config(images, tmp_path / "run"))
    evaluate, calls = task.evaluate, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise error
        return evaluate(*arguments)

    monkeypatch.setattr(task, "evaluate", failing)
    assert Trainer(task).fit()["images"] == 15
    assert "the evaluation of epoch 1 failed" in capsys.readouterr().err
    records = read_log(tmp_path / "run/log.jsonl")
    failed = [r for r in records if r["event"] == "failed"]
    assert len(failed) == 1
    assert re.search(reason, failed[0]["reason"])
    assert [("top1" in r) for r in records if r["event"] == "epoch"] == [False, True]


def test_a_last_evaluation_without_memory_is_a_memory_error_too(images, tmp_path, monkeypatch):
    """For callers of the engine; the epoch is on the disk."""
    task = make_task(config(images, tmp_path / "run"))

    def failing(*arguments):
        raise MemoryError("evaluation")

    monkeypatch.setattr(task, "evaluate", failing)
    with pytest.raises(
        MemoryError, match=r"out of memory \(evaluation\): lower data.eval_batch_size; its weights"
    ) as caught:
        Trainer(task).fit()
    assert isinstance(caught.value, TrainingError)
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} >= {"last.pt", "last.safetensors"}


def test_a_last_evaluation_that_fails_is_an_error_at_the_end(images, tmp_path, monkeypatch):
    task = make_task(config(images, tmp_path / "run"))

    def failing(*arguments):
        raise DataError("val/a.png: cannot be decoded")

    monkeypatch.setattr(task, "evaluate", failing)
    with pytest.raises(TrainingError, match=r"the evaluation of epoch 2 failed: val/a.* --resume evaluates them"):
        Trainer(task).fit()
    # which a resumed run does, without a step
    trained = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert fit(images, tmp_path / "run", resume=True)["images"] == 15
    evaluated = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert (trained["position"]["step"], trained["position"]["epoch"]) == (12, 1)
    assert (evaluated["position"]["step"], evaluated["position"]["epoch"]) == (12, 2)
    assert all(torch.equal(trained["model"][key], value) for key, value in evaluated["model"].items())


def test_a_full_disk_in_the_evaluation_ends_the_run(images, tmp_path, monkeypatch):
    task = make_task(config(images, tmp_path / "run"))

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(task, "evaluate", full)
    with pytest.raises(TrainingError, match=r"No space left on device\); free some space and continue with --resume"):
        Trainer(task).fit()


def test_curves_that_cannot_be_drawn_cost_a_line(images, tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise ValueError("no font")

    monkeypatch.setattr("tasks.engine.trainer.curves", fail)
    assert fit(images, tmp_path / "run", epochs=1)["images"] == 15
    assert "curves.png: cannot be drawn (no font); the results are complete without it" in " ".join(
        capsys.readouterr().err.split()
    )


def test_early_stopping_counts_evaluations_without_a_better_metric(images, tmp_path, monkeypatch, capsys):
    values = [10.0, 20.0, 20.4, 20.0, 30.0]

    def run(folder, resume=False, **settings):
        task = make_task(config(images, folder, epochs=5, checkpoint_minutes=10, **settings))
        count = iter(values[1:] if resume else values)
        monkeypatch.setattr(task, "evaluate", lambda *a: {"top1": next(count), "images": 15})
        return Trainer(task, resume=resume)

    trainer = run(tmp_path / "run", early_stopping={"patience": 2, "min_delta": 0.5})
    assert trainer.fit()["top1"] == 20.0
    assert (trainer.at.epoch, trainer.at.best, trainer.at.stale) == (4, 20.4, 2)
    assert "ended after 4 of 5 epochs: 2 evaluations without a better top1" in " ".join(capsys.readouterr().err.split())
    # resumed it has still ended; without the rule it goes on
    assert run(tmp_path / "run", resume=True, early_stopping={"patience": 2}).fit()["top1"] == 20.0
    assert run(tmp_path / "run", resume=True).fit()["top1"] == 20.0
    assert RunFolder(tmp_path / "run").load_state()["position"].epoch == 5


def test_small_increases_count_when_they_add_up(images, tmp_path, monkeypatch):
    """The value that counts is compared with the last one that counted, as in Keras and Lightning."""
    values = iter([20.0, 20.3, 20.6, 20.7, 20.8])
    rule = {"patience": 2, "min_delta": 0.5}
    task = make_task(config(images, tmp_path / "run", epochs=9, checkpoint_minutes=10, early_stopping=rule))
    monkeypatch.setattr(task, "evaluate", lambda *a: {"top1": next(values), "images": 15})
    trainer = Trainer(task)
    trainer.fit()
    assert (trainer.at.epoch, trainer.at.best, trainer.at.counted, trainer.at.stale) == (5, 20.8, 20.6, 2)


def test_too_little_memory_names_the_key(images, tmp_path, monkeypatch):
    task = make_task(config(images, tmp_path / "run"))

    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr(task, "losses", full)
    with pytest.raises(
        TrainingError, match=r"step 0: out of memory \(CUDA out of memory\): lower train.batch_size and"
    ):
        Trainer(task).fit()
    (tmp_path / "run/config.yaml").unlink()
    monkeypatch.setattr(task, "calibration_forward", full)
    with pytest.raises(TrainingError, match=r"calibration: out of memory .*: lower train.calibration_samples or"):
        Trainer(task, resume=True)


def test_what_too_little_memory_looks_like():
    assert out_of_memory(MemoryError()) == "out of memory"
    allocator = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"
    )
    assert "can't allocate memory" in out_of_memory(allocator)
    assert out_of_memory(RuntimeError("shapes do not match")) is None
    assert out_of_memory(ValueError("out of memory")) is None


# -- signals: see also tests/reliability -----------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_the_step_end_and_saves_it(images, tmp_path, monkeypatch, number):
    trainer = Trainer(make_task(config(images, tmp_path / "run", checkpoint_minutes=10)))
    step = trainer._step

    def interrupted(forwards):
        if trainer.at.step == 3:
            os.kill(os.getpid(), number)
        return step(forwards)

    monkeypatch.setattr(trainer, "_step", interrupted)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"stopped at epoch 1, step 4; continue with --resume; the last good") as stop:
        trainer.fit()
    assert stop.value.exit_code == 128 + number
    assert signal.getsignal(number) == before
    assert torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["position"]["step"] == 4
    fit(images, tmp_path / "run", checkpoint_minutes=10, resume=True)
    fit(images, tmp_path / "whole", checkpoint_minutes=10)
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "run")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("place", ["check_weights", "save_weights", "end_of_epoch", "branch_statistics"])
def test_a_signal_at_the_end_of_an_epoch_loses_no_step(images, tmp_path, monkeypatch, place):
    """Of an epoch without an evaluation, before which the state would have been saved."""
    trainer = Trainer(make_task(config(images, tmp_path / "run", checkpoint_minutes=10, eval_every=2)))
    owner = {"check_weights": trainer, "branch_statistics": "tasks.engine.trainer"}.get(place, trainer.task)
    function = branch_statistics if place == "branch_statistics" else getattr(owner, place)

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments)

    if isinstance(owner, str):
        monkeypatch.setattr(f"{owner}.{place}", interrupted)
    else:
        monkeypatch.setattr(owner, place, interrupted)
    with pytest.raises(Interrupted, match=r"stopped at epoch 2, step 6; continue with --resume; the last good"):
        trainer.fit()
    assert torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["position"]["step"] == 6


def test_a_signal_stops_an_evaluation_at_once(images, tmp_path, monkeypatch):
    trainer = Trainer(make_task(config(images, tmp_path / "run", checkpoint_minutes=10)))

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    monkeypatch.setattr(trainer.task, "evaluate", interrupted)
    with pytest.raises(Interrupted, match=r"stopped at epoch 1, step 6"):
        trainer.fit()
    assert torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["position"]["step"] == 6


def test_a_signal_that_comes_again_while_the_run_closes_changes_nothing(images, tmp_path, monkeypatch):
    """As Ctrl+C does, which reaches a process directly and through torchrun."""
    trainer = Trainer(make_task(config(images, tmp_path / "run", checkpoint_minutes=10)))
    step, close = trainer._step, trainer.close

    def interrupted(forwards):
        os.kill(os.getpid(), signal.SIGINT)
        return step(forwards)

    def again():
        os.kill(os.getpid(), signal.SIGTERM)
        close()

    monkeypatch.setattr(trainer, "_step", interrupted)
    monkeypatch.setattr(trainer, "close", again)
    with pytest.raises(Interrupted, match="SIGINT: stopped at epoch 1, step 1; continue"), Signals():
        trainer.fit()
    assert Trainer(make_task(config(images, tmp_path / "run", checkpoint_minutes=10)), resume=True).at.step == 1


def test_a_signal_outside_of_a_step_stops_at_once():
    def wait():
        with Signals():
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("it went on")

    with pytest.raises(Interrupted, match="SIGTERM: stopped before the training began"):
        wait()


def test_a_second_signal_ends_the_process_at_once():
    """Even while the main thread waits in a library; signals within a second of the first are the same one."""
    code = """
import os, signal, threading, time
from tasks.engine.signals import Signals

def send(number, after):
    threading.Timer(after, os.kill, (os.getpid(), number)).start()

with Signals() as signals, signals.deferred():
    send(signal.SIGINT, 0)
    send(signal.SIGTERM, 0.3)
    send(signal.SIGTERM, 1.5)
    lock = threading.Lock()
    lock.acquire()
    time.sleep(0.8)
    print(signals.requested, flush=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # so that no Python code of this thread runs
    time.sleep(60)
"""
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=50)
    assert time.monotonic() - begun < 40
    assert (done.returncode, done.stdout) == (128 + signal.SIGINT, f"{int(signal.SIGINT)}\n")
    assert done.stderr == "SIGTERM: a second signal; what is on the disk is complete, continue with --resume\n"


def test_a_step_that_does_not_end_after_a_signal_is_left():
    code = """
import os, signal, time
from tasks.engine.signals import Signals

with Signals(patience=0.2) as signals, signals.deferred():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=50)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.startswith("SIGTERM: the step did not end within 0.2 s; what is on the disk is complete")


def test_one_of_several_processes_does_not_wait_for_ever_before_the_training_either(images, tmp_path):
    """As when the others have ended while it waits for them in a library."""
    code = """
import os, signal, sys, threading, time
import tasks.cli, tasks.devices, tasks.engine.trainer, tasks.spec
from tasks.engine import signals

def wait(config):
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()  # which receives it, too
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # so that no Python code of this thread runs
    time.sleep(60)

signals.PATIENCE = 0.2
os.environ["WORLD_SIZE"] = "2"
tasks.devices.start_processes = lambda minutes: None
tasks.spec.make_task = wait
tasks.cli.main()
"""
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump(config(images, tmp_path / "run")))
    command = [sys.executable, "-c", code, "train", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=50)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "SIGTERM: the step did not end within 0.2 s; what is on the disk is complete" in done.stderr


def test_a_folder_is_for_one_run_at_a_time(images, tmp_path):
    first = Trainer(make_task(config(images, tmp_path / "run")))
    for resume in (False, True):
        with pytest.raises(TrainingError, match=r"run: another process has a run in it; wait for it, stop it, or"):
            Trainer(make_task(config(images, tmp_path / "run")), resume=resume)
    first.fit()
    assert Trainer(make_task(config(images, tmp_path / "run")), resume=True).at.epoch == 2


def test_a_damaged_state_falls_back_to_the_one_before(images, tmp_path, capsys):
    fit(images, tmp_path / "run")
    fit(images, tmp_path / "whole", epochs=3)
    path = tmp_path / "run/checkpoints/last.pt"
    for damage in (b"", path.read_bytes()[:1000]):
        path.write_bytes(damage)
        state = RunFolder(tmp_path / "run").load_state()
        assert state["position"].step == 12
        assert "last.pt: not a complete checkpoint" in " ".join(capsys.readouterr().err.split())
    path.unlink()
    assert RunFolder(tmp_path / "run").load_state()["position"].step == 12
    assert "last.pt is missing; resuming from" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("optimizer"), "its parts are not those of a training state"),
        (lambda state: state.update(model=3), "model is no mapping"),
        (lambda state: state["model"].update(a=3), "model has values that are no tensors"),
        (lambda state: state["position"].update(step=-1), r"step=-1: .*greater than or equal to 0\)"),
        (lambda state: state["position"].update(step=2**64), "step"),
        (lambda state: state.update(net=None), "net is no mapping"),
        (lambda state: state.update(average=3), "average is no mapping"),
        (lambda state: state.update(ranks=True), "ranks is no number of processes"),
        (lambda state: state["position"].update(future=1), "future"),
        (lambda state: state["position"].update(metrics=[]), "metrics"),
        (lambda state: state.update(data=[]), "Input should be a dictionary"),
        (lambda state: state["data"]["train"].update(samples="many"), "train.samples"),
    ],
)
def test_a_state_of_another_form_is_refused(images, tmp_path, change, reason):
    fit(images, tmp_path / "run", epochs=1)
    for name in ("last", "previous"):
        path = tmp_path / "run/checkpoints" / f"{name}.pt"
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)
    with pytest.raises(TrainingError, match=rf"last.pt: not a complete checkpoint \(.*{reason}"):
        fit(images, tmp_path / "run", epochs=1, resume=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda optimizer: optimizer["param_groups"].pop(), "different number of parameter groups"),
        (lambda optimizer: optimizer["param_groups"][0].update(momentum=0.5), "momentum is 0.5, not 0.9"),
        (lambda optimizer: optimizer["param_groups"][0].update(dampening={}), "dampening is {}, not 0"),
        (lambda optimizer: optimizer["state"].update({0: 1.0}), ""),
        (lambda optimizer: optimizer["state"][0].update(momentum_buffer=[]), "momentum_buffer does not fit its"),
        (lambda optimizer: optimizer["state"][0].update(momentum_buffer=torch.ones(3)), "momentum_buffer does not fit"),
        (lambda optimizer: optimizer["state"][0].update(momentum_buffer=torch.ones(3) * 1j), "numbers of another kind"),
        (lambda optimizer: optimizer.update(state=[]), ""),
    ],
)
def test_a_state_of_another_optimizer_is_refused_in_one_line(images, tmp_path, change, reason):
    fit(images, tmp_path / "run", epochs=1)
    path = tmp_path / "run/checkpoints/last.pt"
    state = torch.load(path, weights_only=True)
    change(state["optimizer"])
    torch.save(state, path)
    with pytest.raises(TrainingError, match=rf"last.pt: does not fit the run of its folder .*{reason}") as refused:
        fit(images, tmp_path / "run", epochs=1, resume=True)
    assert "\n" not in str(refused.value)


def test_too_little_memory_for_a_state_is_no_damage(images, tmp_path, monkeypatch):
    fit(images, tmp_path / "run", epochs=1)

    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr("tasks.engine.run.load_optimizer", full)
    with pytest.raises(TrainingError, match=r"last.pt: out of memory \(CUDA out of memory\) while it was loaded; free"):
        fit(images, tmp_path / "run", epochs=1, resume=True)


def retype(part, state):
    """Multiply the first weight of a part of a training state by i."""
    key = next(key for key in state[part] if key.endswith("weight"))
    state[part][key] = state[part][key] * 1j


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.update(average=None), "does not fit the run of its folder .it has no average of the we"),
        (lambda state: state["average"].update(n_averaged=-1), "does not fit the run of its folder .n_averaged is -1"),
        (
            partial(retype, "model"),
            "does not fit the run of its folder .the net: .* has type torch.complex64, the model",
        ),
        (partial(retype, "average"), "does not fit the run of its folder .the average: .* has type torch.complex64, "),
        (
            lambda state: state["position"].update(batch=7, epoch=0),
            "its position, batch 7 of 6, is not one of this",
        ),
        (
            lambda state: state["position"].update(batch=6, epoch=0),
            "its position, batch 6 of 6, is not one of this",
        ),
    ],
)
def test_a_state_of_another_run_is_refused(images, tmp_path, change, reason):
    settings = {"epochs": 1, "average": {"name": "ema", "decay": 0.5}}
    fit(images, tmp_path / "run", **settings)
    path = tmp_path / "run/checkpoints/last.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    with pytest.raises(TrainingError, match=f"last.pt: {reason}"):
        fit(images, tmp_path / "run", resume=True, **settings)


def test_file_systems_without_links_keep_a_state_too(images, tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    fit(images, tmp_path / "run", epochs=1)
    names = sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())
    assert names == ["best.safetensors", "last.pt", "last.safetensors", "previous.pt"]
