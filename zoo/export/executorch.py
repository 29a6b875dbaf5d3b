"""Export to ExecuTorch (.pte) with the XNNPACK backend, compared in its Python runtime.

Requires the extra ``executorch``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.devtools.backend_debug import get_delegation_info
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import ExportError, one_line
from zoo.export.graphs import Arrays, Deployment, Graph, Runner, Settings
from zoo.export.programs import contiguous, outputs_in_order, program_of
from zoo.folding import separate_shifts

log = logging.getLogger("rescalenet")

BATCH = 8  # largest batch, if no sample is larger
GROWTH = 2  # largest length of any other axis, as a multiple of the largest sample's


def path_of(graph: Graph, folder: Path) -> Path:
    """Return the file of a graph."""
    return folder / f"{graph.name}.pte"


def largest_axes(graph: Graph) -> dict[str, int]:
    """Return the largest length of each named axis, for which the runtime reserves memory."""
    largest: dict[str, int] = {}
    for sample in graph.samples:
        for port, x in zip(graph.inputs, sample, strict=True):
            for axis, length in zip(port.axes, x.shape, strict=True):
                if isinstance(axis, str):
                    longest = max(length, BATCH) if axis == "batch" else GROWTH * length
                    largest[axis] = max(longest, largest.get(axis, 0))
    return largest


def _average_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Any:
    """Return the average pool of a shortcut without rounding up, which XNNPACK does not have.

    A window beyond an odd side averages what is inside. With the last row and column twice, so does one that rounds
    down, and at an even side it leaves them out.
    """
    if not ceil_mode or divisor or any(padding) or not list(kernel) == list(stride) == [2, 2]:
        return NotImplemented
    height, width = x.shape[-2:]
    x = torch.cat([x, x.narrow(3, width - 1, 1)], 3)
    x = torch.cat([x, x.narrow(2, height - 1, 1)], 2)
    return F.avg_pool2d(x, 2, 2)


def _mean(x: Tensor, dim: Any, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """Return the mean of maps in the form that XNNPACK has: the axes stay until the end."""
    if keepdim or x.ndim != 4 or sorted(axis % 4 for axis in dim) != [2, 3]:
        return NotImplemented
    return x.mean(dim, keepdim=True).flatten(1)


# Other forms of operations, for XNNPACK; without them they stay in slow portable kernels.
FORMS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.avg_pool2d.default: _average_pool,
    torch.ops.aten.mean.dim: _mean,
}


def write(graph: Graph, folder: Path, settings: Settings) -> None:
    """Write one file, in which the named axes of all inputs may be as long as ``largest_axes`` returns.

    A maximum of each channel with a shift becomes a ReLU, which XNNPACK fuses into the convolution, and an addition.

    Raises:
        ExportError: torch.export or ExecuTorch does not take the graph.
    """
    path = path_of(graph, folder)
    samples = tuple(tuple(x.contiguous() for x in sample) for sample in graph.samples)
    graph = replace(graph, module=contiguous(separate_shifts(graph.module)), samples=samples)
    program = program_of(graph, largest=largest_axes(graph)).run_decompositions(FORMS)
    try:
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    except Exception as error:  # of ExecuTorch's passes, which have no common class
        raise ExportError(f"{path.name}: ExecuTorch failed: {one_line(error)}") from error
    info = get_delegation_info(edge.exported_program().graph_module)
    for name, operations in info.delegation_by_operator.items():
        if operations.non_delegated and name != "getitem":
            log.info("executorch: %d of %s stay in portable kernels", operations.non_delegated, name)
    path.write_bytes(edge.to_executorch().buffer)


def remark(deployment: Deployment) -> str:
    """Return the largest lengths of the axes of the inputs, and what the runtime does not check."""
    largest = {axis: length for graph in deployment.graphs for axis, length in largest_axes(graph).items()}
    limits = ", ".join(f"{axis} {length}" for axis, length in largest.items())
    return f"at most {limits}; inputs must be contiguous, which the runtime does not check"


def load(graph: Graph, folder: Path) -> Runner:
    """Return a function that runs the file in ExecuTorch's Python runtime.

    Raises:
        ExportError: the runtime does not load the file.
    """
    path = path_of(graph, folder)
    try:
        program = Runtime.get().load_program(path.read_bytes())
        program.load_method("forward")
    except RuntimeError as error:
        raise ExportError(f"{path.name}: ExecuTorch does not load it: {one_line(error)}") from None

    def run(inputs: Arrays) -> list[np.ndarray]:
        method = program.load_method("forward")  # loaded once; it is valid as long as its program
        return outputs_in_order(method.execute([torch.from_numpy(np.ascontiguousarray(x)) for x in inputs]))

    return run
