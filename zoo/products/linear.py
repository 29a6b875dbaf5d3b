"""Linear layers with the bias before the product, always by *fold*: y = scale * (W x + W b + bias).

A narrow Transformer runs hundreds of linear layers per step, each so cheap that the number of operations dominates its
time. This layer needs three operations in forward and five in backward; ``torch.nn.Linear`` needs one and three.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.products import common
from zoo.products.common import Needed, Scale, multiply_unless_one

Sections = tuple[int, ...]


def biased_linear(
    x: Tensor,
    weight: Tensor,
    pre_bias: Tensor,
    bias: Tensor | None,
    *,
    scale: Scale = None,
    input_scale: float = 1.0,
    sections: Sections = (),
) -> Tensor:
    """Return scale * (W (x + input_scale * pre_bias) + input_scale * bias): (..., I) -> (..., O).

    Backward saves x and the parameters only. Under autocast the product has autocast's dtype; W b and scale * W are
    computed in the dtype of the parameters.

    Args:
        x: input, (..., I).
        weight: W, (O, I).
        pre_bias: bias before the product, (I,), or (number of sections, I).
        bias: bias after the product, (O,), or None.
        scale: number or 0-D tensor that is multiplied into the weights, or a tensor (O,) of factors on the output
            channels; None for 1.
        input_scale: factor s on both biases, for an input that is s times the x of M7 (docs/method.md, M11).
        sections: sizes of the parts of O, if several linear layers of the same x are packed into one weight; each part
            has its own row of ``pre_bias``.

    >>> x, weight, pre_bias = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([10.0, 20.0])
    >>> biased_linear(x, weight, pre_bias, None, scale=0.5)  # 0.5 * (3 * (1 + 10) + 4 * (2 + 20))
    tensor([[60.5000]])
    """
    dtype = common.autocast_dtype(x)
    if dtype is None:
        return _dispatch(x, weight, pre_bias, bias, scale, input_scale, sections, weight.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return _dispatch(x.to(dtype), weight, pre_bias, bias, scale, input_scale, sections, dtype)


def _dispatch(*inputs: Any) -> Tensor:
    """Compute ``_linear`` with the backward of this module where autograd runs eagerly, else as it is."""
    return _Linear.apply(*inputs) if common.in_autograd() else _linear(*inputs)


def _linear(
    x: Tensor,
    weight: Tensor,
    pre_bias: Tensor,
    bias: Tensor | None,
    scale: Scale,
    input_scale: float,
    sections: Sections,
    dtype: torch.dtype,
) -> Tensor:
    """Compute the layer with ordinary operations."""
    beta = folded_bias(weight, pre_bias, sections)
    if bias is not None:
        beta = beta + bias
    beta = multiply_unless_one(beta, input_scale if scale is None else scale * input_scale).to(dtype)
    kernel = multiply_unless_one(weight, common.of_filters(scale, weight)).to(dtype)
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return F.linear(x, kernel) + beta  # a compiler joins the addition to the operations that follow
    return F.linear(x, kernel, beta)


def folded_bias(weight: Tensor, pre_bias: Tensor, sections: Sections = ()) -> Tensor:
    """Return W b: (O, I) and (I,), or (number of sections, I), -> (O,)."""
    if not sections:
        return common.product_bias(weight, pre_bias)
    return torch.cat([common.product_bias(part, b) for part, b in zip(weight.split(sections), pre_bias, strict=True)])


class _Linear(torch.autograd.Function):
    """``_linear`` with a backward that saves only the inputs. It can be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        common.save_inputs(ctx, *inputs)
        return common.without_base(_linear(*inputs))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Return the gradients: the row "fold" of the table in ``zoo.products.convolution``, with h = x as a matrix."""
        x, weight, pre_bias, bias, scale, input_scale, sections, dtype = common.saved_inputs(ctx)
        need = Needed(*ctx.needs_input_grad[:5])
        grad = grads[0].reshape(-1, weight.shape[0])  # (..., O) -> (rows, O)
        kernel = multiply_unless_one(weight, common.of_filters(scale, weight))
        grad_x = grad_weight = grad_pre_bias = grad_bias = grad_scale = None
        if need.x:
            grad_x = (grad @ kernel.to(dtype)).view(x.shape)
        # u, the gradient of W b + bias before the scale
        grad_beta = multiply_unless_one(grad.sum(0, dtype=weight.dtype), input_scale)  # (O,)
        if need.pre_bias:  # from the scaled W, which is computed already
            grad_pre_bias = _pre_bias_gradient(kernel, grad_beta, sections)
        if need.bias:
            grad_bias = multiply_unless_one(grad_beta, scale)
        if need.weight or need.scale:
            # W's gradient before the scale, through W x and through W b
            grad_weight = (grad.t() @ x.reshape(-1, weight.shape[1])).to(weight.dtype)  # (O, I)
            grad_weight = _add_outer(grad_weight, grad_beta, pre_bias, sections)
            grad_weight, grad_scale = common.through_scaled_weight(grad_weight, grad_beta, weight, bias, scale, need)
        return grad_x, grad_weight if need.weight else None, grad_pre_bias, grad_bias, grad_scale, None, None, None


def _add_outer(grad_weight: Tensor, grad: Tensor, pre_bias: Tensor, sections: Sections) -> Tensor:
    """Apply ``common.add_outer`` to each section."""
    if not sections:
        return common.add_outer(grad_weight, grad, pre_bias)
    parts = zip(grad_weight.split(sections), grad.split(sections), pre_bias, strict=True)
    sums = [common.add_outer(*part) for part in parts]
    return torch.cat(sums) if torch.is_grad_enabled() else grad_weight  # without grad mode the parts changed in place


def _pre_bias_gradient(weight: Tensor, grad: Tensor, sections: Sections) -> Tensor:
    """Return ``common.pre_bias_gradient`` of each section: (O, I) and (O,) -> (I,), or (number of sections, I)."""
    if not sections:
        return common.pre_bias_gradient(weight, grad)
    parts = zip(weight.split(sections), grad.split(sections), strict=True)
    return torch.stack([common.pre_bias_gradient(*part) for part in parts])
