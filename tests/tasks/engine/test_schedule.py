"""Learning rates."""

import pytest
import torch

from tasks.config import Cosine, InverseSqrt, MultiStep, OneCycle
from tasks.engine import rate


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


def test_inverse_square_root():
    schedule = InverseSqrt(warmup_steps=40)
    for step in range(300):
        vaswani = min((step + 1) ** -0.5, (step + 1) * 40**-1.5) * 40**0.5
        assert rate(schedule, step / 25, 12, 25) == pytest.approx(vaswani, rel=1e-9)
