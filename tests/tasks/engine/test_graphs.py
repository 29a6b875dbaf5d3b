"""CUDA graphs of the training passes; what needs a GPU is skipped without one."""

import pytest
import torch

from tasks.engine import Trainer
from tasks.errors import ConfigError
from tasks.spec import make_task
from tests.helpers.training import config, fit, weights_of

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_graphs_need_a_gpu(images, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.graphs: needs a CUDA device"):
        Trainer(make_task(config(images, tmp_path, graphs=True)))


def test_graphs_need_batches_of_one_shape(images, tmp_path):
    task = make_task(config(images, tmp_path, graphs=True))
    task.one_shape = False
    with pytest.raises(ConfigError, match=r"train\.graphs: batches of classification differ in shape; leave it out"):
        Trainer(task)


@gpu
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


@gpu
def test_a_replay_uses_new_weights_in_bf16(images, tmp_path):
    """The converted weights of autocast are made in each replay."""
    trainer = Trainer(make_task(config(images, tmp_path, graphs=True, precision="bf16", channels_last=True)))
    x = torch.rand(8, 3, 12, 12, device="cuda").contiguous(memory_format=torch.channels_last)
    model, bare = trainer.model.train(), trainer.bare
    for _ in range(3):
        with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
            expected = bare(x).float()
        torch.testing.assert_close(model(x).float(), expected, rtol=2e-2, atol=2e-2)
        with torch.no_grad():
            for parameter in bare.parameters():
                parameter.mul_(0.9)
    assert (model.eval()(x).float() - expected).abs().max() > 0.01  # of the last weights


@gpu
def test_a_step_does_not_wait_for_the_gpu(images, tmp_path):
    trainer = Trainer(make_task(config(images, tmp_path)))
    trainer.model.train()
    batches = list(trainer.loader)
    trainer._step(batches[:1])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._step(batches[1:2])
    finally:
        torch.cuda.set_sync_debug_mode("default")
