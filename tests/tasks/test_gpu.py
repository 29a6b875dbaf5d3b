"""Every task on a GPU: a step and an evaluation in each precision, layout and compiled, beside the CPU's.

Without ``RESCALENET_TEST_DEVICE=cuda`` the same runs on the CPU, among the slow tests.
"""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import zoo
from tasks import config as cfg
from tasks.devices import choose_device
from tasks.plots import read_log
from tasks.spec import check
from tests.fuzz.videos import make_videos
from tests.helpers.commands import environment, on_two_processes
from tests.helpers.operations import no_waits_for_the_gpu
from tests.helpers.paths import ROOT
from tests.helpers.tasks import BATCHES, MODELS, trainer_of, write_data

DEVICE = os.environ["RESCALENET_TEST_DEVICE"]
pytestmark = [pytest.mark.slow if DEVICE == "cpu" else pytest.mark.gpu]

TOLERANCES = {"fp32": 2e-3, "bf16": 5e-2, "fp16": 2e-2}  # TF32 has the ten bits of fp16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def on():
    """Chooses a device, and afterwards the machine's own again."""
    yield choose_device
    choose_device(None)


def made(task, data, folder, **train):
    """A trainer of the small net of a task, without dropout: each device has its own random numbers."""
    model = MODELS[task]
    if task == "translation":
        model = {**model, "options": {**model["options"], "drop_rate": 0.0}}
    return trainer_of(task, data, folder, model, **train)


def first_step(task, data, folder, on, device, **train):
    """The terms of the loss of the first step, and the trainer after it."""
    on(device)
    trainer = made(task, data, folder, **train)
    terms = trainer._step([next(iter(trainer.loader))])
    trainer.close()
    return {name: float(value) for name, value in terms.items()}, trainer


@pytest.mark.parametrize("task", MODELS)
@pytest.mark.parametrize("precision", TOLERANCES)
def test_a_step_and_an_evaluation(data, tmp_path, on, task, precision):
    if task == "video" and precision == "bf16" and DEVICE == "cpu":
        pytest.skip("refused on the CPU")
    if precision == "fp16" and DEVICE == "cpu":
        pytest.skip("Accelerate has no fp16 on the CPU")
    expected, _ = first_step(task, data, tmp_path / "cpu", on, "cpu")
    found, trainer = first_step(task, data, tmp_path / "gpu", on, DEVICE, precision=precision)
    assert trainer.accelerator.device.type == torch.device(DEVICE).type
    assert found.keys() == expected.keys()
    if task == "detection":  # anchors and proposals are drawn by each device's own generator
        assert all(math.isfinite(value) for value in found.values())
    else:
        assert found == pytest.approx(expected, rel=TOLERANCES[precision])
    trainer.check_weights()
    metrics = trainer.task.evaluate(trainer.bare, trainer.accelerator, trainer.dtype)
    assert all(math.isfinite(value) for value in metrics.values() if not math.isnan(value))
    assert metrics[trainer.task.metric] >= 0


@pytest.mark.parametrize("task", ["classification", "video"])
def test_the_layout_in_memory_changes_no_loss(data, tmp_path, on, task):
    losses = [
        first_step(task, data, tmp_path / str(layout), on, DEVICE, channels_last=layout)[0] for layout in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=TOLERANCES["fp32"])


@pytest.mark.parametrize("task", ["classification", "video"])
def test_compiled_nets_have_the_same_loss(data, tmp_path, on, task):
    losses = [first_step(task, data, tmp_path / str(c), on, DEVICE, compile=c)[0] for c in (False, True)]
    assert losses[0] == pytest.approx(losses[1], rel=TOLERANCES["fp32"])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("task", ["classification", "video", "translation"])
def test_a_step_does_not_wait_for_the_gpu(data, tmp_path, on, task, precision):
    on(DEVICE)
    trainer = made(task, data, tmp_path, precision=precision)
    batches = iter(trainer.loader)
    trainer._step([next(batches)])  # makes the state of the optimizer
    batch = next(batches)
    with no_waits_for_the_gpu():
        trainer._step([batch])
    trainer.close()


