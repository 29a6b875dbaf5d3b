"""The task of classification, as the engine trains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

import zoo
from tasks.augment import make_mixing
from tasks.classification.config import ClassificationConfig
from tasks.classification.data import EvalSet, TrainSet, eval_transform, load_images
from tasks.classification.evaluate import eval_loader, evaluate
from tasks.config import check_size, net_info
from tasks.engine import BaseTask, EpochBatches, Fingerprint, SetPrint
from tasks.errors import ConfigError
from tasks.inputs import choose, standardise

INPUT_FIELDS = ("size", "resize", "mean", "std")  # of the input transform, which a config may set


def chosen_input(config: ClassificationConfig) -> zoo.InputTransform:
    """Return the input of a run: that of its weights, or ImageNet's, with the sizes that the config gives.

    Raises:
        ConfigError: weights that are not for RGB images, a mean or std that contradicts them, or sizes that do not fit.
        zoo.WeightsError: weights that are missing, damaged or of another net.
    """
    section, default = config.model, zoo.InputTransform.imagenet()
    given = {key: value for key in INPUT_FIELDS if (value := getattr(config.data, key)) is not None}
    if section.weights is None:
        return choose(default, given)
    entry = zoo.get_weights(section.weights, model=section.name)
    if not isinstance(entry.transform, zoo.InputTransform) or len(entry.transform.mean) != 3:
        raise ConfigError(f"model.weights={section.weights}: expects {entry.transform}, not RGB images")
    return choose(entry.transform, given, weights=entry.name)


class Classification(BaseTask):
    """Loss, data and metrics of a classification run.

    Raises:
        DataError: see ``load_images``.
        ConfigError: the images are smaller than the net accepts (raised by ``build_model``).
    """

    unit = "images"
    one_shape = True

    def __init__(self, config: ClassificationConfig) -> None:
        self.transform = chosen_input(config)
        # the config of the run states what was chosen
        fields = {key: getattr(self.transform, key) for key in INPUT_FIELDS}
        self.config = config.model_copy(update={"data": config.data.model_copy(update=fields)})
        self.train_images, self.val_images = load_images(config.data)
        self.classes = self.train_images.classes
        self.eval_loader: Any = None  # made at the first evaluation
        self.mixing = make_mixing(config.data.augment, len(self.classes))

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
        model.freeze(section.freeze)
        return model

    def fingerprint(self) -> Fingerprint:
        train, val = (SetPrint.of(zip(i.names, i.labels, strict=True)) for i in (self.train_images, self.val_images))
        return Fingerprint(self.classes, train, val, self.unit)

    def train_set(self) -> TrainSet:
        return TrainSet(self.train_images, self.config.data, self.transform, self.config.train.seed)

    def batches(self, batch_size: int, seed: int) -> EpochBatches:
        return EpochBatches(len(self.train_images), batch_size, seed, copies=self.config.data.augment.copies)

    def collate(self, samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])

    def inputs(self, batch: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Standardise uint8 RGB images (N, 3, H, W), in the run's dtype and memory layout."""
        pixels = batch[0].flip(1) if self.transform.channel_order == "BGR" else batch[0]
        x = standardise(pixels, self.transform, dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.config.train.channels_last else x

    def calibration_forward(self, model: nn.Module, batch: tuple[Tensor, ...], dtype: torch.dtype) -> None:
        model(self.inputs(batch, dtype))

    def losses(self, model: nn.Module, batch: tuple[Tensor, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        x, target = self.inputs(batch, dtype), batch[1]
        if self.mixing is not None:
            x, target = self.mixing(x, target)
        return {"loss": F.cross_entropy(model(x), target, label_smoothing=self.config.label_smoothing)}

    def evaluate(self, model: nn.Module, accelerator: Accelerator, dtype: torch.dtype) -> dict[str, float]:
        if self.eval_loader is None:
            data = EvalSet(self.val_images, eval_transform(self.transform))
            batch_size, workers = self.config.data.eval_batch_size, self.config.train.workers
            self.eval_loader = eval_loader(data, accelerator, batch_size, workers)
        return evaluate(
            model, self.eval_loader, len(self.classes), accelerator, inputs=lambda batch: self.inputs(batch, dtype)
        ).metrics()

    def save_weights(self, model: nn.Module, path: Path, meta: dict[str, Any]) -> None:
        assert isinstance(model, zoo.Backbone)
        zoo.save_weights(model, path, transform=self.transform, classes=self.classes, meta=meta)
