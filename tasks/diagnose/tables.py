"""The tables of a diagnosis: CSV files, and what the command prints."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from tasks.diagnose.dynamics import Dynamics, describe_cancellation
from tasks.diagnose.signals import Signals, chains
from tasks.diagnose.verdicts import verdicts
from tasks.printing import listed


def signals_csv(signals: Sequence[Signals], kind: str) -> str:
    """Return the rows of all nets as CSV, with the net in the first column; empty cells for what is not known.

    Args:
        signals: nets.
        kind: ``layers``, ``sums`` or ``activations``.
    """
    rows: list[dict[str, Any]] = []
    for each in signals:
        rows += [{"net": each.label, **row} for row in each.as_dict()[kind]]
    return _csv(rows)


def channels_csv(signals: Sequence[Signals]) -> str:
    """Return mean and variance of each channel of each layer as CSV."""
    rows: list[dict[str, Any]] = []
    for each in signals:
        for layer in each.layers:
            pairs = zip(layer.channel_means, layer.channel_variances, strict=True)
            keys = {"net": each.label, "layer": layer.name}
            rows += [{**keys, "channel": i, "mean": mean, "variance": var} for i, (mean, var) in enumerate(pairs)]
    return _csv(rows)


def dynamics_csv(dynamics: Sequence[Dynamics]) -> str:
    """Return the blocks of all runs over time as CSV; the norms of a branch's weights are norm_1, norm_2 ..."""
    rows: list[dict[str, Any]] = []
    for run in dynamics:
        for row in run.as_dict()["blocks"]:
            norms = row.pop("norms")
            rows.append({"run": run.label, **row, **{f"norm_{i}": norm for i, norm in enumerate(norms, 1)}})
    return _csv(rows)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def summary(signals: Signals) -> dict[str, str]:
    """Return the numbers that describe a net in a row of a table."""
    growths = [chain.growth for chain in chains(signals.sums)]
    rows = signals.sums or signals.products
    units = [unit.dead_units for unit in signals.activations]
    return {
        "net": signals.label,
        "loss": _shown(signals.loss),
        "E[x²] first": _shown(rows[0].power if rows else math.nan),
        "last": _shown(rows[-1].power if rows else math.nan),
        "growth per block": _shown(_mean(growths)),
        "branch/trunk": _shown(_mean(row.ratio for row in signals.sums)),
        "correlation": _shown(_mean(row.correlation for row in signals.sums)),
        "channels with one sign": _percent(_mean(unit.dead for unit in signals.activations)),
        "worst layer": _percent(max((unit.dead for unit in signals.activations), default=math.nan)),
        "units": _percent(_mean(units)),
        "bias offset": _shown(_mean(layer.bias_offset for layer in signals.layers)),
    }


def summary_lines(signals: Sequence[Signals], dynamics: Sequence[Dynamics]) -> list[str]:
    """Return what the command prints: a table of the nets, their verdicts, and a sentence for each run."""
    lines: list[str] = []
    if signals:
        rows = [summary(each) for each in signals]
        cells = [list(rows[0]), *(list(row.values()) for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        for each in signals:
            lines += ["", f"{each.label}: {each.source}", *verdict_lines(each)]
    for run in dynamics:
        lines += ["", f"{run.label}: {describe_cancellation(run)}"]
    return lines[1:] if not signals else lines


def verdict_lines(signals: Signals) -> list[str]:
    """Return a line for each verdict, or that there is none, and for what was left out."""
    found = [f"  {verdict}" for verdict in verdicts(signals)] or ["  no fault found"]
    if signals.unreached:
        found.append(f"  not called: {listed(signals.unreached, 5)}")
    return [*found, *(f"  {note}" for note in signals.notes)]


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _shown(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1%}"
