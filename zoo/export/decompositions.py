"""Rewriting of operators that converters of ``torch.export``'s programs get wrong or do not take.

``add(x, y, alpha)`` is the operator of the joins (``zoo.joins``). litert-torch 0.10 refuses the argument alpha, and
coremltools 9.0 ignores it. ``addcmul`` is that of the biases before products, which coremltools does not know.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def _add(x: Tensor, y: Tensor, *, alpha: float | None = None) -> Tensor:
    if alpha is None:
        return NotImplemented  # the operator stays
    return torch.add(x, y if alpha == 1 else y * alpha)


def _addcmul(x: Tensor, y: Tensor, z: Tensor, *, value: float = 1.0) -> Tensor:
    return x + (y * z if value == 1 else y * z * value)


DECOMPOSITIONS = {torch.ops.aten.add.Tensor: _add, torch.ops.aten.addcmul.default: _addcmul}


class Named(nn.Module):
    """A module whose inputs have names: those of the exported file."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Tensor) -> Any:
        return self.module(*inputs.values())


def program_of(module: nn.Module, inputs: dict[str, Tensor]) -> torch.export.ExportedProgram:
    """Return a module as a program of ATen's operators, for inputs of these names and shapes.

    Weights and inputs are in PyTorch's default memory format, because coremltools refuses channels_last.

    Args:
        module: module in eval mode, called with the inputs in order.
        inputs: inputs by name.
    """
    module = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    inputs = {name: x.contiguous() for name, x in inputs.items()}
    return torch.export.export(Named(module).eval(), (), inputs).run_decompositions(DECOMPOSITIONS)
