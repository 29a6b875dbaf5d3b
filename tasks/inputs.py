"""The input of a net: what its weights expect, where the config does not set another, and its standardisation."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from tasks.errors import ConfigError
from zoo.transforms import InputTransform, VideoTransform

log = logging.getLogger("rescalenet")

Transform = TypeVar("Transform", InputTransform, VideoTransform)
FIXED = ("mean", "std")  # a net without normalization that is fed another scale is another net
KEYS = {key: f"clip.{key}" for key in ("frames", "interval", "fps")}  # keys below data, where they have other names


def choose(default: Transform, given: Mapping[str, Any], *, weights: str | None = None) -> Transform:
    """Return a transform with the given values; what else differs from the weights' is logged.

    A size without a resize gets one in the ratio of the weights.

    Args:
        default: transform of the weights, or the task's.
        given: values that the config sets, by the names of the transform's fields.
        weights: name of the weights whose transform ``default`` is; None if there are none.

    Raises:
        ConfigError: a mean or std that contradicts the weights', or a size above the resize.
    """
    values = dict(given)
    # what the weights fix, and what they do not
    changed = {key: value for key, value in given.items() if value != getattr(default, key)}
    if weights is not None:
        for key in FIXED:
            if key in changed:
                stored = list(getattr(default, key))
                raise ConfigError(
                    f"data.{key}={list(changed[key])}: weights {weights} were trained with {stored}; leave it out"
                )
        for key, value in changed.items():
            log.info("data.%s=%s: the weights %s have %s", KEYS.get(key, key), value, weights, getattr(default, key))
        if "size" in given and "resize" not in given:
            values["resize"] = round(default.resize * given["size"] / default.size)
    # the sizes, which must fit together
    size, resize = values.get("size", default.size), values.get("resize", default.resize)
    if size > resize:
        raise ConfigError(f"data.size={size}: must be <= data.resize={resize}, of which it is the centre")
    return dataclasses.replace(default, **values)


def standardise(pixels: Tensor, transform: InputTransform | VideoTransform, dtype: torch.dtype) -> Tensor:
    """Standardise pixels on their device: uint8 (N, C, ...) in the net's order of channels -> the same shape."""
    mean, std = _statistics(transform.mean, transform.std, dtype, pixels.device)
    shape = (-1, *[1] * (pixels.ndim - 2))
    return (pixels.to(dtype) / 255 - mean.view(shape)) / std.view(shape)


@lru_cache(maxsize=64)
def _statistics(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return both as tensors (C,) on the device.

    They are kept, because a copy from the host's ordinary memory in each step would wait for the device.
    """
    with torch.inference_mode(False):  # kept tensors also serve training
        return torch.tensor(mean, dtype=dtype, device=device), torch.tensor(std, dtype=dtype, device=device)
