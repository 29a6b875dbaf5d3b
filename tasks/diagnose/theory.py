"""What the theory of a scheme expects of E[x^2] along the trunk (docs/method.md, M1 to M4, M18 to M20)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from tasks.diagnose.recorder import NORMS
from zoo.nets.base import Net
from zoo.nets.transformer import Transformer
from zoo.schemes.base import Growth, Scheme
from zoo.schemes.text import TEXT_SCHEMES
from zoo.schemes.vision import VISION_SCHEMES


def scheme_of(model: nn.Module) -> type[Scheme] | None:
    """Return the scheme of the net of this zoo that a model is or contains; None for a net of another library."""
    net = next((module for module in model.modules() if isinstance(module, Net)), None)
    if net is None:
        return None
    schemes: Mapping[str, type[Scheme]] = TEXT_SCHEMES if isinstance(net, Transformer) else VISION_SCHEMES
    return schemes.get(net.config.scheme)


def growth_of(model: nn.Module) -> Growth:
    """Return how E[x^2] goes along the trunk of a net at init.

    The branches of a net of another library have the variance 1 if it has norms, and that of their input if it has none
    (M1).
    """
    if (scheme := scheme_of(model)) is not None:
        return scheme.trunk_growth
    return "grows" if any(isinstance(module, NORMS) for module in model.modules()) else "doubles"


def expected_powers(growth: Growth, first: float, branch: float, count: int) -> list[float]:
    """Return E[x^2] by the theory: before the first identity shortcut, and after each of ``count``.

    Args:
        growth: ``stays`` by alpha^2 + beta^2 = 1 (M3), ``doubles`` as the branch has the power of its input (M1), or
            ``grows`` as a norm gives each branch the same power.
        first: E[x^2] before the first shortcut.
        branch: power of the first branch.
        count: number of shortcuts.
    """
    if growth == "doubles":
        return [first * 2.0**k if k < 1000 else math.inf for k in range(count + 1)]
    step = branch if growth == "grows" else 0.0
    return [first + k * step for k in range(count + 1)]
