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
    from zoo.folding import fold
    from zoo.method import branch_statistics, coefficients
    from zoo.nets.base import Backbone, FeatureExtractor, FeatureInfo, ModelConfig, param_groups
    from zoo.nets.transformer import Transformer
    from zoo.registry import ModelInfo, build_model, create_model, list_models, model_info
    from zoo.transforms import DetectionTransform, InputTransform, TextTransform, VideoTransform
    from zoo.weights import Weights, get_weights, list_weights, save_weights

_MODULES = {
    "zoo.calibration": ("CalibrationReport", "calibrate"),
    "zoo.errors": ("ExportError", "WeightsError", "ZooError"),
    "zoo.folding": ("fold",),
    "zoo.method": ("branch_statistics", "coefficients"),
    "zoo.nets.base": ("Backbone", "FeatureExtractor", "FeatureInfo", "ModelConfig", "param_groups"),
    "zoo.nets.transformer": ("Transformer",),
    "zoo.registry": ("ModelInfo", "build_model", "create_model", "list_models", "model_info"),
    "zoo.transforms": ("DetectionTransform", "InputTransform", "TextTransform", "VideoTransform"),
    "zoo.weights": ("Weights", "get_weights", "list_weights", "save_weights"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Backbone",
    "CalibrationReport",
    "DetectionTransform",
    "ExportError",
    "FeatureExtractor",
    "FeatureInfo",
    "InputTransform",
    "ModelConfig",
    "ModelInfo",
    "TextTransform",
    "Transformer",
    "VideoTransform",
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
    "get_weights",
    "list_models",
    "list_weights",
    "model_info",
    "param_groups",
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
