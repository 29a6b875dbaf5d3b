"""The figures of a diagnosis: signals by depth, signs of activations, and a training over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tasks.diagnose.dynamics import BlockPoint, Dynamics, LayerPoint
from tasks.diagnose.signals import Activation, Layer, Signals
from tasks.plots import new_figure

# colours that remain apart for the colour-blind and in grey (Okabe and Ito 2008)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_POSITIVE, _NEGATIVE, _BOTH = "#E69F00", "#555555", "#e8eef4"
_WIDTH = 4.0  # inches of a panel
_HEIGHT = 2.9
_MOST_LABELS = 60  # characters of a label that a legend shows


def signals_figure(signals: Sequence[Signals]) -> Any:
    """Return the figure of signals by depth, with one line for each net: eight panels, or fewer without residuals."""
    # The panels that the nets have numbers for.
    residual = [each for each in signals if each.sums]
    panels: list[tuple[str, str, Callable[[Any], None]]] = []
    if residual:
        panels += [
            ("power of the trunk, E[x²]", "block", lambda axes: _draw_trunk(axes, residual)),
            ("power of branch over trunk", "block", lambda axes: _draw_sums(axes, residual, "ratio", log=True)),
            ("correlation of trunk and branch", "block", lambda axes: _draw_correlation(axes, residual)),
        ]
    if any(each.activations for each in signals):
        panels.append(("channels with one sign", "activation", lambda axes: _draw_dead(axes, signals)))
    panels += [
        ("power of the layers' outputs", "layer", lambda axes: _draw_layers(axes, signals, "power")),
        ("channel means' share of the power", "layer", lambda axes: _draw_means(axes, signals)),
    ]
    for key, title in (("gradient_norm", "norm of the gradient"), ("update_ratio", "update over weight")):
        if any(math.isfinite(getattr(layer, key)) for each in signals for layer in each.products):
            panels.append((title, "layer", lambda axes, key=key: _draw_layers(axes, signals, key)))  # type: ignore[misc]
    # Draw them in a grid; the legend under it serves all.
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(_WIDTH * columns, _HEIGHT * rows + 0.3 * len(signals))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[len(panels) :]:
        axes.axis("off")
    for axes, (title, unit, draw) in zip(grid, panels, strict=False):
        draw(axes)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"{unit}, in order of the forward")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    _legend(figure, [each.label for each in signals], theory=bool(residual))
    return figure


def signs_figure(signals: Sequence[Signals]) -> Any:
    """Return the figure of the paper's three classes by depth: a column for each net, channels above, units below."""
    shown = [each for each in signals if each.activations]
    with_units = any(unit.units for each in shown for unit in each.activations)
    rows = 1 + with_units
    figure = new_figure(_WIDTH * max(len(shown), 1), _HEIGHT * rows)
    grid = figure.subplots(rows, max(len(shown), 1), squeeze=False, sharey=True)
    for column, each in zip(grid.T, shown, strict=False):
        column[0].set_title(_cut(each.label), fontsize=9)
        _stack(column[0], each.activations, units=False)
        if with_units:
            _stack(column[1], [unit for unit in each.activations if unit.units], units=True)
        column[-1].set_xlabel("activation, in order of the forward")
    grid[0][0].set_ylabel("share of channels")
    if with_units:
        grid[1][0].set_ylabel("share of units")
    handles = [_patch(_NEGATIVE, "never positive (dead)"), _patch(_POSITIVE, "always positive (linear)")]
    figure.legend(handles=[*handles, _patch(_BOTH, "both signs")], loc="outside lower center", ncols=3, fontsize=9)
    return figure


def dynamics_figure(dynamics: Sequence[Dynamics]) -> Any | None:
    """Return the figure of trainings: for each a column with multipliers, weight norms and their product over time.

    None if no run has records of blocks.
    """
    dynamics = [run for run in dynamics if run.blocks]
    if not dynamics:
        return None
    rows: list[tuple[str, Callable[[BlockPoint, BlockPoint], float]]] = [
        ("multiplier |m|", lambda first, point: abs(point.multiplier)),
        ("product of the weight norms,\nrelative to the start", lambda first, now: _ratio(now.weight, first.weight)),
        ("|m| times that product,\nrelative to the start", lambda first, now: _ratio(now.effective, first.effective)),
    ]
    figure = new_figure(_WIDTH * len(dynamics) + 0.8, _HEIGHT * len(rows))
    grid = figure.subplots(len(rows), len(dynamics), squeeze=False, sharey="row")
    for column, run in zip(grid.T, dynamics, strict=True):
        column[0].set_title(_cut(run.label), fontsize=9)
        for axes, (_, value) in zip(column, rows, strict=True):
            for number, points in enumerate(run.points):
                colour = _depth_colour(number, len(run.points))
                values = [_at_least(value(points[0], point)) for point in points]
                axes.plot([point.epoch for point in points], values, color=colour, linewidth=1)
            axes.grid(alpha=0.3)
            if any(line.get_ydata()[0] > 0 for line in axes.lines):
                axes.set_yscale("log")
        for axes in column[1:]:
            axes.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
        column[-1].set_xlabel("epochs done")
    for row, (title, _) in zip(grid, rows, strict=True):
        row[0].set_ylabel(title, fontsize=9)
    _depth_bar(figure, grid)
    return figure


