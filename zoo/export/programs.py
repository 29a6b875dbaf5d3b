"""Programs of torch.export, which several targets begin with."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from zoo.errors import ExportError, one_line
from zoo.export.graphs import Graph
from zoo.export.half import in_half


def program_of(graph: Graph, *, half: bool = False, largest: Mapping[str, int] | None = None) -> ExportedProgram:
    """Return the program of a graph, in which the named axes may have any length, 1 included.

    It has no trace of the sources that it was made from: files on the user's disk are no part of an export.

    Args:
        graph: graph of values.
        half: whether weights and computation are in half precision.
        largest: largest length of each named axis; None: no limit.

    Raises:
        ExportError: torch.export does not take the graph.
    """

    def free(axis: str) -> Any:
        return Dim.DYNAMIC if largest is None else Dim.DYNAMIC(max=largest[axis])

    graph = in_half(graph) if half else graph
    shapes = pytree.tree_map(free, graph.dynamic_shapes(named=True))
    sample = max(graph.samples, key=lambda sample: sum(x.numel() for x in sample))
    # Without this, an axis of length 1 of any map inside is an error at run time; torch.onnx sets it, too.
    with (
        torch.fx.experimental._config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
        torch.no_grad(),
    ):
        try:
            program = torch.export.export(graph.module, sample, dynamic_shapes=shapes)
        except (torch._dynamo.exc.TorchDynamoException, RuntimeError, ValueError) as error:
            raise ExportError(f"{graph.name}: torch.export failed: {one_line(error)}") from error
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def contiguous(module: nn.Module) -> nn.Module:
    """Return a copy in PyTorch's default memory format: compilers of other formats refuse channels_last."""
    return copy.deepcopy(module).to(memory_format=torch.contiguous_format)


def outputs_in_order(outputs: Tensor | Sequence[Tensor]) -> list[np.ndarray]:
    """Return what a program returned, a tensor or several, as arrays."""
    return [output.numpy() for output in ((outputs,) if isinstance(outputs, Tensor) else outputs)]
