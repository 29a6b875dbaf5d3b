"""CUDA graphs of the training passes; what needs a GPU is skipped without one."""

import pytest
import torch

from tasks.engine import Trainer
from tasks.errors import ConfigError
from tasks.spec import make_task
from tests.helpers.training import config, fit, weights_of


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_graphs_need_a_gpu(images, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.graphs: needs a CUDA device"):
        Trainer(make_task(config(images, tmp_path, graphs=True)))


def test_graphs_need_batches_of_one_shape(images, tmp_path):
    task = make_task(config(images, tmp_path, graphs=True))
    task.one_shape = False
    with pytest.raises(ConfigError, match=r"train\.graphs: batches of classification differ in shape; leave it out"):
        Trainer(task)


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("scheme", ["rescale", "bn"])
def test_graphs_change_no_weight(images, tmp_path, scheme, accumulate, workers):
    """Weights and buffers of a run in float32; sums on a GPU have no fixed order."""
    settings = {"accumulate": accumulate, "model": {"scheme": scheme}, "workers": workers}
    fit(images, tmp_path / "eager", **settings)
    fit(images, tmp_path / "graphs", graphs=True, **settings)
    eager, graphs = weights_of(tmp_path / "eager"), weights_of(tmp_path / "graphs")
    for key in eager:
        torch.testing.assert_close(graphs[key], eager[key], rtol=1e-3, atol=1e-4)


def gradients_of(trainer, model, x):
    """Output and gradients of a step, under the run's autocast, from the same random state."""
    torch.manual_seed(5)
    trainer.bare.zero_grad(set_to_none=True)
    with trainer.accelerator.autocast():
        out = model(x)
    out.float().square().sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in trainer.bare.named_parameters()}
    return out.detach().float(), found


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("options", [{}, {"drop_rate": 0.3, "drop_path_rate": 0.3, "branch_noise": 0.1}])
def test_replays_are_the_nets_passes(images, tmp_path, precision, options):
    """Output and gradients, with other weights in each step, and with the same dropout and noise."""
    model = {"options": {"width": 0.25, **options}}
    trainer = Trainer(make_task(config(images, tmp_path, model, graphs=True, precision=precision)))
    trainer.model.train()
    rounding = {"rtol": 1e-4, "atol": 1e-5} if precision == "fp32" else {"rtol": 2e-2, "atol": 2e-2}
    for step in range(3):
        x = torch.rand(8, 3, 12, 12, device="cuda").contiguous(memory_format=torch.channels_last)
        graphs, of_graphs = gradients_of(trainer, trainer.model, x)
        plain, of_plain = gradients_of(trainer, trainer.bare, x)
        torch.testing.assert_close(graphs, plain, **rounding)
        for name, gradient in of_plain.items():
            scale = float(gradient.abs().max().clamp(min=1e-12))
            torch.testing.assert_close(of_graphs[name] / scale, gradient / scale, **rounding, msg=f"{name}, {step}")
        with torch.no_grad():
            for parameter in trainer.bare.parameters():
                parameter.mul_(0.9)