@dataclass(frozen=True)
class _Course:
    """A number by depth and step.

    Attributes:
        title: title of its maps.
        rows: field of ``Dynamics`` with its rows.
        value: number of a row; NaN where there is none.
        scale: colours: by logarithms, from 0 on, from 0 to 1, or of both signs.
    """

    title: str
    rows: Literal["layers", "sums", "dead"]
    value: Callable[[Any], float]
    scale: Literal["log", "linear", "share", "signed"]


_COURSES = (
    _Course("E[x²] of the trunk", "sums", lambda row: row.power, "log"),
    _Course("norm of the gradient", "layers", lambda row: _of_weights(row, row.gradient_norm), "log"),
    _Course("update over weight", "layers", lambda row: row.update_ratio, "log"),
    _Course("offset of biases from the mean", "layers", lambda row: row.bias_offset, "linear"),
    _Course("correlation of trunk and branch", "sums", lambda row: row.correlation, "signed"),
    _Course("channels with one sign", "dead", lambda row: row.positive + row.negative, "share"),
)


def course_figure(dynamics: Sequence[Dynamics]) -> Any | None:
    """Return the figure of what ``train.diagnose`` logged, depth against steps; None if no run has such records.

    All runs have the same colours.
    """
    shown = [run for run in dynamics if run.layers]
    if not shown:
        return None
    figure = new_figure(_WIDTH * len(_COURSES), _HEIGHT * len(shown))
    grid = figure.subplots(len(shown), len(_COURSES), squeeze=False)
    for column, course in zip(grid.T, _COURSES, strict=True):
        maps = [_by_depth_and_step(run, course) for run in shown]
        norm = _common_norm([cells for _, cells in maps], course.scale)
        for axes, (edges, cells) in zip(column, maps, strict=True):
            if not cells.size:
                axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes)
                axes.set(xticks=[], yticks=[])
                continue
            colours = "RdBu" if course.scale == "signed" else "viridis"
            depths = range(len(cells) + 1)
            mesh = axes.pcolormesh(edges, depths, cells, norm=norm, cmap=colours, rasterized=True)
            axes.invert_yaxis()
        column[0].set_title(course.title, fontsize=10)
        column[-1].set_xlabel("optimizer steps")
        if norm is not None:
            figure.colorbar(mesh, ax=list(column))
    for row, run in zip(grid, shown, strict=True):
        row[0].set_ylabel(f"{_cut(run.label)}\ndepth", fontsize=9)
    return figure


def _of_weights(row: LayerPoint, value: float) -> float:
    """Return the value of a layer with a weight that is trained, NaN of a norm or a bias by itself."""
    return math.nan if math.isnan(row.update_ratio) else value


def _by_depth_and_step(run: Dynamics, course: _Course) -> tuple[list[int], np.ndarray]:
    """Return the steps where the columns of a map begin and end, and its cells (depths, steps); both may be empty."""
    known = [row for row in getattr(run, course.rows) if math.isfinite(course.value(row))]
    if not known:
        return [], np.empty((0, 0))
    name = (lambda row: row.layer) if course.rows == "layers" else (lambda row: row.name)
    places = {place: number for number, place in enumerate(dict.fromkeys(map(name, known)))}
    steps = {step: number for number, step in enumerate(dict.fromkeys(row.step for row in known))}
    cells = np.full((len(places), len(steps)), np.nan)
    for row in known:
        cells[places[name(row)], steps[row.step]] = course.value(row)
    return [*steps, 2 * max(steps) - (sorted(steps)[-2] if len(steps) > 1 else max(steps) - 1)], cells


def _common_norm(maps: Sequence[np.ndarray], scale: str) -> Any | None:
    """Return the colours of several maps; None if they have no values."""
    from matplotlib.colors import LogNorm, Normalize

    values = np.concatenate([cells.ravel() for cells in maps])
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    positive = values[values > 0]
    if scale == "log" and positive.size:
        return LogNorm(positive.min(), positive.max())
    if scale == "signed":
        return Normalize(-abs(values).max(), abs(values).max())
    return Normalize(0, 1 if scale == "share" else values.max())


# -- panels ---------------------------------------------------------------------------------------------


