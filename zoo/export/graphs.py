"""What an export consists of: graphs with named inputs and outputs, and the inputs at which they are compared."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from zoo.transforms import AnyTransform
    from zoo.weights import Weights

Arrays = tuple[np.ndarray, ...]
Runner = Callable[[Arrays], Sequence[np.ndarray]]  # from the inputs of a graph to its outputs, both in order


@dataclass(frozen=True)
class Port:
    """An input or output of a graph.

    Attributes:
        name: name in the exported file.
        axes: length of each axis, or the name of an axis whose length may change: ``batch``, ``height``, ``width``,
            ``source``, ``target``, ``objects`` and so on.
        dtype: numpy's name of the dtype.
    """

    name: str
    axes: tuple[int | str, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Graph:
    """A function of tensors that is exported as one graph.

    Attributes:
        name: stem of the names of its files.
        module: module in eval mode, called with the inputs in order. It returns a tensor or a tuple of tensors.
        inputs: inputs in order.
        outputs: outputs in order.
        samples: arguments of several calls, at which the exported graph is compared. The first is the smallest, with a
            batch of 1; a target that fixes shapes fixes those of the first and is compared at samples of its shapes.
        shown: description of the samples.
        compares: comparison of the outputs: ``values``, or ``objects`` of a detector (boxes, labels, scores, masks).
        net: net of the module as it was trained, for targets that convert weights instead of graphs; None: it has none.
        stand_in: graph that differs in a threshold and is compared too, but not kept: at the samples the graph itself
            has no objects, so that nothing would be compared. None: the graph is compared itself.
        transform: transform of the net's inputs, for targets that write it into files of their own; None: unknown.
        quantised: names of the submodules of ``module`` that int8 is for; (): all of it.
        metadata: texts for the metadata of the file, where its format has any: class names, description of the input.
    """

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    samples: tuple[tuple[Tensor, ...], ...]
    shown: str
    compares: Literal["values", "objects"] = "values"
    net: nn.Module | None = None
    stand_in: Graph | None = None
    transform: AnyTransform | None = None
    quantised: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def run(self, arguments: Sequence[Tensor]) -> Arrays:
        """Return the module's outputs in PyTorch, in order."""
        with torch.no_grad():
            outputs = self.module(*arguments)
        outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        return tuple(output.cpu().numpy() for output in outputs)

    def dynamic_shapes(self, *, named: bool = False) -> tuple[Any, ...]:
        """Return the axes of the inputs that may change, as torch.export takes them.

        Args:
            named: whether they are their names, as torch.onnx.export takes them.
        """
        shapes: list[Any] = [
            {
                i: axis if named else torch.export.Dim.DYNAMIC
                for i, axis in enumerate(port.axes)
                if isinstance(axis, str)
            }
            for port in self.inputs
        ]
        # inputs that forward takes as *args are a tuple of their own
        parameters = list(inspect.signature(self.module.forward).parameters.values())
        if parameters[-1].kind is inspect.Parameter.VAR_POSITIONAL:
            before = len(parameters) - 1
            shapes[before:] = [tuple(shapes[before:])]
        return tuple(shapes)


@dataclass(frozen=True)
class Deployment:
    """Everything that is exported together.

    Attributes:
        kind: kind of input: ``images``, ``clips``, ``image_lists`` (a whole detector) or ``text``.
        graphs: graphs to export.
        description: data for users of the files, as JSON: task, classes, layout of the input, its mean and
            standard deviation, and the options of the export. It becomes a part of the manifest.
        weights: weights that the graphs were made from; None for a net that no file has.
        files: further files by name, such as vocabularies.
        calibration: inputs of the first graph for quantisation; (): none.
        check: function that uses the complete folder as a user would, and returns what it compared. It raises
            ``ExportError`` if something differs that must be exact: its second argument is whether the files compute in
            float32. None: the graphs are all there is.
    """

    kind: str
    graphs: tuple[Graph, ...]
    description: Mapping[str, Any]
    weights: Weights | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    calibration: tuple[tuple[Tensor, ...], ...] = ()
    check: Callable[[Path, bool], str] | None = None


@dataclass(frozen=True)
class Settings:
    """Settings of an export.

    Attributes:
        half: whether weights are stored in half precision. Inputs and outputs stay float32.
        calibration: inputs of the first graph for post-training quantisation to int8; (): no quantisation.
    """

    half: bool = False
    calibration: tuple[tuple[Tensor, ...], ...] = ()
