"""Joins of the schemes that RescaleNet is compared with: the formulas, and the deployment form."""

import pytest
import torch
from torch import nn

import zoo
from zoo.baseline_joins import ActivatedJoin, MultiplierJoin, NormalizerFreeJoin, RescaledSumJoin
from zoo.baseline_layers import ScaledConv2d

SETTINGS = {"rtol": 1e-13, "atol": 1e-13}


def joined(join, first, last, shortcut, x):
    """The sum after an identity and after a projection shortcut, of a branch of two convolutions."""
    entered = join.enter(x)
    branch = [join.product(last, first(entered).relu()) for _ in range(2)]
    return join(x, branch[0]), join(join.projection(shortcut, entered), branch[1], projected=True)


JOINS = [
    (MultiplierJoin(1.0), 0.6),
    (NormalizerFreeJoin(0.3, 1.21, False), None),
    (NormalizerFreeJoin(0.3, 1.21, True), 0.6),
    (RescaledSumJoin(False), None),
    (RescaledSumJoin(True), 0.6),
]


@pytest.mark.parametrize(("join", "m"), JOINS)
def test_the_formulas(join, m):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    first, last, shortcut = layers = [ScaledConv2d(3, 3, 1).double() for _ in range(3)]
    join.double()
    if m is not None:
        join.multiplier.data.fill_(m)
    assert join.statistics() == {"m": pytest.approx(m)}
    assert list(join.multiplier_parameters()) == ([] if m is None else ["multiplier"])
    weight = 1.0 if m is None else m
    c = 0.5**0.5
    with torch.no_grad():
        kept = x.clone()
        found = joined(join, *layers, x)
        assert torch.equal(x, kept)  # the trunk is not changed in place
        if isinstance(join, MultiplierJoin):
            branch = weight * last(first(x).relu())
            expected = (x + branch, shortcut(x) + branch)
        elif isinstance(join, NormalizerFreeJoin):
            entered = x.relu() / 1.1
            branch = 0.3 * weight * last(first(entered).relu())
            expected = (x + branch, shortcut(entered) + branch)
        else:
            branch = last(first(x.relu()).relu())
            expected = (c * (weight * x + branch), c * (weight * shortcut(x.relu()) + branch))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, **SETTINGS)
        # the deployment form: what the join applied is in the parameters
        folded = join.fold(last)
        entrance = [zoo.folding.folded_conv(x, nn.Identity(), input_gain=folded.entrance)[0] for x in (first, shortcut)]
        first, shortcut = entrance
        last, _ = zoo.folding.folded_conv(last, nn.Identity(), gain=folded.product)
        shortcut, _ = zoo.folding.folded_conv(shortcut, nn.Identity(), gain=folded.projection)
        for ours, theirs in zip(joined(folded.join, first, last, shortcut, x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, **SETTINGS)


def test_the_multiplier_costs_no_pass_over_the_activations():
    """No multiplication in forward has a map as operand: the factors are multiplied into weights."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "mul" in str(function):
                sizes.append(max(a.numel() for a in args if isinstance(a, torch.Tensor)))
            return function(*args, **(kwargs or {}))

    x = torch.randn(2, 3, 16, 16)
    layers = [ScaledConv2d(3, 3, 1) for _ in range(3)]
    for join, _ in JOINS[:4]:
        if isinstance(join, NormalizerFreeJoin):
            join = NormalizerFreeJoin(0.3, 1.0, True)  # with beta 1: nothing to divide by
        with Watch():
            joined(join.float(), *layers, x)
    assert sizes
    assert max(sizes) <= 9


def test_a_shift_does_not_pass_an_activation():
    model = zoo.create_model("rescalenet20_cifar", width=0.25)
    block = model.layer1[0]
    block.join = ActivatedJoin()
    with pytest.raises(zoo.ZooError, match="fold: a shift cannot pass ActivatedJoin"):
        zoo.fold(model)