def _draw_trunk(axes: Any, signals: Sequence[Signals]) -> None:
    for number, each in enumerate(signals):
        colour = COLOURS[number % len(COLOURS)]
        places = range(1, len(each.sums) + 1)
        axes.plot(places, [_at_least(row.power) for row in each.sums], color=colour, marker="o", markersize=2.5)
        # The theory goes on from the first value of each chain, so it is drawn chain by chain.
        for chain in sorted({row.chain for row in each.sums}):
            own = [(place, row) for place, row in zip(places, each.sums, strict=True) if row.chain == chain]
            expected = [row.expected for _, row in own]
            axes.plot([place for place, _ in own], expected, color=colour, linestyle="--", linewidth=1)
    _log(axes)


def _draw_sums(axes: Any, signals: Sequence[Signals], key: str, *, log: bool) -> None:
    for number, each in enumerate(signals):
        values = [_at_least(getattr(row, key)) if log else getattr(row, key) for row in each.sums]
        axes.plot(range(1, len(values) + 1), values, color=COLOURS[number % len(COLOURS)], marker="o", markersize=2.5)
    if log:
        _log(axes)


def _draw_correlation(axes: Any, signals: Sequence[Signals]) -> None:
    _draw_sums(axes, signals, "correlation", log=False)
    axes.axhline(0.0, color="black", linewidth=0.8)
    known = [abs(row.correlation) for each in signals for row in each.sums if math.isfinite(row.correlation)]
    limit = min(1.0, 1.2 * max(known, default=1.0) + 0.05)  # symmetric, so that the sign can be seen
    axes.set_ylim(-limit, limit)


def _draw_dead(axes: Any, signals: Sequence[Signals]) -> None:
    for number, each in enumerate(signals):
        colour = COLOURS[number % len(COLOURS)]
        values = [unit.dead for unit in each.activations]
        axes.plot(range(1, len(values) + 1), values, color=colour, marker="o", markersize=2.5)
    axes.set_ylim(-0.02, 1)


def _draw_layers(axes: Any, signals: Sequence[Signals], key: str) -> None:
    for number, each in enumerate(signals):
        values = [_at_least(getattr(layer, key)) for layer in each.products]
        axes.plot(range(1, len(values) + 1), values, color=COLOURS[number % len(COLOURS)], marker="o", markersize=2.5)
    _log(axes)


def _draw_means(axes: Any, signals: Sequence[Signals]) -> None:
    for number, each in enumerate(signals):
        values = [_share_of_means(layer) for layer in each.products]
        axes.plot(range(1, len(values) + 1), values, color=COLOURS[number % len(COLOURS)], marker="o", markersize=2.5)
    axes.set_ylim(-0.02, 1)


def _share_of_means(layer: Layer) -> float:
    total = layer.mean_power + layer.variance
    return layer.mean_power / total if total > 0 else math.nan


def _stack(axes: Any, activations: Sequence[Activation], *, units: bool) -> None:
    """Draw the shares of the three classes as stacked bars."""
    negative, both = [], []
    for each in activations:
        total = each.units if units else each.channels
        dead, linear = (each.negative_units, each.positive_units) if units else (each.negative, each.positive)
        negative.append(dead / total)
        both.append((dead + linear) / total)
    axes.set_facecolor(_BOTH)
    edges = [place - 0.5 for place in range(1, len(negative) + 2)]
    axes.stairs(both, edges, fill=True, color=_POSITIVE)
    axes.stairs(negative, edges, fill=True, color=_NEGATIVE)
    axes.set_ylim(0, 1)
    axes.set_xlim(0.5, max(len(negative), 1) + 0.5)


# -- common ---------------------------------------------------------------------------------------------


def _ratio(value: float, first: float) -> float:
    """Return value / first, NaN at 0."""
    return value / first if first else math.nan


def _at_least(value: float) -> float:
    """Return a number as a logarithmic axis draws it: NaN in place of 0."""
    return value if value > 0 else math.nan


def _log(axes: Any) -> None:
    if any(math.isfinite(value) for line in axes.lines for value in line.get_ydata()):
        axes.set_yscale("log")


def _cut(label: str) -> str:
    return label if len(label) <= _MOST_LABELS else f"{label[: _MOST_LABELS - 1]}…"


def _legend(figure: Any, labels: Sequence[str], *, theory: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=COLOURS[number % len(COLOURS)], marker="o", markersize=3, label=_cut(label))
        for number, label in enumerate(labels)
    ]
    if theory:
        handles.append(Line2D([], [], color="black", linestyle="--", linewidth=1, label="theory of E[x²]"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=9)


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _depth_colour(number: int, count: int) -> Any:
    import matplotlib

    return matplotlib.colormaps["viridis"](number / max(count - 1, 1))


def _depth_bar(figure: Any, grid: Any) -> None:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(cmap="viridis"), ax=grid, shrink=0.5)
    bar.set_ticks([0.0, 1.0], labels=["first block", "last block"])
