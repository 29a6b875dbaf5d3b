"""The factor on each filter: values, every gradient and the memory of products, against the formula in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from zoo.layers import BiasedConv2d, BiasedConv3d, StemConv2d
from zoo.products import Geometry, biased_product, convolution

INPUT_SCALE = 0.6
NAMES = ("x", "weight", "pre_bias", "bias", "scale", "weight_scale")
# side of the input, kernel, padding: fold and shift, with the output larger and smaller than the weight
SIZES = [(20, 1, 0), (2, 1, 0), (20, 3, 1), (2, 3, 1), (5, 3, 0)]


def inputs_of(size, kernel, groups):
    torch.manual_seed(size)
    shapes = [(2, 4, size, size), (6, 4 // groups, kernel, kernel), (4,), (6,), (), (6,)]
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def written_out(x, weight, pre_bias, bias, scale, weight_scale, padding, groups, biased):
    inside, around = ([padding] * 4, [0] * 4) if biased else ([0] * 4, [padding] * 4)
    shifted = F.pad(F.pad(x, inside) + INPUT_SCALE * pre_bias.view(-1, 1, 1), around)
    y = F.conv2d(shifted, weight * weight_scale.view(-1, 1, 1, 1), groups=groups)
    return scale * (y + INPUT_SCALE * bias.view(-1, 1, 1))


def ours(x, weight, pre_bias, bias, scale, weight_scale, padding, groups, biased):
    geometry = Geometry((1, 1), (padding, padding), (1, 1), groups, biased)
    return biased_product(
        x, weight, pre_bias, bias, geometry, scale=scale, weight_scale=weight_scale, input_scale=INPUT_SCALE
    )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("size", "kernel", "padding", "biased"), [*((*size, False) for size in SIZES), (20, 3, 1, True), (2, 3, 1, True)]
)
def test_every_subset_of_the_gradients(size, kernel, padding, biased, groups):
    inputs = inputs_of(size, kernel, groups)
    inputs[5][0] = 0.0  # a channel that is off
    for needed in itertools.product([False, True], repeat=len(NAMES)):
        if not any(needed):
            continue
        for value, need in zip(inputs, needed, strict=True):
            value.requires_grad_(need)
        trained = [value for value, need in zip(inputs, needed, strict=True) if need]
        found, right = ours(*inputs, padding, groups, biased), written_out(*inputs, padding, groups, biased)
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)
        direction = torch.ones_like(right).cumsum(-1)
        pairs = zip(
            torch.autograd.grad(found, trained, direction), torch.autograd.grad(right, trained, direction), strict=True
        )
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_factor_is_applied_on_both_sides():
    """The sizes above reach both branches: the factor on W, and the factor on y."""
    geometry = Geometry((1, 1), (0, 0), (1, 1), 1)
    placed = {convolution._output_is_smaller(*inputs_of(size, k, 1)[:2], geometry) for size, k, _ in SIZES}
    assert placed == {True, False}


@pytest.mark.parametrize(
    ("size", "kernel", "padding", "biased"),
    [(4, 1, 0, False), (2, 1, 0, False), (3, 3, 1, False), (2, 3, 1, False), (3, 3, 1, True)],
)
@pytest.mark.parametrize("factors_train", [False, True])
def test_it_can_be_differentiated_twice(size, kernel, padding, biased, factors_train):
    inputs = inputs_of(size, kernel, 1)
    for value in inputs[: 6 if factors_train else 4]:
        value.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda *args: ours(*args, padding, 1, biased), inputs)
    assert torch.autograd.gradgradcheck(lambda *args: ours(*args, padding, 1, biased), inputs)


def test_without_bias_and_scale():
    x, weight, pre_bias, _, _, weight_scale = inputs_of(5, 3, 1)
    weight.requires_grad_(True)
    geometry = Geometry((2, 2), (1, 1), (1, 1), 1)
    found = biased_product(x, weight, pre_bias, None, geometry, weight_scale=weight_scale)
    kernel = weight * weight_scale.view(-1, 1, 1, 1)
    right = F.conv2d(F.pad(x + pre_bias.view(-1, 1, 1), [1] * 4), kernel, stride=2)
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(y.square().sum(), weight)[0] for y in (found, right)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "shape"),
    [(BiasedConv2d, (2, 4, 7, 7)), (BiasedConv3d, (2, 4, 3, 7, 7))],
)
@pytest.mark.parametrize("side", [7, 2])
@pytest.mark.parametrize("biased_padding", [False, True])
def test_backward_saves_only_the_input_and_the_parameters(make, shape, side, biased_padding):
    layer = make(4, 6, 3, padding=1, post_bias=True, weight_scale=True, biased_padding=biased_padding)
    torch.nn.init.normal_(layer.weight_scale)
    x = torch.randn(*shape[:-2], side, side, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x, 0.5)
    known = {t.data_ptr() for t in (x, *layer.parameters())}
    assert {t.data_ptr() for t in saved} <= known


def test_a_stem_multiplies_its_filters():
    stem = StemConv2d(3, 4, 3, 2, 1, weight_scale=True).double()
    torch.nn.init.normal_(stem.weight_scale)
    torch.nn.init.normal_(stem.bias)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    kernel = stem.weight * stem.weight_scale.view(-1, 1, 1, 1)
    torch.testing.assert_close(stem(x), F.conv2d(x, kernel, stem.bias, 2, 1), rtol=1e-12, atol=1e-12)
    stem.output_scale = 0.5
    torch.testing.assert_close(stem(x), 0.5 * F.conv2d(x, kernel, stem.bias, 2, 1), rtol=1e-12, atol=1e-12)
    assert not stem.weight_scale.requires_grad


def test_autocast_rounds_the_scaled_weight_once():
    """Under autocast the factor multiplies the float32 weight, which is rounded to bfloat16 after that."""
    layer = BiasedConv2d(4, 6, 1, post_bias=True, weight_scale=True)
    torch.nn.init.uniform_(layer.weight_scale, 0.5, 2.0)
    x = torch.randn(2, 4, 1, 1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    kernel = (layer.weight * layer.weight_scale.view(-1, 1, 1, 1)).bfloat16()
    right = F.conv2d(x, kernel, layer.bias.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, right, rtol=0, atol=0)
