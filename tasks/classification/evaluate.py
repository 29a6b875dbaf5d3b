"""Top-1, top-5, per-class accuracy and the confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import zoo
from tasks.classification.data import EvalSet, Images
from tasks.devices import make_accelerator
from tasks.errors import DataError
from tasks.plots import confusion_matrix
from zoo.errors import suggestion
from zoo.files import write_json


@dataclass
class Result:
    """What an evaluation saw.

    Attributes:
        confusion: (classes, classes) counts; rows are true classes, columns predictions.
        top5: images whose class is among the five highest logits (all classes if there are fewer).
    """

    confusion: Tensor
    top5: int

    def metrics(self) -> dict[str, float]:
        """top1, top5 and mean per-class accuracy in percent, and the number of images."""
        count = int(self.confusion.sum())
        return {
            "top1": 100 * float(self.confusion.diagonal().sum()) / count,
            "top5": 100 * self.top5 / count,
            "mean_class": 100 * float(self.per_class().nanmean()),
            "images": count,
        }

    def per_class(self) -> Tensor:
        """(classes,) recall of each class; NaN for classes without images."""
        return self.confusion.diagonal().double() / self.confusion.sum(1)

    def table(self, classes: Sequence[str], unit: str = "images") -> list[dict[str, Any]]:
        """A row a class: its number of ``unit``, recall, precision, and what it is most often taken for."""
        rows = []
        predicted = self.confusion.sum(0)
        for i, name in enumerate(classes):
            wrong = self.confusion[i].clone()
            wrong[i] = 0
            taken_for = classes[int(wrong.argmax())] if int(wrong.sum()) else ""
            count, right = int(self.confusion[i].sum()), int(self.confusion[i, i])
            rows.append(
                {
                    "class": name,
                    unit: count,
                    "recall": right / count if count else None,
                    "precision": right / int(predicted[i]) if int(predicted[i]) else None,
                    "taken_for": taken_for,
                }
            )
        return rows


def eval_loader(data: Dataset[Any], accelerator: Accelerator, batch_size: int, workers: int = 0) -> Any:
    """Batches of ``data`` (image, label), split over the ranks; ``batch_size`` is that of all together."""
    ranks = accelerator.num_processes
    batch_size = max(ranks, batch_size - batch_size % ranks)
    return accelerator.prepare(DataLoader(data, batch_size=batch_size, num_workers=workers))


def evaluate(
    model: nn.Module,
    loader: Any,
    classes: int,
    accelerator: Accelerator,
    *,
    inputs: Callable[[Any], Tensor],
) -> Result:
    """Run the model over a set; every image counts once, on any number of ranks.

    Args:
        loader: from ``eval_loader``.
        inputs: batch on the device -> the model's input.
    """
    confusion = torch.zeros(classes * classes, dtype=torch.int64)
    top5, k = 0, min(5, classes)
    training = model.training
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        for batch in loader:
            best = model(inputs(batch)).topk(k).indices  # (N, k)
            best, label = accelerator.gather_for_metrics((best, batch[1]))
            best, label = best.cpu(), label.cpu()
            confusion += torch.bincount(label * classes + best[:, 0], minlength=classes * classes)
            top5 += int((best == label[:, None]).any(1).sum())
    model.train(training)
    return Result(confusion.view(classes, classes), top5)


def class_numbers(names: Sequence[str], weights: zoo.Weights) -> list[int]:
    """The number that each class of a set has among those of weights.

    Raises:
        DataError: a class that the weights do not know.
    """
    index = {name: i for i, name in enumerate(weights.classes)}
    for name in names:
        if name not in index:
            raise DataError(f"class {name!r} is not one of {weights.name}{suggestion(name, weights.classes)}")
    return [index[name] for name in names]


def evaluate_weights(
    model: zoo.Backbone,
    weights: zoo.Weights,
    images: Images,
    *,
    out: Path | None = None,
    batch_size: int = 256,
    workers: int = 0,
) -> Result:
    """Evaluate weights with the transform of their metadata.

    Args:
        images: their class names must be among the weights'; they may be fewer.
        out: folder for ``metrics.json`` (with the per-class table) and ``confusion.png``.

    Raises:
        DataError: a class that the weights do not know.
    """
    numbers = class_numbers(images.classes, weights)
    labels = [numbers[label] for label in images.labels]
    data = EvalSet(Images(weights.classes, labels, images.names, images.read), weights.transforms())
    accelerator = make_accelerator()
    model.to(accelerator.device)
    loader = eval_loader(data, accelerator, batch_size, workers)
    result = evaluate(model, loader, len(weights.classes), accelerator, inputs=lambda batch: batch[0])
    if out is not None and accelerator.is_main_process:
        write_report(result, weights.classes, out)
    return result


def write_report(result: Result, classes: Sequence[str], out: Path) -> None:
    """``metrics.json`` and ``confusion.png`` in the folder ``out``."""
    content = {"metrics": result.metrics(), "per_class": result.table(classes)}
    write_json(content, out / "metrics.json")
    confusion_matrix(result.confusion, classes, out / "confusion.png")
