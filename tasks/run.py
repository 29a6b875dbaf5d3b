"""From a config's name to a task: the one place that knows all tasks."""

from __future__ import annotations

from collections.abc import Sequence

from tasks import config as cfg
from tasks.classification.config import ClassificationConfig
from tasks.detection.config import DetectionConfig
from tasks.engine import Task
from tasks.errors import ConfigError
from tasks.video.config import VideoConfig
from zoo.errors import near

SCHEMAS: dict[str, type[cfg.RunConfig]] = {
    "classification": ClassificationConfig,
    "detection": DetectionConfig,
    "video": VideoConfig,
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
        raise ConfigError(f"{source}: task={task!r}{near(str(task), SCHEMAS)}")
    return cfg.check(content, SCHEMAS[str(task)], source)


def make_task(config: cfg.RunConfig) -> Task:
    """The task of a config, its data found."""
    if isinstance(config, DetectionConfig):
        from tasks.detection.model import Detection

        return Detection(config)
    if isinstance(config, VideoConfig):
        from tasks.video.model import VideoClassification

        return VideoClassification(config)
    assert isinstance(config, ClassificationConfig)
    from tasks.classification.model import Classification

    return Classification(config)
