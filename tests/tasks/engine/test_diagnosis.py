"""``train.diagnose``: what a run logs of the signals in its net, and that the run is the same with and without it."""

import json
import math

import pytest
import torch
from torch import nn

import zoo
from tasks import config as cfg
from tasks.engine import Trainer, diagnosis
from tasks.engine.diagnosis import steps_between
from tasks.engine.records import SignalsRecord, StepRecord, read_records
from tasks.errors import DataError, UserError
from tasks.spec import make_task
from tests.helpers import training
from tests.helpers.commands import on_two_processes
from tests.helpers.tasks import BATCHES, trainer_of, write_data
from tests.helpers.training import fit_until_crash, weights_of
from zoo.calibration import HasDataBias
from zoo.trunk import TrunkBlock

ONE = {"epochs": 1, "sinks": []}


def every(steps):
    """Records at a pace that their time does not change."""
    return {"every": steps, "share": 1.0}


EVERY_TWO = {"diagnose": every(2)}


@pytest.fixture(autouse=True)
def _no_curves():
    """The curves of a run take as long as its training."""
    with pytest.MonkeyPatch.context() as patch:  # of its own, which no test undoes
        patch.setattr("tasks.engine.trainer.curves", lambda *arguments: None)
        yield


def config(images, folder, **settings):
    """The settings of a short run, without a sink besides the log."""
    return training.config(images, folder, **{**ONE, **settings})


def fit(images, folder, resume=False, **settings):
    return Trainer(make_task(config(images, folder, **settings)), resume=resume).fit()


def lines(folder, *, signals):
    """The lines of a log, those of the signals or the others."""
    found = (folder / "log.jsonl").read_text().splitlines()
    return [line for line in found if (json.loads(line)["event"] == "signals") == signals]


def signals_of(folder):
    return [record for record in read_records(folder / "log.jsonl") if isinstance(record, SignalsRecord)]


def assert_same_run(one, other):
    """The same log but for the signals, and the same weights, to the bit."""
    assert lines(one, signals=False) == lines(other, signals=False)
    for name in ("last", "best"):
        left, right = weights_of(one, name), weights_of(other, name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate": 2, "batch_size": 4, "precision": "bf16", "average": {"name": "ema", "decay": 0.9}},
        {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "clip_norm": 0.1, "weight_decay": 0.01}},
    ],
    ids=["plain", "accumulate-bf16-average", "clipped"],
)
def test_a_run_is_the_same_with_and_without_it(images, tmp_path, settings):
    fit(images, tmp_path / "without", **settings)
    fit(images, tmp_path / "with", **settings, **EVERY_TWO)
    assert not lines(tmp_path / "without", signals=True)
    assert_same_run(tmp_path / "without", tmp_path / "with")
    found = signals_of(tmp_path / "with")
    steps = [r.step for r in read_records(tmp_path / "with/log.jsonl") if isinstance(r, StepRecord)]
    assert [record.step for record in found] == list(range(0, max(steps), 2))
    assert {record.epoch for record in found} == {0}


def test_a_run_with_batchnorm_dropout_and_random_draws_is_the_same(images, tmp_path):
    """All that one more forward could change: running statistics, and the random state of the step."""
    model = {"scheme": "bn", "options": {"width": 0.25, "drop_rate": 0.3, "drop_path_rate": 0.2}}
    data = {"augment": {"mixup": 0.2, "erasing": {"probability": 0.5, "value": "random"}}}
    for folder, train in (("without", {}), ("with", {"diagnose": every(1)})):
        fit(images, tmp_path / folder, model=model, data=data, **train)
    assert_same_run(tmp_path / "without", tmp_path / "with")
    assert len(signals_of(tmp_path / "with")) == 6


def test_the_epochs_of_the_records(images, tmp_path):
    fit(images, tmp_path / "run", epochs=2, diagnose=every(4))
    assert [(record.step, record.epoch) for record in signals_of(tmp_path / "run")] == [(0, 0), (4, 0), (8, 1)]


@pytest.mark.parametrize("crash_at", [2, 3])
def test_a_resumed_run_logs_the_same_records(images, tmp_path, monkeypatch, crash_at):
    """Also where the last step before the crash, or the first one after it, is one with a record."""
    fit(images, tmp_path / "whole", **EVERY_TWO)
    fit_until_crash(images, tmp_path / "broken", crash_at, monkeypatch, **ONE, **EVERY_TWO)
    fit(images, tmp_path / "broken", resume=True, **EVERY_TWO)
    assert (tmp_path / "whole/log.jsonl").read_text() == (tmp_path / "broken/log.jsonl").read_text()
    whole, broken = weights_of(tmp_path / "whole"), weights_of(tmp_path / "broken")
    assert all(torch.equal(whole[key], broken[key]) for key in whole)


