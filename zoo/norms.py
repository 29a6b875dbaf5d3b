"""Norms whose output has the dtype of their input, also under autocast, as that of torch's BatchNorm has.

Without this the trunk of a net would depend on its norm: on a GPU, autocast computes GroupNorm in float32, and frozen
statistics in float32 promote a map in half precision.
"""

from __future__ import annotations

import torchvision.ops
from torch import Tensor, nn


def _in_dtype_of(x: Tensor, y: Tensor) -> Tensor:
    """Return y in the dtype of x; ``to`` alone would be an operation in exported graphs."""
    return y if y.dtype == x.dtype else y.to(x.dtype)


class GroupNorm(nn.GroupNorm):
    """torch's GroupNorm in the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        return _in_dtype_of(input, super().forward(input))


class FrozenBatchNorm2d(torchvision.ops.FrozenBatchNorm2d):
    """torchvision's FrozenBatchNorm2d in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return _in_dtype_of(x, super().forward(x))


class FrozenBatchNorm3d(torchvision.ops.FrozenBatchNorm2d):
    """FrozenBatchNorm2d for clips (N, C, T, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        bias = self.bias - self.running_mean * scale
        return _in_dtype_of(x, x * scale.view(-1, 1, 1, 1) + bias.view(-1, 1, 1, 1))
