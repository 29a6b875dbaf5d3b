"""Residual connections: how the trunk and a branch are added."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ResidualAdd(nn.Module):
    """x + F(x), the plain residual connection."""

    alpha = before = after = 1.0

    def hold(self, before: float, after: float) -> None:
        """Nothing to hold: the trunk is at scale 1 throughout."""
        assert before == after == 1

    def product(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The last product of the branch."""
        return layer(x)

    def projection(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The product of a projection shortcut."""
        return layer(x)

    def forward(self, shortcut: Tensor, branch: Tensor, projected: bool = False) -> Tensor:
        """Adds the shortcut to the branch in place."""
        return branch.add_(shortcut)


class RescaledAdd(nn.Module):
    """alpha x + scale m F(x), the rescaled residual connection (paper, equations 5 and 8).

    Args:
        alpha: weight of the trunk.
        scale: constant weight of the branch: 1/sqrt(c) with a multiplier, beta_k without.
        multiplier: whether the learnable scalar m_k (1 at init) is there.

    The branch's weight is applied to the weights of its last layer (``product``), that of a projection shortcut to
    the projection's (``projection``). That of an identity shortcut would cost a pass over the trunk's gradient, so a
    net may ``hold`` its trunk at a scale s_k that takes it up.
    """

    def __init__(self, alpha: float, scale: float, multiplier: bool) -> None:
        super().__init__()
        self.alpha, self.scale = alpha, scale
        self.multiplier = nn.Parameter(torch.ones(())) if multiplier else None
        self.hold(1.0, 1.0)

    def hold(self, before: float, after: float) -> None:
        """Let the trunk hold ``before`` times the nominal x_{k-1} and ``after`` times the nominal x_k.

        As ReLUs are positively homogeneous, s F(x) is the branch of s x with its biases times s. With
        before = alpha * after an identity shortcut is added as it is.
        """
        self.before, self.after = before, after
        self.gain = round(self.alpha * after / before, 15)  # exactly 1 costs autograd nothing

    def branch_gain(self) -> Tensor | float:
        """The branch's weight, as the trunk is held."""
        scale = self.scale * self.after / self.before
        return scale if self.multiplier is None else self.multiplier * scale

    def product(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The last product of the branch, times the branch's weight."""
        return layer(x, self.branch_gain())

    def projection(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The product of a projection shortcut, times the trunk's weight."""
        return layer(x, self.gain)

    def forward(self, shortcut: Tensor, branch: Tensor, projected: bool = False) -> Tensor:
        """Adds the shortcut to the branch in place, weighted unless it was ``projected``."""
        return branch.add_(shortcut) if projected else branch.add_(shortcut, alpha=self.gain)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:.6g}, scale={self.scale:.6g}, multiplier={self.multiplier is not None}"


class Join(nn.Module):
    """x + F(x). A branch ``enter``s from the trunk and hands its last layer and that layer's input to the join.

    A join may hold its trunk at another scale than the nominal one: ``before`` and ``after`` tell (``RescaledAdd``).
    """

    before = after = 1.0

    def enter(self, x: Tensor) -> Tensor:
        """What the branch sees of the trunk."""
        return x

    def forward(self, trunk: Tensor, layer: nn.Module, h: Tensor, drop: nn.Module) -> Tensor:
        """The trunk after the branch whose last product is ``layer`` of h."""
        return trunk + drop(layer(h))


class PreNormJoin(Join):
    """x + F(norm(x))."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def enter(self, x: Tensor) -> Tensor:
        return self.norm(x)


class PostNormJoin(Join):
    """norm(alpha x + F(x))."""

    def __init__(self, norm: nn.Module, alpha: float = 1.0) -> None:
        super().__init__()
        self.norm, self.alpha = norm, alpha

    def forward(self, trunk: Tensor, layer: nn.Module, h: Tensor, drop: nn.Module) -> Tensor:
        return self.norm(torch.add(drop(layer(h)), trunk, alpha=self.alpha))


class RescaledJoin(RescaledAdd):
    """alpha x + scale m F(x), the branch's weight in its last product."""

    def enter(self, x: Tensor) -> Tensor:
        """The trunk itself."""
        return x

    def forward(self, trunk: Tensor, layer: nn.Module, h: Tensor, drop: nn.Module) -> Tensor:  # type: ignore[override]
        """The trunk after the branch whose last product is ``layer`` of h."""
        return super().forward(trunk, drop(self.product(layer, h)))

    def product(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The last product of the branch, whose input need not be held as the trunk is."""
        return layer(x, self.factor(layer))

    def factor(self, layer: Any) -> Any:
        """The factor on the last product: a number, or a 0-D tensor with a gradient."""
        factor = self.scale * self.after / layer.input_scale
        return factor if self.multiplier is None else self.multiplier * factor
