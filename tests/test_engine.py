"""The engine: exact resume, several processes, what it logs, and how it fails."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import environment, on_two_processes, train_and_kill
from PIL import Image

import zoo
from tasks import engine
from tasks.config import AdamW, Cosine, MultiStep, OneCycle
from tasks.engine import EpochBatches, Trainer, mix, rate
from tasks.errors import ConfigError, TrainingError
from tasks.plots import read_log
from tasks.run import check, make_task


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Three classes of 12 px pictures, told apart by their colour."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.RandomState(0)
    for split, count in (("train", 16), ("val", 5)):
        for i, name in enumerate(("blue", "green", "red")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = random.randint(0, 256, (12, 12, 3))
                pixels[..., 2 - i] //= 2
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{n}.png")
    return root


def config(images, output, model=None, data=None, **train):
    base = {
        "epochs": 2,
        "batch_size": 8,
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "log_every": 1,
        "checkpoint_minutes": 0,
        "calibration_batches": 2,
    }
    content = {
        "task": "classification",
        "output": str(output),
        "model": {"name": "rescalenet20_cifar", "options": {"width": 0.25}, **(model or {})},
        "data": {
            "root": str(images),
            "size": 12,
            "resize": 12,
            "augment": {"crop": {"name": "pad", "padding": 2}},
            "eval_batch_size": 4,
            **(data or {}),
        },
        "train": {**base, **train},
    }
    return check(content, "test")


def fit(*args, resume=False, **kwargs):
    return Trainer(make_task(config(*args, **kwargs)), resume=resume).fit()


def weights_of(folder, name="last"):
    return zoo.create_model("rescalenet20_cifar", str(folder / "checkpoints" / f"{name}.safetensors")).state_dict()


# -- pure functions ---------------------------------------------------------------------------------


def test_rates():
    cosine = Cosine(warmup_epochs=2, final=0.1)
    assert [rate(cosine, e, 10) for e in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.55, 0.1])
    steps = MultiStep(warmup_epochs=1, milestones=(3, 6), gamma=0.1)
    assert [rate(steps, e, 9) for e in (0.5, 1, 2.99, 3, 6, 8)] == pytest.approx([0.5, 1, 1, 0.1, 0.01, 0.01])
    cycle = OneCycle(up=0.25, start=0.1)
    assert [rate(cycle, e, 8) for e in (0, 1, 2, 5, 8)] == pytest.approx([0.1, 0.55, 1, 0.5, 0])


def test_rates_equal_torchs_onecycle():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=101, pct_start=0.3, div_factor=25, final_div_factor=1e9
    )
    # its peak lies at step pct_start * total - 1, its end at total - 1
    ours = OneCycle(up=29.3 / 100, start=1 / 25)
    for step in range(100):
        assert rate(ours, step, 100) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
        optimizer.step()
        theirs.step()


def test_batches_are_a_function_of_seed_and_epoch():
    batches = EpochBatches(10, 3, seed=5)
    first = list(batches)
    assert [len(b) for b in first] == [3, 3, 3]
    assert len({index for b in first for _, index in b}) == 9
    batches.seek(1, 0)
    second = list(batches)
    assert [i for b in second for _, i in b] != [i for b in first for _, i in b]
    assert all(epoch == 1 for b in second for epoch, _ in b)
    batches.seek(0, 2)
    assert list(batches) == first[2:]
    assert list(EpochBatches(10, 3, seed=6)) != first
    with pytest.raises(TrainingError, match="2 samples, fewer than one batch of 3"):
        EpochBatches(2, 3, 0)


def test_mixed_seeds_do_not_collide():
    assert len({mix(a, b, c) for a in range(20) for b in range(20) for c in range(20)}) == 8000
    assert mix(1, 2) != mix(2, 1)


def test_augmentation_is_a_function_of_epoch_and_index(images, tmp_path):
    data = make_task(config(images, tmp_path)).train_set()
    state = torch.get_rng_state()
    first = {key: data[key][0] for key in [(0, 1), (0, 2), (1, 1)]}
    assert torch.equal(torch.get_rng_state(), state)  # the run's own randomness is not touched
    torch.manual_seed(99)
    for key in reversed(first):
        assert torch.equal(data[key][0], first[key])
    assert not torch.equal(first[0, 1], first[1, 1])


# -- whole runs -------------------------------------------------------------------------------------


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


class Crash(Exception):
    pass


@pytest.mark.parametrize("crash_at", [2, 6, 9, "evaluation"])
def test_resume_repeats_the_uninterrupted_run_to_the_bit(images, tmp_path, monkeypatch, crash_at):
    """Crashes in the first epoch, at its last step, in the second epoch, and between evaluation and checkpoint."""
    settings = {
        "average": {"name": "ema", "decay": 0.9},
        "model": {"options": {"width": 0.25, "drop_rate": 0.2, "branch_drop_rate": 0.1}},
        "data": {"augment": {"crop": {"name": "pad", "padding": 2}, "mixup": 0.2}},
    }
    fit(images, tmp_path / "whole", **settings)
    trainer = Trainer(make_task(config(images, tmp_path / "broken", **settings)))
    if crash_at == "evaluation":
        monkeypatch.setattr(engine, "branch_statistics", lambda model: (_ for _ in ()).throw(Crash))
    else:
        log_step = trainer._log_step

        def crash(loss):
            log_step(loss)
            if trainer.at.step == crash_at:
                raise Crash

        monkeypatch.setattr(trainer, "_log_step", crash)
    with pytest.raises(Crash):
        trainer.fit()
    trainer.log.flush()  # records past the checkpoint that the resumed run must not repeat
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
    path.write_text(engine.cfg.dump(settings))
    fit(images, tmp_path / "whole", epochs=6, workers=1)
    run = tmp_path / "killed"
    arguments = command("train", path, f"output={run}")
    at = train_and_kill(arguments, run / "checkpoints" / "last.pt", after=4)
    assert at["step"] < 36, "it ended before it was killed"
    refused = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
    assert refused.returncode == 1
    assert "holds a run already: add --resume" in refused.stderr
    subprocess.run([*arguments, "--resume"], env=environment(), check=True, stderr=subprocess.DEVNULL)
    assert (tmp_path / "whole/log.jsonl").read_text() == (run / "log.jsonl").read_text()
    whole, killed = weights_of(tmp_path / "whole"), weights_of(run)
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


@pytest.mark.parametrize("scheme", ["rescale", "gn"])
def test_two_processes_equal_one(images, tmp_path, scheme):
    """Same global batch in float64: losses, metrics and weights to 1e-10, through torchrun."""
    settings = {"precision": "fp64", "average": {"name": "ema", "decay": 0.5}, "model": {"scheme": scheme}}
    fit(images, tmp_path / "one", **settings)
    path = tmp_path / "config.yaml"
    path.write_text(engine.cfg.dump(config(images, tmp_path / "two", **settings)))
    on_two_processes("train", path)
    assert torch.load(tmp_path / "two/checkpoints/last.pt", weights_only=True)["ranks"] == 2
    one, two = (read_log(tmp_path / run / "log.jsonl") for run in ("one", "two"))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        for key in a.keys() & {"loss", "train_loss", "top1", "top5", "images"}:
            assert a[key] == pytest.approx(b[key], rel=1e-10)
    first, second = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-10, atol=1e-10)


def test_accumulation_equals_the_large_batch(images, tmp_path):
    fit(images, tmp_path / "large", precision="fp64", batch_size=8, calibration_batches=2)
    fit(images, tmp_path / "small", precision="fp64", batch_size=4, calibration_batches=4, accumulate=2)
    large, small = weights_of(tmp_path / "large"), weights_of(tmp_path / "small")
    for key in large:
        torch.testing.assert_close(large[key], small[key], rtol=1e-10, atol=1e-10)
    losses = [[r["loss"] for r in read_log(tmp_path / run / "log.jsonl") if "loss" in r] for run in ("large", "small")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


def test_a_remainder_that_fills_no_step_is_left_out(images, tmp_path):
    fit(images, tmp_path / "run", accumulate=4, epochs=3)  # 6 batches an epoch
    records = read_log(tmp_path / "run/log.jsonl")
    assert [(r["epoch"], r["step"]) for r in records if r["event"] == "step"] == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_it_learns(images, tmp_path, precision):
    optimizer = {"name": "adamw", "lr": 3e-3, "clip_norm": 1.0}
    metrics = fit(images, tmp_path / "run", epochs=8, precision=precision, optimizer=optimizer, checkpoint_minutes=10)
    assert metrics["top1"] > 60  # a third by chance


@pytest.mark.slow
def test_compiled_training_equals_eager(images, tmp_path):
    """float64: what is left is the order of sums in fused loops."""
    for compiled in (False, True):
        fit(images, tmp_path / str(compiled), precision="fp64", compile=compiled, epochs=1, checkpoint_minutes=10)
    eager, compiled = weights_of(tmp_path / "False"), weights_of(tmp_path / "True")
    for key in eager:
        torch.testing.assert_close(eager[key], compiled[key], rtol=1e-9, atol=1e-10)


def test_groups_have_their_own_rates(images, tmp_path):
    optimizer = AdamW(lr=0.1, multiplier_lr=0.5, bias_lr=0.0).model_dump()
    task = make_task(config(images, tmp_path / "run", optimizer=optimizer, epochs=1))
    trainer = Trainer(task)
    before = {name: p.detach().clone() for name, p in trainer.bare.named_parameters()}
    trainer.fit()
    moved = {name: not torch.equal(p, before[name]) for name, p in trainer.bare.named_parameters()}
    for name, changed in moved.items():
        assert changed == (name == "fc.bias" or not name.endswith("bias")), name


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(images, tmp_path, monkeypatch):
    task = make_task(config(images, tmp_path / "run"))
    losses, calls = task.losses, []

    def poisoned(model, batch, dtype):
        calls.append(1)
        terms = losses(model, batch, dtype)
        return {name: value * math.nan for name, value in terms.items()} if len(calls) == 4 else terms

    monkeypatch.setattr(task, "losses", poisoned)
    with pytest.raises(TrainingError, match=r"step 4: the loss is nan; the last good checkpoint is .*last.pt"):
        Trainer(task).fit()
    state = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert state["position"]["step"] == 3
    assert all(v.isfinite().all() for v in state["model"].values())


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


def test_a_full_disk_leaves_the_last_checkpoint_whole(images, tmp_path, monkeypatch):
    trainer = Trainer(make_task(config(images, tmp_path / "run")))
    save = torch.save

    def full(state, file):
        if state["position"]["step"] == 3:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=r"No space left on device\); make room .* last good checkpoint is"):
        trainer.fit()
    folder = tmp_path / "run/checkpoints"
    assert [p.name for p in folder.iterdir()] == ["last.pt"]
    assert torch.load(folder / "last.pt", weights_only=True)["position"]["step"] == 2


def test_refusals(images, tmp_path):
    fit(images, tmp_path / "run", epochs=1)
    with pytest.raises(TrainingError, match="holds a run already: add --resume, or choose another output"):
        fit(images, tmp_path / "run", epochs=1)
    with pytest.raises(TrainingError, match=r"started with another config: train.batch_size was 8, is 4"):
        fit(images, tmp_path / "run", epochs=1, batch_size=4, resume=True)
    (tmp_path / "run/checkpoints/last.pt").write_bytes(b"PK half a file")
    with pytest.raises(TrainingError, match=r"last.pt: not a complete checkpoint"):
        fit(images, tmp_path / "run", epochs=1, resume=True)
    with pytest.raises(TrainingError, match=r"train\.accumulate=9: an epoch has only 6 batches"):
        fit(images, tmp_path / "other", accumulate=9)


def test_half_written_files_of_a_killed_run_are_cleared(images, tmp_path):
    fit(images, tmp_path / "run", epochs=1)
    folder = tmp_path / "run/checkpoints"
    (folder / ".last.pt.123.tmp").write_bytes(b"half")
    fit(images, tmp_path / "run", epochs=1, resume=True)
    assert sorted(p.name for p in folder.iterdir()) == ["best.safetensors", "last.pt", "last.safetensors"]


def test_resuming_nothing_starts_anew(images, tmp_path):
    assert fit(images, tmp_path / "run", epochs=1, resume=True)["images"] == 15


def test_fine_tuning_calibrates_only_the_new_head(images, tmp_path, capsys):
    model = zoo.create_model("rescalevgg16", num_classes=4, width=0.0625)
    zoo.calibrate(model, [torch.randn(2, 3, 32, 32)])
    path = tmp_path / "vgg.safetensors"
    zoo.save_weights(model, path, transform=zoo.InputTransform(32, 32, (0.5,) * 3, (0.5,) * 3), classes=list("abcd"))
    section = {"name": "rescalevgg16", "weights": str(path), "options": {}}
    with pytest.raises(ConfigError, match=r"data.size=12: rescalevgg16 needs at least 32 pixels"):
        Trainer(make_task(config(images, tmp_path / "small", model=section, epochs=1)))
    data = {"size": 32, "resize": 32}
    Trainer(make_task(config(images, tmp_path / "run", model=section, data=data, epochs=1)))
    assert "1 biases initialised from data, 14 kept from a checkpoint" in " ".join(capsys.readouterr().err.split())


def test_the_log_is_json(images, tmp_path):
    fit(images, tmp_path / "run", epochs=1)
    for line in (tmp_path / "run/log.jsonl").read_text().splitlines():
        assert json.loads(line)["event"] in ("step", "epoch", "blocks")


# -- batches ----------------------------------------------------------------------------------------


def epoch(batches, number):
    batches.seek(number, 0)
    return [[index for _, index in batch] for batch in batches]


def test_batches_are_of_one_group():
    """Groups of 13 and 7 in batches of 4: all but the last are of one group, and nobody comes twice."""
    groups = [0] * 13 + [1] * 7
    batches = EpochBatches(20, 4, 0, groups=groups)
    for number in range(5):
        seen = epoch(batches, number)
        assert len(seen) == len(batches) == 5
        assert sorted(i for batch in seen for i in batch) == list(range(20))
        assert all(len({groups[i] for i in batch}) == 1 for batch in seen[:-1])
    assert epoch(batches, 0) != epoch(batches, 1)
    assert epoch(batches, 1) == epoch(batches, 1)
    batches.seek(1, 3)
    assert [[i for _, i in batch] for batch in batches] == epoch(batches, 1)[3:]


def test_samples_are_repeated_as_often_as_wanted():
    """Each epoch floor or ceil of the wanted number, and on average that number."""
    repeats = [1.0, 1.0, 2.5, 1.25, 3.25]
    batches = EpochBatches(5, 3, 0, repeats=repeats)
    assert len(batches) == 3  # 9 samples
    counts = torch.zeros(5)
    for number in range(400):
        seen = torch.bincount(torch.tensor([i for batch in epoch(batches, number) for i in batch]), minlength=5)
        for got, wanted in zip(seen.tolist(), repeats, strict=True):
            assert math.floor(wanted) <= got <= math.ceil(wanted)
        counts += seen
    assert (counts / 400).tolist() == pytest.approx(repeats, abs=0.08)


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
