"""Multipliers, weight norms, biases and gradients over a training, from the log of a run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tasks.engine.records import BlocksRecord, EpochRecord, SignalsRecord, read_complete_records
from tasks.errors import DataError
from tasks.printing import finite
from zoo.method import branch_statistics

_LONG = 8  # records of blocks from which on the end of a training is described apart


@dataclass(frozen=True)
class BlockPoint:
    """A block at a time.

    Attributes:
        block: name of the block.
        step: optimizer steps done.
        epoch: epochs done.
        multiplier: m_k; NaN for schemes without one.
        norms: Frobenius norm of each weight of the branch.
    """

    block: str
    step: int
    epoch: float
    multiplier: float
    norms: tuple[float, ...]

    @property
    def weight(self) -> float:
        """Product of the norms: the branch is homogeneous in each of its weights, so this is its own scale."""
        return math.prod(self.norms)

    @property
    def effective(self) -> float:
        """Effective branch weight: |m_k| times the product of the norms."""
        m = 1.0 if math.isnan(self.multiplier) else abs(self.multiplier)
        return m * self.weight


@dataclass(frozen=True)
class LayerPoint:
    """A layer at a time, from a record of ``train.diagnose``.

    Attributes:
        layer: name of the layer.
        step: optimizer steps done.
        gradient_norm: norm of the gradient; NaN if it is not known.
        update_ratio: norm of the update over the norm of the weight; NaN if it is not known.
        bias_norm: norm of the bias that data initialises; NaN without one.
        bias_offset: distance of that bias from the mean of what it centres; NaN without one.
    """

    layer: str
    step: int
    gradient_norm: float
    update_ratio: float
    bias_norm: float
    bias_offset: float


@dataclass(frozen=True)
class SumPoint:
    """A residual connection at a time, from a record of ``train.diagnose``."""

    name: str
    step: int
    power: float
    ratio: float
    correlation: float


@dataclass(frozen=True)
class DeadPoint:
    """An activation at a time, from a record of ``train.diagnose``: shares of channels with one sign."""

    name: str
    step: int
    positive: float
    negative: float


@dataclass(frozen=True)
class Dynamics:
    """The training of a net.

    Attributes:
        label: name in tables and legends.
        blocks: names of the blocks in the order of the forward; none of a net without, or in the first epoch.
        points: blocks over time: of each block in the order of ``blocks`` the points in time.
        layers: layers over time.
        sums: residual connections over time.
        dead: activations over time.
        begins_fresh: whether the first points are those of the net before its first step.
        metrics: last metrics of the run.
    """

    label: str
    blocks: tuple[str, ...]
    points: tuple[tuple[BlockPoint, ...], ...]
    layers: tuple[LayerPoint, ...] = ()
    sums: tuple[SumPoint, ...] = ()
    dead: tuple[DeadPoint, ...] = ()
    begins_fresh: bool = False
    metrics: dict[str, float] | None = None

    @property
    def empty(self) -> bool:
        """Whether there are neither blocks nor layers."""
        return not self.blocks and not self.layers

    @property
    def cancellation(self) -> list[Cancellation]:
        """How multiplier and weights of each block changed between the first and the last point."""
        return [Cancellation.of(points[0], points[-1]) for points in self.points]

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON takes them."""
        blocks = [
            {
                "block": point.block,
                "step": point.step,
                "epoch": point.epoch,
                "multiplier": point.multiplier,
                "norms": list(point.norms),
                "weight": point.weight,
                "effective": point.effective,
            }
            for points in self.points
            for point in points
        ]
        rest = {
            key: [dict(vars(row)) for row in rows]
            for key, rows in (("layers", self.layers), ("sums", self.sums), ("dead", self.dead))
        }
        found: dict[str, Any] = finite(
            {"label": self.label, "begins_fresh": self.begins_fresh, "blocks": blocks, **rest}
        )
        return found


@dataclass(frozen=True)
class Cancellation:
    """The change of a block over a training.

    Attributes:
        block: name of the block.
        multiplier: |m_k| at the end over that at the start; NaN without a multiplier or at 0.
        weight: product of the norms of the branch's weights at the end over that at the start.
    """

    block: str
    multiplier: float
    weight: float

    @classmethod
    def of(cls, first: BlockPoint, last: BlockPoint) -> Cancellation:
        """Return the change between two points."""
        began = abs(first.multiplier)
        multiplier = abs(last.multiplier) / began if began > 0 else math.nan
        return cls(first.block, multiplier, last.weight / first.weight if first.weight > 0 else math.nan)

    @property
    def effective(self) -> float:
        """Change of the effective branch weight."""
        return self.weight if math.isnan(self.multiplier) else self.multiplier * self.weight

    @property
    def share(self) -> float:
        """Share of the weights' change that the multiplier undoes, in logarithms: 1 if the two cancel, 0 if not at all.

        Negative where both go the same way; NaN where the weights have hardly changed.
        """
        log_weight = math.log(self.weight) if self.weight > 0 else math.nan
        if math.isnan(self.multiplier) or not self.multiplier > 0 or not abs(log_weight) > 0.05:
            return math.nan
        return -math.log(self.multiplier) / log_weight