@pytest.mark.gpu
def test_two_processes_on_the_cpu_beside_a_gpu(data, tmp_path):
    losses = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        train = {"epochs": 1, "batch_size": BATCHES["classification"], "calibration_batches": 1, "precision": "fp64"}
        train["optimizer"] = {"name": "sgd", "lr": 1e-3}
        content = {"task": "classification", "output": str(folder), "model": MODELS["classification"]}
        path = tmp_path / "config.yaml"
        path.write_text(cfg.dump(check({**content, "data": data["classification"], "train": train}, "test")))
        if processes == 2:
            on_two_processes("train", path, "--device", "cpu")
        else:
            command = [sys.executable, "-m", "tasks.cli", "train", path, "--device", "cpu"]
            subprocess.run(command, check=True, env=environment(), cwd=ROOT)
        losses.append([record["loss"] for record in read_log(folder / "log.jsonl") if "loss" in record])
    assert losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)


def predicted(device, weights, *inputs):
    """The predictions of the command line, as JSON objects, one a line."""
    command = [sys.executable, "-m", "tasks.cli", "predict", weights, *inputs, "--format", "json", "--device", device]
    command += [] if "transformer" in weights else ["--no-files"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("options", [[], ["--tile", "192"], ["--tta", "flip,1.25"]], ids=" ".join)
def test_objects_of_both_devices(options):
    """Sure objects of a photograph are found on both, with the same scores and pixels (TF32 rounds)."""
    from pycocotools import mask

    names = sorted(map(str, (ROOT / "pictures/nuclei").glob("*.png")))
    weights = "mask_rcnn_rescalenet18_fpn.nuclei"
    both = [predicted(device, weights, *names, *options) for device in ("cpu", DEVICE)]
    for expected, found in zip(*both, strict=True):
        assert found["file"] == expected["file"]
        shapes = [[one["segmentation"] for one in side["instances"]] for side in (expected, found)]
        overlap = np.asarray(mask.iou(shapes[0], shapes[1], [0] * len(shapes[1])))  # (expected, found)
        sure = [i for i, one in enumerate(expected["instances"]) if one["score"] > 0.8]
        assert len(sure) > 5
        for i in sure:
            j = int(overlap[i].argmax())
            assert overlap[i, j] > 0.95
            assert found["instances"][j]["score"] == pytest.approx(expected["instances"][i]["score"], abs=0.03)


def test_classes_of_both_devices(tmp_path):
    video = tmp_path / "a.mp4"
    video.write_bytes(make_videos()["h264.mp4"])
    photographs = sorted(map(str, (ROOT / "pictures/photographs").rglob("*.jpg")))
    for weights, inputs in [("rescalenet18.flowers", photographs), ("rescale_r3d_10.shapes", [str(video)])]:
        both = [predicted(device, weights, *inputs) for device in ("cpu", DEVICE)]
        for expected, found in zip(*both, strict=True):
            scores = [dict(zip(side["classes"], side["scores"], strict=True)) for side in (expected, found)]
            for name in scores[0].keys() & scores[1].keys():
                assert scores[1][name] == pytest.approx(scores[0][name], abs=0.02)
            assert expected["classes"][0] in scores[1]


def test_sentences_of_both_devices(tmp_path):
    lines = [f"{who} is {what}." for who in ("A man", "A dog", "The woman") for what in ("sleeping", "running", "red")]
    both = [predicted(d, "rescale_transformer_tiny.multi30k_en_de", *lines) for d in ("cpu", DEVICE)]
    for expected, found in zip(*both, strict=True):
        assert found["scores"][0] == pytest.approx(expected["scores"][0], abs=0.02)
    assert sum(a["texts"] == b["texts"] for a, b in zip(*both, strict=True)) >= len(lines) - 1


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_calibration_on_a_device_that_is_not_the_current_one():
    model = zoo.create_model("rescalenet20_cifar", width=0.25)
    batch = torch.randn(4, 3, 32, 32)
    expected = zoo.create_model("rescalenet20_cifar", width=0.25)
    expected.load_state_dict(model.state_dict())
    for module in expected.modules():
        if hasattr(module, "calibrated"):
            module.calibrated = False
    zoo.calibrate(expected, [batch])
    assert torch.cuda.current_device() == 0
    zoo.calibrate(model.to("cuda:1"), [batch.to("cuda:1")])
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key].cpu(), value, rtol=2e-3, atol=2e-3)
