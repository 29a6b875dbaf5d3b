"""What the engine requires of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from tasks.engine.sampler import EpochSampler
from zoo.calibration import merge_batches


class Task(Protocol):
    """A task as the engine sees it. ``BaseTask`` has the defaults of what most tasks leave alone."""

    config: Any
    metric: str  # the metric (higher is better) that chooses the best checkpoint
    unit: str  # what the display of progress counts: images, clips, tokens

    def build_model(self) -> nn.Module:
        """A model on the CPU, with the weights that the config names."""

    def train_set(self) -> Dataset[Any]:
        """A map-style data set whose keys are (epoch, index)."""

    def batches(self, batch_size: int, seed: int) -> EpochSampler:
        """The batches of keys of each epoch."""

    def collate(self, samples: list[Any]) -> Any:
        """A batch of tensors from samples."""

    def merge(self, batches: list[Any]) -> list[Any]:
        """The samples of some batches in as few batches as give the same means of activations, for calibration."""

    def calibration_forward(self, model: nn.Module, batch: Any, dtype: torch.dtype) -> None:
        """Run a batch (on the device) through every layer that ``zoo.calibrate`` has to reach."""

    def losses(self, model: nn.Module, batch: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        """The terms of the loss by name, each a mean over the batch; their sum is minimised."""

    def weight(self, batch: Any) -> int | None:
        """The weight of a batch among those of an optimizer step (its tokens); None where all weigh the same."""

    def evaluate(self, model: nn.Module, accelerator: Accelerator, dtype: torch.dtype) -> dict[str, float]:
        """Metrics on the evaluation set, the same on every rank."""

    def end_of_epoch(self, accelerator: Accelerator) -> dict[str, float]:
        """Numbers that the task counted while training an epoch, the same on every rank, for the log."""

    def save_weights(self, model: nn.Module, path: Path, meta: dict[str, Any]) -> None:
        """Write the model as weights that ``zoo.create_model`` loads."""


class BaseTask:
    """Defaults of a task: batches weigh the same, are concatenated for calibration, and nothing else is counted."""

    def merge(self, batches: list[Any]) -> list[Any]:
        return merge_batches(batches)

    def weight(self, batch: Any) -> int | None:
        return None

    def end_of_epoch(self, accelerator: Accelerator) -> dict[str, float]:
        return {}
