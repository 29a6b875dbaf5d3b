"""Every task on a GPU: a step and an evaluation in each precision, layout and compiled, beside the CPU's.

Without ``RESCALENET_TEST_DEVICE=cuda`` the same runs on the CPU, among the slow tests.
"""

import math
import os

import pytest
import torch

import zoo
from tasks.devices import choose_device
from tasks.engine import Trainer
from tasks.spec import check, make_task
from tests.helpers.tasks import BATCHES, MODELS, write_data

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


def first_step(task, data, folder, on, device, **train):
    """The terms of the loss of the first step, and the trainer after it."""
    on(device)
    settings = {"epochs": 1, "batch_size": BATCHES[task], "calibration_batches": 1, **train}
    settings["optimizer"] = {"name": "sgd", "lr": 1e-3}
    model = MODELS[task]
    if task == "translation":  # each device has its own random numbers
        model = {**model, "options": {**model["options"], "drop_rate": 0.0}}
    content = {"task": task, "output": str(folder), "model": model, "data": data[task], "train": settings}
    trainer = Trainer(make_task(check(content, "test")))
    trainer.batches.seek(0, 0)
    trainer.model.train()
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
