"""Joins of the schemes that RescaleNet is compared with: Fixup, SkipInit, NF-ResNets, the rescaled sum.

Blocks in *pre-activation order* have their activation at the beginning of a branch, not after the sum. The activated
trunk is the input of the branch and of a projection shortcut (He et al. 2016, "Identity Mappings in Deep Residual
Networks").
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from zoo.joins import FoldedJoin, HasMultiplier, InPlaceJoin, Join, add_trunk


class MultiplierJoin(HasMultiplier):
    """x + m F(x) with a learnable scalar m, which is multiplied into the weight of the branch's last layer.

    Args:
        initial: m at init: 1 in Fixup (Zhang et al. 2019), 0 in SkipInit (De and Smith 2020).
    """

    multiplier: nn.Parameter

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.multiplier = nn.Parameter(torch.tensor(float(initial)))

    def product(self, layer: Any, h: Tensor) -> Tensor:
        return layer(h, self.multiplier)

    def forward(self, trunk: Tensor, branch: Tensor, projected: bool = False) -> Tensor:
        return add_trunk(branch, trunk)

    def fold(self, last: nn.Module) -> FoldedJoin:
        return FoldedJoin(self.multiplier, 1.0, InPlaceJoin())


class ActivatedJoin(Join):
    """weight x + F(relu(factor x)): pre-activation order with two constants, and its deployment form.

    Args:
        factor: factor on the trunk where a branch and a projection read it.
        weight: weight of the trunk at an identity shortcut.
    """

    passes_shift = False

    def __init__(self, factor: float = 1.0, weight: float = 1.0) -> None:
        super().__init__()
        self.factor, self.weight = factor, weight

    def enter(self, trunk: Tensor) -> Tensor:
        # the product first: backward keeps the result of the ReLU, and it alone
        return trunk.relu() if self.factor == 1 else (trunk * self.factor).relu_()

    def forward(self, trunk: Tensor, branch: Tensor, projected: bool = False) -> Tensor:
        return add_trunk(branch, trunk, 1.0 if projected else self.weight)

    def extra_repr(self) -> str:
        return f"factor={self.factor:.6g}, weight={self.weight:.6g}"


class NormalizerFreeJoin(ActivatedJoin, HasMultiplier):
    """x + alpha [m] F(relu(x / beta)), the block of NF-ResNets (docs/method.md, M18; Brock et al. 2021).

    alpha and m are multiplied into the weight of the branch's last layer.

    Args:
        alpha: growth of the variance in a block is alpha^2.
        variance: expected variance of the trunk before the block, beta^2.
        multiplier: whether the branch has the learnable scalar m, 0 at init (SkipInit).
    """

    def __init__(self, alpha: float, variance: float, multiplier: bool) -> None:
        super().__init__(factor=1 / math.sqrt(variance))
        self.branch_weight = alpha
        self.multiplier = nn.Parameter(torch.zeros(())) if multiplier else None

    def _scale(self) -> Tensor | float:
        """Return the factor on the branch's last product."""
        return self.branch_weight if self.multiplier is None else self.multiplier * self.branch_weight

    def product(self, layer: Any, h: Tensor) -> Tensor:
        return layer(h, self._scale())

    def fold(self, last: nn.Module) -> FoldedJoin:
        # relu(factor x) = factor relu(x), and the products that read it take the factor
        return FoldedJoin(self._scale(), 1.0, ActivatedJoin(), self.factor)

    def extra_repr(self) -> str:
        return f"alpha={self.branch_weight:.6g}, beta={1 / self.factor:.6g}, multiplier={self.multiplier is not None}"


class RescaledSumJoin(ActivatedJoin, HasMultiplier):
    """c (a x + F(relu(x))) with c = sqrt(1/2), the rescaled sum (docs/method.md, M20; Civitelli et al. 2025).

    c is multiplied into the weights of the branch's last layer and of a projection. At an identity shortcut it costs
    a pass over the trunk's gradient. A trunk stored at another scale (``zoo.trunk``) would avoid that, but its scales
    would be 2^(-k/2) in a stage of k blocks, which half precision cannot represent in deep nets.

    Args:
        multiplier: whether the trunk has the learnable scalar a, 1 at init.
    """

    def __init__(self, multiplier: bool) -> None:
        super().__init__(weight=math.sqrt(0.5))
        self.multiplier = nn.Parameter(torch.ones(())) if multiplier else None

    def _trunk_weight(self) -> Tensor | float:
        """Return the weight of the trunk."""
        return self.weight if self.multiplier is None else self.multiplier * self.weight

    def product(self, layer: Any, h: Tensor) -> Tensor:
        return layer(h, self.weight)

    def projection(self, layer: Any, x: Tensor) -> Tensor:
        return layer(x, self._trunk_weight())

    def forward(self, trunk: Tensor, branch: Tensor, projected: bool = False) -> Tensor:
        if projected or self.multiplier is None:
            return super().forward(trunk, branch, projected)
        return add_trunk(branch, trunk * self._trunk_weight())

    def fold(self, last: nn.Module) -> FoldedJoin:
        weight = self._trunk_weight()
        return FoldedJoin(self.weight, weight, ActivatedJoin(weight=float(weight)))
