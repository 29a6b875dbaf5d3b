"""What the theory of a scheme expects of E[x^2] along the trunk (docs/method.md, M1 to M4, M18 to M20)."""

from __future__ import annotations

import math

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from zoo.schemes.base import Growth
from zoo.schemes.text import TEXT_SCHEMES
from zoo.schemes.vision import VISION_SCHEMES

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def growth_of(model: nn.Module, scheme: str, text: bool) -> Growth:
    """Return how E[x^2] goes along the trunk of a net at init.

    Args:
        model: net.
        scheme: name of the net's scheme; empty for a net of another library, whose branches have the variance 1 if it
            has norms, and the variance of their input if it has none (M1).
        text: whether the scheme is one of Transformers.
    """
    schemes = TEXT_SCHEMES if text else VISION_SCHEMES
    if scheme in schemes:
        return schemes[scheme].trunk_growth
    return "grows" if any(isinstance(module, _NORMS) for module in model.modules()) else "doubles"


def multiplier_init(scheme: str, text: bool) -> float:
    """Return the value at which the multipliers of a scheme begin; 1 for a net of another library.

    Args:
        scheme: name of the scheme; empty for a net of another library.
        text: whether the scheme is one of Transformers.
    """
    schemes = TEXT_SCHEMES if text else VISION_SCHEMES
    return schemes[scheme].multiplier_init if scheme in schemes else 1.0


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
