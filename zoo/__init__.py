"""RescaleNet model zoo: deep networks without normalization layers."""

from zoo import convert
from zoo._version import __version__
from zoo.backbone import Backbone, FeatureExtractor, FeatureInfo, ModelConfig, param_groups
from zoo.checkpoint import (
    DetectionTransform,
    InputTransform,
    VideoTransform,
    Weights,
    get_weights,
    list_weights,
    save_weights,
)
from zoo.errors import ExportError, WeightsError, ZooError
from zoo.fold import fold
from zoo.registry import ModelInfo, build_model, create_model, list_models, model_info
from zoo.rescale import CalibrationReport, branch_statistics, calibrate, coefficients
from zoo.text import TextTransform

from zoo import resnet, resnet3d, vgg  # noqa: F401  isort: skip  (they register their nets)
from zoo.transformer import Transformer  # isort: skip  (and so does this)

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
