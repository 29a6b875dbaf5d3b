"""Config of the detection task."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from tasks.config import FREE, PathOrEmpty, PathText, RunConfig, Strict, WeightsText
from tasks.detection.commands import MOST
from zoo.schemes.vision import SCHEMES


class DetectorSection(Strict):
    """The detector, as ``create_detector`` takes it."""

    name: str = Field(description="faster_rcnn_BACKBONE_fpn or mask_rcnn_BACKBONE_fpn")
    weights: WeightsText | None = Field(
        None, description="weights of the whole detector: any name that zoo.get_weights opens"
    )
    weights_backbone: WeightsText | None = Field(None, description="weights of the backbone alone, likewise")
    scheme: str | None = Field(None, description=f"{', '.join(SCHEMES)}; default: the weights' or rescale")
    freeze: int = Field(0, ge=0, le=5, description="number of levels, from the stem on, that stay fixed")
    options: dict[str, Any] = Field({}, description="fields of tasks.detection.detector.DetectorOptions")

    @field_validator("freeze")
    @classmethod
    def _something_to_keep(cls, freeze: int, info: ValidationInfo) -> int:
        if freeze and info.data.get("weights") is None and info.data.get("weights_backbone") is None:
            raise ValueError(
                "requires model.weights or model.weights_backbone, because a fresh net has nothing to keep"
            )
        return freeze


class ShortSide(Strict):
    """Resize the short side to a size drawn from ``sizes``, the long side to at most ``max_size``."""

    name: Literal["short_side"] = "short_side"
    sizes: tuple[int, ...] | None = Field(
        None, min_length=1, description="pixels; default: data.min_size times the factors"
    )
    max_size: int | None = Field(None, ge=1, description="pixels; default: data.max_size")
    factors: tuple[float, ...] = Field(
        (0.8, 0.84, 0.88, 0.92, 0.96, 1.0), min_length=1, description="of data.min_size, where there are no sizes"
    )


class LargeScaleJitter(Strict):
    """Resize to ``size`` times a factor drawn from ``scale``, then crop or pad to ``size`` (Ghiasi et al. 2021)."""

    name: Literal["lsj"] = "lsj"
    size: int = Field(1024, ge=1, description="side of the square, in pixels")
    scale: tuple[float, float] = (0.1, 2.0)


class Augment(Strict):
    """Training augmentation, seeded by epoch and index of the image."""

    resize: Annotated[ShortSide | LargeScaleJitter, Field(discriminator="name")] = ShortSide()
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    vertical_flip: float = Field(0.0, ge=0, le=1, description="probability of a vertical flip")
    photometric: float = Field(0.0, ge=0, le=1, description="probability of each colour distortion (SSD's)")


class DataSection(Strict):
    """COCO JSON files, and folders or zip files of images."""

    root: Annotated[PathText, FREE] = Field(description="folder of the data set")
    train_annotations: Annotated[PathText, FREE] = Field(
        "annotations/instances_train2017.json", description="JSON file below root"
    )
    train_images: Annotated[PathOrEmpty, FREE] = Field(
        "train2017", description="folder or zip below root; .zip may be left out"
    )
    val_annotations: Annotated[PathText, FREE] = Field(
        "annotations/instances_val2017.json", description="JSON file below root"
    )
    val_images: Annotated[PathOrEmpty, FREE] = Field(
        "val2017", description="folder or zip below root; .zip may be left out"
    )
    holdout: Annotated[PathText | None, FREE] = Field(
        None, description="file with the names of training images that are held out for tuning"
    )
    split: Literal["official", "holdout", "share"] = Field(
        "official",
        description="official: train on all of train, evaluate val; holdout: the images of a list are held out of "
        "train and evaluated; share: likewise, a share of the images",
    )
    val_share: Annotated[float, FREE] = Field(
        0.1, gt=0, lt=1, description="share of the images that split=share reserves for evaluation"
    )
    val_seed: Annotated[int, FREE] = Field(
        0, ge=0, description="seed of split=share, which chooses by hashes of seed and file name, not by the order"
    )
    empty: Literal["skip", "keep"] = Field("skip", description="training images without objects")
    check: Annotated[Literal["decode", "header"], FREE] = Field(
        "decode", description="check before training: decode every image, or read sizes only (for large sets)"
    )
    min_size: int | None = Field(
        None, ge=1, description="short side in evaluation, in pixels; default: the weights' or 800"
    )
    max_size: int | None = Field(
        None, ge=1, description="limit of the long side in evaluation, in pixels; default: the weights' or 1333"
    )
    mean: tuple[float, float, float] | None = Field(None, description="default: the weights' or ImageNet's")
    std: tuple[float, float, float] | None = Field(None, description="default: the weights' or ImageNet's")
    augment: Augment = Augment()
    group_by_aspect: bool = Field(True, description="batches of images that are all wide or all tall")
    repeat_threshold: float = Field(
        0.0, ge=0, le=1, description="images with classes rarer than this share are repeated (LVIS: 0.001); 0: none"
    )
    cache: Annotated[bool, FREE] = Field(False, description="keep decoded images in memory")
    eval_batch_size: Annotated[int, FREE] = Field(
        1, ge=1, description="images of a forward in evaluation, on each rank"
    )
    max_dets: int = Field(
        100,
        ge=1,
        le=MOST,
        description="detections of an image that the metrics count, and that the detector reports at least",
    )
    fast_eval: Annotated[bool, FREE] = Field(
        False, description="faster-coco-eval instead of pycocotools (same metrics)"
    )


class DetectionConfig(RunConfig):
    """A detection run."""

    task: Literal["detection"]
    model: DetectorSection
    data: DataSection

    @property
    def metric(self) -> str:
        return "mask_ap" if self.has_masks else "box_ap"

    @property
    def has_masks(self) -> bool:
        """Whether the detector is a Mask R-CNN."""
        return self.model.name.startswith("mask_")

    def without_augmentation(self) -> DetectionConfig:
        augment = Augment(resize=ShortSide(factors=(1.0,)), flip=0.0)
        return self.model_copy(update={"data": self.data.model_copy(update={"augment": augment})})
