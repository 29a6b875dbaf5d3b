"""Classes of different size: how often their images are drawn, and what they weigh in the loss."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from tasks.classification.data import Images
from tasks.errors import ConfigError
from zoo.errors import suggestion


def balanced_repeats(images: Images) -> list[float]:
    """Return the mean number of times that each image occurs in an epoch, so that all classes occur equally often."""
    counts = images.class_counts()
    # The sum is the number of images; without the margin, rounding could make it one less.
    share = len(images) / len(images.classes) * (1 + 1e-9)
    return [share / counts[label] for label in images.labels]


def class_weights(chosen: Literal["balanced"] | Mapping[str, float] | None, images: Images) -> tuple[float, ...] | None:
    """Return the factor on the loss of each class; None: no factors.

    Args:
        chosen: value of ``class_weights`` in the config.
        images: training images.

    Raises:
        ConfigError: a class that is not one of the images', or factors that are all 0.
    """
    if chosen is None:
        return None
    if chosen == "balanced":
        return tuple(len(images) / (len(images.classes) * count) for count in images.class_counts())
    for name in chosen:
        if name not in images.classes:
            known = suggestion(name, images.classes)
            raise ConfigError(f"class_weights.{name}: no class of the training images{known}")
    factors = tuple(float(chosen.get(name, 1.0)) for name in images.classes)
    if not any(factors):
        raise ConfigError("class_weights: all are 0, so there is nothing to learn; give a class a weight above 0")
    return factors


@lru_cache(maxsize=16)
def weights_on(weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the factors as a tensor (classes,) on a device.

    It is kept, because a copy from the host in each step would wait for the device.
    """
    with torch.inference_mode(False):
        return torch.tensor(weights, dtype=dtype, device=device)