def test_a_resumed_run_may_log_more_rarely(images, tmp_path, monkeypatch):
    fit(images, tmp_path / "without")
    fit_until_crash(images, tmp_path / "run", 3, monkeypatch, diagnose=every(1), **ONE)
    fit(images, tmp_path / "run", resume=True, diagnose=every(4))
    assert_same_run(tmp_path / "without", tmp_path / "run")
    assert [record.step for record in signals_of(tmp_path / "run")] == [0, 1, 4]  # the state is of step 2


# -- the numbers


def spied(trainer, monkeypatch):
    """What the optimizer of a trainer reads and changes in each step: gradients, weights before and weights after."""
    steps = []
    update = trainer.optimizer.step

    def step(*arguments, **keywords):
        model = trainer.bare
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        gradients = {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
        result = update(*arguments, **keywords)
        after = {name: p.detach().clone() for name, p in model.named_parameters()}
        if trainer.accelerator.sync_gradients:
            steps.append((gradients, before, after))
        return result

    monkeypatch.setattr(trainer.optimizer, "step", step)
    return steps


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_weights_and_updates_are_those_of_the_step(images, tmp_path, monkeypatch, accumulate):
    """The gradient is that of all forwards of the step; weights and biases are those before the update."""
    settings = {"precision": "fp64", "batch_size": 8 // accumulate, "accumulate": accumulate, "epochs": 1}
    settings["optimizer"] = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    trainer = Trainer(make_task(config(images, tmp_path / "run", **settings, **EVERY_TWO)))
    steps = spied(trainer, monkeypatch)
    trainer.fit()
    records = signals_of(tmp_path / "run")
    assert [record.step for record in records] == [0, 2, 4]
    assert len(steps) == 6
    blocks = {name: module for name, module in trainer.bare.named_modules() if isinstance(module, TrunkBlock)}
    for record in records:
        gradients, before, after = steps[record.step]
        for row in record.layers:
            module = trainer.bare.get_submodule(row["name"])
            own = {key: f"{row['name']}.{key}" for key, _ in module.named_parameters()}
            norm = torch.cat([gradients[name].flatten() for name in own.values()]).norm()
            assert row["gradient_norm"] == pytest.approx(float(norm), rel=1e-10)
            if row["kind"] == "product":
                old, new = (weights[own["weight"]] for weights in (before, after))
                assert row["weight_norm"] == pytest.approx(float(old.norm()), rel=1e-12)
                assert row["update_ratio"] == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-9)
            if isinstance(module, HasDataBias):
                bias = before[own[module.data_bias_name]]
                assert row["bias_norm"] == pytest.approx(float(bias.norm()), rel=1e-12)
        assert [row["name"] for row in record.layers if row["kind"] != "product"] == ["head_bias"]
        for row in record.sums:
            assert row["multiplier"] == float(before[f"{row['name']}.join.multiplier"])
    assert [row["name"] for row in records[0].sums] == list(blocks)
    assert records[0].sums[0]["multiplier"] == 1.0
    assert records[1].sums[0]["multiplier"] != 1.0
    # The biases are calibrated at the start, and drift away. That of the head centres few values: its batch decides.
    products = [[row for row in record.layers if row["kind"] == "product"] for record in records]
    offsets = [max(row["bias_offset"] for row in rows if row["bias_offset"] is not None) for rows in products]
    assert offsets[0] < offsets[-1]


def test_the_record_is_of_the_last_batch_of_the_step_in_the_run_s_precision(images, tmp_path, monkeypatch):
    trainer = Trainer(make_task(config(images, tmp_path / "run", precision="bf16", diagnose=every(4))))
    seen = []
    forward = trainer.task.calibration_forward

    def keep(model, batch, dtype):
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        seen.append((model is trainer.bare, autocast, torch.is_grad_enabled(), model.training, len(batch[1])))
        forward(model, batch, dtype)

    monkeypatch.setattr(trainer.task, "calibration_forward", keep)
    trainer.fit()
    assert seen == [(True, torch.bfloat16, False, False, 8)] * 2
    records = signals_of(tmp_path / "run")
    assert all(math.isfinite(row["power"]) for record in records for row in record.layers)


def test_curves_go_to_the_sinks(images, tmp_path):
    fit(images, tmp_path / "run", sinks=["tensorboard"], diagnose=every(3))
    content = b"".join(path.read_bytes() for path in (tmp_path / "run/tensorboard").iterdir())
    for tag in (b"gradient_norm/stem.conv1", b"update_ratio/layer1.0.conv1", b"ratio/layer1.0", b"dead/layer1.0.act1"):
        assert tag in content


def test_the_cost_is_reported(images, tmp_path, capsys):
    fit(images, tmp_path / "run", diagnose=every(1))
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("diagnosis: "))
    share = float(line.removeprefix("diagnosis: 6 records in ").removesuffix("% of the training time"))
    assert 10 < share < 100
    fit(images, tmp_path / "quiet")
    assert "diagnosis" not in capsys.readouterr().err


