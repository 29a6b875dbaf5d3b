"""Comparison of an exported graph, run by its target's runtime, with the module in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from zoo.errors import ExportError
from zoo.export.graphs import Arrays, Graph, Runner

TOLERANCE = 1e-4  # largest |difference| over largest |output| that passes in float32
HALF_TOLERANCE = 1e-2  # in half precision
INT8_TOLERANCE = 0.3  # root mean square of the differences over that of the outputs, in int8
INT8_AGREEMENT = 0.9  # fraction of the inputs whose best class, or of the objects that, stay the same in int8
INT8_SCORE = 0.5  # objects of this score or more count in int8
INT8_IOU = 0.5  # of the boxes of an object in float32 and in int8
PIXELS = 0.01  # largest difference of a box in pixels that passes in float32

Pair = tuple[tuple[Tensor, ...], Arrays]  # inputs of a graph, and its outputs in PyTorch


@dataclass(frozen=True)
class Difference:
    """Largest differences of the outputs of a graph at one sample or more.

    Attributes:
        absolute: largest |difference| of the outputs.
        relative: largest |difference| of an output over its largest |value|. Of objects: of scores and masks, and of
            boxes in pixels over ``PIXELS`` times ``TOLERANCE``, so that one tolerance serves both. In int8: root mean
            square of the differences of an output over that of its values.
        agreement: fraction of the inputs whose best class is the same, or of the objects that both find; None except in
            int8, for outputs with classes or objects.
        compared: name of what ``agreement`` counts: ``best class`` or ``objects``.
    """

    absolute: float
    relative: float
    agreement: float | None = None
    compared: str = ""

    def __or__(self, other: Difference) -> Difference:
        return Difference(max(self.absolute, other.absolute), max(self.relative, other.relative))


def fitting_samples(graph: Graph, dynamic: frozenset[str]) -> list[tuple[Tensor, ...]]:
    """Return the samples that a target takes.

    Args:
        graph: graph to export.
        dynamic: ``batch`` if the target takes any batch size, ``size`` if it takes any other dynamic axis.
    """
    first = graph.samples[0]

    def fits(sample: tuple[Tensor, ...]) -> bool:
        for port, x, reference in zip(graph.inputs, sample, first, strict=True):
            for axis, length, fixed in zip(port.axes, x.shape, reference.shape, strict=True):
                free = axis if axis == "batch" else "size"
                if length != fixed and not (isinstance(axis, str) and free in dynamic):
                    return False
        return True

    return [sample for sample in graph.samples if fits(sample)]


def expected_at(graph: Graph, samples: Iterable[tuple[Tensor, ...]]) -> Iterator[Pair]:
    """Yield inputs with the module's outputs in PyTorch."""
    for sample in samples:
        yield sample, graph.run(sample)


def _found(graph: Graph, runner: Runner, sample: tuple[Tensor, ...], expected: Arrays) -> Arrays:
    """Return the outputs of the target's runtime, as many as are expected."""
    found = tuple(np.asarray(output) for output in runner(tuple(x.cpu().numpy() for x in sample)))
    if len(found) != len(expected):
        raise ExportError(f"{graph.name}: {len(found)} outputs, not {len(expected)}")
    return found


def compare(graph: Graph, runner: Runner, pairs: Iterable[Pair], tolerance: float) -> Difference:
    """Run inputs in the target's runtime, and return the largest differences from PyTorch.

    Args:
        graph: graph that was exported.
        runner: function that runs the file.
        pairs: inputs with the outputs in PyTorch.
        tolerance: largest relative difference that passes.

    Raises:
        ExportError: outputs that differ.
    """
    worst = Difference(0.0, 0.0)
    for sample, expected in pairs:
        found = _found(graph, runner, sample, expected)
        difference = _of_objects(graph, found, expected) if graph.compares == "objects" else _of_values(found, expected)
        if not difference.relative <= tolerance:
            sizes = ", ".join(f"{port.name} {tuple(x.shape)}" for port, x in zip(graph.inputs, sample, strict=True))
            raise ExportError(
                f"{graph.name}: outputs differ by {difference.relative:.1e} (relative) at {sizes}; must be <= "
                f"{tolerance:g}"
            )
        worst |= difference
    return worst


