"""Convolutions with the bias before the product: y = scale * (g W pad(x + b) + bias), by *fold* or by *shift*.

With ``Geometry.biased_padding`` it is pad(x) + b in place of pad(x + b), for padded products by *fold*.

Fold, shift and the reason for both are in ``zoo.products``; the gradients are derived at ``_Product``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.products import common
from zoo.products.common import Needed, Scale, multiply_unless_one
from zoo.products.pooling import pooled, pooled_backward

_convolution_backward = torch.ops.aten.convolution_backward.default


class Geometry(NamedTuple):
    """How a convolution moves over its input: one number for each spatial dimension, and the number of groups.

    ``biased_padding``: whether the bias before the product is added to the zeros around the input too.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    biased_padding: bool = False

    @property
    def padded(self) -> bool:
        """Whether there are zeros around the input."""
        return any(self.padding)

    @property
    def bias_varies(self) -> bool:
        """Whether what the bias before the product adds to the output depends on the position: less at the borders."""
        return self.padded and not self.biased_padding


class _Inputs(NamedTuple):
    """The arguments of ``biased_product``, and the dtype in which the product is computed."""

    x: Tensor
    weight: Tensor
    pre_bias: Tensor
    bias: Tensor | None
    scale: Scale
    weight_scale: Tensor | None
    input_scale: float
    pool: tuple[int, ...]
    geometry: Geometry
    dtype: torch.dtype


def biased_product(
    x: Tensor,
    weight: Tensor,
    pre_bias: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    *,
    scale: Scale = None,
    weight_scale: Tensor | None = None,
    input_scale: float = 1.0,
    pool: tuple[int, ...] = (),
) -> Tensor:
    """Return the convolution scale * (weight_scale * W pad(x + input_scale * pre_bias) + input_scale * bias).

    With ``geometry.biased_padding`` the zeros around x are there before the bias is added: W (pad(x) + ...).

    Backward saves x and the parameters only. Under autocast the product has autocast's dtype; W b and scale * W are
    computed in the dtype of the parameters.

    Args:
        x: input, (N, I, *positions).
        weight: W, (O, I/groups, *kernel).
        pre_bias: bias before the product, (I,).
        bias: bias after the product, (O,), or None.
        geometry: stride, padding, dilation and groups of the convolution, and whether the bias is added to the padding.
        scale: number or 0-D tensor that is multiplied into the weights, or a tensor (O,) of factors on the output
            channels; None for 1.
        weight_scale: factor on each filter of W, (O,); None for 1.
        input_scale: factor s on both biases, for an input that is s times the x of M7 (docs/method.md, M11).
        pool: size of the windows over which x is averaged before the bias is added, one number for each spatial
            dimension (``zoo.products.pooled``); () for none. Backward computes the means again.

    Returns:
        The output, (N, O, *positions).

    >>> x, weight, pre_bias = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), torch.tensor([1.0])
    >>> biased_product(x, weight, pre_bias, None, Geometry((1, 1), (1, 1), (1, 1), 1))[0, 0]  # 2 per position inside
    tensor([[ 8., 12.,  8.],
            [12., 18., 12.],
            [ 8., 12.,  8.]])
    """
    if isinstance(scale, Tensor) and common.is_per_filter(scale):  # a factor on the filters and on the bias after them
        weight_scale = scale if weight_scale is None else scale * weight_scale
        bias, scale = None if bias is None else scale * bias, None
    dtype = common.autocast_dtype(x)
    if dtype is None:
        rest = (scale, weight_scale, input_scale, pool, geometry, weight.dtype)
        return _dispatch(_Inputs(x, weight, pre_bias, bias, *rest))
    with torch.autocast(x.device.type, enabled=False):
        rest = (scale, weight_scale, input_scale, pool, geometry, dtype)
        return _dispatch(_Inputs(x.to(dtype), weight, pre_bias, bias, *rest))


def _dispatch(inputs: _Inputs) -> Tensor:
    """Compute the product in the form that suits the caller: a compiler, eager autograd, or neither."""
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return _product_to_compile(inputs)
    return _Product.apply(*inputs) if common.in_autograd() else _product(inputs)


