"""Each way to compute a product, and the algebra of W b, against the formula written out in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from zoo.products import Geometry, biased_linear, biased_product, common, convolution

INPUT_SCALE = 0.6
WAYS = ("_fold_backward", "_shift_backward", "_scaled_shift_backward")


def random(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def written_out(x, weight, pre_bias, bias, scale, padding, groups):
    y = F.conv2d(F.pad(x + INPUT_SCALE * pre_bias.view(-1, 1, 1), [padding] * 4), weight, groups=groups)
    return scale * (y + INPUT_SCALE * bias.view(-1, 1, 1))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("way", "size", "kernel", "padding"),
    [
        ("_fold_backward", 20, 1, 0),
        ("_fold_backward", 20, 3, 0),
        ("_shift_backward", 20, 3, 1),
        ("_scaled_shift_backward", 2, 3, 1),
        ("_scaled_shift_backward", 3, 3, 0),
    ],
)
def test_a_row_of_the_table_gives_the_gradients(monkeypatch, way, size, kernel, padding, groups):
    """Sizes that choose the row; its five gradients to 1e-10 relative (sums of less than 10^4 products)."""
    taken = []
    for name in WAYS:
        original = getattr(convolution, name)
        monkeypatch.setattr(
            convolution, name, lambda *args, name=name, original=original: taken.append(name) or original(*args)
        )
    inputs = [random(2, 4, size, size), random(6, 4 // groups, kernel, kernel), random(4), random(6), random()]
    x, weight, pre_bias, bias, scale = inputs
    geometry = Geometry((1, 1), (padding, padding), (1, 1), groups)
    ours = biased_product(x, weight, pre_bias, bias, geometry, scale=scale, input_scale=INPUT_SCALE)
    theirs = written_out(*inputs, padding, groups)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(theirs, inputs, direction), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert taken == [way]


@pytest.mark.parametrize(("shape", "groups"), [((6, 4), 1), ((6, 4, 1, 1), 1), ((6, 4, 3, 2), 1), ((6, 2, 3, 2), 2)])
@pytest.mark.parametrize("differentiable", [False, True])
def test_the_algebra_of_the_folded_bias(shape, groups, differentiable):
    """W b and its gradients in W and b are those that autograd finds for a sum over the kernel and the inputs."""
    weight, pre_bias, grad = random(*shape), random(4), random(6)
    spread = weight.view(groups, 6 // groups, 4 // groups, -1) * pre_bias.view(groups, 1, -1, 1)
    product = spread.sum((2, 3)).flatten()
    grad_weight, grad_pre_bias = torch.autograd.grad(product, (weight, pre_bias), grad)
    torch.testing.assert_close(common.product_bias(weight, pre_bias, groups), product, rtol=1e-12, atol=1e-12)
    found = common.pre_bias_gradient(weight, grad, groups)
    torch.testing.assert_close(found, grad_pre_bias, rtol=1e-12, atol=1e-12)
    before = torch.randn_like(weight)
    with torch.set_grad_enabled(differentiable):
        total = common.add_outer(before.clone(), grad, pre_bias, groups)
    torch.testing.assert_close(total, before + grad_weight, rtol=1e-12, atol=1e-12)
    assert total.requires_grad == differentiable


@pytest.mark.parametrize("sections", [(), (2, 4)])
@pytest.mark.parametrize("wanted", [c for c in itertools.product([False, True], repeat=5) if any(c)])
def test_a_linear_layer_gives_every_subset_of_the_gradients(sections, wanted):
    """Of x, W, b, bias and scale; ``tests/test_layers.py`` has the same for convolutions."""
    x, weight, pre_bias, bias, scale = inputs = [
        random(5, 4),
        random(6, 4),
        random(*([len(sections)] if sections else []), 4),
        random(6),
        random(),
    ]
    for tensor, need in zip(inputs, wanted, strict=True):
        tensor.requires_grad_(need)
    needed = [tensor for tensor in inputs if tensor.requires_grad]
    ours = biased_linear(x, weight, pre_bias, bias, scale=scale, input_scale=INPUT_SCALE, sections=sections)
    b = INPUT_SCALE * pre_bias.reshape(-1, 4)
    parts = [F.linear(x + row, part) for row, part in zip(b, weight.split(sections or 6), strict=True)]
    theirs = scale * (torch.cat(parts, 1) + INPUT_SCALE * bias)
    found, expected = (torch.autograd.grad(y.square().sum(), needed) for y in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
