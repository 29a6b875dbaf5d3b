"""The task of detection, as the engine trains it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

import zoo
from tasks.detection.build import IMAGENET
from tasks.detection.choice import Choice
from tasks.detection.class_rows import follow_names
from tasks.detection.coco import Coco, repeat_factors
from tasks.detection.config import DetectionConfig
from tasks.detection.data import TrainSet, aspect_groups, describe_objects, load_sets, train_sizes
from tasks.detection.detector import Detector, Target, create_detector
from tasks.detection.evaluate import all_metrics, beyond_limit, coco_metrics, detect, kinds_of, readable_part
from tasks.detection.predict import draw_results
from tasks.devices import process_state
from tasks.engine import BaseTask, EpochBatches, Fingerprint, SetPrint
from tasks.engine.ranks import from_main
from tasks.outputs import try_to_draw
from tasks.progress import print_line
from tasks.reading import report_new
from zoo.modules import evaluating

log = logging.getLogger("rescalenet")

Batch = tuple[list[Tensor], list[Target]]


def with_sizes(config: DetectionConfig, entry: zoo.Weights | None) -> DetectionConfig:
    """Return the config of a run with the sizes that were chosen: its own, the weights', or torchvision's.

    Args:
        config: config as it is written.
        entry: weights of the whole detector, if there are any.
    """
    of_weights = entry is not None and isinstance(entry.transform, zoo.DetectionTransform)
    default = entry.transform if entry is not None and of_weights else IMAGENET
    assert isinstance(default, zoo.DetectionTransform)
    data = config.data
    short = default.min_size if data.min_size is None else data.min_size
    sizes = {"min_size": short, "max_size": max(default.max_size, short) if data.max_size is None else data.max_size}
    for key, value in sizes.items():
        if entry is not None and of_weights and value != getattr(default, key):
            log.info("data.%s=%s: the weights %s have %s", key, value, entry.name, getattr(default, key))
    data = data.model_copy(update=sizes)
    augment = data.augment.model_copy(update={"resize": train_sizes(data)})
    return config.model_copy(update={"data": data.model_copy(update={"augment": augment})})


class Detection(BaseTask):
    """Losses, data and metrics of a detection run.

    Args:
        config: config of the run.
        sets: training and evaluation set of the config; None: they are loaded, and what was corrected is printed.

    Raises:
        DataError: see ``load_sets``.
        zoo.WeightsError: weights that are missing, damaged or of another net.
    """

    unit = "images"

    def __init__(self, config: DetectionConfig, *, sets: tuple[Coco, Coco] | None = None) -> None:
        name = config.model.weights
        self.entry = None if name is None else zoo.get_weights(name, model=config.model.name)
        self.config = with_sizes(config, self.entry)
        self.masks = config.has_masks
        self.train_data, self.val_data = sets or self._load()
        self.unread: dict[str, str] = {}  # evaluation images that could not be read so far, with reasons

    def _load(self) -> tuple[Coco, Coco]:
        """Load the sets in the main process, for all."""
        train, val = from_main(process_state(), lambda: load_sets(self.config.data, masks=self.masks))
        if (note := beyond_limit(val, self.config.data.max_dets, "data.max_dets")) is not None:
            print_line(note)
        return train, val

    def build_model(self) -> Detector:
        section, data = self.config.model, self.config.data
        model = create_detector(
            section.name,
            section.weights,
            weights_backbone=section.weights_backbone,
            scheme=section.scheme,
            num_classes=len(self.train_data.names),
            min_size=data.min_size,
            max_size=data.max_size,
            mean=data.mean,
            std=data.std,
            **section.options,
        )
        if self.entry is not None:
            follow_names(model, self.entry, self.train_data.names)
        model.freeze(section.freeze)
        return model

    def describe_data(self, data: Fingerprint) -> list[str]:
        return [*super().describe_data(data), *describe_objects(self.train_data, self.val_data)]

    def fingerprint(self) -> Fingerprint:
        train, val = (SetPrint.of(data.samples()) for data in (self.train_data, self.val_data))
        return Fingerprint(tuple(self.train_data.names), train, val, self.unit)

    def train_set(self) -> TrainSet:
        return TrainSet(self.train_data, self.config.data, self.config.train.seed, masks=self.masks)

    def batches(self, batch_size: int, seed: int) -> EpochBatches:
        data, threshold = self.train_data, self.config.data.repeat_threshold
        return EpochBatches(
            len(data),
            batch_size,
            seed,
            groups=aspect_groups(data) if self.config.data.group_by_aspect else None,
            repeats=repeat_factors(data.images, threshold) if threshold else None,
        )

    def collate(self, samples: list[tuple[Tensor, Target]]) -> Batch:
        return [image for image, _ in samples], [target for _, target in samples]

    def inputs(self, batch: Batch, dtype: torch.dtype) -> Batch:
        """Scale uint8 images (3, H, W) to 0..1, and convert them and the boxes to the run's dtype."""
        images = [image.to(dtype) / 255 for image in batch[0]]
        return images, [{**target, "boxes": target["boxes"].to(dtype)} for target in batch[1]]

    def merge(self, batches: list[Batch]) -> list[Batch]:
        """Return the batches as they are: merging would change their padding, and so the means of activations."""
        return batches

    def calibration_forward(self, model: nn.Module, batch: Batch, dtype: torch.dtype) -> None:
        assert isinstance(model, Detector)
        model.calibration_pass(*self.inputs(batch, dtype))

    def losses(self, model: nn.Module, batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
        return model(*self.inputs(batch, dtype))

    @contextmanager
    def loss_mode(self, model: nn.Module) -> Iterator[None]:
        """Put the detector in a mode in which it returns losses while its layers are in evaluation mode."""
        assert isinstance(model, Detector)
        with evaluating(model):
            for framework in (model, model.transform, model.rpn, model.roi_heads):
                framework.training = True
            yield

    def evaluate(self, model: nn.Module, accelerator: Accelerator, dtype: torch.dtype) -> dict[str, float]:
        assert isinstance(model, Detector)
        data = self.config.data
        unread: dict[int, str] = {}
        with Choice().reporting(data.max_dets, model).applied(model):
            results = detect(
                model,
                self.val_data,
                accelerator,
                batch_size=data.eval_batch_size,
                workers=self.config.train.workers,
                dtype=dtype,
                failed=unread,
            )
        readable, failed = readable_part(self.val_data, unread)
        report_new(failed, self.unread, len(self.val_data), "evaluation images")
        if accelerator.is_main_process:
            folder = Path(self.config.output) / "pictures"
            try_to_draw(lambda: draw_results(readable, results, folder), folder)
        kinds = kinds_of(masks=self.masks)
        reports = coco_metrics(readable, results, kinds, fast=data.fast_eval, limit=data.max_dets)
        return {**all_metrics(reports), "images": len(readable), "failed": len(failed)}

    def save_weights(self, model: nn.Module, path: Path, meta: dict[str, Any]) -> None:
        assert isinstance(model, Detector)
        zoo.save_weights(model, path, transform=model.input, classes=self.train_data.names, meta=meta)
