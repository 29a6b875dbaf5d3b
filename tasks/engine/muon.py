"""Muon: momentum whose matrices are orthogonalized, beside another optimizer for what is no hidden matrix.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", https://kellerjordan.github.io/posts/muon.
torch's ``Muon`` has the same arithmetic and takes matrices only; here filters are matrices too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the published quintic: steepest at 0, within about 0.3 of 1 elsewhere
_EPS = 1e-7  # smallest norm to divide by


def orthogonalized(matrix: Tensor, steps: int) -> Tensor:
    """Return a matrix with nearly the same singular vectors and singular values of 0.7 to 1.2, in bfloat16.

    The Newton-Schulz iteration X <- a X + (b A + c A A) X with A = X X^T, from X = matrix / its Frobenius norm.

    Args:
        matrix: matrix (A, B), or several of one shape (matrices, A, B).
        steps: number of the iterations.
    """
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.to(torch.bfloat16, copy=True)
    x = x.mT if tall else x  # the smaller of the two Gram matrices
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) if x.ndim > 2 else x.norm()
    x = x.div_(norm.clamp(min=_EPS))
    add_product = torch.baddbmm if x.ndim > 2 else torch.addmm
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = add_product(gram, gram, gram, beta=b, alpha=c)
        x = add_product(x, polynomial, x, beta=a)
    return x.mT if tall else x


def rate_factor(outputs: int, inputs: int, adjust_lr_fn: str) -> float:
    """Return the factor on the learning rate of a matrix (outputs, inputs): torch's ``adjust_lr_fn``.

    ``original``: sqrt(max(1, outputs / inputs)) of Jordan et al. ``match_rms_adamw``: 0.2 sqrt(max(outputs, inputs)),
    which gives updates the size of AdamW's (Liu et al. 2025, arXiv:2502.16982, eq. 4).
    """
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(outputs, inputs))
    return math.sqrt(max(1, outputs / inputs))


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates and decoupled weight decay.

    A filter bank (O, I, kh, kw) is the matrix (O, I kh kw). A group may have ``matrices``: the number of matrices, one
    above the other, in each of its weights, such as queries, keys and values, or the groups of a grouped convolution.
    Each is orthogonalized by itself, as it is a product of its own (Jordan et al., on queries, keys and values).

    Args:
        params: groups of parameters with two or more dimensions.
        lr: learning rate of groups without one.
        momentum: share of the momentum that stays in a step.
        nesterov: whether the update is the gradient of Nesterov's momentum.
        ns_steps: steps of the iteration.
        weight_decay: decay of groups without one.
        adjust_lr_fn: see ``rate_factor``.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        weight_decay: float = 0.1,
        adjust_lr_fn: str = "original",
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        super().__init__(
            params, {**settings, "weight_decay": weight_decay, "adjust_lr_fn": adjust_lr_fn, "matrices": 1}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient. Matrices of one shape are orthogonalized together."""
        for group in self.param_groups:
            same_shape: dict[tuple[int, int], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    outputs = len(parameter)
                    same_shape.setdefault((outputs, parameter.numel() // outputs), []).append(parameter)
            for parameters in same_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters whose matrices have one shape."""
        momentum, rate = group["momentum"], group["lr"]
        gradients: list[Tensor] = [parameter.grad for parameter in parameters]  # type: ignore[misc]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(gradient)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        directions = torch._foreach_lerp(gradients, buffers, momentum) if group["nesterov"] else buffers
        # filters as rows, in the order of their indices whatever the layout in memory: (matrices, O', B)
        matrices = torch.cat([x.flatten(1).unflatten(0, (group["matrices"], -1)) for x in directions])
        # one matrix as two dimensions, to the bit as torch computes it
        updates = orthogonalized(matrices[0] if len(matrices) == 1 else matrices, group["ns_steps"])
        factor = rate_factor(matrices.shape[-2], matrices.shape[-1], group["adjust_lr_fn"])
        own = [
            update.reshape(parameter.shape)
            for update, parameter in zip(updates.reshape(len(parameters), -1), parameters, strict=True)
        ]
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        torch._foreach_add_(parameters, own, alpha=-rate * factor)


class JoinedOptimizer(torch.optim.Optimizer):
    """Several optimizers, of different parameters, as one: a step is a step of each.

    ``param_groups`` has the groups of all; a learning rate that is set there is set in its optimizer.

    Args:
        parts: optimizers.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make a step of each optimizer."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the optimizers, in their order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        # each has new groups now
        self.param_groups = [group for part in self.parts for group in part.param_groups]