def _shift_in_forward(x: Tensor, weight: Tensor, scale: Scale, geometry: Geometry) -> bool:
    """Return whether forward shifts.

    A padded product shifts if W b depends on the position, and only then. An unpadded one shifts if that moves less
    memory than fold.

    Shift reads and writes x. Fold reads W once, and reads and writes it before that if there is a scale.
    """
    if geometry.padded:
        return geometry.bias_varies
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False  # the graph must not depend on the size of x
    return 2 * x.numel() <= (1 if scale is None else 3) * weight.numel()


def _shift_in_backward(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Return whether backward shifts, by the rule of ``_shift_in_forward``.

    Shift reads and writes x, and reads x's gradient to sum it. Fold reads W, reads and writes W's gradient, and reads
    y's gradient to sum it.
    """
    if geometry.padded:
        return geometry.bias_varies
    y = x.numel() * weight.shape[0] // (weight.shape[1] * geometry.groups * math.prod(geometry.stride))
    return 3 * x.numel() <= 3 * weight.numel() + y


def _output_is_smaller(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Return whether the output has fewer values than W, so that a factor per output channel costs less there.

    Under autocast the factor belongs to W, which is not rounded yet.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or x.dtype != weight.dtype:
        return False
    positions = x.numel() // (x.shape[1] * math.prod(geometry.stride))
    return positions * weight.shape[0] < weight.numel()


def _product(inputs: _Inputs) -> Tensor:
    """Compute the product with ordinary operations, by fold or by shift (docs/method.md, M9)."""
    x, weight, pre_bias, beta, scale, weight_scale, input_scale, pool, geometry, dtype = inputs
    x = pooled(x, pool)
    shift = _shift_in_forward(x, weight, scale, geometry)
    if weight_scale is not None:
        return _product_with_weight_scale(inputs._replace(x=x), weight_scale, shift)
    # shift multiplies the scale in the pass that adds b, but never rounds it to an x of less precision (autocast)
    scale_of_x, scale_of_weight = (scale, None) if shift and x.dtype == weight.dtype else (None, scale)
    if shift:
        x = _shifted(x, pre_bias, scale_of_x, input_scale)
    else:
        folded = common.product_bias(weight, pre_bias, geometry.groups)  # (O,)
        beta = folded if beta is None else folded + beta
    kernel = multiply_unless_one(weight, scale_of_weight)
    if beta is not None:
        beta = multiply_unless_one(multiply_unless_one(beta, input_scale), scale).to(dtype)
    return _convolution(x, kernel.to(dtype), beta, geometry)


def _product_with_weight_scale(inputs: _Inputs, weight_scale: Tensor, shift: bool) -> Tensor:
    """Compute the product of the pooled input with a factor on each filter, which multiplies the smaller of W and y."""
    x, weight, scale, beta, dtype = inputs.x, inputs.weight, inputs.scale, inputs.bias, inputs.dtype
    factor = multiply_unless_one(weight_scale, scale)  # (O,)
    # the bias after the product
    if shift:
        x = _shifted(x, inputs.pre_bias, None, inputs.input_scale)
    else:
        folded = common.product_bias(weight, inputs.pre_bias, inputs.geometry.groups) * weight_scale
        beta = folded if beta is None else folded + beta
    if beta is not None:
        beta = multiply_unless_one(multiply_unless_one(beta, inputs.input_scale), scale).to(dtype)
    # the product and the factor
    if not _output_is_smaller(x, weight, inputs.geometry):
        kernel = weight * common.per_filter(factor, weight)
        return _convolution(x, kernel.to(dtype), beta, inputs.geometry)
    y = _convolution(x, weight, None, inputs.geometry)
    factor = common.per_channel(factor, y)
    return y * factor if beta is None else torch.addcmul(common.per_channel(beta, y), y, factor)


def _product_to_compile(inputs: _Inputs) -> Tensor:
    """Compute the product with all of the bias after it, where a compiler joins the addition to the ReLU that follows.

    W pad(b) may depend on the position, through the part of the kernel that lies on the padding. It is the same for all
    images: one convolution over a single channel of ones.
    """
    x, weight, pre_bias, bias, scale, weight_scale, input_scale, pool, geometry, dtype = inputs
    x = pooled(x, pool)
    kernel = multiply_unless_one(weight, scale)
    if weight_scale is not None:
        kernel = weight * common.per_filter(multiply_unless_one(weight_scale, scale), weight)
    ones = [1] * len(geometry.stride)
    # what each kernel position adds where it does not lie on the padding: its part of W b
    by_group = kernel.view(geometry.groups, -1, *kernel.shape[1:])  # (groups, O/groups, I/groups, *kernel)
    b = multiply_unless_one(pre_bias, input_scale).view(geometry.groups, 1, -1, *ones)  # (groups, 1, I/groups, 1, ...)
    beta = (by_group * b).sum(2).view(kernel.shape[0], 1, *kernel.shape[2:])  # (O, 1, *kernel)
    if geometry.bias_varies:
        image = torch.ones(1, 1, *x.shape[2:], dtype=weight.dtype, device=x.device)
        beta = _convolution(image, beta, None, geometry._replace(groups=1))  # (1, O, *positions of y)
    else:
        beta = beta.flatten(1).sum(1).view(-1, *ones)  # (O, 1, ...)
    if bias is not None:
        beta = beta + multiply_unless_one(multiply_unless_one(bias, input_scale), scale).view(-1, *ones)
    return _convolution(x, kernel.to(dtype), None, geometry) + beta.to(dtype)


def _convolution(x: Tensor, kernel: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups, _ = geometry
    return torch.convolution(x, kernel, bias, stride, padding, dilation, False, [0] * len(stride), groups)


def _shifted(x: Tensor, pre_bias: Tensor, scale: Scale, input_scale: float) -> Tensor:
    """Return scale * (x + input_scale * pre_bias), in one pass over x (N, I, *positions)."""
    if scale is None:
        return common.add_per_channel(x, pre_bias, input_scale)
    bias = pre_bias.view(-1, *[1] * (x.ndim - 2))
    bias = multiply_unless_one(multiply_unless_one(bias, input_scale), scale).to(x.dtype)
    if isinstance(scale, float):
        return torch.add(bias, x, alpha=scale)
    return torch.addcmul(bias, x, scale)


class _Product(torch.autograd.Function):
    """``_product`` with a backward that saves only the inputs. It can be differentiated twice.

    y = s (W * pad(x + i b) + i beta), with i for ``input_scale`` and s for ``scale``. Backward computes it as a bare
    product K * h, to which autograd's own convolution backward gives the gradients H of h (N, I, *positions) and
    G of K (O, I/groups, *kernel). With u = i sum(dL/dy) over batch and positions, (O,):

    =================  ===========  ===  =====  ===============  ============  ===================================
    way                h            K    dL/dx  dL/dW            dL/db         dL/ds
    =================  ===========  ===  =====  ===============  ============  ===================================
    fold               x            s W  H      s (G + u b^T)    s W^T u       <W, G + u b^T> + <u, beta>
    shift, scale on W  x + i b      s W  H      s G              i sum(H)      <W, G> + <u, beta>
    shift, scale on x  s (x + i b)  W    s H    G                s i sum(H)    <x, H> + <b, i sum(H)> + <u, beta>
    =================  ===========  ===  =====  ===============  ============  ===================================

    dL/dbeta is s u in all rows. u b^T is the same at every kernel position, and W^T u sums over them. With a factor
    ``weight_scale`` on each filter see ``_weight_scale_backward``.
    """

    # One forward with ctx: torch takes 18 microseconds more for a forward without it and setup_context.
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        common.save_inputs(ctx, *inputs)
        return _product(_Inputs(*inputs))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        inputs, need = _Inputs(*common.saved_inputs(ctx)), Needed(*ctx.needs_input_grad[:6])
        full_x, scale, pool = inputs.x, inputs.scale, inputs.pool
        # the average before the product, which forward did not save
        if pool:
            inputs = inputs._replace(x=pooled(full_x, pool))
        if inputs.weight_scale is not None:
            found = _weight_scale_backward(inputs, inputs.weight_scale, grads[0], need)
        else:
            found = (*_row(inputs)(inputs, grads[0], need), None)
        grad_x, grad_weight, grad_pre_bias, grad_beta, grad_scale, grad_weight_scale = found
        # back through the average
        if need.x and pool:
            grad_x = pooled_backward(grad_x, full_x, pool)
        return (
            grad_x if need.x else None,
            grad_weight if need.weight else None,
            grad_pre_bias if need.pre_bias else None,
            multiply_unless_one(grad_beta, scale) if need.bias else None,
            grad_scale,
            grad_weight_scale,
            *[None] * 4,
        )


def _row(inputs: _Inputs) -> Callable[[_Inputs, Tensor, Needed], tuple[Any, ...]]:
    """Return the row of the table at ``_Product``.

    Shift multiplies the scale into the smaller of x and W, but never into an x of less precision than W.
    """
    x, weight, scale = inputs.x, inputs.weight, inputs.scale
    if not _shift_in_backward(x, weight, inputs.geometry):
        return _fold_backward
    if scale is None or x.dtype != weight.dtype or 2 * x.numel() > 3 * weight.numel():
        return _shift_backward
    return _scaled_shift_backward


# Each way returns dL/dx, dL/dW, dL/db, u and dL/ds; a gradient that is not needed is None or ignored.


def _fold_backward(inputs: _Inputs, grad: Tensor, need: Needed) -> tuple[Any, ...]:
    """Compute the row "fold" of the table at ``_Product``; u is always needed."""
    weight, pre_bias, scale, groups = inputs.weight, inputs.pre_bias, inputs.scale, inputs.geometry.groups
    grad_x, grad_kernel = _bare_backward(inputs, grad, inputs.x, scale, need.x, need.weight or need.scale)
    grad_beta = _sum(inputs, grad)
    grad_pre_bias = multiply_unless_one(common.pre_bias_gradient(weight, grad_beta, groups), scale)
    if grad_kernel is not None:
        grad_kernel = common.add_outer(grad_kernel, grad_beta, pre_bias, groups)  # G + u b^T
    grad_weight, grad_scale = common.through_scaled_weight(grad_kernel, grad_beta, weight, inputs.bias, scale, need)
    return grad_x, grad_weight, grad_pre_bias, grad_beta, grad_scale


def _shift_backward(inputs: _Inputs, grad: Tensor, need: Needed) -> tuple[Any, ...]:
    """Compute the row "shift, scale on W" of the table at ``_Product``."""
    weight, bias, scale, input_scale = inputs.weight, inputs.bias, inputs.scale, inputs.input_scale
    h = _shifted(inputs.x, inputs.pre_bias, None, input_scale)
    grad_h, grad_kernel = _bare_backward(inputs, grad, h, scale, need.x or need.pre_bias, need.weight or need.scale)
    grad_beta = _sum(inputs, grad) if need.bias or (need.scale and bias is not None) else None
    grad_pre_bias = _sum(inputs, grad_h) if need.pre_bias else None
    grad_weight, grad_scale = common.through_scaled_weight(grad_kernel, grad_beta, weight, bias, scale, need)
    return grad_h, grad_weight, grad_pre_bias, grad_beta, grad_scale


def _scaled_shift_backward(inputs: _Inputs, grad: Tensor, need: Needed) -> tuple[Any, ...]:
    """Compute the row "shift, scale on x" of the table at ``_Product``."""
    x, pre_bias, bias, scale = inputs.x, inputs.pre_bias, inputs.bias, inputs.scale
    assert scale is not None
    h = _shifted(x, pre_bias, scale, inputs.input_scale)
    grad_h, grad_weight = _bare_backward(inputs, grad, h, None, need.x or need.pre_bias or need.scale, need.weight)
    grad_beta: Any = _sum(inputs, grad) if need.bias or (need.scale and bias is not None) else None
    grad_pre_bias = grad_scale = None
    if need.pre_bias or need.scale:
        grad_shift = _sum(inputs, grad_h)
        if need.scale:
            grad_scale = common.dot(x, grad_h) + torch.dot(grad_shift, pre_bias)
            if bias is not None:
                grad_scale = grad_scale + torch.dot(grad_beta, bias)
        grad_pre_bias = multiply_unless_one(grad_shift, scale)
    grad_x = common.multiply_in_place(grad_h, scale) if need.x else None  # last: it may overwrite grad_h
    return grad_x, grad_weight, grad_pre_bias, grad_beta, grad_scale


def _weight_scale_backward(
    inputs: _Inputs, weight_scale: Tensor, grad: Tensor, need: Needed
) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Compute the gradients with a factor g on each filter: those of the other functions, and dL/dg last.

    y = s (g W * pad(x + i b) + i beta). With f = s g, (O,), and G of K = f W, the rows "fold" and "shift" become

        dL/dW = f (G + u b^T)    dL/db = W^T (f u)    r = <W, G + u b^T> of each filter, (O,)
        dL/dW = f G              dL/db = i sum(H)     r = <W, G> of each filter

    and in both dL/ds = <g, r> + <u, beta>, dL/dg = s r. If neither s nor g is trained and y is smaller than W, f
    multiplies y's gradient in place of W: then G is dL/dW itself, and W is read only.
    """
    weight, pre_bias, bias, scale = inputs.weight, inputs.pre_bias, inputs.bias, inputs.scale
    factor = multiply_unless_one(weight_scale, scale)  # f
    need_rows = need.scale or need.weight_scale
    # the bare products, with f on the smaller of W and y's gradient
    shift = _shift_in_backward(inputs.x, weight, inputs.geometry)
    h = _shifted(inputs.x, pre_bias, None, inputs.input_scale) if shift else inputs.x
    on_output = not need_rows and _output_is_smaller(inputs.x, weight, inputs.geometry)
    grad_y = grad * common.per_channel(factor, grad) if on_output else grad
    of_kernel = None if on_output else common.per_filter(factor, weight)
    need_h, need_kernel = need.x or (shift and need.pre_bias), need.weight or need_rows
    grad_h, grad_kernel = _bare_backward(inputs, grad_y, h, of_kernel, need_h, need_kernel)
    # the bias before the product
    grad_beta: Any = None  # u
    if not shift or need.bias or (need_rows and bias is not None):
        grad_beta = _sum(inputs, grad)
    grad_pre_bias = None
    if shift:
        grad_pre_bias = _sum(inputs, grad_h) if need.pre_bias else None
    else:
        grad_product = grad_beta * factor
        grad_pre_bias = common.pre_bias_gradient(weight, grad_product, inputs.geometry.groups)
        if grad_kernel is not None:
            u = grad_product if on_output else grad_beta
            grad_kernel = common.add_outer(grad_kernel, u, pre_bias, inputs.geometry.groups)
    # the factors
    grad_scale = grad_weight_scale = None
    if need_rows:
        rows = (weight * grad_kernel).flatten(1).sum(1)  # r
        grad_weight_scale = multiply_unless_one(rows, scale) if need.weight_scale else None
        if need.scale:
            grad_scale = torch.dot(weight_scale, rows)
            if bias is not None:
                grad_scale = grad_scale + torch.dot(grad_beta, bias)
    if need.weight and not on_output:
        grad_kernel = common.multiply_in_place(grad_kernel, common.per_filter(factor, weight))
    return grad_h, grad_kernel, grad_pre_bias, grad_beta, grad_scale, grad_weight_scale


def _bare_backward(
    inputs: _Inputs, grad: Tensor, h: Tensor, scale: Scale, need_h: bool, need_kernel: bool
) -> tuple[Any, Any]:
    """Return the gradients H and G of K * h, K = scale * W; None for what is not needed."""
    stride, padding, dilation, groups, _ = inputs.geometry
    kernel = multiply_unless_one(inputs.weight, scale).to(inputs.dtype)
    # no gradient of a bias: oneDNN takes 2.2 ms for it where the separate sum takes 1.0 ms (docs/performance.md)
    mask = [need_h, need_kernel, False]
    grad_h, grad_kernel, _ = _convolution_backward(
        grad, h, kernel, None, stride, padding, dilation, False, [0] * len(stride), groups, mask
    )
    return grad_h, None if grad_kernel is None else grad_kernel.to(inputs.weight.dtype)


def _sum(inputs: _Inputs, grad: Tensor) -> Tensor:
    """Return i sum(grad) over batch and positions: (N, C, *positions) -> (C,), in the dtype of the parameters."""
    total = grad.sum((0, *range(2, grad.ndim)), dtype=inputs.weight.dtype)
    return multiply_unless_one(total, inputs.input_scale)
