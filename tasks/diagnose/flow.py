"""How activations follow from each other in a forward: which additions join a trunk and a branch, where channels are.

Any net can be followed, because PyTorch shows each elementary operation to a ``TorchDispatchMode``, also those inside
of functions and of autograd's functions. A residual connection is an addition of two activations of which one was
computed from the other, or both from a third on ways with a different number of products.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten

# operations that multiply by a weight, which the depth counts
PRODUCTS = frozenset(
    {
        aten.convolution,
        aten._convolution,
        aten.convolution_overrideable,
        aten.mkldnn_convolution,
        aten.cudnn_convolution,
        aten.addmm,
        aten.mm,
        aten.linear,
        aten.mkldnn_linear,
        aten.bmm,
        aten.baddbmm,
        aten._native_multi_head_attention,
        aten._transformer_encoder_layer_fwd,
    }
)
ADDITIONS = frozenset({aten.add, aten.add_})

# dimension of the channels in the result of an operation, where the operation determines it
_DIMENSIONS = {
    aten.convolution: 1,
    aten._convolution: 1,
    aten.convolution_overrideable: 1,
    aten.mkldnn_convolution: 1,
    aten.cudnn_convolution: 1,
    aten.addmm: -1,
    aten.mm: -1,
    aten.linear: -1,
    aten.mkldnn_linear: -1,
    aten.bmm: -1,
    aten.baddbmm: -1,
    aten.embedding: -1,
    aten._native_multi_head_attention: -1,
    aten._transformer_encoder_layer_fwd: -1,
}


class Channels(NamedTuple):
    """Which values in a memory belong to one channel.

    Views of the memory, such as a permutation, have the channels in another dimension but at the same stride.

    Attributes:
        ndim: number of dimensions of the tensor that was written.
        dim: dimension of its channels.
        size: number of channels.
        stride: distance in memory from one channel to the next.
    """

    ndim: int
    dim: int
    size: int
    stride: int

    @classmethod
    def at(cls, tensor: Tensor, dim: int) -> Channels | None:
        """Return the channels of a tensor with samples, which dimension 0 counts; None of another tensor."""
        if tensor.ndim < 2 or not tensor.numel():  # empty tensors have no memory of their own
            return None
        return cls(tensor.ndim, dim % tensor.ndim, tensor.shape[dim], tensor.stride(dim))

    def dimension(self, tensor: Tensor) -> int | None:
        """Return the dimension of the channels in a view of the memory; None where it has none, or not only one."""
        if self.size == 1:  # whose stride means nothing
            fits = [d for d in range(1, tensor.ndim) if tensor.shape[d] == 1]
        else:
            fits = [d for d in range(1, tensor.ndim) if tensor.shape[d] > 1 and tensor.stride(d) == self.stride]
        if tensor.ndim == self.ndim and self.dim in fits:  # one of several, as of maps of one position
            return self.dim
        return fits[0] if len(fits) == 1 else None


@dataclass
class Node:
    """What is known of the values in a memory.

    Attributes:
        constant: whether they follow from parameters, buffers and numbers alone.
        depth: largest number of products on a way from the input.
        own: bits of the operations that wrote into the memory.
        ancestors: bits of all operations that the values follow from, its own among them.
        channels: place of the channels; None if that is not known.
    """

    constant: bool
    depth: int = 0
    own: int = 0
    ancestors: int = 0
    channels: Channels | None = None


_INPUT = Node(constant=False)  # memory that no operation of the forward has written


@dataclass(frozen=True)
class Residual:
    """The operands of an addition that joins trunk and branch.

    Attributes:
        trunk: weighted shortcut's values before its weight.
        branch: values of the branch before their weight.
        trunk_weight, branch_weight: numbers that the addition multiplies by.
        identity: whether the trunk itself is added, and not a projection of it.
    """

    trunk: Tensor
    branch: Tensor
    trunk_weight: float
    branch_weight: float
    identity: bool


class Flow:
    """The nodes of one forward.

    Args:
        constants: parameters and buffers of the net.
    """

    def __init__(self, constants: Iterable[Tensor]) -> None:
        self._nodes = {_key(tensor): Node(constant=True) for tensor in constants}
        self._operations = 0

    def node(self, tensor: Tensor) -> Node:
        """Return the node of a tensor's memory."""
        return self._nodes.get(_key(tensor), _INPUT)

    def dimension(self, tensor: Tensor) -> int | None:
        """Return the dimension of the channels of a tensor, as products and norms left them; None if not known."""
        channels = self.node(tensor).channels
        return None if channels is None or not tensor.numel() else channels.dimension(tensor)

    def place(self, tensor: Tensor, dim: int) -> None:
        """Note the dimension of the channels of a module's output, which the operations in it may not show."""
        node = self._nodes.get(_key(tensor))
        if node is not None and not node.constant and (channels := Channels.at(tensor, dim)) is not None:
            node.channels = channels

    def residual(self, first: Any, second: Any, weight: float) -> Residual | None:
        """Return what ``first + weight * second`` joins, or None if that is no residual connection.

        Both must be activations of one shape (N, ..., C or C, ...), and one must have passed more products.
        """
        if not (isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape == second.shape):
            return None
        if first.ndim < 2 or not first.is_floating_point():
            return None
        a, b = self.node(first), self.node(second)
        if a.constant or b.constant or a.depth == b.depth:
            return None
        # The trunk is the operand that the other one follows from, or else the one with fewer products.
        first_is_trunk = a.depth < b.depth
        trunk, branch = (a, b) if first_is_trunk else (b, a)
        identity = trunk is _INPUT or bool(trunk.own & branch.ancestors)
        if not identity and not trunk.ancestors & branch.ancestors and trunk.ancestors:
            return None  # two inputs that have nothing in common
        if first_is_trunk:
            return Residual(first, second, 1.0, weight, identity)
        return Residual(second, first, weight, 1.0, identity)

    def record(self, operation: Any, arguments: Any, result: Any) -> None:
        """Note what an operation computed from which tensors."""
        inputs = list(_tensors(arguments))
        nodes = [self.node(tensor) for tensor in inputs]
        keys = {_key(tensor) for tensor in inputs}
        constant = all(node.constant for node in nodes)  # also of no inputs: numbers, random or not
        depth = max((node.depth for node in nodes if not node.constant), default=0)
        ancestors = 0
        for node in nodes:
            ancestors |= node.ancestors
        for tensor in _tensors(result):
            if constant:
                self._nodes[_key(tensor)] = Node(constant=True)
                continue
            bit = 1 << self._operations
            self._operations += 1
            key = _key(tensor)
            before = self._nodes.get(key) if key in keys else None  # of a view, or of what is written in place
            own = bit | (0 if before is None else before.own)
            channels = None if before is None else before.channels
            if channels is None:
                channels = self._channels(operation, arguments, inputs, tensor)
            added = operation in PRODUCTS
            self._nodes[key] = Node(False, depth + added, own, ancestors | own, channels)

    def _channels(self, operation: Any, arguments: Any, inputs: list[Tensor], result: Tensor) -> Channels | None:
        """Return where the channels of a result are: as the operation has them, or as in an input that is like it."""
        dim = _DIMENSIONS.get(operation)
        if operation is aten.native_layer_norm and len(arguments[0][1]) == 1:  # over the last dimension alone
            dim = -1
        if dim is None:
            like = [tensor for tensor in inputs if tensor.ndim == result.ndim]
            like.sort(key=lambda tensor: tensor.shape != result.shape)  # the same shape first, as of x * gate
            found = (self.dimension(tensor) for tensor in like)
            dim = next((each for each in found if each is not None), None)
        return None if dim is None else Channels.at(result, dim)


def same_memory(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors are views of the same memory."""
    return _key(first) == _key(second)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in the arguments or results of an operation."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
