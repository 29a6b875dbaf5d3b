"""Fine-tuning: frozen levels and rates by level, through the training loop."""

import pytest
import torch

import zoo
from tasks import config as cfg
from tasks.engine import Trainer
from tasks.errors import ConfigError
from tasks.plots import read_log
from tasks.spec import make_task
from tests.helpers.batchnorm import train_statistics_
from tests.helpers.commands import on_two_processes
from tests.helpers.training import assert_resume_is_exact, config, fit, weights_of
from zoo.convert import from_batchnorm
from zoo.errors import ZooError

SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "layer_decay": 0.5, "head_lr": 2.0}
LEVELS = ("stem", "layer1", "layer2", "layer3")


def source(folder, scheme="rescale"):
    """A path of weights of a calibrated net with other classes than the pictures'."""
    torch.manual_seed(0)
    model = zoo.create_model("rescalenet20_cifar", scheme=scheme, num_classes=2, width=0.25)
    zoo.calibrate(model, [torch.randn(4, 3, 12, 12)])
    path = folder / f"{scheme}.safetensors"
    zoo.save_weights(model, path, transform=zoo.InputTransform(12, 12, (0.5,) * 3, (0.25,) * 3), classes=["a", "b"])
    return path


def converted(folder):
    """Settings of a model whose weights were converted from BatchNorm."""
    torch.manual_seed(0)
    net = train_statistics_(zoo.create_model("rescalenet20_cifar", scheme="bn", num_classes=3, width=0.25))
    path = folder / "converted.safetensors"
    transform = zoo.InputTransform(12, 12, (0.5,) * 3, (0.25,) * 3)
    zoo.save_weights(from_batchnorm(net), path, transform=transform, classes=["blue", "green", "red"])
    return {"weights": str(path), "options": {}}


def section(folder, freeze, scheme="rescale", **options):
    return {"weights": str(source(folder, scheme)), "freeze": freeze, "options": {"width": 0.25, **options}}


def frozen(state, levels):
    return {key: value for key, value in state.items() if key.split(".")[0] in LEVELS[:levels]}