def describe_cancellation(dynamics: Dynamics) -> str:
    """Return one sentence on whether multipliers and weights cancel."""
    if not dynamics.blocks:
        return "there are no records of residual blocks"
    found = dynamics.cancellation
    weights = _median([each.weight for each in found])
    effective = _median([each.effective for each in found])
    since = "since init" if dynamics.begins_fresh else f"since step {dynamics.points[0][0].step}"
    if all(math.isnan(each.multiplier) for each in found):
        return (
            f"the product of a branch's weight norms is {weights:.3g} times as large {since} (median of {len(found)})"
        )
    multipliers = _median([each.multiplier for each in found])
    share = _median([each.share for each in found])
    shown = ""
    if share >= 0:
        shown = f"; the multiplier undoes {share:.0%} of the weights' change, in logarithms"
    elif share < 0:
        shown = "; multiplier and weights change in the same direction"
    return (
        f"{since} the multipliers are {multipliers:.3g} times as large, the products of the weights' norms "
        f"{weights:.3g} times, the effective branch weights {effective:.3g} times (medians of {len(found)} "
        f"blocks){shown}{_at_the_end(dynamics)}"
    )


def _at_the_end(dynamics: Dynamics) -> str:
    """Return what changed in the last quarter of a training, where the rate falls; empty for a short log."""
    count = len(dynamics.points[0])
    if count < _LONG:
        return ""
    late = [Cancellation.of(points[3 * count // 4], points[-1]) for points in dynamics.points]
    multipliers, weights, effective = (
        _median([getattr(each, key) for each in late]) for key in ("multiplier", "weight", "effective")
    )
    return (
        f"; in the last quarter of the records the multipliers change {multipliers:.3g} times, the weights "
        f"{weights:.3g} times, the effective weights {effective:.3g} times"
    )


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def read_dynamics(label: str, log: Path, fresh: Callable[[], nn.Module] | None = None) -> Dynamics:
    """Read the dynamics of a run from its log, up to the first line that is not complete; a log may have none.

    Args:
        label: name in tables and legends.
        log: ``log.jsonl`` of a run.
        fresh: function that returns a net as the run's was before its first step, whose weights have nearly the same
            norms; None if the log's first record is the first point.

    Raises:
        DataError: a log that cannot be read, or of several runs.
    """
    # The rows of all blocks, by the time of their record.
    records = read_complete_records(log)
    rows: list[tuple[int, float, list[dict[str, Any]]]] = []
    for record in records:
        if isinstance(record, BlocksRecord):
            rows.append((record.step, record.epoch + 1.0, record.blocks))
    # A log begins at the end of the first epoch: a net as it was before comes first.
    begins_fresh = False
    if fresh is not None and rows:
        first = branch_statistics(fresh())
        if first and [row["block"] for row in first] == [row["block"] for row in rows[0][2]]:
            rows.insert(0, (0, 0.0, first))
            begins_fresh = True
    # The points of each block.
    blocks = tuple(row["block"] for row in rows[0][2]) if rows else ()
    series: dict[str, list[BlockPoint]] = {block: [] for block in blocks}
    for step, epoch, found in rows:
        for row in found:
            if row["block"] not in series:
                raise DataError(f"{log}: the blocks change at step {step} ({row['block']}); it has several runs")
            m = math.nan if row["m"] is None else float(row["m"])
            series[row["block"]].append(BlockPoint(row["block"], step, epoch, m, tuple(row["weight_norms"])))
    ends = [record.metrics for record in records if isinstance(record, EpochRecord) and record.metrics]
    signals = [record for record in records if isinstance(record, SignalsRecord)]
    return Dynamics(
        label=label,
        blocks=blocks,
        points=tuple(tuple(series[block]) for block in blocks),
        layers=tuple(_layer(record.step, row) for record in signals for row in record.layers),
        sums=tuple(_sum(record.step, row) for record in signals for row in record.sums),
        dead=tuple(_dead(record.step, row) for record in signals for row in record.activations),
        begins_fresh=begins_fresh,
        metrics=ends[-1] if ends else None,
    )


def _number(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def _layer(step: int, row: dict[str, Any]) -> LayerPoint:
    keys = ("gradient_norm", "update_ratio", "bias_norm", "bias_offset")
    return LayerPoint(row["name"], step, *(_number(row, key) for key in keys))


def _sum(step: int, row: dict[str, Any]) -> SumPoint:
    return SumPoint(row["name"], step, *(_number(row, key) for key in ("power", "ratio", "correlation")))


def _dead(step: int, row: dict[str, Any]) -> DeadPoint:
    channels = max(_number(row, "channels"), 1.0)
    return DeadPoint(row["name"], step, _number(row, "positive") / channels, _number(row, "negative") / channels)
