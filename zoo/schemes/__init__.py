"""Schemes: the ways in which nets do without normalization, or with it. Each is a class."""

from __future__ import annotations

import warnings
from typing import Any

from zoo.schemes.base import Place, Scheme, register_scheme
from zoo.schemes.baselines import Fixup, NormalizerFree, RescaledSum, SkipInit
from zoo.schemes.text import TEXT_SCHEMES, TextScheme
from zoo.schemes.vision import (
    SCHEMES,
    VISION_SCHEMES,
    BatchNorm,
    Extent,
    FrozenBatchNorm,
    FrozenBatchNorm3d,
    GroupNorm,
    VisionRescale,
    VisionScheme,
    dimensions,
)

__all__ = [
    "SCHEMES",
    "TEXT_SCHEMES",
    "VISION_SCHEMES",
    "BatchNorm",
    "Extent",
    "Fixup",
    "FrozenBatchNorm",
    "FrozenBatchNorm3d",
    "GroupNorm",
    "NormalizerFree",
    "Place",
    "RescaledSum",
    "Scheme",
    "SkipInit",
    "TextScheme",
    "VisionRescale",
    "VisionScheme",
    "dimensions",
    "register_scheme",
]

# names of version 0.1.0
_RENAMED: dict[str, Any] = {"Branch": Place, "Rescale": VisionRescale}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        new = _RENAMED[name]
        warnings.warn(f"zoo.schemes.{name} is {new.__name__} now", DeprecationWarning, stacklevel=2)
        return new
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
