"""Noise and stochastic depth at the end of residual branches, in training only, for every scheme.

They act between the branch, after its weight, norm and dropout, and the join. Both draw from torch's generator of the
tensor's device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from zoo.errors import ZooError
from zoo.options import free
from zoo.schemes.base import Place


def normal_like(x: Tensor) -> Tensor:
    """Return numbers from the standard normal distribution, with shape, dtype, device and layout of x.

    They are drawn in the order of memory. ``torch.randn_like`` draws them in the order of the dimensions, one by one on
    the CPU if that is another: 29 ms in place of 3 for (64, 16, 32, 32) in channels_last.
    """
    if torch.compiler.is_compiling():
        return torch.randn_like(x)
    order = sorted(range(x.ndim), key=x.stride, reverse=True)
    drawn = torch.randn([x.shape[dim] for dim in order], dtype=x.dtype, device=x.device)
    return drawn.permute([order.index(dim) for dim in range(x.ndim)])


class BranchNoise(nn.Module):
    """Adds Gaussian noise to a branch in training: (N, ...) -> the same shape.

    Each value gets noise of its own with mean 0 and standard deviation ``std * scale``. ``scale`` is that of the trunk
    after the join (``zoo.trunk``), so that the noise has the deviation ``std`` in the values of the formulas.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std, self.scale = std, 1.0

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training:
            return branch
        return torch.add(branch, normal_like(branch), alpha=self.std * self.scale)

    def extra_repr(self) -> str:
        return f"std={self.std}"


class BranchEnd(nn.Sequential):
    """The noise and the stochastic depth of a branch, in this order: (N, ...) -> the same shape.

    Args:
        noise: standard deviation of the noise.
        drop_path: probability that the branch is left out of a sample; the branches that stay are divided by
            1 - ``drop_path``.
    """

    def __init__(self, noise: float, drop_path: float) -> None:
        super().__init__()
        if noise:
            self.noise = BranchNoise(noise)
        if drop_path:
            self.drop_path = StochasticDepth(drop_path, "row")

    def set_scale(self, scale: float) -> None:
        """Set the scale at which the trunk is stored after the join."""
        for module in self:
            if isinstance(module, BranchNoise):
                module.scale = scale


@dataclass(frozen=True, kw_only=True)
class BranchRegularization:
    """Options of every net with residual branches.

    Attributes:
        drop_path_rate: stochastic depth (Huang et al. 2016, arXiv:1603.09382): probability that a sample skips the last
            branch of a stack. The k-th of L branches has k / L of it, the linear decay of section 3. (timm begins at
            0 instead of at 1 / L.) The branches that stay are divided by 1 - rate, so nothing changes in evaluation.
        branch_noise: standard deviation of the Gaussian noise that is added to each branch in training (Liu et al.
            2022, "NoMorelization", arXiv:2210.06932, who use 0.1 in place of BatchNorm and 1e-4 in place of LayerNorm).
            It is absolute, neither multiplied by the branch's weight nor by the power of the trunk.
    """

    drop_path_rate: float = free(0.0)
    branch_noise: float = free(0.0)

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path_rate < 1:
            raise ZooError(f"option drop_path_rate={self.drop_path_rate}: must be in [0, 1)")
        if not 0 <= self.branch_noise < float("inf"):
            raise ZooError(f"option branch_noise={self.branch_noise}: must be >= 0 and finite")

    def branch_end(self, place: Place) -> BranchEnd | None:
        """Return what regularizes the branch at this place; None if nothing does."""
        drop_path = self.drop_path_rate * place.index / place.total
        return BranchEnd(self.branch_noise, drop_path) if self.branch_noise or drop_path else None
