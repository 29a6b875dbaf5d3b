"""Config of the classification task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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

    source: Literal["folder", "cifar10", "cifar100"] = Field(
        "folder", description="folder: train/<class>/*.jpg trees; cifar10 and cifar100: torchvision's download"
    )
    root: Annotated[PathText, FREE] = Field(description="folder of the data set")
    train: Annotated[PathOrEmpty, FREE] = Field("train", description="folder of the training images below root")
    val: Annotated[PathOrEmpty, FREE] = Field("val", description="folder of the evaluation images below root")
    holdout: Annotated[PathText | None, FREE] = Field(
        None, description="file with the training images that are held out for tuning, a line CLASS/NAME each"
    )
    split: Literal["official", "holdout"] = Field(
        "official", description="official: train on all of train, evaluate val; holdout: neither sees the other"
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
    mean: tuple[float, float, float] | None = Field(None, description="default: the weights' or ImageNet's")
    std: tuple[float, float, float] | None = Field(None, description="default: the weights' or ImageNet's")
    augment: Augment = Augment()
    cache: Annotated[bool, FREE] = Field(False, description="keep decoded images in memory")
    eval_batch_size: Annotated[int, FREE] = Field(
        256, ge=1, description="images of a forward in evaluation, all ranks together"
    )


class ClassificationConfig(RunConfig):
    """A classification run."""

    task: Literal["classification"]
    model: BackboneSection
    data: DataSection
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    @property
    def metric(self) -> str:
        return "top1"

    def without_augmentation(self) -> ClassificationConfig:
        data = self.data.model_copy(update={"augment": Augment(crop=CentreCrop(), flip=0.0)})
        return self.model_copy(update={"data": data, "label_smoothing": 0.0})
