"""Joins: from the trunk x and a residual branch F(x) to the next trunk. One protocol for images, clips and text.

A block computes, with its join,

    h = inner layers of join.enter(x)
    y = join.product(last_layer, h)
    x = join(x, y)                                                   # identity shortcut
    x = join(join.projection(layer, join.enter(x)), y, projected=True)   # projection shortcut

A join applies the weight of the branch where it is cheapest: on the weights of the branch's last layer, on the output
of that layer, or in the addition.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.errors import ZooError


class FoldedJoin(NamedTuple):
    """The deployment form of a join.

    Attributes:
        product: factor on the branch's last product, or one per output channel, (C,).
        projection: factor on the product of a projection shortcut.
        join: the join that remains.
        entrance: factor on the input of the branch and of a projection, which ``join.enter`` no longer applies.
    """

    product: Tensor | float
    projection: Tensor | float
    join: Join
    entrance: float = 1.0


def add_trunk(branch: Tensor, trunk: Tensor, weight: float = 1.0) -> Tensor:
    """Return branch + weight * trunk, in the memory of the branch if both have one dtype.

    Under autocast a branch has autocast's dtype, and so has a trunk that began at a convolution. A trunk that began at
    an embedding is float32, and stays so in every scheme: the sum is then a new map of the wider dtype.
    """
    if branch.dtype == trunk.dtype:
        return branch.add_(trunk, alpha=weight)
    return torch.add(branch, trunk, alpha=weight)


class Join(nn.Module):
    """Base of the joins: x + F(x) unless a method below is overridden.

    Attributes:
        alpha: weight of the trunk that the trunk's scale replaces (``zoo.trunk``); 1 for joins without one.
        scale_in, scale_out: scales of the trunk before and after the join.
        passes_shift: whether ``enter`` returns a shifted trunk with the same shift, as ``zoo.fold`` requires of it.
    """

    alpha: float = 1.0
    passes_shift: bool = True
    scale_in: float = 1.0
    scale_out: float = 1.0

    def enter(self, trunk: Tensor) -> Tensor:
        """Return the input of the branch and of a projection: the trunk, a norm or an activation of it."""
        return trunk

    def product(self, layer: nn.Module, h: Tensor) -> Tensor:
        """Return the last product of the branch, with the branch's weight if the join applies it here."""
        return layer(h)

    def projection(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return the product of a projection shortcut, with the trunk's weight."""
        return layer(x)

    def forward(self, trunk: Tensor, branch: Tensor, projected: bool = False) -> Tensor:
        """Return the next trunk.

        Args:
            trunk: trunk before the branch, or its ``projection``.
            branch: result of ``product``, after a norm and dropout if the block has them.
            projected: whether ``trunk`` comes from ``projection``.
        """
        raise NotImplementedError

    def set_scales(self, scale_in: float, scale_out: float) -> None:
        """Read scale_in * x_{k-1} and return scale_out * x_k from now on (``zoo.trunk``).

        Raises:
            ZooError: scales other than 1, in a join that cannot take them.
        """
        if not scale_in == scale_out == 1:
            raise ZooError(f"{type(self).__name__}: trunk scales {scale_in}, {scale_out} must be 1")

    def statistics(self) -> dict[str, float | None]:
        """Return the numbers that ``zoo.branch_statistics`` reports of this join.

        ``m`` is its multiplier or None. If each channel has one, ``m`` is their mean, and ``m_min`` and ``m_max`` are
        the smallest and the largest.
        """
        return {"m": None}

    def multiplier_parameters(self) -> dict[str, nn.Parameter]:
        """Return the learnable multipliers by name, which ``zoo.param_groups`` puts into a group of their own."""
        return {}

    def fold(self, last: nn.Module) -> FoldedJoin:
        """Return the deployment form.

        Args:
            last: last layer of the branch, before it is folded.
        """
        return FoldedJoin(1.0, 1.0, self)


class HasMultiplier(Join):
    """Base of the joins with the attribute ``multiplier``: a learnable scalar, one value per channel (C,), or None."""

    multiplier: nn.Parameter | None

    def statistics(self) -> dict[str, float | None]:
        if self.multiplier is None:
            return {"m": None}
        m = self.multiplier.detach()
        if m.ndim == 0:
            return {"m": float(m)}
        return {"m": float(m.mean()), "m_min": float(m.min()), "m_max": float(m.max())}

    def multiplier_parameters(self) -> dict[str, nn.Parameter]:
        return {} if self.multiplier is None else {"multiplier": self.multiplier}


class PlainJoin(Join):
    """x + F(x), in a new tensor: its dtype is promoted, so a float32 trunk stays float32 under autocast."""

    def forward(self, trunk: Tensor, branch: Tensor, projected: bool = False) -> Tensor:
        return trunk + branch


class InPlaceJoin(Join):
    """x + F(x), added to the branch in place where the dtypes allow it: one map less in memory."""

    def forward(self, trunk: Tensor, branch: Tensor, projected: bool = False) -> Tensor:
        return add_trunk(branch, trunk)


class PreNormJoin(PlainJoin):
    """x + F(norm(x))."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def enter(self, trunk: Tensor) -> Tensor:
        return self.norm(trunk)


class PostNormJoin(Join):
    """norm(weight x + F(x)).

    Args:
        norm: normalization of the sum.
        weight: constant weight of the trunk. It is no ``alpha``: the norm removes every scale.
    """

    def __init__(self, norm: nn.Module, weight: float = 1.0) -> None:
        super().__init__()
        self.norm, self.weight = norm, weight

    def forward(self, trunk: Tensor, branch: Tensor, projected: bool = False) -> Tensor:
        return self.norm(torch.add(branch, trunk, alpha=self.weight))


class RescaledJoin(HasMultiplier):
    """alpha x + scale m F(x), the rescaled residual connection (docs/method.md, M2 and M5; paper, equations 5 and 8).

    The weight of the branch is multiplied into the weights of its last layer, and alpha into the weights of a
    projection shortcut. At an identity shortcut alpha would cost a pass over the trunk's gradient, so the trunk's scale
    replaces it (M10).

    Args:
        alpha: weight of the trunk.
        scale: constant weight of the branch: 1/sqrt(c) with a multiplier, beta_k without.
        multiplier: whether the branch has the learnable multiplier m_k (1 at init), a scalar by default.
        folded: join that remains in the deployment form.
        channels: output channels C of the branch, each of which then has a multiplier of its own, m_k (C,).
    """

    def __init__(
        self,
        alpha: float,
        scale: float,
        multiplier: bool,
        folded: type[PlainJoin | InPlaceJoin] = InPlaceJoin,
        *,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        self.alpha, self.scale, self.folded = alpha, scale, folded
        shape = () if channels is None else (channels,)
        self.multiplier = nn.Parameter(torch.ones(shape)) if multiplier else None
        self.set_scales(1.0, 1.0)

    def set_scales(self, scale_in: float, scale_out: float) -> None:
        # M11: ReLUs are positively homogeneous, so the branch of s x with its biases times s is s F(x), and
        #     scale_out x_k = (alpha scale_out / scale_in) (scale_in x_{k-1}) + (scale m scale_out / scale_in) F(...)
        self.scale_in, self.scale_out = scale_in, scale_out
        self.shortcut_weight = round(self.alpha * scale_out / scale_in, 15)  # exactly 1 costs autograd nothing

    def branch_weight(self, last: Any) -> Tensor | float:
        """Return the factor on the last product: a number, or a tensor with a gradient, 0-D or (C,).

        Args:
            last: last layer of the branch. Its output has the scale of its input, which need not be the trunk's: the
                last layer of a cross-attention reads values made of the encoder's output.
        """
        weight = self.scale * self.scale_out / last.input_scale
        return weight if self.multiplier is None else self.multiplier * weight

    def product(self, layer: nn.Module, h: Tensor) -> Tensor:
        return layer(h, self.branch_weight(layer))

    def projection(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x, self.shortcut_weight)

    def forward(self, trunk: Tensor, branch: Tensor, projected: bool = False) -> Tensor:
        return add_trunk(branch, trunk, 1.0 if projected else self.shortcut_weight)

    def fold(self, last: nn.Module) -> FoldedJoin:
        # an identity shortcut has weight 1 by the trunk's scale, so the join that remains needs no factor
        return FoldedJoin(self.branch_weight(last), self.shortcut_weight, self.folded())

    def extra_repr(self) -> str:
        kind = "channel" if self.multiplier is not None and self.multiplier.ndim else self.multiplier is not None
        return f"alpha={self.alpha:.6g}, scale={self.scale:.6g}, multiplier={kind}"
