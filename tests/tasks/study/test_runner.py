"""The processes of a study: threads, devices, failures, the end with the parent."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tasks.devices import available_cpus, crowded
from tasks.parent import PARENT
from tasks.study.plan import screening_runs
from tasks.study.results import Result
from tasks.study.runner import PROGRAM, Runner, Slots, last_of, own_files, program_of


def test_threads_are_shared():
    slots = Slots.of_machine(jobs=2)
    assert slots.threads == max(1, available_cpus() // 2)
    assert Slots.of_machine(jobs=1000).threads == 1
    content = slots.environment(1)
    assert content["OMP_NUM_THREADS"] == str(slots.threads)
    assert content[PARENT] == str(os.getpid())


@pytest.mark.parametrize(("load", "threads", "warned"), [(0.2, 4, False), (3.0, 4, True), (9.0, 1, False)])
def test_a_run_on_a_busy_machine_is_warned(monkeypatch, load, threads, warned):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0, 0))
    monkeypatch.setattr("tasks.devices.available_cpus", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert (crowded() is not None) == warned


def test_gpus_are_dealt_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    slots = Slots.of_machine()
    assert slots.jobs == 2
    assert [slots.environment(i)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["5", "3", "5"]


def test_the_threads_of_a_process_are_its_share():
    code = "import torch; print(torch.get_num_threads())"
    out = subprocess.run(
        [sys.executable, "-c", code], env=Slots(1, 1).environment(0), capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "1"


def test_extensions_of_the_program_are_in_its_processes(tmp_path):
    script = tmp_path / "plus.py"
    script.touch()
    assert program_of(str(script)) == (sys.executable, str(script))
    for started in ("/usr/bin/rescalenet", *map(str, own_files()), str(tmp_path / "missing.py")):
        assert program_of(started) == PROGRAM


def test_a_module_of_the_working_directory_does_not_take_our_place(tmp_path):
    (tmp_path / "tasks.py").write_text("raise SystemExit('the wrong tasks')")
    line = [*PROGRAM, "list", "rescalenet50"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=Slots(1, 1).environment(0))
    assert done.stdout.startswith("rescalenet50"), done.stderr


def test_what_torchrun_set_is_not_passed_on(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert not {"WORLD_SIZE", "RANK"} & Slots(1, 1).environment(0).keys()


def slots(code, jobs=2):
    """Slots whose processes execute this Python code instead of training."""
    return Slots(jobs, 1, (sys.executable, "-c", code))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; print('error: no such folder', file=sys.stderr); sys.exit(1)", "no such folder"),
        ("import os, signal; print('step 3', flush=True); os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL"),
        ("pass", "its weights or its log do not belong to the end of the run"),
    ],
)
def test_a_run_that_fails_is_reported_and_the_others_go_on(make_study, code, reason):
    runs = screening_runs(make_study())
    runner, ended = Runner(slots(code)), []
    runner.execute(runs, on_end=ended.append, on_poll=lambda active: None)
    assert sorted(end.result.run.label for end in ended) == sorted(run.label for run in runs)
    assert runner.failed.keys() == {run.label for run in runs}
    assert all(reason in failure for failure in runner.failed.values())
    assert all(end.failure == runner.failed[end.result.run.label] for end in ended)


def test_a_run_that_cannot_be_started_is_reported_and_the_others_go_on(make_study):
    """A file in the place of the run's folder fails as a full disk does: with an OSError."""
    runs = screening_runs(make_study())
    runs[0].folder.parent.mkdir(parents=True)
    runs[0].folder.write_text("in the way")
    runner, ended = Runner(slots("raise SystemExit(3)")), []
    runner.execute(runs, on_end=ended.append, on_poll=lambda active: None)
    assert sorted(end.result.run.label for end in ended) == sorted(run.label for run in runs)
    assert runner.failed[runs[0].label] == f"{runs[0].folder}: File exists"


@pytest.mark.parametrize("stale", [None, 0.9])
def test_the_fit_of_a_trained_run_is_measured_whatever_file_is_there(make_study, monkeypatch, stale):
    """A file that is there, of as many batches or not, is of other weights: training, then a measurement."""
    run = screening_runs(make_study())[0]
    run.folder.mkdir(parents=True)
    (run.folder / "fit_loss.json").write_text('{"loss": 1.0, "batches": 99}')
    states = [
        Result(run, "unfinished"),
        Result(run, "finished", metrics={run.config.metric: 50.0}, fit_loss=stale),
        Result(run, "finished", metrics={run.config.metric: 50.0}, fit_loss=0.5),
    ]
    monkeypatch.setattr("tasks.study.runner.read_result", lambda run: states.pop(0))
    runner, ended = Runner(slots("import sys; print(sys.argv[1])")), []
    runner.execute([run], on_end=ended.append, on_poll=lambda active: None)
    assert (run.folder / "output.txt").read_text().split() == ["train", "fit-loss"]
    assert [end.failure for end in ended] == [""]


def test_an_interrupt_ends_the_processes(make_study):
    runs = screening_runs(make_study())
    runner, started = Runner(slots("import time; time.sleep(600)")), []

    def interrupt(active):
        started.extend(job.process for job in runner.jobs.values())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.execute(runs, on_end=lambda ended: None, on_poll=interrupt)
    assert len(started) == 2
    assert all(process.returncode == -signal.SIGTERM for process in started)


def test_the_process_of_a_run(make_study):
    run = screening_runs(make_study())[0]
    arguments = run.arguments()
    assert arguments[:2] == ["train", run.recipe]
    assert arguments[-1] == "--resume"
    assert f"output={run.folder}" in arguments
    assert run.fit_arguments() == ["fit-loss", str(run.folder), "--batches", "3"]


def test_the_last_line_of_an_output():
    assert last_of("ok\nerror: wrong\n\n") == "wrong"
    assert last_of("") == "no output"


def test_a_process_ends_with_its_parent():
    """The parent is killed; its child, which would sleep for minutes, is gone soon after."""
    child = "import time; from tasks.parent import end_with_parent; end_with_parent(); time.sleep(300)"
    parent = (
        "import os, subprocess, sys, time\n"
        f"environment = {{**os.environ, {PARENT!r}: str(os.getpid())}}\n"
        f"print(subprocess.Popen([sys.executable, '-c', {child!r}], env=environment).pid, flush=True)\n"
        "time.sleep(300)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    number = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            break
        if "Z" in subprocess.run(["ps", "-o", "stat=", "-p", str(number)], capture_output=True, text=True).stdout:
            break  # ended, and not yet waited for
        time.sleep(0.1)
    else:
        os.kill(number, signal.SIGKILL)
        pytest.fail("the child goes on without its parent")
