"""Config of the classification task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from tasks.config import ModelSection, RunConfig, Strict
from zoo.transforms import IMAGENET_MEAN, IMAGENET_STD


class PadCrop(Strict):
    """Pad with zeros, then crop at random (CIFAR)."""

    name: Literal["pad"] = "pad"
    padding: int = Field(4, ge=0, description="pixels")


class RandomResizedCrop(Strict):
    """Crop a random part and resize it (ImageNet)."""

    name: Literal["random_resized"] = "random_resized"
    scale: tuple[float, float] = Field((0.08, 1.0), description="share of the image's area")


class CentreCrop(Strict):
    """Resize and crop the centre, as in evaluation."""

    name: Literal["centre"] = "centre"


class Augment(Strict):
    """Training augmentation, seeded by epoch and index of the image."""

    crop: Annotated[PadCrop | RandomResizedCrop | CentreCrop, Field(discriminator="name")] = RandomResizedCrop()
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    mixup: float = Field(0.0, ge=0, description="alpha of the Beta distribution; 0: off")


class DataSection(Strict):
    """The images, and their size and scale at the input of the net."""

    source: Literal["folder", "cifar10", "cifar100"] = Field(
        "folder", description="folder: train/<class>/*.jpg trees; cifar10 and cifar100: torchvision's download"
    )
    root: str = Field(description="folder of the data set")
    train: str = Field("train", description="folder of the training images below root")
    val: str = Field("val", description="folder of the evaluation images below root")
    holdout: str | None = Field(
        None, description="file with the training images that are held out for tuning, a line CLASS/NAME each"
    )
    split: Literal["official", "holdout"] = Field(
        "official", description="official: train on all of train, evaluate val; holdout: neither sees the other"
    )
    size: int = Field(224, ge=1, description="side of the image that enters the net, in pixels")
    resize: int = Field(256, ge=1, validate_default=True, description="short side before the centre crop in evaluation")
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    augment: Augment = Augment()
    cache: bool = Field(False, description="keep decoded images in memory")
    eval_batch_size: int = Field(256, ge=1, description="images of a forward in evaluation, all ranks together")

    @field_validator("resize")
    @classmethod
    def check_resize(cls, resize: int, info: ValidationInfo) -> int:
        """Refuse a side that is smaller than the square cut from it, which would be filled up with black."""
        if resize < info.data.get("size", 0):
            raise ValueError(f"must be at least size={info.data['size']}, the side of the square cut from it")
        return resize


class ClassificationConfig(RunConfig):
    """A classification run."""

    task: Literal["classification"]
    model: ModelSection
    data: DataSection
    label_smoothing: float = Field(0.0, ge=0, lt=1)
