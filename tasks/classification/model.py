"""The task of classification, as the engine trains it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

import zoo
from tasks.augment import check_augment, make_mixing
from tasks.classes import order_last_layer
from tasks.classification.balance import balanced_repeats, class_weights, weights_on
from tasks.classification.config import ClassificationConfig, RandomResizedCrop
from tasks.classification.data import TrainSet, describe_images, eval_transform, load_images, look_at_sample
from tasks.classification.evaluate import evaluate_images, with_failures
from tasks.config import check_size, net_info
from tasks.devices import process_state
from tasks.engine import BaseTask, EpochBatches, Fingerprint, SetPrint
from tasks.errors import ConfigError
from tasks.inputs import choose, standardise
from tasks.reading import report_new

INPUT_FIELDS = ("size", "resize", "mean", "std")  # of the input transform, which a config may set


def channels_of(config: ClassificationConfig, entry: zoo.Weights | None) -> int:
    """Return the number of input channels of a run: ``model.options.in_chans``, or the weights', or 3.

    Args:
        config: config of the run.
        entry: weights of the run, if it has any.

    Raises:
        ConfigError: a number that is not positive.
    """
    chosen = config.model.options.get("in_chans")
    if chosen is None:
        return 3 if entry is None else entry.config.in_chans
    if not isinstance(chosen, int) or isinstance(chosen, bool) or chosen < 1:
        raise ConfigError(f"model.options.in_chans={chosen!r}: must be a whole number >= 1")
    return chosen


def chosen_input(config: ClassificationConfig, entry: zoo.Weights | None) -> zoo.InputTransform:
    """Return the input of a run: that of its weights, or ImageNet's, with the sizes that the config gives.

    Args:
        config: config of the run.
        entry: weights of the run, if it has any.

    Raises:
        ConfigError: weights that are not for images, a mean or std that contradicts them, is missing or has another
            number of channels, or sizes that do not fit.
    """
    default = zoo.InputTransform.imagenet()
    given = {key: value for key in INPUT_FIELDS if (value := getattr(config.data, key)) is not None}
    channels = channels_of(config, entry)
    for key in ("mean", "std"):
        if key in given and len(given[key]) != channels:
            raise ConfigError(f"data.{key}={list(given[key])}: must have {channels}, a value for each input channel")
    if entry is None:
        return choose(_with_channels(default, channels, given), given)
    if not isinstance(entry.transform, zoo.InputTransform):
        raise ConfigError(f"model.weights={config.model.weights}: expects {entry.transform}, not images")
    return choose(_with_channels(entry.transform, channels, given), given, weights=entry.name)


def _with_channels(transform: zoo.InputTransform, channels: int, given: Mapping[str, Any]) -> zoo.InputTransform:
    """Return the transform for another number of channels; grey has the average of the RGB values.

    Args:
        transform: transform of the weights, or ImageNet's.
        channels: number of input channels of the net.
        given: fields that the config sets.

    Raises:
        ConfigError: there are no values for these channels, and the config gives none.
    """
    if len(transform.mean) == channels:
        return transform
    values: dict[str, Any] = {}
    for key in ("mean", "std"):
        known = getattr(transform, key)
        if key in given:
            values[key] = given[key]
        elif channels == 1:
            values[key] = (round(sum(known) / len(known), 3),)
        else:
            raise ConfigError(
                f"data.{key} is missing: nets with {channels} input channels need one value for each, on the 0..1 "
                "scale; rescalenet check prints those of the data"
            )
    return dataclasses.replace(transform, channel_order="RGB", **values)


class Classification(BaseTask):
    """Loss, data and metrics of a classification run.

    Raises:
        DataError: see ``load_images``.
        zoo.WeightsError: weights that are missing, damaged or of another net.
        ConfigError: settings that do not go together; images that are smaller than the net accepts, or batches that
            its BatchNorm cannot take (raised by ``build_model``).
    """

    unit = "images"
    one_shape = True

    def __init__(self, config: ClassificationConfig) -> None:
        section = config.model
        self.entry = None if section.weights is None else zoo.get_weights(section.weights, model=section.name)
        self.transform = chosen_input(config, self.entry)
        # the config of the run states what was chosen
        fields = {key: getattr(self.transform, key) for key in INPUT_FIELDS}
        self.config = config.model_copy(update={"data": config.data.model_copy(update=fields)})
        # settings that do not go together are refused before the search for images, which can take long
        self.channels, self.ranks = len(self.transform.mean), process_state().num_processes
        check_augment(config.data.augment, self.channels)
        train, val = load_images(config.data, self.channels)
        resized = not isinstance(config.data.augment.crop, RandomResizedCrop)  # which crops before it resizes
        self.train_images = train.resizable(self.transform.resize) if resized else train
        self.val_images = val.resizable(self.transform.resize)
        self.classes = self.train_images.classes
        self.mixing = make_mixing(config.data.augment, len(self.classes), config.train.batch_size, self.ranks)
        self.class_weights = class_weights(config.class_weights, self.train_images)
        self.unread: dict[str, str] = {}  # evaluation images that could not be read so far, with reasons

    def describe_data(self, data: Fingerprint) -> list[str]:
        lines = describe_images(self.train_images, self.val_images)
        if self.config.data.source.startswith("cifar"):
            return lines
        return [*lines, *look_at_sample(self.train_images, self.val_images)]

    def build_model(self) -> zoo.Backbone:
        section = self.config.model
        info = net_info(section.name, "images")
        check_size(self.transform.size, info)
        model = zoo.create_model(
            section.name,
            section.weights,
            scheme=section.scheme,
            num_classes=len(self.classes),
            **section.options,
        )
        if self.entry is not None:
            order_last_layer(model, self.entry, self.classes)
        model.freeze(section.freeze)
        self._check_batch_norm(model)
        return model

    def _check_batch_norm(self, model: zoo.Backbone) -> None:
        """Refuse a batch of one image on a rank where a BatchNorm would have one value per channel.

        A forward without memory, on the meta device, finds out.

        Raises:
            ConfigError: there is such a layer.
        """
        batch_size = self.config.train.batch_size // self.ranks
        if batch_size != 1 or not any(isinstance(module, BatchNorm) for module in model.modules()):
            return
        side = self.transform.size
        try:
            copy.deepcopy(model).to("meta").train()(torch.empty(1, self.channels, side, side, device="meta"))
        except ValueError as error:  # torch: "Expected more than 1 value per channel when training"
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(
                f"train.batch_size={self.config.train.batch_size}: a BatchNorm of {self.config.model.name} would have "
                f"one value per channel at data.size={side}; raise the batch size or data.size, or take another scheme"
            ) from None

    def fingerprint(self) -> Fingerprint:
        train, val = (SetPrint.of(zip(i.names, i.labels, strict=True)) for i in (self.train_images, self.val_images))
        return Fingerprint(self.classes, train, val, self.unit)

    def train_set(self) -> TrainSet:
        return TrainSet(self.train_images, self.config.data, self.transform, self.config.train.seed)

    def batches(self, batch_size: int, seed: int) -> EpochBatches:
        repeats = balanced_repeats(self.train_images) if self.config.data.balanced else None
        copies = self.config.data.augment.copies
        return EpochBatches(len(self.train_images), batch_size, seed, repeats=repeats, copies=copies)

    def collate(self, samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])

    def inputs(self, batch: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Standardise uint8 images (N, C, H, W), in the run's dtype and memory layout."""
        pixels = batch[0].flip(1) if self.transform.channel_order == "BGR" else batch[0]
        x = standardise(pixels, self.transform, dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.config.train.channels_last else x

    def calibration_forward(self, model: nn.Module, batch: tuple[Tensor, ...], dtype: torch.dtype) -> None:
        model(self.inputs(batch, dtype))

    def losses(self, model: nn.Module, batch: tuple[Tensor, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        x, target = self.inputs(batch, dtype), batch[1]
        if self.mixing is not None:
            x, target = self.mixing(x, target)
        smoothing = self.config.label_smoothing
        if self.class_weights is None:
            return {"loss": F.cross_entropy(model(x), target, label_smoothing=smoothing)}
        # Over the number of images, not over the sum of their weights: any number of ranks then has the same mean.
        weights = weights_on(self.class_weights, dtype, x.device)
        total = F.cross_entropy(model(x), target, weights, reduction="sum", label_smoothing=smoothing)
        return {"loss": total / len(x)}

    def evaluate(self, model: nn.Module, accelerator: Accelerator, dtype: torch.dtype) -> dict[str, float]:
        counts, failed = evaluate_images(
            model,
            self.val_images,
            eval_transform(self.transform),
            accelerator,
            inputs=lambda batch: self.inputs(batch, dtype),
            batch_size=self.config.data.eval_batch_size,
            workers=self.config.train.workers,
        )
        report_new(failed, self.unread, len(self.val_images), "evaluation images")
        return with_failures(counts.metrics(), failed)

    def save_weights(self, model: nn.Module, path: Path, meta: dict[str, Any]) -> None:
        assert isinstance(model, zoo.Backbone)
        zoo.save_weights(model, path, transform=self.transform, classes=self.classes, meta=meta)
