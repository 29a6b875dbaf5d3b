"""Graphs with fixed shapes, and their programs for converters that do not take all of PyTorch's operators."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from zoo.export.graphs import Graph
from zoo.export.programs import contiguous


def fixed(graph: Graph) -> Graph:
    """Return a graph with the shapes of its first sample."""
    first = graph.samples[0]
    ports = (dataclasses.replace(port, axes=tuple(x.shape)) for port, x in zip(graph.inputs, first, strict=True))
    return dataclasses.replace(graph, inputs=tuple(ports), samples=(first,))


class Named(nn.Module):
    """A module whose inputs have names: those of the exported file."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Tensor) -> Any:
        return self.module(*inputs.values())


def _add(x: Tensor, y: Tensor, *, alpha: float | None = None) -> Tensor:
    """Return x + alpha y without the argument alpha: litert-torch 0.10 refuses it, coremltools 9.0 ignores it."""
    if alpha is None:
        return NotImplemented  # the operator stays
    return torch.add(x, y if alpha == 1 else y * alpha)


def _addcmul(x: Tensor, y: Tensor, z: Tensor, *, value: float = 1.0) -> Tensor:
    """Return x + value y z, the bias before a product: coremltools 9.0 does not know it."""
    return x + (y * z if value == 1 else y * z * value)


DECOMPOSITIONS = {torch.ops.aten.add.Tensor: _add, torch.ops.aten.addcmul.default: _addcmul}


def named_program(module: nn.Module, inputs: dict[str, Tensor]) -> ExportedProgram:
    """Return a module as a program of ATen's operators, for inputs of these names and shapes.

    Weights and inputs are in PyTorch's default memory format, because coremltools refuses channels_last.

    Args:
        module: module in eval mode, called with the inputs in order.
        inputs: inputs by name.
    """
    inputs = {name: x.contiguous() for name, x in inputs.items()}
    return torch.export.export(Named(contiguous(module)).eval(), (), inputs).run_decompositions(DECOMPOSITIONS)
