"""The parts that convolutions and linear layers share: choice of the backward, saved tensors, algebra of W b.

No helper launches an operation that its result does not need: factors of 1 are skipped, kernels of one position are
viewed as matrices, and gradients are changed in place unless they are to be differentiated again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

Scale = Tensor | float | None  # factor on a product: a number, 0-D tensor, or a tensor (O,) of one per output channel


class Needed(NamedTuple):
    """Whether autograd asks for the gradient of each input."""

    x: bool
    weight: bool
    pre_bias: bool
    bias: bool
    scale: bool
    weight_scale: bool = False


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype in which autocast computes products of x (float64 for float64), None if autocast is off."""
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return None
    return torch.get_autocast_dtype(device) if x.dtype != torch.float64 else x.dtype


def in_autograd() -> bool:
    """Return whether autograd records eager operations, so that a backward of our own is used.

    Compilers, exporters and functorch get ordinary operations, which they differentiate or convert themselves.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not (torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active())


def save_inputs(ctx: Any, *inputs: Any) -> None:
    """Save the inputs of a forward for backward: tensors where autograd sees them, the others beside them."""
    is_tensor = [isinstance(value, Tensor) for value in inputs]
    ctx.save_for_backward(*(value if tensor else None for value, tensor in zip(inputs, is_tensor, strict=True)))
    ctx.others = [None if tensor else value for value, tensor in zip(inputs, is_tensor, strict=True)]


def saved_inputs(ctx: Any) -> tuple[Any, ...]:
    """Return what ``save_inputs`` saved, in the same order."""
    return tuple(
        other if tensor is None else tensor for tensor, other in zip(ctx.saved_tensors, ctx.others, strict=True)
    )


def without_base(output: Tensor) -> Tensor:
    """Return the output of a forward of our own, which joins change in place: autograd forbids that on a view.

    In torch 2.11 to 2.13 F.linear of (B, T, I) with a bias returns a view of the matrix (B T, O). Nothing else refers
    to that matrix, so no copy is needed.
    """
    return torch.ops.aten._unsafe_view(output, output.shape) if output._is_view() else output


def product_bias(weight: Tensor, pre_bias: Tensor, groups: int = 1) -> Tensor:
    """Return W b for each output channel: (O, I/groups, *kernel) and (I,) -> (O,)."""
    matrix = _sum_positions(weight)  # (O, I/groups)
    if groups == 1:
        return torch.mv(matrix, pre_bias)
    return torch.bmm(matrix.view(groups, -1, matrix.shape[1]), pre_bias.view(groups, -1, 1)).flatten()


def pre_bias_gradient(weight: Tensor, grad: Tensor, groups: int = 1) -> Tensor:
    """Return the gradient (I,) of b, given the gradient (O,) of W b."""
    matrix = _sum_positions(weight)  # (O, I/groups)
    if groups == 1:
        return torch.mv(matrix.t(), grad)
    return (matrix.view(groups, -1, matrix.shape[1]) * grad.view(groups, -1, 1)).sum(1).flatten()


def add_outer(grad_weight: Tensor, grad: Tensor, pre_bias: Tensor, groups: int = 1) -> Tensor:
    """Add to W's gradient (O, I/groups, *kernel) what reaches W through W b, given the gradient (O,) of W b.

    That is grad b^T, the same at every position of the kernel.
    """
    in_place = not torch.is_grad_enabled()
    if grad_weight.ndim == 2 and groups == 1:
        return grad_weight.addr_(grad, pre_bias) if in_place else grad_weight.addr(grad, pre_bias)
    matrix_shape, positions = grad_weight.shape[:2], grad_weight.shape[2:]
    if groups == 1 and positions.numel() == 1:
        return add_outer(grad_weight.view(matrix_shape), grad, pre_bias).view(grad_weight.shape)
    outer = (grad.view(groups, -1, 1) * pre_bias.view(groups, 1, -1)).view(matrix_shape)
    outer = outer.view(*matrix_shape, *[1] * len(positions))
    return grad_weight.add_(outer) if in_place else grad_weight + outer


def through_scaled_weight(
    grad_kernel: Any, grad_beta: Any, weight: Tensor, bias: Tensor | None, scale: Scale, need: Needed
) -> tuple[Any, Any]:
    """Return the gradients of W and of the scale, given ``grad_kernel`` of scale * W and ``grad_beta`` of the bias.

    With y = scale * (W x + bias), ``grad_beta`` is taken before the scale. What is not needed may be None.
    """
    grad_scale = None
    if need.scale and is_per_filter(scale):
        grad_scale = (weight * grad_kernel).flatten(1).sum(1)
        if bias is not None:
            grad_scale = grad_scale + grad_beta * bias
    elif need.scale:
        grad_scale = dot(weight, grad_kernel)
        if bias is not None:
            grad_scale = grad_scale + torch.dot(grad_beta, bias)
    if scale is not None and need.weight:
        grad_kernel = multiply_in_place(grad_kernel, of_filters(scale, weight))
    return grad_kernel, grad_scale


def _sum_positions(weight: Tensor) -> Tensor:
    """Sum over the positions of the kernel: (O, I, *kernel) -> (O, I), a view if there is one position."""
    if weight.ndim == 2:
        return weight
    if weight.shape[2:].numel() == 1:
        return weight.view(weight.shape[:2])
    return weight.sum(tuple(range(2, weight.ndim)))


def per_channel(bias: Tensor, x: Tensor) -> Tensor:
    """View a bias as (C, 1, ...), to broadcast over the positions of x (N, C, *positions), in x's dtype."""
    return bias.to(x.dtype).view(-1, *[1] * (x.ndim - 2))


