"""The number of operations of a product, which is what a small layer costs, and what its backward saves."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.layers import BiasedLinear
from zoo.products import biased_linear

VIEWS = {"t", "view", "detach", "_unsafe_view", "expand", "ones_like"}


class Operations(TorchDispatchMode):
    """Records the names of the operations that compute something."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in VIEWS:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("layer", "forward", "backward"),
    [
        (torch.nn.Linear(4, 6), ["addmm"], ["mm", "mm", "sum"]),
        (BiasedLinear(4, 6), ["mv", "add", "addmm"], ["mm", "sum", "mv", "mm", "addr_"]),
    ],
)
def test_a_linear_layer_launches_few_operations(layer, forward, backward):
    x = torch.randn(3, 4, requires_grad=True)
    with Operations() as operations:
        y = layer(x)
    assert operations.names == forward
    direction = torch.randn_like(y)
    with torch.autograd.set_multithreading_enabled(False), Operations() as operations:
        torch.autograd.grad(y, [x, *layer.parameters()], direction)
    assert sorted(operations.names) == sorted(backward)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (2, 0, 4), (2, 5, 3, 4)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_join_may_change_the_output_of_a_linear_layer(shape, transposed):
    """Autograd forbids it on a view, which F.linear returns in some versions of torch."""
    layer, x = BiasedLinear(4, 6).double(), torch.randn(shape, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    h = x.transpose(0, -2) if transposed and x.ndim > 1 else x
    y = layer(h)
    trunk = torch.randn_like(y, requires_grad=True)
    assert not y._is_view()
    changed = torch.autograd.grad(y.add_(trunk, alpha=0.7).square().sum(), [*inputs, trunk])
    expected = torch.autograd.grad((layer(h) + 0.7 * trunk).square().sum(), [*inputs, trunk])
    torch.testing.assert_close(changed, expected)


@pytest.mark.parametrize("sections", [(), (2, 4)])
def test_a_gradient_to_be_differentiated_again_is_not_changed_in_place(sections):
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    pre_bias = torch.randn(*([len(sections)] if sections else []), 4)
    y = biased_linear(x, weight, pre_bias, None, scale=0.5, sections=sections)
    with torch.autograd.set_multithreading_enabled(False), Operations() as operations:
        torch.autograd.grad(y.sum(), [x, weight], create_graph=True)
    assert not [name for name in operations.names if name.endswith("_")]