def test_a_batch_without_a_readable_sample_has_no_record(images, tmp_path, monkeypatch, capsys):
    """The step itself goes on without such a batch, so the run does; it says how many records are missing."""
    fit(images, tmp_path / "without")
    trainer = Trainer(make_task(config(images, tmp_path / "with", **EVERY_TWO)))
    forward, looks = trainer.task.calibration_forward, iter([False, True, False])

    def refuse(*arguments):
        if next(looks):
            raise DataError("no video of a batch can be read: a.mp4 is damaged")
        forward(*arguments)

    monkeypatch.setattr(trainer.task, "calibration_forward", refuse)
    trainer.fit()
    assert [record.step for record in signals_of(tmp_path / "with")] == [0, 4]
    assert_same_run(tmp_path / "without", tmp_path / "with")
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("diagnosis: "))
    assert line.startswith("diagnosis: 2 records in ")
    assert line.endswith("; 1 left out, the last one: no video of a batch can be read: a.mp4 is damaged")


def test_processes_that_saw_different_layers_have_no_record(images, tmp_path, monkeypatch, capsys):
    """``read`` refuses them on all processes alike; the step goes on."""
    fit(images, tmp_path / "without")
    inner, calls = diagnosis.read, iter([True, False, False])

    def refuse(*arguments):
        if next(calls):
            raise UserError("diagnose: the processes saw different layers")
        return inner(*arguments)

    monkeypatch.setattr(diagnosis, "read", refuse)
    fit(images, tmp_path / "with", **EVERY_TWO)
    assert [record.step for record in signals_of(tmp_path / "with")] == [2, 4]
    assert_same_run(tmp_path / "without", tmp_path / "with")
    assert "; 1 left out, the last one: diagnose: the processes saw different layers" in capsys.readouterr().err


# -- the share of the training time


@pytest.mark.parametrize("first", [1, 2, 10, 100])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("cost", [0.01, 0.3, 1.0, 1.9, 40.0])
def test_records_stay_within_their_share(cost, share, first):
    section = cfg.DiagnoseSection(every=first, share=share)
    steps = steps_between(cost, section)
    assert cost / (steps + cost) <= share * (1 + 1e-12)
    factor = steps / first
    assert factor == 2 ** round(math.log2(factor)) >= 1
    if factor > 1:  # half as many steps would be too few
        assert cost / (steps / 2 + cost) > share


def test_a_share_of_all_time_leaves_the_steps_as_they_are():
    assert steps_between(1e6, cfg.DiagnoseSection(every=3, share=1.0)) == 3


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_is_a_fraction(share):
    with pytest.raises(ValueError, match="share"):
        cfg.DiagnoseSection(share=share)


class Clock:
    """A clock on which each look into the net takes ``record`` seconds and each forward and backward ``step``."""

    def __init__(self, monkeypatch, trainer, record, step):
        self.now = 0.0
        monkeypatch.setattr("tasks.engine.diagnosis.time.monotonic", lambda: self.now)
        self._slow(monkeypatch, trainer.task, "calibration_forward", record)
        self._slow(monkeypatch, trainer.task, "losses", step)

    def _slow(self, monkeypatch, owner, name, seconds):
        inner = getattr(owner, name)

        def slow(*arguments):
            self.now += seconds
            return inner(*arguments)

        monkeypatch.setattr(owner, name, slow)


@pytest.mark.parametrize(("record", "share", "steps"), [(3.0, 0.5, [0, 1, 4, 8]), (3.0, 0.7, [0, 1, 2, 4, 6, 8, 10])])
def test_records_become_rarer(images, tmp_path, monkeypatch, capsys, record, share, steps):
    """From the second record on: 3 steps of time are half of it with one each 3 steps, so one each 4 is taken."""
    trainer = Trainer(make_task(config(images, tmp_path / "run", epochs=2, diagnose={"every": 1, "share": share})))
    Clock(monkeypatch, trainer, record, 1.0)
    trainer.fit()
    assert [found.step for found in signals_of(tmp_path / "run")] == steps
    lines = [line for line in capsys.readouterr().err.splitlines() if "from now on" in line]
    assert lines == [
        f"diagnosis: a record takes the time of 3.0 steps; from now on one every {steps[-1] - steps[-2]} steps, for at "
        f"most {share:.0%} of the training time (train.diagnose.share)"
    ]


