"""Sums over activations, in float64 and a few samples at a time: means, powers and correlations per channel, and signs.

The sums of two batches are added, and so are those of two processes. A statistic of a whole data set therefore needs no
more memory than that of one batch, and is equal to the statistic of all samples at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.calibration import sum_dtype

# values that are converted to float64 at a time: what fits a CPU's cache, or keeps a GPU busy
_PIECE_CPU, _PIECE_GPU = 2**18, 2**25

SUM, SQUARES = 0, 1  # rows of ``channel_sums``


@dataclass(frozen=True)
class Positions:
    """The positions of activations (B, T, C) that count, which exclude the padding of text.

    Attributes:
        keep: (B, T) boolean.
    """

    keep: Tensor

    def of(self, x: Tensor) -> Tensor | None:
        """Return the mask in the form (B, T, 1) for a tensor of its shape, and None for another tensor."""
        fits = x.ndim == self.keep.ndim + 1 and x.shape[:-1] == self.keep.shape
        return self.keep[..., None] if fits else None


def channel_sums(x: Tensor, dim: int, keep: Tensor | None = None) -> Tensor:
    """Return the sum, the sum of the squares and the number of the values of each channel: (3, C).

    Args:
        x: activations, with the samples in dimension 0.
        dim: dimension of the channels.
        keep: mask that broadcasts to x, 1 at the values that count; None: all count.
    """
    return _sums([x], dim, keep, lambda z: (z, z * z))


def pair_sums(x: Tensor, y: Tensor, dim: int, keep: Tensor | None = None) -> Tensor:
    """Return the sums of x, y, x^2, y^2 and x y and the number of the values of each channel: (6, C).

    Args:
        x: activations, with the samples in dimension 0.
        y: activations of the same shape.
        dim: dimension of the channels.
        keep: mask that broadcasts to x, 1 at the values that count; None: all count.
    """
    return _sums([x, y], dim, keep, lambda u, v: (u, v, u * u, v * v, u * v))


def _sums(tensors: list[Tensor], dim: int, keep: Tensor | None, terms: Callable[..., Sequence[Tensor]]) -> Tensor:
    x = tensors[0]
    channel = dim % x.ndim
    others = [d for d in range(x.ndim) if d != channel]
    total: Tensor | None = None
    for piece, mask in _pieces(tensors, keep):
        values = terms(*piece)
        if mask is not None:
            values = [value * mask for value in values]
        sums = torch.stack([value.sum(others) for value in values])
        total = sums if total is None else total + sums
    assert total is not None
    if keep is None:
        count = torch.full_like(total[:1], x.numel() // x.shape[channel])
    else:
        count = keep.sum(dtype=total.dtype) * (x.numel() / x.shape[channel] / max(keep.numel(), 1)) + torch.zeros_like(
            total[:1]
        )
    return torch.cat([total, count])


def _pieces(tensors: list[Tensor], keep: Tensor | None) -> Iterator[tuple[list[Tensor], Tensor | None]]:
    """Yield pieces of tensors along dimension 0 in float64, and of the mask."""
    x = tensors[0]
    size = _PIECE_CPU if x.device.type == "cpu" else _PIECE_GPU
    rows = max(1, size // max(1, x[:1].numel()))
    dtype = sum_dtype(x.device)
    for first in range(0, max(len(x), 1), rows):  # one empty piece of no samples
        part = slice(first, first + rows)
        yield [tensor[part].to(dtype) for tensor in tensors], None if keep is None else keep[part].to(dtype)


@dataclass
class Signs:
    """Which signs the inputs of an activation had so far.

    Attributes:
        channels: (2, C) boolean: whether a channel was positive anywhere, and whether it was not positive anywhere.
        units: the same of each unit, that is each channel at each position, (2, C, ...); None if it was not asked for,
            or if the inputs differ in size, so that positions do not correspond.
    """

    channels: Tensor
    units: Tensor | None

    @classmethod
    def of(cls, x: Tensor, dim: int, keep: Tensor | None = None, *, units: bool = False) -> Signs:
        """Return the signs of activations (N, ...) with their channels in dimension ``dim``."""
        if not len(x):  # as the boxes of a detector that finds none
            found = x.new_zeros((2, *x.shape[1:]), dtype=torch.bool)
        elif keep is None:
            # The largest and the smallest value of each unit, read in the order of the memory, which is much faster.
            order = [0, *sorted(range(1, x.ndim), key=x.stride, reverse=True)]
            ordered = x.permute(order)
            found = torch.stack([ordered.amax(0) > 0, ordered.amin(0) <= 0])
            found = found.permute([order.index(d) for d in range(x.ndim)])
        else:
            counted = keep.to(torch.bool)
            found = torch.stack([((x > 0) & counted).any(0), ((x <= 0) & counted).any(0)])
        channel = dim % x.ndim  # the first dimension of ``found`` takes the place of that of the samples
        others = [d for d in range(1, x.ndim) if d != channel]
        per_channel = found.flatten(1) if not others else found.movedim(channel, 1).flatten(2).any(2)
        return cls(per_channel, found.movedim(channel, 1) if units and keep is None else None)

    def add(self, other: Signs) -> None:
        """Add the signs of further samples."""
        self.channels = self.channels | other.channels
        same = self.units is not None and other.units is not None and self.units.shape == other.units.shape
        self.units = self.units | other.units if same else None  # type: ignore[operator]


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of activations.

    Attributes:
        mean: mean of each channel, (C,).
        variance: variance of each channel over samples and positions, (C,).
        power: E[x^2] over all values.
    """

    mean: Tensor
    variance: Tensor
    power: float

    @classmethod
    def of(cls, sums: Tensor, scale: float = 1.0) -> ChannelStatistics:
        """Return the statistics of x / scale from ``channel_sums`` of x, (3, C)."""
        total, squares, count = sums.cpu().double()
        mean = total / count
        variance = (squares / count - mean**2).clamp(min=0)
        power = float(squares.sum() / count.sum())
        return cls(mean / scale, variance / scale**2, power / scale**2)

    @property
    def mean_power(self) -> float:
        """Mean over the channels of the squared channel mean: the part of the power that a bias can remove."""
        return float((self.mean**2).mean())

    @property
    def mean_variance(self) -> float:
        """Mean over the channels of the variance."""
        return float(self.variance.mean())


