"""Augmentations that images and clips share: the sections of the config, and the transforms that they stand for.

An augmentation that is off adds no transform. The transforms draw from torch's generator, which the data sets seed for
each sample and the engine for each step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from tasks.config import Strict
from tasks.errors import ConfigError
from zoo import InputTransform, VideoTransform


class PolicySection(Strict):
    """Base of the policies of ``auto_augment``: random operations on colours and geometry."""

    name: str

    @abstractmethod
    def build(self, interpolation: v2.InterpolationMode, fill: list[float]) -> v2.Transform:
        """Make the transform of uint8 images (3, H, W) and videos (T, 3, H, W).

        Args:
            interpolation: interpolation of rotations, shears and translations.
            fill: value of each channel, 0 to 255, outside of the image.
        """


class RandAugment(PolicySection):
    """RandAugment (Cubuk et al. 2020): ``ops`` operations drawn one after the other, all of one magnitude."""

    name: Literal["rand"] = "rand"
    ops: int = Field(2, ge=1, description="operations on an image")
    magnitude: int = Field(9, ge=0, le=30, description="strength of the operations; 30: the strongest")

    def build(self, interpolation: v2.InterpolationMode, fill: list[float]) -> v2.Transform:
        return v2.RandAugment(self.ops, self.magnitude, interpolation=interpolation, fill=fill)


class TrivialAugment(PolicySection):
    """TrivialAugment Wide (Müller and Hutter 2021): one operation, its strength drawn too."""

    name: Literal["trivial"] = "trivial"

    def build(self, interpolation: v2.InterpolationMode, fill: list[float]) -> v2.Transform:
        return v2.TrivialAugmentWide(interpolation=interpolation, fill=fill)


class AutoAugment(PolicySection):
    """AutoAugment (Cubuk et al. 2019): a pair of operations drawn from those that a search found for a data set."""

    name: Literal["auto"] = "auto"
    policy: Literal["imagenet", "cifar10", "svhn"] = Field("imagenet", description="data set of the search")

    def build(self, interpolation: v2.InterpolationMode, fill: list[float]) -> v2.Transform:
        return v2.AutoAugment(v2.AutoAugmentPolicy(self.policy), interpolation, fill)


class AugMix(PolicySection):
    """AugMix (Hendrycks et al. 2020): a mean of the image and of chains of operations, with random weights.

    The paper's second part, a loss that compares predictions for several such images, is not included.
    """

    name: Literal["augmix"] = "augmix"
    severity: int = Field(3, ge=1, le=10, description="limit on the strength of the operations")
    width: int = Field(3, ge=1, description="number of chains")
    depth: int | None = Field(None, ge=1, description="operations of a chain; null: drawn from 1 to 3")
    alpha: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="parameter of the Dirichlet and Beta distributions of the weights"
    )

    def build(self, interpolation: v2.InterpolationMode, fill: list[float]) -> v2.Transform:
        depth = -1 if self.depth is None else self.depth
        return v2.AugMix(self.severity, self.width, depth, self.alpha, interpolation=interpolation, fill=fill)


def up_to(limit: float) -> AfterValidator:
    """Return a validator of ranges [low, high] with 0 < low <= high <= limit."""

    def check(given: tuple[float, float]) -> tuple[float, float]:
        if not 0 < given[0] <= given[1] <= limit:
            raise ValueError(f"must be [low, high] with 0 < low <= high <= {limit:g}")
        return given

    return AfterValidator(check)


Share = Annotated[tuple[float, float], up_to(1.0)]  # range of a share of the image's area
Ratio = Annotated[tuple[float, float], up_to(100.0)]  # range of a height over a width


class Erasing(Strict):
    """Random erasing (Zhong et al. 2020): a random rectangle loses its content."""

    probability: float = Field(0.25, gt=0, le=1, description="probability that a rectangle of an image is erased")
    scale: Share = Field((0.02, 0.33), description="range of the rectangle's share of the area")
    ratio: Ratio = Field((0.3, 3.3), description="range of the rectangle's height over its width")
    value: Literal["mean", "random"] = Field(
        "mean",
        description="mean: the mean colour of the data, 0 after the standardisation; random: noise with the mean and "
        "std of the data",
    )


class CommonAugment(Strict):
    """Training augmentation that images and clips share."""

    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    auto_augment: Annotated[RandAugment | TrivialAugment | AutoAugment | AugMix, Field(discriminator="name")] | None = (
        Field(None, description="random operations on colours and geometry, after crop and flip")
    )
    erasing: Erasing | None = Field(None, description="random erasing, after all other augmentations of a sample")
    mixup: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="alpha of mixup's Beta distribution (Zhang et al. 2018); 0: off; drawn for each batch",
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="alpha of CutMix's Beta distribution (Yun et al. 2019); 0: off; with mixup too, one of both is "
        "drawn for each batch, with probability 1/2",
    )
    copies: int = Field(
        1,
        ge=1,
        description="repeated augmentation (Berman et al. 2019): differently augmented copies of each image in its "
        "batch; epochs keep their length and have 1/copies of the images, drawn anew for each",
    )


class RandomErasing(v2.RandomErasing):
    """Random erasing on uint8 images (..., 3, H, W), the same in all frames of a clip.

    torchvision erases standardised images. Here pixels are standardised on the device, in batches, and what enters the
    net is the same up to the rounding to whole pixel values.

    Args:
        section: section of the config.
        mean: mean of each channel, RGB, 0 to 255.
        std: standard deviation of each channel, RGB, 0 to 255.
    """

    def __init__(self, section: Erasing, mean: list[float], std: list[float]) -> None:
        value: Any = "random" if section.value == "random" else [round(v) for v in mean]
        super().__init__(section.probability, section.scale, section.ratio, value)
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the rectangle, and its content."""
        params = super().make_params(flat_inputs)
        if self.value is None and params["v"] is not None:  # noise (3, h, w) with mean 0 and std 1
            params["v"] = (params["v"] * self.std + self.mean).round_().clamp_(0, 255)
        return params


