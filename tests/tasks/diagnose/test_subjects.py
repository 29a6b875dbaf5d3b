"""What a diagnosis looks at: nets, weights, configs, runs and logs, and the errors of their names."""

import dataclasses
import math

import pytest
import torch
import yaml

import zoo
from tasks import config as cfg
from tasks.diagnose.dynamics import read_dynamics
from tasks.diagnose.inputs import noise_inputs
from tasks.diagnose.measure import diagnose
from tasks.diagnose.run import run_diagnosis
from tasks.diagnose.subjects import Settings, find_subject, parse_compared
from tasks.engine.records import SignalsRecord, StepRecord, read_records
from tasks.errors import ConfigError, DataError, UserError
from tests.helpers.classification import picture
from tests.helpers.paths import ROOT
from tests.helpers.training import config, fit

SMALL = Settings(batches=1, batch_size=4, size=16)


def measured(text, overrides=(), settings=SMALL):
    subject = find_subject(str(text), list(overrides), settings)
    assert subject.measure is not None
    return subject.measure()


@pytest.fixture(autouse=True)
def _no_curves():
    """The curves of a run take as long as its training."""
    with pytest.MonkeyPatch.context() as patch:  # of its own, which no test undoes
        patch.setattr("tasks.engine.trainer.curves", lambda *arguments: None)
        yield


# -- nets


def test_a_net_with_options():
    """Its weights and its noise follow from the seed; it is calibrated on the noise."""
    found = measured("rescalenet20_cifar", ["width=0.25", "scheme=rescale"])
    assert (found.label, found.model) == ("rescalenet20_cifar width=0.25 scheme=rescale", "rescalenet20_cifar")
    assert (found.scheme, found.samples, found.trained, found.real_inputs) == ("rescale", 4, False, False)
    assert found.source == "4 samples of pink noise, 16x16, random labels"
    # the same by hand
    torch.manual_seed(0)
    model = zoo.create_model("rescalenet20_cifar", width=0.25)
    info = zoo.model_info("rescalenet20_cifar")
    inputs = noise_inputs(model, info, "pink", count=1, batch_size=4, size=16)
    zoo.calibrate(model, inputs.batches, forward=inputs.forward)
    expected = diagnose(model, inputs.batches, forward=inputs.forward, loss=inputs.loss)
    assert [each.power for each in found.sums] == [each.power for each in expected.sums]
    assert found.loss == expected.loss
    assert found.input.expected == 1.0
    again = measured("rescalenet20_cifar", ["width=0.25"])
    assert [layer.power for layer in again.layers] == [layer.power for layer in found.layers]
    other = measured("rescalenet20_cifar", ["width=0.25"], Settings(batches=1, batch_size=4, size=16, seed=1))
    assert [layer.power for layer in other.layers] != [layer.power for layer in found.layers]


def test_a_net_that_is_not_calibrated():
    found = measured("rescalenet20_cifar", ["width=0.25", "calibrate=false"])
    assert {layer.bias_norm for layer in found.layers if math.isfinite(layer.bias_offset)} == {0.0}
    calibrated = measured("rescalenet20_cifar", ["width=0.25"])
    assert all(layer.bias_offset < 1e-5 for layer in calibrated.layers if math.isfinite(layer.bias_offset))


def test_nets_of_text_and_clips():
    text = measured("rescale_transformer_tiny", ["dim=16", "hidden=32", "heads=2", "share=none"])
    assert text.source == "4 sentences of 16 random tokens"
    assert text.input is None  # tokens are no pixels
    assert len(text.sums) == 4 * 2 + 4 * 3
    clips = measured("rescale_r3d_10", ["width=0.125"], Settings(batches=1, batch_size=2, size=16))
    assert clips.source == "2 samples of pink noise, 16x16x16, random labels"


def test_pictures_for_a_fresh_net(tmp_path):
    picture(tmp_path / "a.png")
    found = measured("rescalenet20_cifar", ["width=0.25"], Settings(data=tmp_path, batch_size=2, size=16))
    assert found.source == f"1 pictures of {tmp_path.name}"
    assert found.real_inputs
    assert math.isnan(found.loss)


# -- weights


