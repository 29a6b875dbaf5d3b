"""Linear layers with the bias before them, at the cost of the bare layer: the *fold* of ``zoo.functional``.

A narrow Transformer's step consists of hundreds of these, of operations so small that their number is what counts: here
are three in forward and six in backward, where the bare layer has one and three.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.functional import (
    Scale,
    autocast_dtype,
    in_autograd,
    inner,
    keep_inputs,
    kept_inputs,
    times,
    times_in_place,
)

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
    """scale * (W (x + input_scale * pre_bias) + input_scale * bias): (..., I) -> (..., O).

    Backward keeps x and the parameters: no x + b, no scaled copy of W. Under autocast the product is computed in
    autocast's dtype, the folded bias and scaled weights in the parameters'.

    Args:
        weight: (O, I).
        pre_bias, bias: (I,), or (sections, I); and (O,) or None.
        scale: a number or 0-D tensor, multiplied into the weights.
        input_scale: as in ``zoo.functional.biased_product``.
        sections: numbers of outputs of linear layers that are packed into one, each with a bias before it of its own.
    """
    dtype = autocast_dtype(x)
    if dtype is None:
        return _run(x, weight, pre_bias, bias, scale, input_scale, sections, weight.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return _run(x.to(dtype), weight, pre_bias, bias, scale, input_scale, sections, dtype)


def _run(*arguments: Any) -> Tensor:
    """The formula, with the arguments of ``_linear``, for whoever runs it: a compiler, autograd, or nobody."""
    return _Linear.apply(*arguments) if in_autograd() else _linear(*arguments)


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
    """The formula as ordinary operations."""
    beta = folded_bias(weight, pre_bias, sections)
    if bias is not None:
        beta = beta + bias
    beta = times(beta, input_scale if scale is None else scale * input_scale).to(dtype)
    kernel = times(weight, scale).to(dtype)
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return F.linear(x, kernel) + beta  # a compiler joins the addition to what follows
    return F.linear(x, kernel, beta)


def folded_bias(weight: Tensor, pre_bias: Tensor, sections: Sections = ()) -> Tensor:
    """W b: (O, I) and (I,), or (sections, I), -> (O,)."""
    if not sections:
        return torch.mv(weight, pre_bias)
    return torch.cat([torch.mv(part, b) for part, b in zip(weight.split(sections), pre_bias, strict=True)])


class _Linear(torch.autograd.Function):
    """``_linear`` that saves its inputs only. Can be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        x, weight, pre_bias, bias, scale, ctx.input_scale, ctx.sections, ctx.dtype = args
        keep_inputs(ctx, x, weight, pre_bias, bias, scale)
        return _linear(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, weight, pre_bias, bias, scale = kept_inputs(ctx)
        need_x, need_w, need_b, need_bias, need_scale = ctx.needs_input_grad[:5]
        rows = grads[0].reshape(-1, weight.shape[0])
        kernel = times(weight, scale)
        grad_x = grad_w = grad_b = grad_bias = grad_scale = None
        if need_x:
            grad_x = (rows @ kernel.to(ctx.dtype)).view(x.shape)
        summed = times(rows.sum(0, dtype=weight.dtype), ctx.input_scale)  # gradient of W b + bias, without the scale
        if need_b:
            grad_b = _transposed(kernel, summed, ctx.sections)
        if need_bias:
            grad_bias = times(summed, scale)
        if need_w or need_scale:
            product = (rows.t() @ x.reshape(-1, weight.shape[1])).to(weight.dtype)
            product = _add_outer(product, summed, pre_bias, ctx.sections)
            if need_scale:
                grad_scale = inner(weight, product)
                if bias is not None:
                    grad_scale = grad_scale + torch.dot(summed, bias)
            if need_w:
                grad_w = product if scale is None else times_in_place(product, scale)
        return grad_x, grad_w, grad_b, grad_bias, grad_scale, None, None, None


def _add_outer(grad_w: Tensor, grad: Tensor, pre_bias: Tensor, sections: Sections) -> Tensor:
    """What comes to W through W b, added to its gradient."""
    in_place = not torch.is_grad_enabled()  # it is on where the gradient is to be differentiated again
    if not sections:
        return grad_w.addr_(grad, pre_bias) if in_place else grad_w.addr(grad, pre_bias)
    parts = zip(grad_w.split(sections), grad.split(sections), pre_bias, strict=True)
    if not in_place:
        return torch.cat([part.addr(g, b) for part, g, b in parts])
    for part, g, b in parts:
        part.addr_(g, b)
    return grad_w


def _transposed(kernel: Tensor, grad: Tensor, sections: Sections) -> Tensor:
    """Gradient (I,), or (sections, I), of b, from the gradient (O,) of W b."""
    if not sections:
        return torch.mv(kernel.t(), grad)
    parts = zip(kernel.split(sections), grad.split(sections), strict=True)
    return torch.stack([torch.mv(part.t(), g) for part, g in parts])
