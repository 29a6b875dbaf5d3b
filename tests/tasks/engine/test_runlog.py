"""What a run logs and leaves on disk."""

import errno
import json
import os

import pytest
import torch

import zoo
from tasks.engine import Trainer
from tasks.engine.records import StepRecord
from tasks.engine.runlog import SINKS, JsonlSink
from tasks.errors import ConfigError, TrainingError
from tasks.plots import read_log
from tasks.spec import make_task
from tests.helpers.training import config, fit, weights_of


def test_a_run_leaves_what_users_look_for(images, tmp_path):
    metrics = fit(images, tmp_path / "run", average={"name": "ema", "decay": 0.5}, checkpoint_minutes=10)
    assert metrics["images"] == 15
    run = tmp_path / "run"
    assert (run / "curves.png").stat().st_size > 1000
    assert list((run / "tensorboard").iterdir())
    records = read_log(run / "log.jsonl")
    assert [r["step"] for r in records if r["event"] == "step"] == list(range(1, 13))
    assert [r["top1"] for r in records if r["event"] == "epoch"][-1] == metrics["top1"]
    blocks = [r["blocks"] for r in records if r["event"] == "blocks"]
    assert [len(b) for b in blocks] == [9, 9]
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    for row in blocks[-1]:
        assert row["m"] == state["model"][f"{row['block']}.join.multiplier"].item()
        expected = [state["model"][f"{row['block']}.conv{i}.weight"].norm().item() for i in (1, 2)]
        assert row["weight_norms"] == pytest.approx(expected, rel=1e-6)
    for name in ("best", "last"):
        entry = zoo.get_weights(str(run / "checkpoints" / f"{name}.safetensors"))
        assert entry.classes == ("blue", "green", "red")
        assert entry.meta["config"]["train"]["epochs"] == 2
    assert entry.meta["metrics"] == metrics
    assert entry.meta["epochs"] == 2
    # the averaged weights are the ones kept
    kept = weights_of(run)
    for key, value in kept.items():
        assert torch.equal(value, state["average"][f"module.{key}"])
    assert (kept["fc.weight"] - state["model"]["fc.weight"]).abs().max() > 0


def test_the_log_is_json(images, tmp_path):
    fit(images, tmp_path / "run", epochs=1)
    for line in (tmp_path / "run/log.jsonl").read_text().splitlines():
        assert json.loads(line)["event"] in ("step", "epoch", "blocks")


def test_terms_of_the_loss_are_logged_apart(images, tmp_path, monkeypatch):
    task = make_task(config(images, tmp_path / "run", epochs=1))
    losses = task.losses

    def two(*args):
        value = losses(*args)["loss"]
        return {"first": 0.25 * value, "second": 0.75 * value}

    monkeypatch.setattr(task, "losses", two)
    Trainer(task).fit()
    for record in (r for r in read_log(tmp_path / "run" / "log.jsonl") if r["event"] == "step"):
        assert record["first"] + record["second"] == pytest.approx(record["loss"])
        assert record["second"] == pytest.approx(3 * record["first"])


def test_a_sink_that_fails_is_reported_and_left_out(images, tmp_path, monkeypatch, capsys):
    written = []

    class Server:
        def __init__(self, folder, step):
            pass

        def write(self, record):
            written.append(record)
            if len(written) == 3:
                raise ConnectionError("no answer\nfrom the server")

        def flush(self):
            pass

        close = flush

    monkeypatch.setitem(SINKS, "server", Server)
    assert fit(images, tmp_path / "run", epochs=1, sinks=("server",))["images"] == 15
    assert len(written) == 3
    assert len(read_log(tmp_path / "run/log.jsonl")) == 8
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.count("Server failed and gets no more records of this run (ConnectionError: no answer from the") == 1


def test_a_log_that_cannot_be_written_ends_the_run_with_what_to_do(images, tmp_path):
    """A disk that is full; the folder is free afterwards."""
    trainer = Trainer(make_task(config(images, tmp_path / "run", sinks=())))
    (sink,) = trainer.log.sinks
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, sink._file.fileno())
    os.close(full)
    with pytest.raises(TrainingError, match=r"run: cannot be written \(No space left on device\); free some space and"):
        trainer.fit()
    assert fit(images, tmp_path / "run", sinks=(), resume=True)["images"] == 15


def test_an_error_of_a_disk_names_the_place_of_the_run(images, tmp_path, monkeypatch):
    """Where the system names no file."""
    trainer = Trainer(make_task(config(images, tmp_path / "run", sinks=())))

    def fail(record):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(trainer.log.sinks[0], "write", fail)
    with pytest.raises(TrainingError, match=r"epoch 1, step 1: Input/output error; continue with --resume; no check"):
        trainer.fit()


def test_lines_are_written_whole_where_the_system_takes_parts(tmp_path):
    sink = JsonlSink(tmp_path / "log.jsonl", 0)
    file = sink._file

    class Slow:
        def write(self, content):
            return file.write(content[:7])

    sink._file = Slow()
    sink.write(StepRecord(step=1, epoch=0, loss=0.5, lr=0.1))
    written = (tmp_path / "log.jsonl").read_bytes()
    assert json.loads(written)["loss"] == 0.5
    assert sink.size == len(written)


def test_a_sink_is_closed_once(images, tmp_path, monkeypatch):
    closed = []

    class Server:
        def __init__(self, folder, step):
            pass

        def write(self, record):
            pass

        def flush(self):
            pass

        def close(self):
            closed.append(1)

    monkeypatch.setitem(SINKS, "server", Server)
    fit(images, tmp_path / "run", epochs=1, sinks=("server",))
    assert closed == [1]


def test_a_sink_that_cannot_be_opened_ends_the_run_before_it_begins(images, tmp_path, monkeypatch):
    """And closes those that were opened; the run begins without it."""
    opened = []

    class Server:
        def __init__(self, folder, step):
            if opened:
                raise RuntimeError("no answer\nfrom the server")
            opened.append(self)

        def write(self, record):
            pass

        def flush(self):
            pass

        def close(self):
            opened.append("closed")

    for name in ("first", "second"):
        monkeypatch.setitem(SINKS, name, Server)
    with pytest.raises(TrainingError, match=r"train.sinks: second cannot be opened \(RuntimeError: no answer from the"):
        fit(images, tmp_path / "run", epochs=1, sinks=("first", "second"))
    assert opened[1:] == ["closed"]
    with pytest.raises(ConfigError, match="a name occurs twice"):
        fit(images, tmp_path / "run", epochs=1, sinks=("first", "first"), resume=True)
    assert fit(images, tmp_path / "run", epochs=1, sinks=(), resume=True)["images"] == 15