def add_per_channel(x: Tensor, bias: Tensor, alpha: float = 1.0) -> Tensor:
    """Return x + alpha * bias for x (N, C, *positions) and a bias (C,), in x's dtype and memory layout."""
    if not _fewer_channels_than_lanes(x):
        return torch.add(x, per_channel(bias, x), alpha=alpha)
    # one row of memory is (W, C): the bias is repeated for each of its positions
    last = x.movedim(1, -1)
    rows = last.reshape(-1, last.shape[-2] * last.shape[-1])
    repeated = bias.to(x.dtype).repeat(last.shape[-2])
    return torch.add(rows, repeated, alpha=alpha).view(last.shape).movedim(-1, 1)


def _fewer_channels_than_lanes(x: Tensor) -> bool:
    """Return whether torch adds a number per channel to x without vector instructions.

    On the CPU it does so if the channels are the innermost dimension and do not fill a vector of 32 half-precision
    numbers: 3.4 ms in place of 0.4 for (128, 16, 32, 32) in bfloat16.
    """
    if x.dtype not in (torch.bfloat16, torch.float16) or x.device.type != "cpu" or x.shape[1] >= 32:
        return False
    if x.ndim not in (4, 5) or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False  # a graph must not depend on the layout of x
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return x.is_contiguous(memory_format=layout) and not x.is_contiguous()


def per_filter(factor: Tensor, weight: Tensor) -> Tensor:
    """View a factor (O,) as (O, 1, ...), to multiply the filters of W (O, I/groups, *kernel)."""
    return factor.view(-1, *[1] * (weight.ndim - 1))


def is_per_filter(scale: Scale) -> bool:
    """Return whether a scale has one factor per output channel."""
    return isinstance(scale, Tensor) and scale.ndim == 1


def of_filters(scale: Any, weight: Tensor) -> Any:
    """View a scale so that it multiplies the filters of W: ``per_filter`` of one per output channel, others as is."""
    return per_filter(scale, weight) if is_per_filter(scale) else scale


def multiply_unless_one(tensor: Tensor, scale: Scale) -> Tensor:
    """Return tensor * scale; if scale is None or the number 1, the tensor itself."""
    return tensor if scale is None or (isinstance(scale, float) and scale == 1) else tensor * scale


def multiply_in_place(grad: Tensor, scale: Tensor | float) -> Tensor:
    """Return grad * scale, in place unless the gradient is to be differentiated again."""
    return grad * scale if torch.is_grad_enabled() else grad.mul_(scale)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of a * b, without a copy if both have the same order in memory."""
    order = sorted(range(a.ndim), key=a.stride, reverse=True)
    return torch.dot(a.permute(order).flatten(), b.permute(order).flatten())
