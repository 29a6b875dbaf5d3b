"""The cross entropy of a linear layer's outputs, without keeping them.

The logits of a translation net are its largest tensor by far: (tokens, vocabulary). They are made here for a slice of
the tokens at a time, and their gradient at once, so that neither they nor their softmax is saved for backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.products import autocast_dtype

SLICE = 1 << 21  # logits made at a time: 8 MiB in float32


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sum over tokens of the cross entropy of softmax(W x), and of the loss without smoothing.

    Equals ``F.cross_entropy(F.linear(x, weight), targets, reduction="sum", label_smoothing=label_smoothing)``. The
    softmax is computed in float32 (float64 for float64 input). Under autocast the products are in autocast's dtype.
    The gradients are made in forward; they cannot be differentiated again.

    Args:
        x: (N, I); weight: (V, I); targets: int64 (N,), each below V.

    Returns:
        The loss, and the negative log likelihood without a gradient: two 0-D tensors.
    """
    dtype = autocast_dtype(x)
    if dtype is None:
        return _LinearCrossEntropy.apply(x, weight, targets, label_smoothing, x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return _LinearCrossEntropy.apply(x, weight, targets, label_smoothing, dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, smoothing: float, dtype: torch.dtype) -> Any:
        precise = torch.promote_types(dtype, torch.float32)
        need_x, need_w = ctx.needs_input_grad[:2]
        kernel, vocabulary = weight.to(dtype), weight.shape[0]
        grad_x = torch.empty_like(x) if need_x else None
        grad_w = torch.zeros_like(weight) if need_w else None
        likelihood, picked = (torch.zeros((), dtype=precise, device=x.device) for _ in range(2))
        size = max(1, SLICE // vocabulary)
        for start in range(0, len(x), size):
            part, target = x[start : start + size].to(dtype), targets[start : start + size, None]
            logits = (part @ kernel.t()).to(precise)
            chosen = logits.gather(1, target)
            picked += chosen.sum()
            top = logits.amax(1, keepdim=True)
            share = torch.softmax(logits, 1)
            likelihood += (top - share.amax(1, keepdim=True).log() - chosen).sum()  # top - log: the log of the sum
            if need_x or need_w:
                share.scatter_add_(1, target, share.new_full((), smoothing - 1).expand(target.shape))
                share = share.to(dtype)
            if grad_x is not None:
                grad_x[start : start + size] = share @ kernel
            if grad_w is not None:
                if grad_w.dtype == dtype:
                    grad_w.addmm_(share.t(), part)
                else:
                    grad_w += share.t() @ part
        loss = likelihood.clone()
        if smoothing:  # the part that all classes share is linear in x and in W: no pass over the logits
            all_x, all_w = x.to(dtype).sum(0, dtype=precise), kernel.sum(0, dtype=precise)
            loss += smoothing * (picked - torch.dot(all_x, all_w) / vocabulary)
            if grad_x is not None:
                grad_x -= (all_w * (smoothing / vocabulary)).to(x.dtype)
            if grad_w is not None:
                grad_w -= (all_x * (smoothing / vocabulary)).to(weight.dtype)
        ctx.save_for_backward(grad_x, grad_w)
        ctx.mark_non_differentiable(likelihood)
        return loss, likelihood

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        scale = grads[0]
        return *(None if g is None else g * scale.to(g.dtype) for g in ctx.saved_tensors), None, None, None