@dataclass(frozen=True)
class PairStatistics:
    """Statistics of a trunk x and a branch y.

    Attributes:
        power_x: E[x^2].
        power_y: E[y^2].
        cosine: E[x y] / sqrt(E[x^2] E[y^2]), which determines E[(x + y)^2].
        correlation: the same of x and y minus their channel means, which determines the variance of x + y.
    """

    power_x: float
    power_y: float
    cosine: float
    correlation: float

    @classmethod
    def of(cls, sums: Tensor) -> PairStatistics:
        """Return the statistics from ``pair_sums``, (6, C)."""
        x, y, xx, yy, xy, count = sums.cpu().double()
        total = count.sum()
        within = (xy - x * y / count).sum()  # sums of squares and products around the channel means
        within_x, within_y = (xx - x * x / count).sum(), (yy - y * y / count).sum()
        cosine, correlation = _ratio(xy.sum(), xx.sum(), yy.sum()), _ratio(within, within_x, within_y)
        return cls(float(xx.sum() / total), float(yy.sum() / total), cosine, correlation)


def _ratio(product: Tensor, x: Tensor, y: Tensor) -> float:
    """Return product / sqrt(x y); NaN if one of the two is 0."""
    scale = math.sqrt(max(float(x), 0.0)) * math.sqrt(max(float(y), 0.0))
    return float(product) / scale if scale > 0 else math.nan