def distortions(augment: CommonAugment, transform: InputTransform | VideoTransform) -> list[Callable[[Any], Any]]:
    """Make the steps that follow crop and flip: the operations of ``auto_augment``, then erasing.

    Pixels from outside of the image get the mean colour of the data, as in timm.

    Args:
        augment: section of the config.
        transform: input transform of the net, for images or clips.

    Returns:
        Transforms of uint8 images (3, H, W) or clips (T, 3, H, W); all frames of a clip get the same operations.
    """
    # 1. The statistics of the data, in the order of the pixels, which are RGB.
    reverse = isinstance(transform, InputTransform) and transform.channel_order == "BGR"
    mean, std = ([255 * v for v in (values[::-1] if reverse else values)] for values in (transform.mean, transform.std))
    steps: list[Callable[[Any], Any]] = []
    # 2. The operations. torchvision rotates and shears tensors with two interpolations only.
    if augment.auto_augment is not None:
        nearest = isinstance(transform, InputTransform) and transform.interpolation.startswith("nearest")
        interpolation = v2.InterpolationMode.NEAREST if nearest else v2.InterpolationMode.BILINEAR
        policy = augment.auto_augment.build(interpolation, [float(round(v)) for v in mean])
        if isinstance(transform, VideoTransform):
            # A plain (T, 3, H, W) is a batch for AugMix, which would draw other weights for each frame.
            steps += [tv_tensors.Video, policy, v2.ToPureTensor()]
        else:
            steps.append(policy)
    # 3. Erasing.
    if augment.erasing is not None:
        steps.append(RandomErasing(augment.erasing, mean, std))
    return steps


class Flip:
    """Random horizontal flip: ``v2.RandomHorizontalFlip`` of one tensor (..., H, W) with the same draws, in less time.

    Args:
        probability: probability of the flip.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.flip(-1) if torch.rand(1) < self.probability else pixels


class Mixing:
    """Mixup and CutMix of a batch with itself, shifted by one sample.

    With both, one of them is drawn for each batch with probability 1/2. The numbers come from torch's generator on the
    CPU, so that no device is waited for.

    Args:
        mixup: alpha of mixup's Beta distribution; 0: none.
        cutmix: alpha of CutMix's Beta distribution; 0: none.
        classes: number of classes.
    """

    def __init__(self, mixup: float, cutmix: float, classes: int) -> None:
        chosen: list[v2.Transform] = []
        if mixup:
            chosen.append(v2.MixUp(alpha=mixup, num_classes=classes))
        if cutmix:
            chosen.append(v2.CutMix(alpha=cutmix, num_classes=classes))
        self.transform = chosen[0] if len(chosen) == 1 else v2.RandomChoice(chosen)

    def __call__(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the inputs and the labels of a batch.

        Args:
            x: images (N, C, H, W) or clips (N, C, T, H, W); a clip's frames get the same rectangle.
            labels: classes (N,).

        Returns:
            Inputs of the same shape and memory layout, and the probabilities of the classes (N, classes).
        """
        if x.ndim == 4:
            mixed, targets = self.transform(x, labels)
        else:
            mixed, targets = self.transform(tv_tensors.Video(x), labels)  # 5-D tensors must be marked as videos
            mixed = mixed.as_subclass(Tensor)
        # torch.roll, which mixup uses, makes an ordinary layout of channels_last on a GPU.
        return (mixed if mixed.stride() == x.stride() else torch.empty_like(x).copy_(mixed)), targets


def make_mixing(augment: CommonAugment, classes: int, batch_size: int, ranks: int) -> Mixing | None:
    """Make the mixing of batches that the config asks for, if any.

    Args:
        augment: section of the config.
        classes: number of classes.
        batch_size: samples of a forward on all ranks together.
        ranks: number of processes.

    Raises:
        ConfigError: a forward of one process has one sample only, which would be mixed with itself.
    """
    if not augment.mixup and not augment.cutmix:
        return None
    key = "mixup" if augment.mixup else "cutmix"
    distinct = batch_size // augment.copies
    if batch_size // ranks < 2 or distinct < 2:
        per = f" on {ranks} processes" if ranks > 1 else ""
        copies = f" with data.augment.copies={augment.copies}" if augment.copies > 1 else ""
        raise ConfigError(
            f"data.augment.{key}={getattr(augment, key):g}: mixup and cutmix mix two samples of a forward, "
            f"train.batch_size={batch_size}{per}{copies} has one; raise the batch size or set {key} to 0"
        )
    return Mixing(augment.mixup, augment.cutmix, classes)


def check_augment(augment: CommonAugment, channels: int) -> None:
    """Refuse operations on colours for images that have none.

    Args:
        augment: section of the config.
        channels: number of channels of the images.

    Raises:
        ConfigError: ``auto_augment`` with another number of channels than 1 and 3.
    """
    if augment.auto_augment is not None and channels not in (1, 3):
        raise ConfigError(
            f"data.augment.auto_augment: its operations on colours take 1 or 3 channels, the net takes {channels}; "
            "leave it out"
        )
