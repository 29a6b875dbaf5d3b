"""A graph in half precision, between inputs and outputs in float32."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from torch import Tensor, nn

from zoo.errors import ExportError
from zoo.export.graphs import Graph


class InHalf(nn.Module):
    """A module that computes in half precision; its floating inputs and outputs are float32.

    Args:
        module: module, which is copied.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).half()

    def forward(self, *inputs: Tensor) -> Any:
        outputs = self.module(*(x.half() if x.is_floating_point() else x for x in inputs))
        if isinstance(outputs, Tensor):
            return outputs.float()
        return tuple(x.float() if x.is_floating_point() else x for x in outputs)


def in_half(graph: Graph) -> Graph:
    """Return a graph that computes in half precision.

    Raises:
        ExportError: a whole detector, whose proposals are chosen in float32.
    """
    if graph.compares == "objects":
        raise ExportError(f"{graph.name}: a whole detector cannot be exported with --half; leave it out")
    return dataclasses.replace(graph, module=InHalf(graph.module).eval())
