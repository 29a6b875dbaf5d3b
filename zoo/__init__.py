"""RescaleNet model zoo: deep networks without normalization layers.

The names below are imported when they are first used (PEP 562), so that ``import zoo`` loads neither torch nor
torchvision.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zoo import _moved  # noqa: F401  (module paths of 0.1.0 keep working)
from zoo._version import __version__

if TYPE_CHECKING:
    from zoo import convert
    from zoo.calibration import CalibrationReport, calibrate
    from zoo.errors import ExportError, WeightsError, ZooError
    from zoo.families import Family, register_family
    from zoo.folding import fold
    from zoo.method import branch_statistics, coefficients
    from zoo.nets.base import Backbone, FeatureExtractor, FeatureInfo, FeatureLevel, ModelConfig, Net
    from zoo.nets.parameters import param_groups
    from zoo.nets.transformer import Transformer
    from zoo.options import free
    from zoo.registry import build_model, create_model, list_models, model_info
    from zoo.saving import save_weights
    from zoo.schemes import Place, TextScheme, VisionScheme, register_scheme
    from zoo.sources.push import push
    from zoo.specs import ModelInfo, ModelSpec, register_model
    from zoo.transforms import (
        DetectionTransform,
        InputTransform,
        TextTransform,
        VideoTransform,
        register_transform,
    )
    from zoo.weights import Source, Weights, get_weights, is_weights_name, list_weights, register_source

_MODULES: dict[str, tuple[str, ...]] = {
    "zoo.calibration": ("CalibrationReport", "calibrate"),
    "zoo.errors": ("ExportError", "WeightsError", "ZooError"),
    "zoo.families": ("Family", "register_family"),
    "zoo.folding": ("fold",),
    "zoo.method": ("branch_statistics", "coefficients"),
    "zoo.nets.base": (
        "Backbone",
        "FeatureExtractor",
        "FeatureInfo",
        "FeatureLevel",
        "ModelConfig",
        "Net",
    ),
    "zoo.nets.parameters": ("param_groups",),
    "zoo.nets.transformer": ("Transformer",),
    "zoo.options": ("free",),
    "zoo.registry": ("build_model", "create_model", "list_models", "model_info"),
    "zoo.saving": ("save_weights",),
    "zoo.schemes": ("Place", "TextScheme", "VisionScheme", "register_scheme"),
    "zoo.sources.push": ("push",),
    "zoo.specs": ("ModelInfo", "ModelSpec", "register_model"),
    "zoo.transforms": (
        "DetectionTransform",
        "InputTransform",
        "TextTransform",
        "VideoTransform",
        "register_transform",
    ),
    "zoo.weights": (
        "Source",
        "Weights",
        "get_weights",
        "is_weights_name",
        "list_weights",
        "register_source",
    ),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Backbone",
    "CalibrationReport",
    "DetectionTransform",
    "ExportError",
    "Family",
    "FeatureExtractor",
    "FeatureInfo",
    "FeatureLevel",
    "InputTransform",
    "ModelConfig",
    "ModelInfo",
    "ModelSpec",
    "Net",
    "Place",
    "Source",
    "TextScheme",
    "TextTransform",
    "Transformer",
    "VideoTransform",
    "VisionScheme",
    "Weights",
    "WeightsError",
    "ZooError",
    "__version__",
    "branch_statistics",
    "build_model",
    "calibrate",
    "coefficients",
    "convert",
    "create_model",
    "fold",
    "free",
    "get_weights",
    "is_weights_name",
    "list_models",
    "list_weights",
    "model_info",
    "param_groups",
    "push",
    "register_family",
    "register_model",
    "register_scheme",
    "register_source",
    "register_transform",
    "save_weights",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value  # the next access finds it without this function
        return value
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"zoo.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"zoo.{name}":
                raise
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
