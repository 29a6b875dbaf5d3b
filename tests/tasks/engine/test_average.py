"""The exponential moving average: torch's and timm's code, the warm-up, and its state."""

import copy

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tasks.config import EMA, LastEpochs
from tasks.engine.average import WeightAverage, ema_decay


def change(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model(torch.randn(4, 3))  # changes statistics


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()


def same(ours, theirs):
    expected = dict(theirs.state_dict())
    for name, value in ours.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, expected[name]), name


def test_the_warm_up_is_tensorflows_and_timms():
    """min(decay, (1 + t) / (10 + t)) for t = 0, 1, ... after the update that sets the average."""
    rule = EMA(decay=0.9, warmup=True)
    assert ema_decay(rule, 0) == 0
    timms = ModelEmaV3(nn.Linear(1, 1), decay=0.9, use_warmup=True, warmup_gamma=9, warmup_power=1)
    for t in range(200):
        assert ema_decay(rule, t + 1) == pytest.approx(min(0.9, (1 + t) / (10 + t)), rel=1e-15)
        assert ema_decay(rule, t + 1) == pytest.approx(timms.get_decay(t + 2), rel=1e-14)
    assert [ema_decay(EMA(decay=0.9), t) for t in range(3)] == [0, 0.9, 0.9]


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_equals_timms(model, warmup):
    """Weights and statistics, to the rounding of the decay in double precision: to the bit in float32."""
    average = WeightAverage(model, EMA(decay=0.8, warmup=warmup), epochs=1)
    timms = ModelEmaV3(model, decay=0.8, use_warmup=warmup, warmup_gamma=9, warmup_power=1)
    for step in range(1, 60):
        change(model)
        average.after_step()
        timms.update(model, step=step)
        torch.testing.assert_close(average.after_epoch(0).state_dict(), timms.module.state_dict(), rtol=1e-6, atol=1e-7)


def test_the_average_and_its_state_are_torchs(model):
    """Checkpoints of earlier versions, which used torch's class, load."""
    average = WeightAverage(model, EMA(decay=0.8), epochs=1)
    torchs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    for _ in range(5):
        change(model)
        average.after_step()
        torchs.update_parameters(model)
    same(average.after_epoch(0), torchs.module)
    assert list(average.state_dict()) == list(torchs.state_dict())
    again = WeightAverage(copy.deepcopy(model), EMA(decay=0.8), epochs=1)
    again.load_state_dict(torchs.state_dict())
    assert again.updates == 5
    same(again.after_epoch(0), torchs.module)


def test_the_state_has_the_place_in_the_warm_up(model):
    """An average that was stored and loaded goes on with the decay of its next update."""
    rule = EMA(decay=0.9, warmup=True)
    average = WeightAverage(model, rule, epochs=1)
    for _ in range(3):
        change(model)
        average.after_step()
    again = WeightAverage(model, rule, epochs=1)
    again.load_state_dict(copy.deepcopy(average.state_dict()))
    change(model)
    average.after_step()
    again.after_step()
    same(average.after_epoch(0), again.after_epoch(0))


def test_the_mean_over_the_last_epochs(model):
    average = WeightAverage(model, LastEpochs(epochs=3), epochs=5)
    weights = []
    for epoch in range(5):
        change(model)
        weights.append(model[0].weight.detach().clone())
        found = average.after_epoch(epoch)
        if epoch < 2:
            assert found is model
    torch.testing.assert_close(found[0].weight.detach(), torch.stack(weights[2:]).mean(0))
    assert found[1].num_batches_tracked == 5  # integers are copied