def test_weights():
    found = measured("rescalenet20_cifar.cifar10_v2")
    assert found.trained
    assert found.scheme == "rescale"
    weights = ROOT / "weights" / "rescalenet20_cifar.cifar10_v2.safetensors"
    by_path = measured(weights)
    assert [layer.power for layer in by_path.layers] == [layer.power for layer in found.layers]
    data = ROOT / "pictures" / "photographs" / "dog"
    pictures = measured(weights, settings=Settings(batches=1, batch_size=2, data=data))
    assert pictures.source == "2 pictures of dog" if pictures.samples == 2 else "1 pictures of dog"
    assert pictures.real_inputs
    assert pictures.input.expected != 1.0  # by the mean and std of the weights


def test_a_run_with_frozen_levels(images, tmp_path):
    """Its weights have gradients where its training had them, and its frozen norms take their own statistics."""
    fit(images, tmp_path / "run", epochs=1, model=FROZEN)
    found = measured(tmp_path / "run", settings=Settings(batches=1))
    layers = {layer.name: layer for layer in found.layers}
    assert math.isnan(layers["stem.conv1"].gradient_norm)
    assert math.isnan(layers["stem.conv1"].update_ratio)
    assert layers["layer3.0.conv1"].gradient_norm > 0
    began = measured(written(images, tmp_path, model=FROZEN), settings=Settings(batches=1))
    assert layers["stem.conv1"].power == pytest.approx(next(iter(began.layers)).power, rel=1e-6)


def test_a_run_of_a_net_without_residual_blocks(images, tmp_path):
    """Of its weights and of what it logged."""
    model = {"name": "rescalevgg11", "options": {"width": 0.0625}}
    settings = {"model": model, "data": {"size": 32, "resize": 32}, "calibration_batches": 1}
    fit(images, tmp_path / "run", epochs=1, diagnose={"every": 2}, **settings)
    found = run_diagnosis(str(tmp_path / "run"), [], [], Settings(batches=1))
    assert [each.label for each in found.signals] == ["run"]
    assert [each.label for each in found.dynamics] == ["run"]
    assert found.dynamics[0].layers
    assert "run: there are no records of residual blocks" in found.lines()
    # without records of signals it has its weights alone
    kept = [line for line in (tmp_path / "run/log.jsonl").read_text().splitlines() if '"signals"' not in line]
    (tmp_path / "run/log.jsonl").write_text("\n".join([*kept, ""]))
    quiet = run_diagnosis(str(tmp_path / "run"), [], [], Settings(batches=1, units=False))
    assert (len(quiet.signals), quiet.dynamics) == (1, ())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(size=16), "--size: a config and a run take their data as they are; leave it out, or give --noise"),
        (Settings(seed=1), "--seed: a config and a run have their own, train.seed=0; leave it out"),
    ],
)
def test_settings_that_a_config_does_not_take(images, tmp_path, settings, message):
    with pytest.raises(UserError) as error:
        measured(written(images, tmp_path), settings=settings)
    assert str(error.value) == message