def compare_int8(graph: Graph, runner: Runner, pairs: Iterable[Pair]) -> Difference:
    """Run inputs in int8 in the target's runtime, and return how close the outputs are to those of PyTorch in float32.

    Rounding to 8 bits changes single values by more than other differences, so the root mean square counts.

    Args:
        graph: graph that was exported.
        runner: function that runs the quantised file.
        pairs: inputs with the outputs in PyTorch.

    Returns:
        The largest |difference|, the root mean square of an output's differences over that of its values (of the worst
        output), and the fraction of the rows of outputs (N, classes) whose largest value is at the same place. Of
        objects the scores are the values, and the fraction is that of objects with a partner, see ``_Partners``.

    Raises:
        ExportError: outputs that differ by more than ``INT8_TOLERANCE`` or agree in less than ``INT8_AGREEMENT``, or
            a detector that finds no object with a score of ``INT8_SCORE``.
    """
    seen: _Roundings | _Partners = _Partners(graph) if graph.compares == "objects" else _Roundings(graph)
    for sample, expected in pairs:
        seen.add(_found(graph, runner, sample, expected), expected)
    difference = seen.difference()
    agreement = difference.agreement
    if not (difference.relative <= INT8_TOLERANCE and (agreement is None or agreement >= INT8_AGREEMENT)):
        same = "" if agreement is None else f", with the same {difference.compared} in {agreement:.0%}"
        raise ExportError(
            f"{graph.name}: outputs in int8 differ by {difference.relative:.2f} (root mean square){same}; must be <= "
            f"{INT8_TOLERANCE:g} and >= {INT8_AGREEMENT:.0%}; give more or other inputs with --data"
        )
    return difference


class _Roundings:
    """Differences of values that int8 rounds."""

    def __init__(self, graph: Graph) -> None:
        self.name = graph.name
        self.absolute, self.rows, self.same = 0.0, 0, 0
        self.errors, self.squares = np.zeros(len(graph.outputs)), np.zeros(len(graph.outputs))  # sums of an output

    def add(self, found: Arrays, expected: Arrays) -> None:
        """Add the outputs at an input."""
        if [x.shape for x in found] != [x.shape for x in expected]:
            raise ExportError(f"{self.name}: outputs in int8 have other shapes")
        for i, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
            difference = np.abs(theirs.astype(np.float64) - ours)
            self.absolute = max(self.absolute, float(difference.max(initial=0.0)))
            self.errors[i] += float((difference**2).sum())
            self.squares[i] += float((ours.astype(np.float64) ** 2).sum())
            if ours.ndim == 2:
                self.rows += len(ours)
                self.same += int((ours.argmax(1) == theirs.argmax(1)).sum())

    def difference(self) -> Difference:
        """Return the differences of all inputs."""
        relative = float(np.sqrt(self.errors / np.maximum(self.squares, 1e-12)).max())
        return Difference(self.absolute, relative, self.same / self.rows if self.rows else None, "best class")


