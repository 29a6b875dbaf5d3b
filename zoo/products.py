"""Products with the bias before them, at the cost of the bare product.

y = scale * (W (x + b) + bias), the layer of RescaleNet (paper, section 3.1), for convolutions and for linear layers.
Written out, the bias costs a pass over the activations in forward, one in backward and a saved copy of x
+ b, the scale a saved copy of W. Here backward keeps x itself, which the ReLU before it has saved already, and the
parameters: nothing else. There are two exact ways:

- *fold*: W x + W b, for unpadded products. No pass over x, but four over something of the size of W.
- *shift*: W pad(x + b), for padded products (their zeros go around x + b, so W b is another at the borders) and for
  unpadded ones with small maps. Two short-lived passes over x, and a sum over its gradient.

docs/performance.md has the measurements behind the choice and the ways that were not taken."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Scale = Tensor | float | None


class Geometry(NamedTuple):
    """How a convolution moves over its input: one number for each spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


_convolution_backward = torch.ops.aten.convolution_backward.default


def biased_product(
    x: Tensor,
    weight: Tensor,
    pre_bias: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    *,
    scale: Scale = None,
    input_scale: float = 1.0,
    pool: tuple[int, ...] = (),
) -> Tensor:
    """scale * (W pad(x + input_scale * pre_bias) + input_scale * bias), a convolution.

    Under autocast the product is computed in autocast's dtype, the folded bias and scaled weights in the parameters'.

    Args:
        x: (N, I, *positions).
        weight: (O, I/groups, *kernel).
        pre_bias, bias: (I,); and (O,) or None.
        scale: a number or 0-D tensor, multiplied into the weights.
        input_scale: a layer whose input is s times its nominal input multiplies its biases by s and so gives s times
            its nominal output.
        pool: average x over windows of this size first, one number for each spatial dimension; incomplete windows at
            the ends count what is there. The means are made again in backward, not saved.

    Returns:
        (N, O, *positions).
    """
    dtype = autocast_dtype(x)
    if dtype is None:
        return _dispatch(x, weight, pre_bias, bias, scale, input_scale, pool, geometry, weight.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return _dispatch(x.to(dtype), weight, pre_bias, bias, scale, input_scale, pool, geometry, dtype)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast computes products of x in (float64 stays); None where it is off."""
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return None
    return torch.get_autocast_dtype(device) if x.dtype != torch.float64 else x.dtype


def in_autograd() -> bool:
    """Whether a forward is run for a backward of our own; compilers, exporters and functorch want the formula."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not (torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active())


def _dispatch(*arguments: Any) -> Tensor:
    """The formula, with the arguments of ``_product``, for whoever runs it: a compiler, autograd, or nobody."""
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return _product_to_compile(*arguments)
    return _Product.apply(*arguments) if in_autograd() else _product(*arguments)


def _shift_in_forward(x: Tensor, weight: Tensor, scale: Scale, geometry: Geometry) -> bool:
    """Whether shift is needed, or moves fewer elements through memory than fold.

    Shift reads and writes x. Fold reads W, and reads and writes it before that for a scale.
    """
    if any(geometry.padding):
        return True
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False  # one graph for all sizes
    return 2 * x.numel() <= (1 if scale is None else 3) * weight.numel()


def _shift_in_backward(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """The same for backward: 3 for each of x against 3 for each of W and 1 for each of y."""
    if any(geometry.padding):
        return True
    y = x.numel() * weight.shape[0] // (weight.shape[1] * geometry.groups * math.prod(geometry.stride))
    return 3 * x.numel() <= 3 * weight.numel() + y


def _product(
    x: Tensor,
    weight: Tensor,
    pre_bias: Tensor,
    bias: Tensor | None,
    scale: Scale,
    input_scale: float,
    pool: tuple[int, ...],
    geometry: Geometry,
    dtype: torch.dtype,
) -> Tensor:
    """The formula, either way, as ordinary operations."""
    x = pooled(x, pool)
    beta = bias
    if _shift_in_forward(x, weight, scale, geometry):
        on_x = x.dtype == weight.dtype  # the scale comes with the shift, unless that would round it to half precision
        x = _shifted(x, pre_bias, scale if on_x else None, input_scale, geometry)
        kernel = weight if on_x else multiply_unless_one(weight, scale)
    else:
        folded = product_bias(weight, pre_bias, geometry.groups)
        beta = folded if bias is None else folded + bias
        kernel = multiply_unless_one(weight, scale)
    if beta is not None:
        beta = multiply_unless_one(multiply_unless_one(beta, input_scale), scale).to(dtype)
    stride, padding, dilation, groups = geometry
    return torch.convolution(x, kernel.to(dtype), beta, stride, padding, dilation, False, [0] * len(stride), groups)


def _product_to_compile(
    x: Tensor,
    weight: Tensor,
    pre_bias: Tensor,
    bias: Tensor | None,
    scale: Scale,
    input_scale: float,
    pool: tuple[int, ...],
    geometry: Geometry,
    dtype: torch.dtype,
) -> Tensor:
    """The formula with all of the bias after the product, where a compiler joins it to the ReLU that follows.

    What W pad(b) adds at a position depends on how much of the kernel lies on the padding there: a map for one image,
    made by a convolution over a single channel of ones.
    """
    x = pooled(x, pool)
    kernel = multiply_unless_one(weight, scale)
    stride, padding, dilation, groups = geometry
    by_group = kernel.view(groups, -1, *kernel.shape[1:])  # (groups, O/groups, I/groups, *kernel)
    b = multiply_unless_one(pre_bias, input_scale).view(groups, 1, -1, *[1] * len(stride))
    added = (by_group * b).sum(2).view(kernel.shape[0], 1, *kernel.shape[2:])  # (O, 1, *kernel)
    if any(padding):
        ones = torch.ones(1, 1, *x.shape[2:], dtype=weight.dtype, device=x.device)
        added = torch.convolution(ones, added, None, stride, padding, dilation, False, [0] * len(stride), 1)
    else:
        added = added.flatten(1).sum(1).view(-1, *[1] * len(stride))
    if bias is not None:
        added = added + multiply_unless_one(multiply_unless_one(bias, input_scale), scale).view(-1, *[1] * len(stride))
    y = torch.convolution(x, kernel.to(dtype), None, stride, padding, dilation, False, [0] * len(stride), groups)
    return y + added.to(dtype)


def keep_inputs(ctx: Any, x: Tensor, weight: Tensor, pre_bias: Tensor, bias: Tensor | None, scale: Scale) -> None:
    """What a backward of our own needs of its forward; ``kept_inputs`` gives it back."""
    learned = isinstance(scale, Tensor)
    ctx.scale = None if learned else scale
    ctx.save_for_backward(x, weight, pre_bias, bias, scale if learned else None)


def kept_inputs(ctx: Any) -> tuple[Any, ...]:
    """x, weight, pre_bias, bias and scale, as ``keep_inputs`` got them."""
    *tensors, scale = ctx.saved_tensors
    return *tensors, ctx.scale if scale is None else scale


class _Product(torch.autograd.Function):
    """``_product`` that saves its inputs only. Can be differentiated twice."""

    # One forward with ctx instead of forward and setup_context, which torch calls 20 microseconds slower.
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        x, weight, pre_bias, bias, scale, ctx.input_scale, ctx.pool, ctx.geometry, ctx.dtype = args
        keep_inputs(ctx, x, weight, pre_bias, bias, scale)
        return _product(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        whole, weight, pre_bias, bias, scale = kept_inputs(ctx)
        x = pooled(whole, ctx.pool)
        need_x, need_w, need_b, need_bias, need_scale = ctx.needs_input_grad[:5]
        # y = K h + beta: h is x + b (shift) or x; the scale is on h or on W, which gives K; beta has the rest
        shift = _shift_in_backward(x, weight, ctx.geometry)
        on_h = shift and scale is not None and x.dtype == weight.dtype and 2 * x.numel() <= 3 * weight.numel()
        grad_x, grad_w = _product_backward(
            grad,
            _shifted(x, pre_bias, scale if on_h else None, ctx.input_scale, ctx.geometry) if shift else x,
            (weight if on_h else multiply_unless_one(weight, scale)).to(ctx.dtype),
            ctx.geometry,
            need_x or (shift and need_b) or (on_h and need_scale),
            need_w or (need_scale and not on_h),
        )
        grad_b: Any = None
        grad_beta: Any = None
        grad_scale = None
        if grad_w is not None:
            grad_w = grad_w.to(weight.dtype)
        if not shift or need_bias or (need_scale and bias is not None):
            grad_beta = multiply_unless_one(_sum_to_channels(grad, weight.dtype), ctx.input_scale)
        if not shift:
            grad_b = multiply_unless_one(_transposed(weight, grad_beta, ctx.geometry.groups), scale)
            if grad_w is not None:
                grad_w = _add_outer(grad_w, grad_beta, pre_bias, ctx.geometry.groups)
        elif need_b or (on_h and need_scale):
            grad_b = multiply_unless_one(_sum_to_channels(grad_x, weight.dtype), ctx.input_scale)
        if need_scale:
            grad_scale = dot(x, grad_x) + torch.dot(grad_b, pre_bias) if on_h else dot(weight, grad_w)
            if bias is not None:
                grad_scale = grad_scale + torch.dot(grad_beta, bias)
        if on_h:
            grad_b = None if grad_b is None else multiply_unless_one(grad_b, scale)
            grad_x = multiply_in_place(grad_x, scale) if need_x else None
        elif scale is not None and need_w:
            grad_w = multiply_in_place(grad_w, scale)
        if need_x and ctx.pool:
            grad_x = _pooled_backward(grad_x, whole, ctx.pool)
        return (
            grad_x if need_x else None,
            grad_w if need_w else None,
            grad_b if need_b else None,
            multiply_unless_one(grad_beta, scale) if need_bias else None,
            grad_scale,
            *[None] * 5,
        )


def _product_backward(
    grad: Tensor, h: Tensor, kernel: Tensor, geometry: Geometry, need_h: bool, need_kernel: bool
) -> tuple[Any, Any]:
    """Gradients of the bare product; None for what is not needed."""
    stride, padding, dilation, groups = geometry
    # without the bias: oneDNN takes twice as long for it as a sum does
    mask = [need_h, need_kernel, False]
    return _convolution_backward(
        grad, h, kernel, None, stride, padding, dilation, False, [0] * len(stride), groups, mask
    )[:2]


def product_bias(weight: Tensor, pre_bias: Tensor, groups: int = 1) -> Tensor:
    """W b for each output channel: (O, I/groups, ...) and (I,) -> (O,)."""
    summed = _sum_positions(weight)
    if groups == 1:
        return torch.mv(summed, pre_bias)
    return torch.bmm(summed.view(groups, -1, summed.shape[1]), pre_bias.view(groups, -1, 1)).flatten()


def per_channel(bias: Tensor, x: Tensor) -> Tensor:
    """(C,) -> (C, 1, ...) to broadcast over the positions of x (N, C, ...), in x's dtype (bf16 stays bf16)."""
    return bias.to(x.dtype).view(-1, *[1] * (x.ndim - 2))


def _sum_to_channels(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, C, *positions) -> (C,)."""
    return grad.sum((0, *range(2, grad.ndim)), dtype=dtype)


def _shifted(x: Tensor, pre_bias: Tensor, scale: Scale, input_scale: float, geometry: Geometry) -> Tensor:
    """scale * (x + input_scale * pre_bias), in one pass."""
    bias = pre_bias.view(-1, *[1] * len(geometry.stride))
    if scale is None:
        return torch.add(x, bias.to(x.dtype), alpha=input_scale)
    bias = multiply_unless_one(multiply_unless_one(bias, input_scale), scale).to(x.dtype)
    if isinstance(scale, float):
        return torch.add(bias, x, alpha=scale)
    return torch.addcmul(bias, x, scale)


def pooled(x: Tensor, pool: tuple[int, ...]) -> Tensor:
    """Means of x (N, C, *positions) over windows of this size, those at the ends over what is there; () for x."""
    if not pool:
        return x
    if len(pool) == 2:
        return F.avg_pool2d(x, pool, pool, ceil_mode=True, count_include_pad=False)
    pool = clipped_window(pool, x)
    return F.avg_pool3d(_whole(x), pool, pool, ceil_mode=True, count_include_pad=False).to(x.dtype)


def clipped_window(window: tuple[int, ...], x: Tensor) -> tuple[int, ...]:
    """The window no larger than x (N, C, *positions), as torch's 3D pools want it even where they round up."""
    return tuple(min(extent, size) for extent, size in zip(window, x.shape[2:], strict=True))


def _pooled_backward(grad: Tensor, x: Tensor, pool: tuple[int, ...]) -> Tensor:
    if len(pool) == 2:
        return torch.ops.aten.avg_pool2d_backward(grad, x, pool, pool, [0, 0], True, False, None)
    pool = clipped_window(pool, x)
    backward = torch.ops.aten.avg_pool3d_backward
    return backward(_whole(grad), _whole(x), pool, pool, [0, 0, 0], True, False, None).to(grad.dtype)


def _whole(x: Tensor) -> Tensor:
    """x in a precision that the CPU's avg_pool3d has."""
    return x.float() if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16) else x


def multiply_unless_one(tensor: Tensor, scale: Scale) -> Tensor:
    """The product; factors None and 1 cost nothing."""
    return tensor if scale is None or (isinstance(scale, float) and scale == 1) else tensor * scale


def _sum_positions(weight: Tensor) -> Tensor:
    """(O, I, ...) -> (O, I); a view for kernels of one position."""
    if weight.shape[2:].numel() == 1:
        return weight.view(weight.shape[:2])
    return weight.sum(tuple(range(2, weight.ndim)))


def _transposed(weight: Tensor, grad: Tensor, groups: int) -> Tensor:
    """Gradient (I,) of b, from the gradient (O,) of W b."""
    summed = _sum_positions(weight)
    if groups == 1:
        return torch.mv(summed.t(), grad)
    return (summed.view(groups, -1, summed.shape[1]) * grad.view(groups, -1, 1)).sum(1).flatten()


def _add_outer(grad_w: Tensor, grad: Tensor, pre_bias: Tensor, groups: int) -> Tensor:
    """What comes to W through W b, the same at every kernel position, added to its gradient."""
    in_place = not torch.is_grad_enabled()  # it is on where the gradient is to be differentiated again
    if groups == 1 and grad_w.shape[2:].numel() == 1:
        matrix = grad_w.view(grad_w.shape[:2])
        return (matrix.addr_(grad, pre_bias) if in_place else matrix.addr(grad, pre_bias)).view(grad_w.shape)
    outer = (grad.view(groups, -1, 1) * pre_bias.view(groups, 1, -1)).view(grad_w.shape[:2])
    outer = outer.view(*outer.shape, *[1] * (grad_w.ndim - 2))
    return grad_w.add_(outer) if in_place else grad_w + outer


def multiply_in_place(grad: Tensor, scale: Tensor | float) -> Tensor:
    """The product; in place unless the gradient is to be differentiated again."""
    return grad * scale if torch.is_grad_enabled() else grad.mul_(scale)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of products, without a copy where both lie in memory in the same order."""
    order = sorted(range(a.ndim), key=a.stride, reverse=True)
    return torch.dot(a.permute(order).flatten(), b.permute(order).flatten())


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
        input_scale: as in ``zoo.products.biased_product``.
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
    beta = multiply_unless_one(beta, input_scale if scale is None else scale * input_scale).to(dtype)
    kernel = multiply_unless_one(weight, scale).to(dtype)
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
        kernel = multiply_unless_one(weight, scale)
        grad_x = grad_w = grad_b = grad_bias = grad_scale = None
        if need_x:
            grad_x = (rows @ kernel.to(ctx.dtype)).view(x.shape)
        summed = multiply_unless_one(
            rows.sum(0, dtype=weight.dtype), ctx.input_scale
        )  # gradient of W b + bias, without the scale
        if need_b:
            grad_b = _transposed_packed(kernel, summed, ctx.sections)
        if need_bias:
            grad_bias = multiply_unless_one(summed, scale)
        if need_w or need_scale:
            product = (rows.t() @ x.reshape(-1, weight.shape[1])).to(weight.dtype)
            product = _add_outer_packed(product, summed, pre_bias, ctx.sections)
            if need_scale:
                grad_scale = dot(weight, product)
                if bias is not None:
                    grad_scale = grad_scale + torch.dot(summed, bias)
            if need_w:
                grad_w = product if scale is None else multiply_in_place(product, scale)
        return grad_x, grad_w, grad_b, grad_bias, grad_scale, None, None, None


def _add_outer_packed(grad_w: Tensor, grad: Tensor, pre_bias: Tensor, sections: Sections) -> Tensor:
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


def _transposed_packed(kernel: Tensor, grad: Tensor, sections: Sections) -> Tensor:
    """Gradient (I,), or (sections, I), of b, from the gradient (O,) of W b."""
    if not sections:
        return torch.mv(kernel.t(), grad)
    parts = zip(kernel.split(sections), grad.split(sections), strict=True)
    return torch.stack([torch.mv(part.t(), g) for part, g in parts])
