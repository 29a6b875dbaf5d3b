"""What a run logs and leaves on disk."""

import json

import pytest
import torch

import zoo
from tasks.engine import Trainer
from tasks.engine.runlog import SINKS
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
