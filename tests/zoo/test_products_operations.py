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


@pytest.mark.parametrize("sections", [(), (2, 4)])
def test_a_gradient_to_be_differentiated_again_is_not_changed_in_place(sections):
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    pre_bias = torch.randn(*([len(sections)] if sections else []), 4)
    y = biased_linear(x, weight, pre_bias, None, scale=0.5, sections=sections)
    with torch.autograd.set_multithreading_enabled(False), Operations() as operations:
        torch.autograd.grad(y.sum(), [x, weight], create_graph=True)
    assert not [name for name in operations.names if name.endswith("_")]
