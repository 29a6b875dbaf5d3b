"""Top-1, top-5, per-class accuracy and the confusion matrix of image classifiers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

import zoo
from tasks.classification.data import EvalSet, Images
from tasks.devices import describe_run, make_accelerator
from tasks.metrics import ClassCounts, class_numbers
from tasks.outputs import try_to_draw
from tasks.plots import confusion_matrix
from tasks.progress import print_line
from tasks.reading import Readable, Unreadable, report_unread, require_readable
from tasks.shards import gather_in_order, own_batch_size, own_loader
from zoo.files import write_json
from zoo.modules import evaluating

FILES = ("metrics.json", "confusion.png")  # what ``write_report`` writes


def separated(samples: list[Any]) -> tuple[Tensor, Tensor, list[Unreadable]]:
    """Return the images (N, 3, size, size) and labels (N,) of the samples that could be read, and those that could not.

    Without images, the first two are empty.
    """
    unread = [sample for sample in samples if isinstance(sample, Unreadable)]
    read = [sample for sample in samples if not isinstance(sample, Unreadable)]
    images, labels = default_collate(read) if read else (torch.empty(0), torch.empty(0, dtype=torch.int64))
    return images, labels, unread


def eval_loader(data: Dataset[Any], accelerator: Accelerator, batch_size: int, workers: int = 0) -> DataLoader[Any]:
    """Load this rank's part of ``data`` (image, label); ``batch_size`` counts the images of all ranks together."""
    return own_loader(data, accelerator, own_batch_size(batch_size, accelerator), workers=workers)


def class_scores(model: nn.Module, images: Tensor, *, flip: bool) -> Tensor:
    """Return the softmax of the logits (N, classes); with ``flip`` its mean over the images and their mirror images."""
    scores: Tensor = model(images).softmax(1)
    return (scores + model(images.flip(-1)).softmax(1)) / 2 if flip else scores


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    classes: int,
    accelerator: Accelerator,
    *,
    inputs: Callable[[Any], Tensor],
    flip: bool = False,
) -> ClassCounts:
    """Count the model's predictions on a set; every image counts once, on any number of ranks.

    Args:
        model: classifier, on the device.
        loader: batches of this rank, as from ``eval_loader``.
        classes: number of classes.
        accelerator: processes of the run.
        inputs: function from a batch on the device to the model's input.
        flip: whether scores are means over the image and its mirror image.
    """
    counts = ClassCounts.zero(classes)
    with evaluating(model), torch.no_grad(), accelerator.autocast():
        for batch in loader:
            batch = send_to_device(batch, accelerator.device, non_blocking=True)
            pixels = inputs(batch)
            counts.add(class_scores(model, pixels, flip=True) if flip else model(pixels), batch[1])
    return sum_over_ranks(counts, accelerator)


def sum_over_ranks(counts: ClassCounts, accelerator: Accelerator) -> ClassCounts:
    """Add the counts of all ranks, on every rank."""
    flat = torch.cat([counts.confusion.flatten(), torch.tensor([counts.top5])]).to(accelerator.device)
    flat = accelerator.reduce(flat, "sum").cpu()
    return ClassCounts(flat[:-1].view_as(counts.confusion), int(flat[-1]))


def evaluate_images(
    model: nn.Module,
    images: Images,
    transform: Callable[[Tensor], Tensor],
    accelerator: Accelerator,
    *,
    inputs: Callable[[Any], Tensor],
    batch_size: int,
    workers: int = 0,
    flip: bool = False,
) -> tuple[ClassCounts, dict[str, str]]:
    """Count the model's predictions on images, each once on any number of ranks; what cannot be read is skipped.

    Args:
        model: classifier of the images' classes, on the device.
        images: set of images.
        transform: function from an image (C, H, W) to what a batch contains.
        accelerator: processes of the run.
        inputs: function from a batch on the device to the model's input.
        batch_size: images of a forward on all ranks together.
        workers: number of data loading processes.
        flip: whether scores are means over the image and its mirror image.

    Returns:
        Counts, and the reason for each image that cannot be read; the same on every rank.

    Raises:
        DataError: no image can be read.
    """
    share = own_batch_size(batch_size, accelerator)
    loader = own_loader(Readable(EvalSet(images, transform)), accelerator, share, workers=workers, collate=separated)
    unread: dict[int, str] = {}
    batches = _read_batches(loader, unread)
    counts = evaluate(model, batches, len(images.classes), accelerator, inputs=inputs, flip=flip)
    found = gather_in_order({number: (images.names[number], reason) for number, reason in unread.items()})
    require_readable([reason for _, reason in found], len(images), "images")
    return counts, dict(found)


def evaluate_weights(
    model: zoo.Backbone,
    weights: zoo.Weights,
    images: Images,
    *,
    out: Path | None = None,
    batch_size: int = 256,
    workers: int = 0,
    flip: bool = False,
    failed: dict[str, str] | None = None,
) -> ClassCounts:
    """Evaluate weights with the transform of their metadata; images that cannot be read are reported and skipped.

    Args:
        model: net of the weights.
        weights: transform and class names.
        images: set whose class names are all or some of the weights'.
        out: folder for ``metrics.json`` (with the per-class table) and ``confusion.png``.
        batch_size: images of a forward on all ranks together.
        workers: number of data loading processes.
        flip: whether scores are means over the image and its mirror image.
        failed: mapping from image to reason, to which the images that cannot be read are added.

    Raises:
        DataError: the weights lack a class of the set, or no image can be read.
    """
    # 1. The set's labels, as numbers of the weights' classes.
    numbers = class_numbers(images.classes, weights)
    labels = [numbers[label] for label in images.labels]
    assert isinstance(weights.transform, zoo.InputTransform)
    numbered = Images(weights.classes, labels, images.names, images.resizable(weights.transform.resize).read)
    # 2. Count the predictions.
    accelerator = make_accelerator()
    if accelerator.is_main_process:
        print_line(describe_run(accelerator, "fp32"))
    counts, found = evaluate_images(
        model.to(accelerator.device),
        numbered,
        weights.transforms(),
        accelerator,
        inputs=lambda batch: batch[0],
        batch_size=batch_size,
        workers=workers,
        flip=flip,
    )
    # 3. Report what is missing, and write the files on one rank.
    if failed is not None:
        failed.update(found)
    if accelerator.is_main_process:
        report_unread(found, len(images), "images")
        if out is not None:
            write_report(counts, weights.classes, out, failed=found)
    return counts


def _read_batches(loader: DataLoader[Any], unread: dict[int, str]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images and labels that could be read, and note the others in ``unread`` by their number."""
    for images, labels, missing in loader:
        unread.update(missing)
        if len(labels):
            yield images, labels


def with_failures(metrics: Mapping[str, float], failed: Mapping[str, str]) -> dict[str, float]:
    """Return metrics with the number of images that could not be read."""
    return {**metrics, "failed": len(failed)}


def write_report(
    counts: ClassCounts, classes: Sequence[str], out: Path, *, failed: Mapping[str, str] | None = None
) -> None:
    """Write ``metrics.json`` and ``confusion.png`` into the folder ``out``; a picture that fails costs a line.

    Args:
        counts: counts of the predictions.
        classes: class names.
        out: folder of the files.
        failed: mapping from each image that could not be read to the reason.
    """
    failed = failed or {}
    content = {
        "metrics": with_failures(counts.metrics(), failed),
        "per_class": counts.table(classes),
        "failed": dict(failed),
    }
    write_json(content, out / "metrics.json")
    picture = out / "confusion.png"
    try_to_draw(lambda: confusion_matrix(counts.confusion, classes, picture), picture)
