"""The input of a run: the clips and frames that its weights expect, where the config does not set others."""

from __future__ import annotations

import dataclasses

import zoo
from tasks.config import check
from tasks.errors import ConfigError
from tasks.inputs import choose
from tasks.video.config import Clip, DataSection, VideoConfig, VideoModelSection
from tasks.video.transforms import usual_short_side
from zoo.weights import open_weights

SPATIAL = ("size", "resize", "crop_mode", "mean", "std")  # fields of the input transform that a config may set
DEFAULT = zoo.VideoTransform(8, 8, 30, 224, 256, (0.45, 0.45, 0.45), (0.225, 0.225, 0.225))


def weights_entry(section: VideoModelSection) -> zoo.Weights | None:
    """Return the entry of the weights to start from, which are of the net or of an image net; None without weights.

    Raises:
        zoo.WeightsError: weights that are missing or damaged.
    """
    if section.weights is None:
        return None
    return open_weights(section.weights, section.name)


def chosen_input(config: VideoConfig, entry: zoo.Weights | None) -> zoo.VideoTransform:
    """Return the input of a run: that of its weights, or the usual one, with what the config sets.

    Raises:
        ConfigError: weights that are not for RGB, a mean or std that contradicts them, or sizes that do not fit.
    """
    data = config.data
    given = {key: value for key in SPATIAL if (value := getattr(data, key)) is not None}
    clip = {} if data.clip is None else data.clip.model_dump()
    if entry is None:
        return choose(DEFAULT, {**given, **clip})
    stored = entry.transform
    if isinstance(stored, zoo.VideoTransform):
        return choose(stored, {**given, **clip}, weights=entry.name)
    # an image net fixes how frames look, not which
    if not isinstance(stored, zoo.InputTransform) or len(stored.mean) != 3 or stored.channel_order != "RGB":
        raise ConfigError(f"model.weights={config.model.weights}: expects {stored}, not RGB frames")
    frames = {key: getattr(stored, key) for key in ("size", "resize", "mean", "std")}
    return choose(dataclasses.replace(DEFAULT, **frames, **clip), given, weights=entry.name)


def with_input(data: DataSection, transform: zoo.VideoTransform) -> DataSection:
    """Return the section with every field of the input transform set.

    Raises:
        ConfigError: a short side in training that is below the size.
    """
    augment = data.augment.model_dump()
    augment["short_side"] = augment["short_side"] or usual_short_side(transform.resize)
    content = {key: getattr(transform, key) for key in SPATIAL} | {
        "clip": {key: getattr(transform, key) for key in Clip.model_fields},
        "augment": augment,
    }
    return check({**data.model_dump(), **content}, DataSection, "data")
