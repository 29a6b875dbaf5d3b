"""The protocol between the engine and a task."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from tasks.engine.fingerprint import Fingerprint, SetPrint
from tasks.engine.sampler import EpochSampler
from tasks.splits import describe_sets
from zoo.calibration import merge_batches
from zoo.modules import evaluating


class Task(Protocol):
    """The methods of a task that the engine calls. ``BaseTask`` has defaults for those that most tasks share."""

    config: Any
    unit: str  # plural noun of the items that the display of progress counts: images, clips, tokens
    per_rank: bool  # whether each rank has batches of its own; else each batch is split over all ranks
    one_shape: bool  # whether ``losses`` calls the model once, with one tensor, and only its length can differ

    @property
    def metric(self) -> str:
        """The metric (higher is better) that chooses the best checkpoint."""

    def build_model(self) -> nn.Module:
        """Make the model on the CPU, with the weights that the config names."""

    def fingerprint(self) -> Fingerprint:
        """Return what identifies the data, which a run compares when it resumes."""

    def describe_data(self, data: Fingerprint) -> list[str]:
        """Return lines about what the run trains on and evaluates, which the engine prints at the start of the run.

        Args:
            data: fingerprint of the data, as the task made it.
        """

    def train_set(self) -> Dataset[Any]:
        """Return the training set: map-style, with keys (draw, index); see ``tasks.engine.Key``."""

    def batches(self, batch_size: int, seed: int) -> EpochSampler:
        """Return the sampler of each epoch's batches of keys.

        Args:
            batch_size: size of a batch in the task's own measure; with ``per_rank``, that of one rank.
            seed: seed of the run.
        """

    def collate(self, samples: list[Any]) -> Any:
        """Make a batch of tensors from samples."""

    def merge(self, batches: list[Any]) -> list[Any]:
        """Merge batches for calibration, where the means of the activations stay the same."""

    def calibration_forward(self, model: nn.Module, batch: Any, dtype: torch.dtype) -> None:
        """Run a batch (on the device) through every layer that ``zoo.calibrate`` has to reach."""

    def losses(self, model: nn.Module, batch: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the terms of the loss by name, each a mean over the batch; their sum is minimised."""

    def loss_mode(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which ``losses`` works and the model is in evaluation mode."""

    def weight(self, batch: Any) -> int | None:
        """Return the weight of a batch in an optimizer step, such as its number of tokens; None: all weigh the same."""

    def evaluate(self, model: nn.Module, accelerator: Accelerator, dtype: torch.dtype) -> dict[str, float]:
        """Evaluate the model on the evaluation set; the metrics are the same on every rank."""

    def end_of_epoch(self, accelerator: Accelerator) -> dict[str, float]:
        """Return what the task counted while training an epoch, for the log; the same on every rank."""

    def save_weights(self, model: nn.Module, path: Path, meta: dict[str, Any]) -> None:
        """Write the model as weights that ``zoo.create_model`` loads."""


class BaseTask(Task):
    """Defaults of a task: batches weigh the same, differ in shape, and are concatenated for calibration."""

    one_shape = False
    per_rank = False

    @property
    def metric(self) -> str:
        return self.config.metric

    def fingerprint(self) -> Fingerprint:
        """Return the number of the training samples, all that is known of a task without classes and names."""
        data: Any = self.train_set()
        return Fingerprint((), SetPrint(len(data), ""), SetPrint(0, ""), self.unit)

    def describe_data(self, data: Fingerprint) -> list[str]:
        return describe_sets(data.train.samples, data.val.samples, data.unit, classes=len(data.classes) or None)

    def merge(self, batches: list[Any]) -> list[Any]:
        return merge_batches(batches)

    def loss_mode(self, model: nn.Module) -> AbstractContextManager[None]:
        return evaluating(model)

    def weight(self, batch: Any) -> int | None:
        return None

    def end_of_epoch(self, accelerator: Accelerator) -> dict[str, float]:
        return {}
