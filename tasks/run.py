"""From a config or weights to a task: the one place that knows all tasks."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import zoo
from tasks import config as cfg
from tasks.classification.config import ClassificationConfig
from tasks.detection.config import DetectionConfig
from tasks.engine import Task
from tasks.errors import ConfigError, UserError
from tasks.translation.config import TranslationConfig
from tasks.video.config import VideoConfig
from zoo.errors import suggestion

SCHEMAS: dict[str, type[cfg.RunConfig]] = {
    "classification": ClassificationConfig,
    "detection": DetectionConfig,
    "video": VideoConfig,
    "translation": TranslationConfig,
}


def resolve(name: str, overrides: Sequence[str] = ()) -> cfg.RunConfig:
    """The checked config of a file or a shipped recipe, with dotted overrides.

    Raises:
        ConfigError: see ``tasks.config``; also a task that does not exist.
    """
    path = cfg.find_config(name)
    content = cfg.apply_overrides(cfg.read_yaml(path), overrides)
    return check(content, str(path))


def check(content: dict[str, object], source: str) -> cfg.RunConfig:
    """The typed config of whatever task the content names."""
    task = content.get("task")
    if task not in SCHEMAS:
        raise ConfigError(f"{source}: task={task!r}{suggestion(str(task), SCHEMAS)}")
    return cfg.check(content, SCHEMAS[str(task)], source)


def make_task(config: cfg.RunConfig) -> Task:
    """The task of a config, its data found."""
    if isinstance(config, DetectionConfig):
        from tasks.detection.model import Detection

        return Detection(config)
    if isinstance(config, VideoConfig):
        from tasks.video.model import VideoClassification

        return VideoClassification(config)
    if isinstance(config, TranslationConfig):
        from tasks.translation.model import Translation

        return Translation(config)
    assert isinstance(config, ClassificationConfig)
    from tasks.classification.model import Classification

    return Classification(config)


_TASKS = {"image": "classification", "detection": "detection", "video": "video", "text": "translation"}


def task_of(entry: zoo.Weights) -> str:
    """The task that weights are for, by the kind of input that they expect."""
    return _TASKS[entry.transform.kind]


def load_model(entry: zoo.Weights) -> Any:
    """The model that weights are of: a ``zoo.Backbone``, a ``zoo.Transformer``, or a detector."""
    return zoo.create_model(entry.config.name, entry.name)


EXPORTS = {"classification": ("onnx",), "detection": ("onnx",), "video": ("onnx",), "translation": ("fairseq",)}


def export_target(entry: zoo.Weights, asked: str | None) -> str:
    """The target that weights are exported to: their task's first, if none is asked for.

    Raises:
        UserError: a target that the task does not have.
    """
    known = EXPORTS[task_of(entry)]
    if asked not in (None, *known):
        raise UserError(f"export target {asked!r}: {entry.name} is of {task_of(entry)}, which has {', '.join(known)}")
    return asked or known[0]


def command(name: str, entry: zoo.Weights, options: Mapping[str, Any]) -> Callable[..., Any]:
    """``evaluate``, ``predict`` or ``export`` of the weights' task, with the options that were given (not None).

    Raises:
        UserError: an option that the task does not have.
    """
    task = task_of(entry)
    function = getattr(importlib.import_module(f"tasks.{task}.commands"), name)
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in inspect.signature(function).parameters:
            raise UserError(f"--{key.replace('_', '-')} is not for {task}, which {entry.name} is of")
    return lambda *arguments: function(*arguments, **given)
