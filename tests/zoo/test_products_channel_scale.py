"""A scale with one factor per output channel: values, every gradient and the memory, against the formula in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.layers import BiasedConv2d, BiasedConv3d, BiasedLinear
from zoo.products import Geometry, biased_linear, biased_product

INPUT_SCALE = 0.6
# side of the input, kernel, padding: fold and shift, with the output larger and smaller than the weight
SIZES = [(20, 1, 0), (2, 1, 0), (6, 3, 1), (2, 3, 1), (5, 3, 0)]


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


def conv_inputs(size, kernel, groups=1):
    """x, W, bias before, bias after, scale, and the factor on the filters."""
    torch.manual_seed(size)
    shapes = [(2, 4, size, size), (6, 4 // groups, kernel, kernel), (4,), (6,), (6,), (6,)]
    return [random(*shape) for shape in shapes]


def conv(x, weight, pre_bias, bias, scale, weight_scale, padding, groups=1):
    geometry = Geometry((1, 1), (padding, padding), (1, 1), groups)
    return biased_product(
        x, weight, pre_bias, bias, geometry, scale=scale, weight_scale=weight_scale, input_scale=INPUT_SCALE
    )


def conv_written_out(x, weight, pre_bias, bias, scale, weight_scale, padding, groups=1):
    y = F.conv2d(F.pad(x + INPUT_SCALE * pre_bias.view(-1, 1, 1), [padding] * 4), weight, groups=groups)
    if weight_scale is not None:
        y = weight_scale.view(-1, 1, 1) * y
    return scale.view(-1, 1, 1) * (y + INPUT_SCALE * bias.view(-1, 1, 1))


def linear_inputs(sections=()):
    torch.manual_seed(1)
    return [random(5, 3, 4), random(6, 4), random(*([len(sections)] if sections else []), 4), random(6), random(6)]


def linear(x, weight, pre_bias, bias, scale, sections=()):
    return biased_linear(x, weight, pre_bias, bias, scale=scale, input_scale=INPUT_SCALE, sections=sections)


def linear_written_out(x, weight, pre_bias, bias, scale, sections=()):
    rows = INPUT_SCALE * pre_bias.reshape(-1, 4)
    parts = [F.linear(x + row, part) for row, part in zip(rows, weight.split(sections or 6), strict=True)]
    return scale * (torch.cat(parts, -1) + INPUT_SCALE * bias)


def compare(ours, theirs, inputs):
    """Compare values and, for every subset of the inputs, the gradients; to 1e-10 (sums of less than 10^4 products)."""
    inputs[4][0] = 0.0  # a channel that is off
    for needed in itertools.product([False, True], repeat=len(inputs)):
        if not any(needed):
            continue
        for value, need in zip(inputs, needed, strict=True):
            value.requires_grad_(need)
        trained = [value for value, need in zip(inputs, needed, strict=True) if need]
        found, right = ours(*inputs), theirs(*inputs)
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)
        direction = torch.ones_like(right).cumsum(-1)
        pairs = [torch.autograd.grad(y, trained, direction) for y in (found, right)]
        torch.testing.assert_close(*pairs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("size", "kernel", "padding"), SIZES)
@pytest.mark.parametrize("gained", [False, True])
def test_every_subset_of_a_convolutions_gradients(size, kernel, padding, groups, gained):
    """With and without a factor on the filters, which does not act on the bias after the product."""
    inputs = conv_inputs(size, kernel, groups)[: 6 if gained else 5]
    rest = (padding, groups) if gained else (None, padding, groups)
    compare(lambda *args: conv(*args, *rest), lambda *args: conv_written_out(*args, *rest), inputs)


@pytest.mark.parametrize("sections", [(), (2, 4)])
def test_every_subset_of_a_linear_layers_gradients(sections):
    inputs = linear_inputs(sections)
    compare(lambda *args: linear(*args, sections), lambda *args: linear_written_out(*args, sections), inputs)


@pytest.mark.parametrize(("size", "kernel", "padding"), [(4, 1, 0), (2, 3, 1)])
def test_a_convolution_can_be_differentiated_twice(size, kernel, padding):
    inputs = [value.requires_grad_(True) for value in conv_inputs(size, kernel)]
    assert torch.autograd.gradcheck(lambda *args: conv(*args, padding), inputs)
    assert torch.autograd.gradgradcheck(lambda *args: conv(*args, padding), inputs)


@pytest.mark.parametrize("sections", [(), (2, 4)])
def test_a_linear_layer_can_be_differentiated_twice(sections):
    inputs = [value.requires_grad_(True) for value in linear_inputs(sections)]
    assert torch.autograd.gradcheck(lambda *args: linear(*args, sections), inputs)
    assert torch.autograd.gradgradcheck(lambda *args: linear(*args, sections), inputs)


def layers():
    return [
        (BiasedConv2d(4, 6, 3, padding=1, post_bias=True), torch.randn(2, 4, 7, 7)),
        (BiasedConv2d(4, 6, 1), torch.randn(2, 4, 7, 7)),
        (BiasedConv3d(4, 6, (1, 3, 3), padding=(0, 1, 1)), torch.randn(2, 4, 3, 7, 7)),
        (BiasedLinear(4, 6, post_bias=True), torch.randn(40, 4)),
        (BiasedLinear(4, 6, post_bias=False), torch.randn(40, 4)),
    ]


@pytest.mark.parametrize("number", range(5))
def test_a_scale_of_equal_factors_is_the_scalar(number):
    """Values and gradients to 1e-5 relative (float32); the scalar's gradient is the sum of the channels'."""
    layer, x = layers()[number]
    torch.nn.init.normal_(layer.pre_bias)
    results = []
    for scale in (torch.tensor(0.7), torch.full((6,), 0.7)):
        scale.requires_grad_(True)
        y = layer(x, scale)
        grads = torch.autograd.grad(y.square().sum(), [scale, *layer.parameters()])
        results.append((y, grads[0].sum(), *grads[1:]))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-4)


class Shapes(TorchDispatchMode):
    """Counts the operations whose result has at least this many values."""

    def __init__(self, least):
        super().__init__()
        self.least, self.names = least, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() >= self.least:
            self.names.append(function.overloadpacket.__name__)
        return out


@pytest.mark.parametrize("number", range(5))
def test_no_pass_over_the_activations_more_than_a_scalar(number):
    """Forward and backward make no more passes over tensors of x's size; what backward saves is x and parameters."""
    layer, x = layers()[number]
    x.requires_grad_(True)
    passes = []
    for scale in (torch.tensor(0.7, requires_grad=True), torch.full((6,), 0.7, requires_grad=True)):
        saved = []
        with Shapes(x.numel()) as shapes, torch.autograd.set_multithreading_enabled(False):
            with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
                y = layer(x, scale)
            torch.autograd.grad(y, [x, scale, *layer.parameters()], torch.ones_like(y))
        passes.append([name for name in shapes.names if name not in ("view", "t", "_unsafe_view")])
        assert all(t.numel() <= 6 or t.data_ptr() in {x.data_ptr(), layer.weight.data_ptr()} for t in saved)
    assert len(passes[1]) <= len(passes[0])  # a scalar may be multiplied in the pass that adds the bias


@pytest.mark.parametrize("number", range(5))
def test_autocast_rounds_the_scaled_weight_once(number):
    """The factors multiply the float32 weight, which is rounded to bfloat16 after that."""
    layer, x = layers()[number]
    scale = torch.linspace(0.5, 2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x, scale)
    kernel = (layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1))).bfloat16()
    bias = None if layer.bias is None else (scale * layer.bias).bfloat16()
    if isinstance(layer, BiasedLinear):
        right = F.linear(x.bfloat16(), kernel, bias)
    else:
        function = F.conv2d if x.ndim == 4 else F.conv3d
        right = function(x.bfloat16(), kernel, bias, 1, layer.padding)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, right, rtol=0, atol=0)


@pytest.mark.parametrize("number", [0, 3])
def test_compiled_layers_give_the_same(number):
    layer, x = layers()[number]
    scale = torch.linspace(0.5, 2, 6, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.nn.init.normal_(layer.pre_bias)
    pairs = []
    for function in (layer, compiled):
        y = function(x, scale)
        pairs.append((y, *torch.autograd.grad(y.square().sum(), [scale, *layer.parameters()])))
    torch.testing.assert_close(*pairs, rtol=1e-4, atol=1e-4)
