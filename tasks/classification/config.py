"""Config of the classification task."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from tasks.augment import CommonAugment, Share
from tasks.config import FREE, BackboneSection, PathOrEmpty, PathText, RunConfig, Strict


class PadCrop(Strict):
    """Pad with zeros, then crop at random (CIFAR)."""

    name: Literal["pad"] = "pad"
    padding: int = Field(4, ge=0, description="pixels")


class RandomResizedCrop(Strict):
    """Crop a random part and resize it (ImageNet)."""

    name: Literal["random_resized"] = "random_resized"
    scale: Share = Field((0.08, 1.0), description="range of the crop's share of the image's area")


class CentreCrop(Strict):
    """Resize and crop the centre, as in evaluation."""

    name: Literal["centre"] = "centre"


class Augment(CommonAugment):
    """Training augmentation, seeded by epoch and index of the image; mixup and CutMix by the step."""

    crop: Annotated[PadCrop | RandomResizedCrop | CentreCrop, Field(discriminator="name")] = RandomResizedCrop()


class DataSection(Strict):
    """The images, and their size and scale at the input of the net."""

    source: Literal["folder", "list", "cifar10", "cifar100"] = Field(
        "folder",
        description="folder: train/<class>/*.jpg trees; list: CSV files with the columns path and label; cifar10 and "
        "cifar100: torchvision's download",
    )
    root: Annotated[PathText, FREE] = Field(description="folder of the data set; paths in lists are relative to it")
    train: Annotated[PathOrEmpty, FREE] = Field(
        "train", description="folder of the training images below root, or their list: train.csv"
    )
    val: Annotated[PathOrEmpty, FREE] = Field(
        "val", description="folder of the evaluation images below root, or their list: val.csv"
    )
    holdout: Annotated[PathText | None, FREE] = Field(
        None, description="file with the training images that are held out for tuning, a line CLASS/NAME each"
    )
    split: Literal["official", "holdout", "share"] = Field(
        "official",
        description="official: train on all of train, evaluate val; holdout: the images of a list are held out of "
        "train and evaluated; share: likewise, a share of each class",
    )
    val_share: Annotated[float, FREE] = Field(
        0.1, gt=0, lt=1, description="share of the images of each class that split=share reserves for evaluation"
    )
    val_seed: Annotated[int, FREE] = Field(
        0, ge=0, description="seed of split=share, which chooses by hashes of seed and name, not by the order"
    )
    balanced: bool = Field(
        False, description="draw every class equally often: images of rare classes occur several times in an epoch"
    )
    size: int | None = Field(
        None, ge=1, description="side of the image that enters the net, in pixels; default: the weights' or 224"
    )
    resize: int | None = Field(
        None,
        ge=1,
        description="short side before the centre crop in evaluation, in pixels; default: in the weights' ratio to "
        "size, or 256",
    )
    mean: tuple[float, ...] | None = Field(
        None, description="of each channel, on the 0..1 scale; default: the weights' or ImageNet's"
    )
    std: tuple[float, ...] | None = Field(
        None, description="of each channel, on the 0..1 scale; default: the weights' or ImageNet's"
    )
    augment: Augment = Augment()
    cache: Annotated[bool, FREE] = Field(False, description="keep decoded images in memory")
    eval_batch_size: Annotated[int, FREE] = Field(
        256, ge=1, description="images of a forward in evaluation, all ranks together"
    )


class ImageModelSection(BackboneSection):
    """A net for images; ``options.in_chans`` sets the number of channels that are read."""

    any_channels = True


class ClassificationConfig(RunConfig):
    """A classification run."""

    task: Literal["classification"]
    model: ImageModelSection
    data: DataSection
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["balanced"] | dict[str, float] | None = Field(
        None,
        description="factors on the loss of each class, 1 for classes that are not named; balanced: inversely "
        "proportional to the number of training images, with mean 1 over them",
    )

    @field_validator("class_weights", mode="before")
    @classmethod
    def _check_weights(cls, value: Any) -> Any:
        """Check the factors here: pydantic's messages of a union name its members, which are no keys of the file."""
        if value is not None and value != "balanced" and not isinstance(value, dict):
            raise ValueError("must be balanced, or a factor for each class")
        for name, factor in value.items() if isinstance(value, dict) else ():
            if not (isinstance(name, str) and isinstance(factor, int | float) and 0 <= factor < math.inf):
                raise ValueError(f"{name}={factor!r}: must be a class and a number >= 0")
        return value

    @property
    def metric(self) -> str:
        return "top1"

    def without_augmentation(self) -> ClassificationConfig:
        data = self.data.model_copy(update={"augment": Augment(crop=CentreCrop(), flip=0.0)})
        return self.model_copy(update={"data": data, "label_smoothing": 0.0, "class_weights": None})
