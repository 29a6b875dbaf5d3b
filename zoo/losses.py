"""The cross entropy of a linear layer's outputs, without storing them for backward.

The logits of a translation net, (tokens, vocabulary), are by far its largest tensor. Forward computes them for a slice
of the tokens at a time, and their gradient at once, so that neither the logits nor their softmax is saved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.products import autocast_dtype

SLICE = 1 << 21  # number of logits that are computed at a time: 8 MiB in float32


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the cross entropy of softmax(W x), summed over tokens, with and without label smoothing.

    The first equals ``F.cross_entropy(F.linear(x, weight), targets, reduction="sum", label_smoothing=...)``. The
    softmax is computed in float32 (float64 for float64 input). Under autocast the products have autocast's dtype.
    Forward computes the gradients, so they cannot be differentiated again.

    Args:
        x: input of the linear layer, (N, I).
        weight: W, (V, I), for a vocabulary of V.
        targets: index of each token's class, int64 (N,), below V.
        label_smoothing: part of the target probability that is spread evenly over all classes.

    Returns:
        The loss, and the negative log likelihood, which has no gradient: two 0-D tensors.

    >>> loss, _ = linear_cross_entropy(torch.ones(1, 1), torch.zeros(4, 1), torch.tensor([2]))  # log 4
    >>> loss
    tensor(1.3863)
    """
    dtype = autocast_dtype(x)
    if dtype is None:
        return _LinearCrossEntropy.apply(x, weight, targets, label_smoothing, x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return _LinearCrossEntropy.apply(x, weight, targets, label_smoothing, dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    """The losses of ``linear_cross_entropy``, with the gradients of the first computed in forward.

    For one token with logits z = W x, target t and smoothing e:

        nll = log(sum(exp(z))) - z_t
        loss = nll + e (z_t - mean(z))
        dloss/dz = softmax(z) - (1 - e) onehot(t) - e / V
        dloss/dx = W^T dloss/dz,  dloss/dW = dloss/dz x^T
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, smoothing: float, dtype: torch.dtype) -> Any:
        precise = torch.promote_types(dtype, torch.float32)
        need_x, need_weight = ctx.needs_input_grad[:2]
        kernel, vocabulary = weight.to(dtype), weight.shape[0]  # (V, I)
        grad_x = torch.empty_like(x) if need_x else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        nll, sum_of_target_logits = (torch.zeros((), dtype=precise, device=x.device) for _ in range(2))
        size = max(1, SLICE // vocabulary)  # n tokens of each slice
        for start in range(0, len(x), size):
            part, target = x[start : start + size].to(dtype), targets[start : start + size, None]  # (n, I), (n, 1)
            # nll; the log of the sum of exp(z) is max(z) - log(max(softmax(z))), so exp is computed once
            logits = (part @ kernel.t()).to(precise)  # (n, V)
            target_logits = logits.gather(1, target)  # (n, 1)
            sum_of_target_logits += target_logits.sum()
            largest = logits.amax(1, keepdim=True)  # (n, 1)
            grad = torch.softmax(logits, 1)  # (n, V), which becomes dloss/dz below
            nll += (largest - grad.amax(1, keepdim=True).log() - target_logits).sum()
            # dloss/dz, without the constant e / V
            if need_x or need_weight:
                grad.scatter_add_(1, target, grad.new_full((), smoothing - 1).expand(target.shape))
                grad = grad.to(dtype)
            # dloss/dx and dloss/dW
            if grad_x is not None:
                grad_x[start : start + size] = grad @ kernel
            if grad_weight is not None:
                if grad_weight.dtype == dtype:
                    grad_weight.addmm_(grad.t(), part)
                else:
                    grad_weight += grad.t() @ part
        loss = nll.clone()
        if smoothing:
            # e mean(z) is linear in x and in W, so that its sum over tokens and its gradients e / V need no logits
            sum_x, sum_weight = x.to(dtype).sum(0, dtype=precise), kernel.sum(0, dtype=precise)  # (I,), (I,)
            loss += smoothing * (sum_of_target_logits - torch.dot(sum_x, sum_weight) / vocabulary)
            if grad_x is not None:
                grad_x -= (sum_weight * (smoothing / vocabulary)).to(x.dtype)
            if grad_weight is not None:
                grad_weight -= (sum_x * (smoothing / vocabulary)).to(weight.dtype)
        ctx.save_for_backward(grad_x, grad_weight)
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad_loss = grads[0]
        return *(None if g is None else g * grad_loss.to(g.dtype) for g in ctx.saved_tensors), None, None, None
