"""Several processes: what the main process decides, states and statistics that are shared, another number of them."""

import json
import subprocess
import sys

import pytest
import torch

import zoo
from tasks import config as cfg
from tasks.engine import Trainer
from tasks.engine.ranks import first_to_fail, lost_peer
from tasks.errors import TrainingError
from tasks.plots import read_log
from tasks.spec import make_task
from tests.helpers.commands import environment, on_two_processes
from tests.helpers.detection import sample, small
from tests.helpers.training import config, fit, fit_until_crash, weights_of


def test_decisions_states_and_statistics_are_the_main_process_s():
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "tests.helpers.two_ranks"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    main, other = json.loads(done.stdout)
    assert (main["decided"], other["decided"]) == ("by 0", None)
    assert main["refused"] == other["refused"] == "refused by 0"
    assert (main["read"], other["read"]) == (0, 0)
    assert main["unread"] == other["unread"] == "refused by 0"
    for found in (main, other):
        assert found["state"]
        assert found["types"]
        assert found["rest"] == [7, [1.5, None, "text"], None]
        assert found["count"] == 1
        assert found["data"].startswith(
            "data: the training samples of process 1 are not those of process 0; give every"
        )
        assert found["mean"] == main["own"]
        assert found["barriers"] == [{}]
    assert main["own"] != other["own"]
    assert main["strides"] > 0  # torch's remark on them would be wrong, see the next test


@pytest.mark.parametrize("kind", ["images", "clips", "detection"])
def test_gradients_are_laid_out_as_their_parameters(kind):
    """But for strides of dimensions of length 1: the gradients of several processes are summed without reordering."""
    torch.manual_seed(0)
    if kind == "detection":
        model = small().to(memory_format=torch.channels_last)
        samples = [sample(seed=i) for i in range(2)]
        sum(model([image for image, _ in samples], [target for _, target in samples]).values()).backward()
    else:
        name, size = ("rescalenet50", (64, 64)) if kind == "images" else ("rescale_r3d_10", (4, 32, 32))
        model = zoo.create_model(name, num_classes=3)
        model.to(memory_format=torch.channels_last if kind == "images" else torch.channels_last_3d)
        model(torch.randn(2, 3, *size)).square().sum().backward()
    for name, parameter in model.named_parameters():
        pairs = zip(parameter.stride(), parameter.grad.stride(), parameter.shape, strict=True)
        assert all(own == other for own, other, length in pairs if length > 1), name


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_on_one(images, tmp_path, monkeypatch):
    """In float64, to 1e-10: a batch is divided by the number of processes, so each sample is in it once."""
    settings = {"precision": "fp64"}
    fit(images, tmp_path / "whole", **settings)
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump(config(images, tmp_path / "run", epochs=1, **settings)))
    on_two_processes("train", path)
    fit(images, tmp_path / "run", resume=True, **settings)
    # the rate of the first epoch was that of a run of one epoch, so only what follows from the order is compared
    fit(images, tmp_path / "one", epochs=1, **settings)
    fit(images, tmp_path / "one", resume=True, **settings)
    one, two = (read_log(tmp_path / run / "log.jsonl") for run in ("one", "run"))
    assert [r["loss"] for r in one if "loss" in r] == pytest.approx([r["loss"] for r in two if "loss" in r], rel=1e-10)
    first, second = weights_of(tmp_path / "one"), weights_of(tmp_path / "run")
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-10, atol=1e-10)


def test_another_number_of_processes_in_an_epoch(images, tmp_path, monkeypatch, capsys):
    """Batches that are divided go on exactly; those of each process: ``test_translation_model.py``."""
    fit_until_crash(images, tmp_path / "run", 3, monkeypatch)
    path = tmp_path / "run/checkpoints/last.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "ranks": 2}, path)
    fit(images, tmp_path / "run", resume=True)
    assert "resuming a run of 2 processes on 1" in capsys.readouterr().err
    fit(images, tmp_path / "whole")
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "run")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.slow
def test_batchnorm_is_evaluated_with_the_statistics_that_are_saved(images, tmp_path):
    """On two processes: the metrics are those of the weights in the file."""
    path = tmp_path / "config.yaml"
    settings = config(images, tmp_path / "run", model={"scheme": "bn"}, epochs=3, optimizer={"name": "sgd", "lr": 0.5})
    path.write_text(cfg.dump(settings))
    on_two_processes("train", path)
    out = tmp_path / "metrics"
    last = tmp_path / "run/checkpoints/last.safetensors"
    on_two_processes("eval", last, images / "val", "--out", out)
    logged = [r for r in read_log(tmp_path / "run/log.jsonl") if r["event"] == "epoch"][-1]
    found = json.loads((out / "metrics.json").read_text())["metrics"]
    assert found.pop("failed") == 0
    assert found == {key: logged[key] for key in found}


def test_an_evaluation_that_lost_another_process_is_no_failure_of_its_own(images, tmp_path, monkeypatch):
    trainer = Trainer(make_task(config(images, tmp_path / "run")))

    def lost(*arguments):
        monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)  # the end of the run has no collectives
        raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")

    monkeypatch.setattr(trainer.task, "evaluate", lost)
    with pytest.raises(TrainingError, match="epoch 1, step 6: another process of the run ended or does not answer; co"):
        trainer.fit()


def test_errors_of_a_process_that_lost_another():
    assert lost_peer(torch.distributed.DistBackendError("NCCL communicator was aborted"))
    assert lost_peer(RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert not lost_peer(RuntimeError("shapes do not match"))
    assert not lost_peer(ValueError("gloo"))


def test_only_the_first_process_that_fails_reports(monkeypatch):
    assert first_to_fail()  # one process
    assert first_to_fail()
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True)
    for name, value in (("WORLD_SIZE", 2), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", store.port)):
        monkeypatch.setenv(name, str(value))
    assert [first_to_fail() for _ in range(3)] == [True, False, False]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert [first_to_fail() for _ in range(2)] == [True, False]
    monkeypatch.delenv("MASTER_ADDR")  # nothing to ask
    assert first_to_fail()
