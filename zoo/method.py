"""The formulas of the paper: coefficients, initialization, statistics of the branches.

Shao, Hu, Wang, Xue, Raj, "Is normalization indispensable for training deep neural networks?", NeurIPS 2020. Letters
follow the paper: k counts residual branches through the whole net, L is their number, c the constant of the decay
(c = L by default). M2, M6, ... are the formulas of docs/method.md.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from zoo.arguments import instance_of, real_number, whole_number
from zoo.errors import ZooError
from zoo.trunk import TrunkBlock


def coefficients(k: int, c: float) -> tuple[float, float]:
    """Return the weights (alpha_k, beta_k) of trunk and branch in the k-th rescaled residual connection (M2).

    x_k = alpha_k x_{k-1} + beta_k F_k(x_{k-1}),  alpha_k = sqrt((k-1+c)/(k+c)),  beta_k = sqrt(1/(k+c))

    so that alpha_k^2 + beta_k^2 = 1 (M3) and every branch reaches the output with the same weight (M4; paper, section
    3.2). ``k = 0`` is accepted, because the authors' code counts from 0.

    Raises:
        ZooError: if k is negative, c is not positive, or k-1+c is negative.
    """
    k, c = whole_number(k, "k", None), real_number(c, "c", -math.inf)
    if k < 0 or c <= 0 or k - 1 + c < 0:
        raise ZooError(f"coefficients(k={k}, c={c}): k must be >= 0, c > 0 and k - 1 + c >= 0")
    return math.sqrt((k - 1 + c) / (k + c)), math.sqrt(1 / (k + c))


def init_factor(k: int, c: float, layers: int) -> float:
    """Return the factor f_k on the He standard deviation of each of a branch's n = ``layers`` linear layers (M6).

    With the learnable multiplier the forward uses m_k/sqrt(c) (M5) instead of beta_k (M2). The missing sqrt(c/(k+c))
    goes into the weights in equal parts: f_k = ((k+c)/c)^(-1/(2n)) (paper, section 3.3).

    Raises:
        ZooError: if k is negative, c is not positive, or ``layers`` is less than 1.
    """
    if k < 0 or c <= 0 or layers < 1:
        raise ZooError(f"init_factor(k={k}, c={c}, layers={layers}): k must be >= 0, c > 0 and layers >= 1")
    return ((k + c) / c) ** (-1 / (2 * layers))


def he_normal_(weight: Tensor, *, gain: float = math.sqrt(2), mode: str = "fan_in", factor: float = 1.0) -> Tensor:
    """Draw a weight from the normal distribution with std factor * gain / sqrt(fan).

    This is the init of He et al. 2015; gain 1 is Kaiming with a = 1.

    The fan counts the weights that meet one output (``fan_in``) or one input (``fan_out``),
    kernel positions included; groups are already in the weight's shape for fan_in.

    Raises:
        ZooError: any other mode.
    """
    if mode not in ("fan_in", "fan_out"):
        raise ZooError(f"mode={mode!r}: must be 'fan_in' or 'fan_out'")
    fan = weight[0].numel() if mode == "fan_in" else weight.numel() // weight.shape[1]
    with torch.no_grad():
        return weight.normal_(0.0, factor * gain / math.sqrt(fan))


def branch_statistics(model: nn.Module) -> list[dict[str, Any]]:
    """Return the multiplier m_k and the Frobenius norms of the branch weights of each residual block, in order.

    Training makes m_k grow while weight decay shrinks the weights. The product of m_k and the norms shows whether the
    two cancel. ``m`` is None for schemes without a multiplier; of multipliers per channel it is the mean, with
    ``m_min`` and ``m_max`` beside it. A join of another scheme may add numbers of its own (``Join.statistics``).
    """
    instance_of(model, "branch_statistics")
    rows: list[dict[str, Any]] = []
    for name, block in model.named_modules():
        if isinstance(block, TrunkBlock):
            weights: list[Any] = [layer.weight for layer in block.branch_layers()]
            norms = [float(torch.linalg.vector_norm(weight.detach())) for weight in weights]
            rows.append({"block": name, **block.join.statistics(), "weight_norms": norms})
    return rows