def test_the_first_record_and_one_slow_one_do_not_count(images, tmp_path, monkeypatch):
    """The first one warms up; the median of the others decides, so that records come back to their pace."""
    trainer = Trainer(make_task(config(images, tmp_path / "run", epochs=3, diagnose={"every": 1, "share": 0.5})))
    clock = Clock(monkeypatch, trainer, 0.0, 1.0)
    forward, slow = trainer.task.calibration_forward, iter([500.0, 3.0])

    def calibration_forward(*arguments):
        clock.now += next(slow, 1.0)
        forward(*arguments)

    monkeypatch.setattr(trainer.task, "calibration_forward", calibration_forward)
    trainer.fit()
    # The second takes 3 steps, the third 1: the median of both is 2, and of three 1.
    assert [found.step for found in signals_of(tmp_path / "run")] == [0, 1, 4, 6, *range(7, 18)]


def test_a_run_whose_records_become_rarer_is_the_same(images, tmp_path):
    fit(images, tmp_path / "without", epochs=2)
    fit(images, tmp_path / "with", epochs=2, diagnose={"every": 1})
    assert_same_run(tmp_path / "without", tmp_path / "with")
    assert [record.step for record in signals_of(tmp_path / "with")] == [0, 1]  # one takes over 0.24 steps of 12


# -- all tasks


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("task", BATCHES)
def test_a_step_of_every_task(data, tmp_path, task):
    """The weights after two steps are the same with and without it, and the record has rows of all kinds."""
    after = []
    for name, train in (("without", {}), ("with", {"diagnose": every(1)})):
        torch.manual_seed(len(after))  # each step seeds by itself
        trainer = trainer_of(task, data, tmp_path / name, **train)
        batches = iter(trainer.loader)
        for _ in range(2):
            trainer._step([next(batches)])
            trainer.at.step += 1
        trainer.close()
        after.append({key: value.clone() for key, value in trainer.bare.state_dict().items()})
    assert all(torch.equal(after[0][key], after[1][key]) for key in after[0])
    first, second = signals_of(tmp_path / "with")
    assert (first.step, second.step) == (0, 1)
    for record in (first, second):
        assert record.layers
        assert record.sums
        assert record.activations
        assert all(row["power"] is not None for row in record.layers)
        assert any(row["gradient_norm"] for row in record.layers)
        assert any(row["update_ratio"] for row in record.layers)
    blocks = [name for name, module in trainer.bare.named_modules() if isinstance(module, TrunkBlock)]
    assert [row["name"] for row in first.sums if row["name"] in blocks] == blocks
    names = {row["name"] for row in first.layers}
    modules = dict(trainer.bare.named_modules())
    products = {name for name, module in modules.items() if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d)}
    if task != "translation":  # whose last product, of the logits, the forward of calibration leaves out
        # a lateral convolution with a gain is one product with it
        assert {name.removesuffix(".conv") if "laterals" in name else name for name in products} <= names
    biased = {name for name in products if isinstance(modules[name], HasDataBias)}
    assert biased == {row["name"] for row in first.layers if row["bias_offset"] is not None and row["name"] in products}


@pytest.mark.slow
def test_two_processes_log_the_numbers_of_one(images, tmp_path):
    """In float64: the sums of the halves of a batch are those of the batch, to 1e-9."""
    settings = {"precision": "fp64", "diagnose": every(3)}
    fit(images, tmp_path / "one", **settings)
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump(config(images, tmp_path / "two", **settings)))
    on_two_processes("train", path)
    one, two = signals_of(tmp_path / "one"), signals_of(tmp_path / "two")
    assert [record.step for record in one] == [record.step for record in two] == [0, 3]
    for ours, theirs in zip(one, two, strict=True):
        for kind in ("layers", "sums", "activations"):
            for left, right in zip(getattr(ours, kind), getattr(theirs, kind), strict=True):
                assert left.keys() == right.keys()
                for key, value in left.items():
                    if isinstance(value, float):
                        assert right[key] == pytest.approx(value, rel=1e-9, abs=1e-12), (left["name"], key)
                    else:
                        assert right[key] == value, (left["name"], key)


@pytest.mark.slow
def test_two_processes_agree_on_the_next_record(images, tmp_path):
    """They would wait for each other if not: a record sums over both."""
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump(config(images, tmp_path / "two", epochs=2, diagnose={"every": 1, "share": 0.2})))
    on_two_processes("train", path)
    steps = [record.step for record in signals_of(tmp_path / "two")]
    assert steps[:2] == [0, 1]
    assert len(steps) < 6
    assert len(read_records(tmp_path / "two/log.jsonl")) > len(steps)


def test_a_net_that_a_run_has_diagnosed_is_the_net_of_its_weights(images, tmp_path):
    """No hook, buffer or copy of the diagnosis is left in the net or in its file."""
    trainer = Trainer(make_task(config(images, tmp_path / "run", diagnose=every(1))))
    trainer.fit()
    fresh = zoo.create_model("rescalenet20_cifar", width=0.25, num_classes=3)
    assert list(trainer.bare.state_dict()) == list(fresh.state_dict())
    for module in trainer.bare.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._forward_hooks_always_called
