"""Parameters by their place in a net: of the first and last layers, and those that are several matrices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class HasEnds(Protocol):
    """A net that knows the parameters of its first and last layers."""

    def input_parameters(self) -> list[Tensor]:
        """Return the parameters of the layers that read the input, such as embeddings; shared ones among them."""

    def output_parameters(self) -> list[Tensor]:
        """Return the parameters of the layers that make the outputs; shared ones among them."""


@runtime_checkable
class HasPacked(Protocol):
    """A module with linear layers that consist of several matrices.

    Attributes:
        packed: number of the matrices, of as many rows each, by name of the layer.
    """

    packed: Mapping[str, int]


def knows_ends(model: nn.Module) -> bool:
    """Return whether a model has a net that knows its first and last layers."""
    return any(isinstance(module, HasEnds) for module in model.modules())


def input_parameters(model: nn.Module) -> set[str]:
    """Return the names of the parameters of the first layers, as the nets in a model know them.

    They are a first convolution's and a Transformer's embeddings.

    Args:
        model: a net, a module around nets, or any other module, which has none.
    """
    return _names(model, (p for net in model.modules() if isinstance(net, HasEnds) for p in net.input_parameters()))


def output_parameters(model: nn.Module) -> set[str]:
    """Return the names of the parameters of the last layers, as the nets in a model know them.

    They are the classifier's, a detector's predictors, and a Transformer's output matrix, which may be its embedding.

    Args:
        model: a net, a module around nets, or any other module, which has none.
    """
    return _names(model, (p for net in model.modules() if isinstance(net, HasEnds) for p in net.output_parameters()))


def _names(model: nn.Module, parameters: Iterable[Tensor]) -> set[str]:
    """Return the names of some parameters."""
    chosen = {id(parameter) for parameter in parameters}
    return {name for name, parameter in model.named_parameters() if id(parameter) in chosen}


def packed_matrices(model: nn.Module) -> dict[str, int]:
    """Return, by name of each weight that consists of several matrices one above the other, their number.

    These are the filters of grouped convolutions, and projections to queries, keys and values in one layer.
    """
    counts = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.groups > 1:
            counts[f"{prefix}weight"] = module.groups
        elif isinstance(module, HasPacked):
            counts |= {f"{prefix}{layer}.weight": count for layer, count in module.packed.items()}
    return counts
