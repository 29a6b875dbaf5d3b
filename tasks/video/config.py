"""Config of the video task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.augment import CommonAugment
from tasks.config import FREE, BackboneSection, PathOrEmpty, PathText, RunConfig, Strict
from tasks.errors import ConfigError


class VideoModelSection(BackboneSection):
    """The net. ``weights`` may name weights of an image net in full, which are inflated."""

    inflate: Literal["centre", "mean"] = Field(
        "centre", description="how weights of an image net are inflated; see zoo.convert.inflate"
    )


class Clip(Strict):
    """Choice of the frames of a clip."""

    frames: int = Field(8, ge=1)
    interval: float | None = Field(
        8, gt=0, description="distance between frames, in frames at fps; null: frames spread over the whole video"
    )
    fps: float | None = Field(30, gt=0, description="frames per second; null: the average rate of the video")


class Augment(CommonAugment):
    """Training augmentation, the same for all frames of a clip; seeded by epoch and index of the video.

    Mixup and CutMix are seeded by the step. Copies of a video are other clips of it.
    """

    short_side: tuple[int, int] | None = Field(
        None, description="range of the short side before the crop, in pixels; default: 1 to 1.25 times data.resize"
    )
    colour: float = Field(0.0, ge=0, le=1, description="strength of changes in brightness, contrast and saturation")


class DataSection(Strict):
    """Videos and their preparation for the net."""

    source: Literal["folders", "list", "kinetics", "ucf101", "hmdb51", "something"] = Field(
        "folders",
        description="folders: train/<class>/*.mp4 trees; list: files of 'path label' lines or CSV with such columns, "
        "and start and end of parts; kinetics: CSV with label, youtube_id, time_start, time_end; ucf101: "
        "trainlist01.txt and testlist01.txt; hmdb51: folder of the official splits and a number, splits/1, for train "
        "and val; something: the JSON files of Something-Something",
    )
    root: Annotated[PathText, FREE] = Field(description="folder of the data set")
    train: Annotated[PathOrEmpty, FREE] = Field(
        "train", description="folder of the training videos below root, or file that lists them"
    )
    val: Annotated[PathOrEmpty, FREE] = Field(
        "val", description="folder of the evaluation videos below root, or file that lists them"
    )
    videos: Annotated[PathOrEmpty, FREE] = Field(
        "", description="folder below root with the videos that a list or CSV names; default: root"
    )
    holdout: Annotated[PathText | None, FREE] = Field(
        None, description="file with a list of held-out training videos, a name on each line"
    )
    split: Literal["official", "holdout"] = Field(
        "official",
        description="official: train on all of train and evaluate val; holdout: train without the held-out videos and "
        "evaluate them",
    )
    index: Annotated[PathText | None, FREE] = Field(
        None, description="file with the frame times of each video; default: root/video_index.json"
    )
    max_failed: Annotated[float, FREE] = Field(
        0.05, ge=0, le=1, description="share of the training videos that may fail before training stops"
    )
    clip: Clip | None = Field(None, description="default: the weights', or 8 frames 8/30 s apart")
    size: int | None = Field(
        None, ge=1, description="side of the frames that enter the net, in pixels; default: the weights' or 224"
    )
    resize: int | None = Field(
        None,
        ge=1,
        description="short side before the crop in evaluation, in pixels; default: in the weights' ratio to size, or "
        "256",
    )
    crop_mode: Literal["center", "squash"] | None = Field(
        None,
        description="center: keep the shape of the frames before the crop; squash: resize them to squares; default: "
        "the weights' or center",
    )
    mean: tuple[float, float, float] | None = Field(None, description="default: the weights' or 0.45")
    std: tuple[float, float, float] | None = Field(None, description="default: the weights' or 0.225")
    augment: Augment = Augment()
    eval_clips: int = Field(1, ge=1, description="clips of a video in evaluation")
    eval_crops: Literal[1, 3] = Field(1, description="crops of a clip in evaluation, along the long side")
    eval_batch_size: Annotated[int, FREE] = Field(
        8, ge=1, description="videos of a batch in evaluation, on all ranks together"
    )

    @model_validator(mode="after")
    def _sizes(self) -> DataSection:
        if self.size is None or self.resize is None:  # known when the weights are
            return self
        low, high = self.augment.short_side or (self.size, self.size)
        if not self.size <= low <= high or self.size > self.resize:
            raise ValueError(
                f"size={self.size} must be at most resize={self.resize} and augment.short_side={[low, high]}, in order"
            )
        return self


class VideoConfig(RunConfig):
    """A run of video classification."""

    task: Literal["video"]
    model: VideoModelSection
    data: DataSection
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    @property
    def metric(self) -> str:
        return "top1"

    def without_augmentation(self) -> VideoConfig:
        """Return the config with clips at random times, their short side at ``data.size``, and no other augmentation.

        Raises:
            ConfigError: ``data.size`` is not chosen yet, as in the config of a run it is.
        """
        if self.data.size is None:
            raise ConfigError("data.size: must be chosen; read the config.yaml of a run")
        augment = Augment(short_side=(self.data.size, self.data.size), flip=0.0)
        data = self.data.model_copy(update={"augment": augment})
        return self.model_copy(update={"data": data, "label_smoothing": 0.0})
