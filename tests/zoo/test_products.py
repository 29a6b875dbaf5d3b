"""Products of biased inputs against the naive formula in float64, and what their backward keeps."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.helpers.products import naive
from zoo import layers
from zoo.products import convolution


@st.composite
def products(draw):
    """A random layer in float64 with an input and a scale."""
    dims = draw(st.sampled_from([2, 3]))
    groups = draw(st.sampled_from([1, 2]))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    cls = layers.BiasedConv2d if dims == 2 else layers.BiasedConv3d
    kernel = draw(st.sampled_from([(1,) * dims, (3,) * dims, each(1, 4)]))
    channels = [groups * draw(st.integers(1, 5)) for _ in range(2)]
    stride, padding, dilation = each(1, 3), draw(st.sampled_from([(0,) * dims, each(0, 3)])), each(1, 2)
    optional = {name: draw(st.booleans()) for name in ("post_bias", "weight_scale", "biased_padding")}
    layer = cls(*channels, kernel, stride, padding, dilation, groups, **optional).double().requires_grad_(True)
    layer.input_scale = draw(st.sampled_from([1.0, 0.6]))
    layer.pool = draw(st.sampled_from([(), (2,) * dims, (1, *[2] * (dims - 1))]))
    torch.manual_seed(draw(st.integers(0, 99)))
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    shape = [
        draw(st.integers(2 * (d * (k - 1) + 1), 2 * (d * (k - 1) + 1) + 5))
        for k, d in zip(kernel, dilation, strict=True)
    ]
    x = torch.randn(draw(st.integers(1, 3)), channels[0], *shape, dtype=torch.float64, requires_grad=True)
    if dims == 2 and draw(st.booleans()):
        layer, x = (thing.to(memory_format=torch.channels_last) for thing in (layer, x))
        x = x.detach().requires_grad_()
    scale = draw(st.sampled_from([None, 0.7, torch.tensor(-1.3, dtype=torch.float64, requires_grad=True)]))
    return layer, x, scale


@settings(max_examples=150, deadline=None, derandomize=True)
@given(products(), st.sampled_from(["own", "shift", "fold", "compile", "plain"]))
def test_every_way_equals_the_naive_formula(product, way):
    """Outputs and all gradients, whichever way an unpadded product takes; rounding of some hundred products."""
    layer, x, scale = product
    inputs = [x, *layer.parameters(), *([scale] if isinstance(scale, torch.Tensor) else [])]
    with pytest.MonkeyPatch.context() as patch:
        if way in ("shift", "fold"):
            chosen = way == "shift"
            patch.setattr(convolution, "_shift_in_forward", lambda x, w, s, g: g.bias_varies if g.padded else chosen)
            patch.setattr(convolution, "_shift_in_backward", lambda x, w, g: g.bias_varies if g.padded else chosen)
        elif way != "own":
            formula = convolution._product_to_compile if way == "compile" else convolution._product
            patch.setattr(convolution, "_dispatch", formula)
        ours = layer(x, scale)
        theirs = naive(layer, x, scale)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        direction = torch.randn_like(ours)
        grads = [torch.autograd.grad(y, inputs, direction) for y in (ours, theirs)]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("padding", [0, 1])
def test_frozen_parameters_get_no_gradient(padding):
    """Every choice of what takes part in training gives the gradients of the rest."""
    layer = layers.BiasedConv2d(3, 2, 3, padding=padding, post_bias=True).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    scale = torch.tensor(0.7, dtype=torch.float64)
    everything = [x, scale, *layer.parameters()]
    for size in (30, 3):  # large and small maps take different ways
        x.data = torch.randn(2, 3, size, size, dtype=torch.float64)
        for chosen in itertools.product([False, True], repeat=len(everything)):
            if not any(chosen):
                continue
            for tensor, wanted in zip(everything, chosen, strict=True):
                tensor.requires_grad_(wanted)
            wanted = [t for t in everything if t.requires_grad]
            for a, b in zip(
                torch.autograd.grad(layer(x, scale).square().sum(), wanted),
                torch.autograd.grad(naive(layer, x, scale).square().sum(), wanted),
                strict=True,
            ):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("size", [3, 9])
def test_second_derivatives_and_per_sample_gradients(padding, size):
    layer = layers.BiasedConv2d(2, 2, 3, 1, padding, groups=2).double()
    x = torch.randn(2, 2, size, size, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, s, *_: layer(x, s), (x, scale, *layer.parameters()))
    parameters = dict(layer.named_parameters())

    def loss(parameters, image):
        return torch.func.functional_call(layer, parameters, (image[None], 0.5)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, image in enumerate(x):
        alone = torch.autograd.grad(loss(parameters, image), list(parameters.values()))
        for name, grad in zip(parameters, alone, strict=True):
            torch.testing.assert_close(each[name][i], grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [None, 0.5, torch.tensor(0.5, requires_grad=True)])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.BiasedConv2d(4, 6, 3, padding=1, post_bias=True), (2, 4, 9, 9)),
        (layers.BiasedConv2d(4, 6, 1, groups=2), (2, 4, 9, 9)),
        (layers.BiasedConv2d(64, 64, 1), (1, 64, 2, 2)),
        (layers.BiasedConv3d(4, 6, (3, 1, 1), padding=(1, 0, 0)), (2, 4, 3, 5, 5)),
        (layers.BiasedLinear(4, 6), (2, 5, 4)),
    ],
)
def test_backward_keeps_the_input_and_the_parameters_only(layer, shape, scale):
    x = torch.randn(shape, requires_grad=True)
    known = {t.data_ptr() for t in (x, scale, *layer.parameters()) if isinstance(t, torch.Tensor)}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x, scale)
    assert kept
    assert all(t.data_ptr() in known for t in kept)


@pytest.mark.parametrize("pool", [(), (2, 2)])
def test_one_image_without_a_batch(pool):
    layer = layers.BiasedConv2d(3, 4, 3, padding=1)
    layer.pool = pool
    x = torch.randn(3, 6, 8)
    torch.testing.assert_close(layer(x), layer(x[None])[0])


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("size", [2, 16])
def test_gradients_under_autocast(padding, size):
    """bf16 products, float32 gradients of float32 parameters, within bf16's rounding (2^-8) of the exact ones."""
    layer = layers.BiasedConv2d(16, 16, 3, padding=padding) if padding else layers.BiasedConv2d(16, 16, 1)
    nn.init.normal_(layer.pre_bias)
    x = torch.randn(4, 16, size, size)
    scale = torch.tensor(0.8, requires_grad=True)
    wanted = [scale, *layer.parameters()]
    direction = torch.randn_like(layer(x))
    exact = torch.autograd.grad(layer(x, scale), wanted, direction)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, scale)
    assert y.dtype == torch.bfloat16
    for a, b in zip(torch.autograd.grad(y, wanted, direction.bfloat16()), exact, strict=True):
        assert a.dtype == torch.float32
        size = b.norm() if b.ndim else direction.norm() * y.float().norm()  # the terms of a scalar's sum may cancel
        assert (a - b).norm() <= 0.02 * size


@pytest.mark.parametrize("padding", [0, 1])
def test_gradients_by_finite_differences(padding):
    layer = layers.BiasedConv2d(2, 2, 3, 2, padding, groups=2).double()
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, s, *_: layer(x, s), (x, scale, *layer.parameters()))
