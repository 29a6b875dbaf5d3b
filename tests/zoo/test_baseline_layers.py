"""Layers of the schemes that RescaleNet is compared with, against their formulas and torch's own layers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoo.baseline_layers import (
    RELU_GAIN,
    STANDARDIZATION_EPS,
    ScalarBiasConv2d,
    ScalarBiasConv3d,
    ScalarBiasLinear,
    ScaledConv2d,
    ScaledConv3d,
    StandardizedConv2d,
    StandardizedConv3d,
)
from zoo.folding import folded_conv, folded_linear
from zoo.layers import GainedConv


def test_the_gain_of_relu():
    """1 / std(relu(x)) for x ~ N(0, 1), by quadrature."""
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    mean, square = (torch.trapezoid(x.relu() ** n * density, x) for n in (1, 2))
    assert pytest.approx(float((square - mean**2) ** -0.5), rel=1e-9) == RELU_GAIN
    assert pytest.approx(1.712858550449663, rel=1e-12) == RELU_GAIN


@pytest.mark.parametrize(("make", "kernel", "groups"), [(StandardizedConv2d, 3, 2), (StandardizedConv3d, (3, 1, 1), 1)])
def test_standardized_filters(make, kernel, groups):
    """Mean 0, and the stated norm and gain in each filter, whatever the weight's mean and scale are."""
    conv = make(4, 6, kernel, 2, 1, groups=groups, factor=1.7).double()
    with torch.no_grad():
        conv.weight.add_(0.5).mul_(torch.arange(1.0, 7.0).view(-1, *[1] * (conv.weight.ndim - 1)))
        conv.gain.copy_(torch.linspace(-1, 2, 6))
    rows, weights = conv.kernel().detach().flatten(1), conv.weight.detach().flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-14)
    variance = weights.var(1, correction=0)
    kept = variance / (variance + STANDARDIZATION_EPS)
    torch.testing.assert_close(rows.square().sum(1), (conv.gain.detach() * 1.7) ** 2 * kept, rtol=1e-12, atol=1e-14)
    # the filters point where the centred weights point
    centred = weights - weights.mean(1, keepdim=True)
    angles = F.cosine_similarity(rows, centred * conv.gain.detach().sign()[:, None])
    torch.testing.assert_close(angles, torch.ones(6, dtype=torch.float64), rtol=1e-9, atol=0)


def test_the_weight_has_no_scale_and_no_mean_to_learn():
    """Gradients are orthogonal to the ones and, but for eps, to the filter itself."""
    conv = StandardizedConv2d(5, 3, 3, padding=1).double()
    conv(torch.randn(2, 5, 6, 6, dtype=torch.float64)).square().sum().backward()
    gradient, weight = conv.weight.grad.flatten(1), conv.weight.detach().flatten(1)
    size = gradient.norm(dim=1)
    assert (gradient.sum(1).abs() <= 1e-12 * size).all()
    assert ((gradient * weight).sum(1).abs() <= 1e-2 * size * weight.norm(dim=1)).all()
    assert conv.gain.grad.abs().min() > 0


CONVS = [
    (ScaledConv2d, {"bias": True}),
    (ScaledConv2d, {"bias": False}),
    (ScaledConv3d, {"bias": True}),
    (StandardizedConv2d, {"bias": True, "factor": 1.3}),
    (StandardizedConv3d, {"bias": False}),
    (ScalarBiasConv2d, {}),
    (ScalarBiasConv3d, {}),
    (ScalarBiasConv2d, {"before": False}),
    (ScalarBiasConv3d, {"after": False}),
]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("make", "options"), CONVS)
def test_products(make, options, kernel):
    """The formula with torch's convolution: value, gradients, with a factor, padded and with repeated frames."""
    three = issubclass(make, nn.Conv3d)
    conv = make(4, 6, kernel, 1, kernel // 2, groups=2, **options).double()
    with torch.no_grad():
        for parameter in conv.parameters():
            if parameter.ndim < 2:
                parameter.normal_()
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 4, *([3] if three else []), 5, 6, dtype=torch.float64, requires_grad=True)
    padding = conv.padding
    if three:
        conv.repeat_frames()
    scalars = isinstance(conv, ScalarBiasConv2d | ScalarBiasConv3d)

    def formula(factor):
        y = x if getattr(conv, "pre_bias", None) is None else x + conv.pre_bias
        if three and padding[0]:
            y = torch.cat([y[:, :, :1], y, y[:, :, -1:]], 2)
        kernel = conv.weight if not hasattr(conv, "kernel") else conv.kernel()
        bias = None if conv.bias is None else conv.bias * (1 if scalars else factor)
        product = F.conv3d if three else F.conv2d
        inside = (0, *padding[1:]) if three else padding
        y = product(y, kernel * factor, None, 1, inside, 1, 2)
        return y if bias is None else y + bias.view(-1, *[1] * (y.ndim - 2))

    torch.testing.assert_close(conv(x), formula(1.0), rtol=1e-12, atol=1e-12)
    ours, theirs = conv(x, scale), formula(scale)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    inputs = [x, scale, *conv.parameters()]
    gradients = [torch.autograd.grad(y.square().sum(), inputs) for y in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_scalar_biases_are_named():
    assert set(ScalarBiasConv2d(2, 3, 1).scalar_biases()) == {"pre_bias", "bias"}
    assert set(ScalarBiasConv2d(2, 3, 1, before=False).scalar_biases()) == {"bias"}
    assert set(ScalarBiasLinear(2, 3).scalar_biases()) == {"pre_bias"}  # its other bias has one value per class


def test_folded_layers_are_plain():
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    conv = StandardizedConv2d(4, 6, 3, padding=1, factor=1.3).double()
    plain, _ = folded_conv(conv, nn.Identity(), gain=0.5, input_gain=0.7)
    assert type(plain) is nn.Conv2d
    torch.testing.assert_close(plain(x), conv(0.7 * x, 0.5), rtol=1e-12, atol=1e-12)
    scalar = ScalarBiasConv2d(4, 6, 1).double()
    linear = ScalarBiasLinear(4, 3).double()
    with torch.no_grad():
        for parameter in (scalar.pre_bias, scalar.bias, linear.pre_bias):
            parameter.normal_()
    plain, _ = folded_conv(scalar, nn.Identity(), gain=0.5)
    torch.testing.assert_close(plain(x), scalar(x, 0.5), rtol=1e-12, atol=1e-12)
    features = x.mean((2, 3))
    torch.testing.assert_close(folded_linear(linear)(features), linear(features), rtol=1e-12, atol=1e-12)
    assert type(folded_linear(linear)) is nn.Linear


@pytest.mark.parametrize("make", [nn.Conv2d, ScaledConv2d, StandardizedConv2d, ScalarBiasConv2d])
def test_a_gained_convolution_multiplies_the_filters_that_are_used(make):
    conv = GainedConv(make(4, 3, 1))
    conv.gain.gain.fill_(2.5)
    conv.conv.bias.data.zero_()
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(conv(x), 2.5 * conv.conv(x), rtol=1e-5, atol=1e-6)
