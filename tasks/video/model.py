"""The task of video classification for the training engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

import zoo
from tasks.augment import make_mixing
from tasks.classes import order_last_layer
from tasks.config import check_size, net_info
from tasks.devices import process_state
from tasks.engine import BaseTask, EpochBatches, Fingerprint, SetPrint
from tasks.errors import ConfigError, DataError, TrainingError
from tasks.progress import print_line
from tasks.splits import describe_sets
from tasks.video.config import VideoConfig
from tasks.video.data import (
    Batch,
    EvalSet,
    Sample,
    TrainSet,
    collate,
    index_path,
    index_videos,
    load_videos,
    print_notes,
    report_damage,
    report_failures,
)
from tasks.video.evaluate import evaluate, standardised, write_report
from tasks.video.index import Index
from tasks.video.inputs import chosen_input, weights_entry, with_input


class VideoClassification(BaseTask):
    """Loss, data and metrics of a run of video classification.

    Args:
        config: config of the run.
        workers: number of processes that index videos; None: ``train.workers``.
        report: whether the videos that cannot be read or are odd are printed.

    Raises:
        DataError: problems that ``load_videos`` lists, or more unreadable videos than ``data.max_failed`` allows.
        ConfigError: a net that does not take clips, or frames that are too small for it (in ``build_model``).
    """

    unit = "clips"
    one_shape = True

    def __init__(self, config: VideoConfig, *, workers: int | None = None, report: bool = True) -> None:
        # 1. Describe the input of the net; the config of the run states what was chosen.
        self.entry = weights_entry(config.model)
        self.transform = chosen_input(config, self.entry)
        data = with_input(config.data, self.transform)
        self.config = config.model_copy(update={"data": data})
        # 2. Find the videos and their frame times.
        train, val = load_videos(data)
        index = Index(index_path(data), Path(data.root))
        workers = config.train.workers if workers is None else workers
        self.train_videos = index_videos(train, index, workers=workers)
        self.val_videos = index_videos(val, index, workers=workers)
        self.classes = train.classes
        self.left_out = (train.left_out, val.left_out)
        ranks = process_state().num_processes
        self.mixing = make_mixing(data.augment, len(self.classes), config.train.batch_size, ranks)
        # 3. Report the videos that cannot be read.
        for videos, name in ((self.train_videos, "training"), (self.val_videos, "evaluation")):
            if report and process_state().is_main_process:
                report_failures(videos.failures, videos.total, f"{name} set")
                print_notes(videos.odd, videos.total, f"{name} set")
        self._refuse(self.train_videos.failures, "of the training set", DataError)
        self.failures: dict[str, str] = {}  # training videos that failed in this epoch on this rank, with reasons

    def _refuse(self, failures: dict[str, str], where: str, kind: type[Exception]) -> None:
        """Raise an error if more training videos failed than the config allows.

        Args:
            failures: mapping from name to reason, those of the index among them.
            where: part of the videos, for the message.
            kind: class of the error.
        """
        limit, share = self.config.data.max_failed, self._failed_share(failures)
        if share > limit:
            copies = self.config.data.augment.copies
            repeated = f" with data.augment.copies={copies}" if copies > 1 else ""
            raise kind(
                f"{len(failures)} of {self.train_videos.total} videos {where} cannot be read ({share:.1%}{repeated}, "
                f"data.max_failed is {limit:.1%}), the first: {next(iter(failures.values()))}"
            )

    def _failed_share(self, failures: dict[str, str]) -> float:
        """Return the share of the training videos that cannot be read, estimated from those of the index and an epoch.

        The index knows of all videos; with copies an epoch reads 1/copies of them.

        Args:
            failures: mapping from name to reason, of the index and of an epoch.
        """
        of_index = len(self.train_videos.failures)
        of_epoch = len(failures) - of_index
        return (of_index + self.config.data.augment.copies * of_epoch) / self.train_videos.total

    def build_model(self) -> zoo.Backbone:
        section = self.config.model
        info = net_info(section.name, "clips")
        if self.config.train.precision == "bf16" and not torch.accelerator.is_available():
            # oneDNN's weight gradient is noise or NaN if a clip is shorter than the kernel (docs/video.md).
            raise ConfigError("train.precision=bf16: 3D convolutions give wrong gradients on the CPU; set it to fp32")
        check_size(self.transform.size, info)
        if self.entry is not None and isinstance(self.entry.transform, zoo.InputTransform):
            model = self._inflated(self.entry)
        else:
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
        return model

    def _inflated(self, entry: zoo.Weights) -> zoo.Backbone:
        """Return the net inflated from the weights of an image net, with a new last layer."""
        section = self.config.model
        scheme = entry.scheme_for(section.scheme)
        images = zoo.create_model(entry.config.name, entry.name, scheme=scheme)
        model = zoo.convert.inflate(images, section.name, kernel=section.inflate, **section.options)
        print_line(
            f"{section.name}: inflated from {entry.name} ({section.inflate}), a new last layer of {len(self.classes)}"
        )
        model.reset_classifier(len(self.classes))
        return model

    def fingerprint(self) -> Fingerprint:
        train, val = (
            SetPrint.of((video.name, video.label, video.segment) for video in videos.items)
            for videos in (self.train_videos, self.val_videos)
        )
        return Fingerprint(self.classes, train, val, "videos")

    def describe_data(self, data: Fingerprint) -> list[str]:
        train, val = data.train.samples, data.val.samples
        return describe_sets(train, val, data.unit, classes=len(data.classes), left_out=self.left_out)

    def train_set(self) -> TrainSet:
        return TrainSet(self.train_videos, self.config.data, self.transform, self.config.train.seed)

    def batches(self, batch_size: int, seed: int) -> EpochBatches:
        return EpochBatches(len(self.train_videos), batch_size, seed, copies=self.config.data.augment.copies)

    def collate(self, samples: list[Sample]) -> Batch:
        return collate(samples)

    def inputs(self, clips: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the model's input: uint8 clips (N, T, 3, H, W) -> (N, 3, T, H, W)."""
        return standardised(clips, self.transform, dtype)

    def calibration_forward(self, model: nn.Module, batch: Batch, dtype: torch.dtype) -> None:
        good = batch.labels >= 0
        if not good.any():
            raise DataError(f"no video of a batch can be read: {next(iter(batch.failures.values()))}")
        model(self.inputs(batch.clips[good], dtype))

    def losses(self, model: nn.Module, batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
        if batch.failures:
            self.failures |= batch.failures
            self._refuse({**self.train_videos.failures, **self.failures}, "of this epoch", TrainingError)
            good = batch.labels >= 0  # waits for the device, only where a video could not be read
            if not good.any():
                # The other ranks wait for a backward of this rank, so that it needs a loss, of gradient 0.
                return {"loss": model(self.inputs(batch.clips, dtype)).sum() * 0}
            batch = batch._replace(clips=batch.clips[good], labels=batch.labels[good])
        x, target = self.inputs(batch.clips, dtype), batch.labels
        if self.mixing is not None:
            x, target = self.mixing(x, target)
        logits = model(x)  # (good, classes)
        return {"loss": F.cross_entropy(logits, target, label_smoothing=self.config.label_smoothing)}

    def end_of_epoch(self, accelerator: Accelerator) -> dict[str, float]:
        failures = dict(gather_object(list(self.failures.items())))
        self.failures = {}
        total = self.train_videos.total
        if accelerator.is_main_process:
            report_failures(failures, total, "epoch")
        failures = {**self.train_videos.failures, **failures}
        # ``losses`` counts the failures of its own rank only, so that all together may be too many.
        self._refuse(failures, "of this epoch", TrainingError)
        return {"train_failed": len(failures), "train_failed_share": self._failed_share(failures)}

    def evaluate(self, model: nn.Module, accelerator: Accelerator, dtype: torch.dtype) -> dict[str, float]:
        data = self.config.data
        result = evaluate(
            model,
            EvalSet(self.val_videos, self.transform, data.eval_clips, data.eval_crops),
            accelerator,
            classes=self.classes,
            inputs=lambda clips: self.inputs(clips, dtype),
            batch_size=data.eval_batch_size,
            workers=self.config.train.workers,
        )
        if not result.names:
            raise DataError(f"no video of the evaluation set can be read: {next(iter(result.failures.values()))}")
        if accelerator.is_main_process:
            new = {k: v for k, v in result.failures.items() if k not in self.val_videos.failures}
            report_failures(new, self.val_videos.total, "evaluation")
            report_damage(result.damaged, self.val_videos.total, "evaluation")
            write_report(result, Path(self.config.output) / "evaluation")
        return result.metrics()

    def save_weights(self, model: nn.Module, path: Path, meta: dict[str, Any]) -> None:
        assert isinstance(model, zoo.Backbone)
        zoo.save_weights(model, path, transform=self.transform, classes=self.classes, meta=meta)