class _Partners:
    """Objects in float32 and in int8 that are the same: of one label, with boxes of an IoU of ``INT8_IOU`` or more.

    Objects with a score below ``INT8_SCORE`` may be partners, but need none: small changes move them across the
    detector's own threshold, and NMS keeps another of two that overlap.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sure, self.paired = 0, 0
        self.differences: list[float] = []  # of the scores of partners
        self.scores: list[float] = []

    def add(self, found: Arrays, expected: Arrays) -> None:
        """Add the objects of an image."""
        names = [port.name for port in self.graph.outputs]
        theirs, ours = (
            {k: torch.from_numpy(np.array(v)) for k, v in zip(names, x, strict=True)} for x in (found, expected)
        )
        overlap = box_iou(ours["boxes"].double(), theirs["boxes"].double())  # (M, F)
        overlap[ours["labels"][:, None] != theirs["labels"]] = 0
        for one, other, rows in ((ours, theirs, overlap), (theirs, ours, overlap.T)):
            for score, row in zip(one["scores"].tolist(), rows, strict=True):
                if score >= INT8_SCORE:
                    self.sure += 1
                    if len(row) and row.max() >= INT8_IOU:
                        self.paired += 1
                        self.differences.append(abs(score - float(other["scores"][row.argmax()])))
                        self.scores.append(score)

    def difference(self) -> Difference:
        """Return the differences of all images."""
        if not self.sure:
            raise ExportError(
                f"{self.graph.name}: no object has a score of {INT8_SCORE:g}: nothing could be compared; give other "
                "inputs with --data"
            )
        squares = np.square(self.differences).sum(), np.square(self.scores).sum()
        relative = float(np.sqrt(squares[0] / max(squares[1], 1e-12)))
        return Difference(max(self.differences, default=0.0), relative, self.paired / self.sure, "objects")


def _of_values(found: Arrays, expected: Arrays) -> Difference:
    """Return the differences of outputs of equal meaning; infinite if shapes differ."""
    worst = Difference(0.0, 0.0)
    for ours, theirs in zip(expected, found, strict=True):
        if ours.shape != theirs.shape:
            return Difference(math.inf, math.inf)
        if ours.size:
            absolute = float(np.abs(theirs.astype(np.float64) - ours.astype(np.float64)).max())
            if math.isnan(absolute):
                return Difference(math.inf, math.inf)
            worst |= Difference(absolute, absolute / max(float(np.abs(ours).max()), 1e-12))
    return worst


def require_contrast(graph: Graph, outputs: Sequence[Arrays]) -> None:
    """Refuse outputs that do not depend on the input: their comparison shows nothing.

    Args:
        graph: graph to export.
        outputs: outputs of the graph in PyTorch at several inputs.

    Raises:
        ExportError: no object was found, or an output is the same for all inputs.
    """
    if graph.compares == "objects":
        if not any(len(each[0]) for each in outputs):
            raise ExportError(f"{graph.name}: no object is found in {graph.shown}: nothing could be compared")
        return
    for i, port in enumerate(graph.outputs):
        rows = [row for each in outputs for row in each[i]]
        if len(rows) > 1 and all(np.array_equal(row, rows[0]) for row in rows):
            raise ExportError(
                f"{graph.name}: its output {port.name} is the same for all inputs ({graph.shown}): nothing could be "
                "compared"
            )


def _of_objects(graph: Graph, found: Arrays, expected: Arrays) -> Difference:
    """Return the differences of boxes, scores and masks (mean over an object) of paired objects.

    Objects are paired by label and box, because rounding may swap neighbours in the order of scores. Up to 2 % of
    them may have no partner, because rounding may move their score across a threshold; if more have none, the
    difference is infinite.
    """
    names = [port.name for port in graph.outputs]
    theirs, ours = (
        {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in zip(names, each, strict=True)}
        for each in (found, expected)
    )
    count = max(len(theirs["boxes"]), len(ours["boxes"]))
    if not count:
        return Difference(0.0, 0.0)
    # 1. distances in pixels between our M boxes and their F boxes, infinite between different labels
    distance = torch.cdist(ours["boxes"].double(), theirs["boxes"].double(), p=math.inf)  # (M, F)
    distance[ours["labels"][:, None] != theirs["labels"]] = math.inf
    # 2. the nearest partner of each of our objects
    rows, partners = [], []
    for i, row in enumerate(distance):
        if len(row) and row.min() < 1.0:
            rows.append(i)
            partners.append(int(row.argmin()))
    if count - len(set(partners)) > 0.02 * count:
        return Difference(math.inf, math.inf)
    # 3. the largest difference of all pairs
    pixels = float(distance[rows, partners].max()) if rows else 0.0
    others = [(ours["scores"][rows] - theirs["scores"][partners]).abs().max()]
    if "masks" in ours:  # (M, 1, H, W)
        others.append((ours["masks"][rows] - theirs["masks"][partners]).abs().flatten(1).mean(1).max())
    rest = float(max(others)) if rows else 0.0
    return Difference(max(pixels, rest), max(pixels / PIXELS * TOLERANCE, rest))
