"""What a layout of foreign checkpoints is: how its keys are recognised, and what reading them gives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from zoo.nets.base import ModelConfig
from zoo.transforms import AnyTransform


@dataclass(frozen=True)
class Imported:
    """A foreign checkpoint in the keys of the net of the zoo that has the same architecture.

    Attributes:
        config: config of that net: scheme ``bn``, or ``none`` for a net without BatchNorm.
        state: complete state dict of that net.
        transform: input transform, where the layout fixes it.
        eps: eps of the norms, where the layout fixes it.
    """

    config: ModelConfig
    state: dict[str, Tensor]
    transform: AnyTransform | None = None
    eps: float | None = None


class Layout(NamedTuple):
    """One layout of foreign checkpoints.

    Attributes:
        name: name of the layout, for messages.
        matches: whether keys are of this layout.
        read: function from a state dict, the name of the net that was asked for (None for any) and the options that
            were asked for to the checkpoint in our keys; it raises ``WeightsError`` with the reason for what does not
            fit.
    """

    name: str
    matches: Callable[[Collection[str]], bool]
    read: Callable[[Mapping[str, Tensor], str | None, Mapping[str, Any]], Imported]