@pytest.mark.parametrize("scheme", ["rescale", "bn"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_frozen_levels_stay_to_the_bit(images, tmp_path, half_on_cpu, scheme, precision):
    """With dropout, an average of the weights and mixed precision; statistics included."""
    model = section(tmp_path, 2, scheme, branch_drop_rate=0.2)
    settings = {"precision": precision, "average": {"name": "ema", "decay": 0.5}, "optimizer": SGD, "model": model}
    fit(images, tmp_path / "run", **settings)
    before = zoo.get_weights(model["weights"]).load()
    state = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["model"]
    for after in (state, weights_of(tmp_path / "run")):
        assert after.keys() == before.keys()
        for key, value in before.items():
            assert torch.equal(value, after[key]) == (key.split(".")[0] in LEVELS[:2]), key


def test_all_levels_frozen_is_a_linear_probe(images, tmp_path):
    model = section(tmp_path, 4)
    fit(images, tmp_path / "run", model=model)
    before, after = zoo.get_weights(model["weights"]).load(), weights_of(tmp_path / "run")
    assert {key for key in before if not torch.equal(before[key], after[key])} == {
        "head_bias.bias",
        "fc.weight",
        "fc.bias",
    }


@pytest.mark.parametrize("crash_at", [2, 9])
def test_resume_repeats_the_run_to_the_bit(images, tmp_path, monkeypatch, crash_at):
    settings = {
        "average": {"name": "ema", "decay": 0.9},
        "optimizer": SGD,
        "model": section(tmp_path, 2, "bn", branch_drop_rate=0.2),
    }
    assert_resume_is_exact(images, tmp_path, monkeypatch, crash_at, **settings)


@pytest.mark.parametrize("center", [True, False])
def test_biases_that_a_conversion_left_at_0_are_set_from_data(images, tmp_path, center, capsys):
    """The outputs stay to the rounding of float64; frozen levels stay to the bit; what a run has trained stays."""
    model, x = converted(tmp_path), torch.rand(2, 3, 12, 12, dtype=torch.float64)
    settings = {"precision": "fp64", "center_inputs": center, "model": {**model, "freeze": 1}}
    before = zoo.create_model("rescalenet20_cifar", model["weights"], num_classes=3).double().eval()
    trainer = Trainer(make_task(config(images, tmp_path / "run", **settings)))
    with torch.no_grad():
        torch.testing.assert_close(trainer.bare.eval()(x), before(x), rtol=1e-10, atol=1e-10)
    biases = {name: p for name, p in trainer.bare.named_parameters() if name.endswith(("pre_bias", "head_bias.bias"))}
    assert len(biases) == 21
    assert [name for name, bias in biases.items() if bias.any()] == (list(biases) if center else [])
    assert ("21 biases before products moved off 0, outputs unchanged" in capsys.readouterr().err) == center
    assert torch.equal(trainer.bare.stem.conv1.bias, before.stem.conv1.bias)
    trainer.fit()
    # a run from what was trained begins there
    trained = str(tmp_path / "run/checkpoints/last.safetensors")
    again = Trainer(make_task(config(images, tmp_path / "again", model={"weights": trained, "options": {}})))
    state = zoo.get_weights(trained).load()
    assert all(torch.equal(value, state[name].float()) for name, value in again.bare.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("source", ["calibrated", "converted"])
def test_two_processes_equal_one(images, tmp_path, source):
    """Same global batch in float64: losses and weights to 1e-10; the frozen ones to the bit."""
    model = section(tmp_path, 2) if source == "calibrated" else {**converted(tmp_path), "freeze": 2}
    settings = {"precision": "fp64", "optimizer": SGD, "model": model}
    fit(images, tmp_path / "one", **settings)
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump(config(images, tmp_path / "two", **settings)))
    on_two_processes("train", path)
    one, two = (read_log(tmp_path / run / "log.jsonl") for run in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        for key in a.keys() & {"loss", "train_loss", "top1", "lr"}:
            assert a[key] == pytest.approx(b[key], rel=1e-10)
    first, second = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-10, atol=1e-10)
    assert frozen(first, 2)
    assert all(torch.equal(value, second[key]) for key, value in frozen(first, 2).items())


def test_one_step_of_plain_sgd(images, tmp_path):
    """Every parameter moves by rate(level) * (gradient + decay * value), with the decay on weights only."""
    optimizer = {**SGD, "momentum": 0.0, "weight_decay": 0.1, "multiplier_lr": 0.5}
    trainer = Trainer(make_task(config(images, tmp_path, optimizer=optimizer, model=section(tmp_path, 1), data=None)))
    trainer.batches.seek(0, 0)
    batch = next(iter(trainer.loader))
    model = trainer.bare.train()
    sum(trainer.task.losses(model, batch, torch.float32).values()).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    trainer.optimizer.zero_grad()
    trainer._step([batch])
    rates = {"layer1": 0.05 * 0.125, "layer2": 0.05 * 0.25, "layer3": 0.05 * 0.5}  # the schedule begins at its peak
    for name, after in model.named_parameters():
        level = name.split(".")[0]
        if level == "stem":
            assert name not in gradients
            assert torch.equal(after, before[name])
            continue
        rate = rates.get(level, 0.05 * 2) * (0.5 if "multiplier" in name else 1)
        decay = 0.1 if after.ndim > 1 else 0.0
        expected = before[name] - rate * (gradients[name] + decay * before[name])
        torch.testing.assert_close(after.detach(), expected, rtol=1e-6, atol=1e-7, msg=name)


def test_the_optimizer_has_the_rates_of_the_levels(images, tmp_path, capsys):
    trainer = Trainer(make_task(config(images, tmp_path / "run", optimizer=SGD, model=section(tmp_path, 2), epochs=1)))
    names = {id(parameter): name for name, parameter in trainer.bare.named_parameters()}
    rates = {"layer2": 0.25, "layer3": 0.5, "fc": 2.0, "head_bias": 2.0}
    seen = set()
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            level = names[id(parameter)].split(".")[0]
            assert group["lr_scale"] == rates[level]
            seen.add(level)
    assert seen == rates.keys()
    lines = capsys.readouterr().err.splitlines()
    count = sum(p.numel() for p in trainer.bare.layer2.parameters())
    assert lines[-5].startswith("stem: ")
    assert lines[-5].endswith(" parameters, frozen")
    assert lines[-3] == f"layer2: {count:,} of {count:,} parameters trained, peak rate 0.0125"
    assert lines[-1] == "head: 67 of 67 parameters trained, peak rate 0.1"
    trainer.fit()
    logged = [record["lr"] for record in read_log(tmp_path / "run/log.jsonl") if "lr" in record]
    assert logged[0] == 0.05  # the rate that the factors are of, not a group's


def test_usual_runs_say_nothing_of_levels(images, tmp_path, capsys):
    Trainer(make_task(config(images, tmp_path / "run", epochs=1)))
    assert "peak rate" not in capsys.readouterr().err


def test_refusals(images, tmp_path):
    with pytest.raises(ConfigError, match=r"model.freeze=2: .*requires model.weights, because a fresh net has nothing"):
        config(images, tmp_path, model={"freeze": 2})
    task = make_task(config(images, tmp_path, model=section(tmp_path, 5)))
    with pytest.raises(ZooError, match=r"freeze=5: must be 0 to 4, the levels of rescalenet20_cifar"):
        task.build_model()
    with pytest.raises(ConfigError, match=r"train.optimizer.layer_decay=0"):
        config(images, tmp_path, optimizer={**SGD, "layer_decay": 0})