def test_pictures_get_the_size_of_the_weights(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(UserError, match="--size: pictures get the size that the weights state"):
        measured("rescalenet20_cifar.cifar10_v2", settings=Settings(data=tmp_path, size=64))


# -- configs and runs


def written(images, folder, **settings):
    path = folder / "config.yaml"
    path.write_text(cfg.dump(config(images, folder / "run", **settings)))
    return path


BN = {"scheme": "bn", "options": {"width": 0.25}}
FROZEN = {"weights": "rescalenet20_cifar.cifar10_v2_bn", "options": {}, "freeze": 2}


@pytest.mark.parametrize("model", [None, BN, FROZEN], ids=["rescale", "bn", "bn-frozen"])
def test_a_config_is_diagnosed_as_its_run_begins(images, tmp_path, model):
    """What the run logs of its first step, on the first batch: the same net, calibration, gradients and update.

    The run writes its numbers as they are; the diagnosis computes the gradients in evaluation mode, but for BatchNorm,
    and makes the step on a copy. Both are the same for a net without dropout, at a schedule that begins at the peak.
    """
    settings = {"epochs": 1, "diagnose": {"every": 100}, "calibration_batches": 3, "model": model}
    path = written(images, tmp_path, **settings)
    found = measured(path, settings=Settings(batches=1, units=False))
    fit(images, tmp_path / "run", **settings)
    record = next(r for r in read_records(tmp_path / "run" / "log.jsonl") if isinstance(r, SignalsRecord))
    step = next(r for r in read_records(tmp_path / "run" / "log.jsonl") if isinstance(r, StepRecord))
    assert found.loss == pytest.approx(step.loss, rel=1e-5)
    assert found.source == "1 training batches of 8"
    assert record.step == 0
    content = found.as_dict()
    for kind in ("layers", "sums", "activations"):
        assert len(content[kind]) == len(getattr(record, kind)) > 0
        for ours, logged in zip(content[kind], getattr(record, kind), strict=True):
            assert ours.keys() == logged.keys()
            for key, value in logged.items():
                if isinstance(value, float):
                    assert ours[key] == pytest.approx(value, rel=1e-5, abs=1e-7), (ours["name"], key)
                else:
                    assert ours[key] == value, (ours["name"], key)


def test_overrides_of_a_config(images, tmp_path):
    path = written(images, tmp_path)
    found = measured(path, ["model.scheme=bn", "train.batch_size=4"], Settings(batches=2))
    assert found.label == "config.yaml model.scheme=bn train.batch_size=4"
    assert found.scheme == "bn"
    assert found.source == "2 training batches of 4"
    assert (found.samples, found.trained) == (8, False)
    uncalibrated = measured(path, ["train.calibrate=false"], Settings(batches=1))
    assert {layer.bias_norm for layer in uncalibrated.layers if math.isfinite(layer.bias_offset)} == {0.0}
    everything = measured(path, settings=Settings(batches="all"))
    assert everything.samples == 48


def test_a_recipe_and_a_config_on_noise(images, tmp_path):
    """A recipe by its name, with its data elsewhere and an option of its net."""
    recipe = "classification/cifar10/rescalenet20"
    changes = [f"data.root={images}", "data.val=val", "model.options.width=0.25"]
    settings = Settings(noise="white", batches=1, batch_size=2, size=16)
    found = measured(recipe, changes, settings)
    assert found.label == " ".join(["rescalenet20", *changes[1:]])  # without the folder of the data
    assert found.source == "2 samples of white noise, 16x16, random labels"
    assert not found.trained
    assert not found.real_inputs
    assert all(layer.bias_offset < 1e-5 for layer in found.layers if math.isfinite(layer.bias_offset))
    assert measured(written(images, tmp_path), settings=settings).source == found.source


def test_a_run(images, tmp_path):
    fit(images, tmp_path / "run", epochs=1)
    subject = find_subject(str(tmp_path / "run"), [], Settings(batches=1))
    assert subject.label == "run"
    assert subject.log == tmp_path / "run" / "log.jsonl"
    assert subject.measure is not None
    found = subject.measure()
    assert found.trained
    model = zoo.create_model("rescalenet20_cifar", str(tmp_path / "run/checkpoints/last.safetensors"))
    stem = torch.linalg.vector_norm(model.stem.conv1.weight.detach().double())
    layer = next(layer for layer in found.layers if layer.name == "stem.conv1")
    assert layer.weight_norm == pytest.approx(float(stem), rel=1e-6)
    # the log with the net as it was
    dynamics = read_dynamics(subject.label, subject.log, subject.fresh)
    assert dynamics.begins_fresh
    assert [point.step for point in dynamics.points[0]] == [0, 6]
    # its weights and its log by themselves
    weights = measured(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert weights.trained
    assert weights.source == "4 samples of pink noise, 16x16, random labels"
    # on noise it needs no data
    noise = dataclasses.replace(SMALL, noise="pink")
    elsewhere = find_subject(str(tmp_path / "run"), [f"data.root={tmp_path / 'none'}"], noise).measure()
    assert [layer.power for layer in elsewhere.layers] == [layer.power for layer in weights.layers]
    with pytest.raises(DataError, match="none"):
        find_subject(str(tmp_path / "run"), [f"data.root={tmp_path / 'none'}"], Settings()).measure()
    alone = find_subject(str(tmp_path / "run" / "log.jsonl"), [], SMALL)
    assert (alone.measure, alone.fresh, alone.log) == (None, None, subject.log)
    assert alone.label == "run"  # its folder, as every run has a log of that name
    # without its weights, and without its log too
    (tmp_path / "run/checkpoints/last.safetensors").unlink()
    assert find_subject(str(tmp_path / "run"), [], SMALL).measure is None
    (tmp_path / "run/log.jsonl").unlink()
    with pytest.raises(UserError, match="run: neither weights nor a log in it yet"):
        find_subject(str(tmp_path / "run"), [], SMALL)


def test_a_run_that_began_from_weights_has_no_fresh_net(images, tmp_path):
    fit(images, tmp_path / "first", epochs=1)
    start = {"weights": str(tmp_path / "first/checkpoints/last.safetensors")}
    path = written(images, tmp_path, model=start)
    content = yaml.safe_load(path.read_text())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "run" / "log.jsonl").write_bytes((tmp_path / "first/log.jsonl").read_bytes())
    assert find_subject(str(tmp_path / "run"), [], SMALL).fresh is None
    assert measured(path, settings=Settings(batches=1)).trained


def test_a_log_that_ships_begins_at_its_fresh_net():
    log = ROOT / "weights" / "rescalenet20_cifar.cifar10_v2.log.jsonl"
    subject = find_subject(str(log), [], SMALL)
    assert subject.label == "rescalenet20_cifar.cifar10_v2"
    assert subject.measure is None
    dynamics = read_dynamics(subject.label, log, subject.fresh)
    assert dynamics.begins_fresh
    assert all(points[0].multiplier == 1.0 for points in dynamics.points)


# -- errors


@pytest.mark.parametrize(
    ("text", "overrides", "error", "message"),
    [
        ("rescalenet20_cifr", [], zoo.ZooError, "unknown model 'rescalenet20_cifr' (did you mean rescalenet20_cifar"),
        ("rescalenet20_cifar", ["widht=0.5"], zoo.ZooError, "no option 'widht' (did you mean width?)"),
        ("rescalenet20_cifar", ["calibrate=3"], UserError, "calibrate=3: must be true or false"),
        ("rescalenet20_cifar.cifar11", [], zoo.ZooError, "cifar11"),
        ("rescalenet20_cifar.cifar10", ["width=1"], UserError, "weights cannot be changed (width=1); give a config"),
        ("absent.safetensors", [], zoo.ZooError, "absent.safetensors"),
        ("absent.jsonl", [], DataError, "absent.jsonl: no such file"),
        ("absent.yaml", [], ConfigError, "no config file 'absent.yaml'"),
        ("classification/absent", [], ConfigError, "no config file 'classification/absent'"),
        ("classification/cifar10/rescalenet20", ["train.absent=1"], ConfigError, "absent"),
    ],
)
def test_names_that_are_refused(text, overrides, error, message):
    with pytest.raises(error) as found:
        find_subject(text, overrides, SMALL)
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_folders_and_logs_that_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no run in it \(config.yaml is missing\); give the folder of a run"):
        find_subject(str(tmp_path), [], SMALL)
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(UserError, match=r"a log cannot be changed \(a=1\)"):
        find_subject(str(tmp_path / "log.jsonl"), ["a=1"], SMALL)


def test_settings_that_are_refused(images, tmp_path):
    path = written(images, tmp_path)
    for text, settings, message in (
        (path, Settings(data=tmp_path), "--data: a config and a run have their own data"),
        ("rescalenet20_cifar", Settings(batches="all"), "--all: noise has no end; give --batches"),
        ("rescalenet20_cifar", Settings(size=2), "--size 2: must be >= 8 for rescalenet20_cifar"),
        ("rescale_transformer_tiny", Settings(data=tmp_path), "--data: rescale_transformer_tiny has no weights that"),
        ("rescale_r3d_10.shapes", Settings(data=tmp_path), "--data: give a config or a run for VideoTransform, or"),
    ):
        with pytest.raises(UserError) as found:
            measured(text, settings=settings)
        assert str(found.value).startswith(message)


def test_names_with_overrides_in_one_text():
    assert parse_compared("a/b c=1 'd=e f'") == ("a/b", ["c=1", "d=e f"])
    with pytest.raises(UserError, match="--compare: empty"):
        parse_compared(" ")
    with pytest.raises(UserError, match='--compare "a \'b": No closing quotation'):
        parse_compared("a 'b")
