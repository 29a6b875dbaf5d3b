"""The loss from features and weights, against torch's on logits."""

import pytest
import torch
import torch.nn.functional as F

from zoo.losses import linear_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("size", [1, 50, 1 << 21])
def test_the_loss_is_torchs(monkeypatch, smoothing, size):
    monkeypatch.setattr("zoo.losses.SLICE", size)
    x = torch.randn(13, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(20, (13,))
    ours, likelihood = linear_cross_entropy(x, weight, targets, label_smoothing=smoothing)
    logits = F.linear(x, weight)
    theirs = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(likelihood, F.cross_entropy(logits, targets, reduction="sum"), rtol=1e-12, atol=1e-12)
    assert not likelihood.requires_grad
    found, expected = (torch.autograd.grad(3 * loss, (x, weight)) for loss in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_loss_of_no_tokens_and_of_large_logits():
    weight = torch.randn(20, 6, requires_grad=True)
    loss, _ = linear_cross_entropy(torch.zeros(0, 6), weight, torch.zeros(0, dtype=torch.long), label_smoothing=0.1)
    loss.backward()
    assert loss == 0
    assert weight.grad.abs().sum() == 0
    loss, _ = linear_cross_entropy(torch.full((2, 6), 1e4), weight, torch.tensor([0, 1]))
    assert torch.isfinite(loss)
