"""Top-1, top-5, per-class accuracy and the confusion matrix of image classifiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import zoo
from tasks.classification.data import EvalSet, Images
from tasks.devices import make_accelerator
from tasks.metrics import ClassCounts, class_numbers
from tasks.plots import confusion_matrix
from tasks.shards import own_batch_size, own_loader
from zoo.files import write_json
from zoo.modules import evaluating


def eval_loader(data: Dataset[Any], accelerator: Accelerator, batch_size: int, workers: int = 0) -> DataLoader[Any]:
    """Load this rank's part of ``data`` (image, label); ``batch_size`` counts the images of all ranks together."""
    return own_loader(data, accelerator, own_batch_size(batch_size, accelerator), workers=workers)


def evaluate(
    model: nn.Module,
    loader: DataLoader[Any],
    classes: int,
    accelerator: Accelerator,
    *,
    inputs: Callable[[Any], Tensor],
) -> ClassCounts:
    """Count the model's predictions on a set; every image counts once, on any number of ranks.

    Args:
        model: classifier, on the device.
        loader: batches from ``eval_loader``.
        classes: number of classes.
        accelerator: processes of the run.
        inputs: function from a batch on the device to the model's input.
    """
    counts = ClassCounts.zero(classes)
    with evaluating(model), torch.no_grad(), accelerator.autocast():
        for batch in loader:
            batch = send_to_device(batch, accelerator.device, non_blocking=True)
            counts.add(model(inputs(batch)), batch[1])
    return sum_over_ranks(counts, accelerator)


def sum_over_ranks(counts: ClassCounts, accelerator: Accelerator) -> ClassCounts:
    """Add the counts of all ranks, on every rank."""
    flat = torch.cat([counts.confusion.flatten(), torch.tensor([counts.top5])]).to(accelerator.device)
    flat = accelerator.reduce(flat, "sum").cpu()
    return ClassCounts(flat[:-1].view_as(counts.confusion), int(flat[-1]))


def evaluate_weights(
    model: zoo.Backbone,
    weights: zoo.Weights,
    images: Images,
    *,
    out: Path | None = None,
    batch_size: int = 256,
    workers: int = 0,
) -> ClassCounts:
    """Evaluate weights with the transform of their metadata.

    Args:
        model: net of the weights.
        weights: transform and class names.
        images: set whose class names are all or some of the weights'.
        out: folder for ``metrics.json`` (with the per-class table) and ``confusion.png``.
        batch_size: images of a forward on all ranks together.
        workers: number of data loading processes.

    Raises:
        DataError: the weights lack a class of the set.
    """
    # The set's labels, as numbers of the weights' classes.
    numbers = class_numbers(images.classes, weights)
    labels = [numbers[label] for label in images.labels]
    data = EvalSet(Images(weights.classes, labels, images.names, images.read), weights.transforms())
    accelerator = make_accelerator()
    model.to(accelerator.device)
    loader = eval_loader(data, accelerator, batch_size, workers)
    counts = evaluate(model, loader, len(weights.classes), accelerator, inputs=lambda batch: batch[0])
    if out is not None and accelerator.is_main_process:
        write_report(counts, weights.classes, out)
    return counts


def write_report(counts: ClassCounts, classes: Sequence[str], out: Path) -> None:
    """Write ``metrics.json`` and ``confusion.png`` into the folder ``out``."""
    content = {"metrics": counts.metrics(), "per_class": counts.table(classes)}
    write_json(content, out / "metrics.json")
    confusion_matrix(counts.confusion, classes, out / "confusion.png")
