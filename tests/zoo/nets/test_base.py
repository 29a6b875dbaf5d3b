"""Whole nets: equal to the formulas written out, at the memory of the bare convolutions."""

import pytest
import torch
from torch import nn

import zoo
from benchmarks.baselines import naive
from benchmarks.memory import saved_per_image
from tests.helpers.nets import CLIPS, NARROW, narrow, samples


def calibrated(kind, **options):
    model = narrow(kind, **options).double()
    zoo.calibrate(model, [samples(kind, 2, 48, dtype=torch.float64)])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("multiplier"):
                parameter.normal_()
    return model


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, {}) for kind in NARROW]
    + [
        ("bottleneck", {"post_bias": True, "shortcut": "conv"}),
        ("basic", {"c": 1, "stem": "deep"}),
        ("cifar", {"multiplier": False}),
    ],
)
def test_nets_equal_the_formulas_written_out(kind, options):
    """Features, logits and every gradient, in float64, of the net whose trunk is held at no scale."""
    model = calibrated(kind, **options)
    written = naive(model)
    for x in (samples(kind, 2, 48, dtype=torch.float64), samples(kind, 1, 37, 50, dtype=torch.float64)):
        for a, b in zip(model.forward_levels(x), written.forward_levels(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        ours, theirs = model(x), written(x)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        direction = torch.randn_like(ours)
        grads = [torch.autograd.grad(y, list(m.parameters()), direction) for y, m in ((ours, model), (theirs, written))]
        for (name, _), a, b in zip(model.named_parameters(), *grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9 * b.abs().max().item(), msg=name)


def test_memory_of_resnet50():
    """At 224 px: at most the floor's bytes and half of BatchNorm's; copies of weights below a tenth of the weights."""
    image, constant = saved_per_image(zoo.create_model("rescalenet50"), 224)
    floor, _ = saved_per_image(zoo.create_model("rescalenet50", scheme="none"), 224)
    torchvision_floor, _ = saved_per_image(zoo.create_model("rescalenet50", scheme="none", shortcut="conv"), 224)
    bn, _ = saved_per_image(zoo.create_model("rescalenet50", scheme="bn"), 224)
    assert image <= 1.02 * min(floor, torchvision_floor)
    assert image <= 0.50 * bn
    assert constant <= 0.1 * 4 * 25_530_000


@pytest.mark.parametrize("kind", NARROW)
def test_memory_of_every_family(kind):
    frames = 6 if kind in CLIPS else None
    image, constant = saved_per_image(narrow(kind), 96, frames=frames)
    floor, _ = saved_per_image(narrow(kind, scheme="none"), 96, frames=frames)
    assert image <= 1.02 * floor
    assert constant <= 0.1 * 4 * sum(p.numel() for p in narrow(kind).parameters())


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k != "basic" else k for k in NARROW])
def test_a_compiled_training_step_is_one_graph_with_equal_gradients(kind):
    torch.compiler.reset()
    model = calibrated(kind).train()
    x = samples(kind, 2, 64, dtype=torch.float64)
    grads = []
    for run in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        run(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for (name, _), a, b in zip(model.named_parameters(), *grads, strict=True):
        assert (a - b).norm() <= 1e-9 * b.norm(), name


@pytest.mark.parametrize("kind", ["bottleneck", "basic", "i3d"])
def test_channels_last_and_checkpointing_give_the_same_gradients(kind):
    from torch.utils.checkpoint import checkpoint_sequential

    model = calibrated(kind)
    x = samples(kind, 2, 64, dtype=torch.float64)

    def grads():
        found = [p.grad for p in model.parameters()]
        model.zero_grad()
        return found

    model(x).square().sum().backward()
    expected = grads()
    stages = zip(model.pools, model.stages(), strict=True)
    body = nn.Sequential(model.stem, *(module for pair in stages for module in pair))
    model.forward_head(checkpoint_sequential(body, 3, x, use_reentrant=False)).square().sum().backward()
    again = grads()
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    model.to(memory_format=layout)
    model(x.to(memory_format=layout)).square().sum().backward()
    last = grads()
    for a, b, c in zip(expected, again, last, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(a, c, rtol=1e-8, atol=1e-9 * a.abs().max().item())
