"""Metrics of classifiers: top-1, top-5, recall and precision by class, macro-F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import zoo
from tasks.errors import DataError
from zoo.errors import suggestion


@dataclass
class ClassCounts:
    """Counts from which all metrics of a classifier follow.

    Attributes:
        confusion: (classes, classes) counts; rows are true classes, columns predictions.
        top5: number of samples whose class is among the five highest scores (all classes if there are fewer).
    """

    confusion: Tensor
    top5: int

    @classmethod
    def zero(cls, classes: int) -> ClassCounts:
        """Return the counts before the first sample."""
        return cls(torch.zeros(classes, classes, dtype=torch.int64), 0)

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Count N samples with scores (N, classes) and labels (N,), on any device."""
        classes = len(self.confusion)
        best, labels = scores.topk(min(5, classes)).indices.cpu(), labels.cpu()  # (N, k), (N,)
        self.confusion += torch.bincount(labels * classes + best[:, 0], minlength=classes**2).view(classes, classes)
        self.top5 += int((best == labels[:, None]).any(1).sum())

    def metrics(self) -> dict[str, float]:
        """Return top1, top5 and mean per-class accuracy in percent, and the number of images."""
        count = int(self.confusion.sum())
        return {
            "top1": 100 * float(self.confusion.diagonal().sum()) / count,
            "top5": 100 * self.top5 / count,
            "mean_class": 100 * float(self.per_class().nanmean()),
            "images": count,
        }

    def macro_f1(self) -> float:
        """Return the mean F1 of the classes that occur or are predicted, in percent."""
        hits = self.confusion.diagonal().double()
        f1 = 2 * hits / (self.confusion.sum(0) + self.confusion.sum(1))  # NaN for classes that never occur
        return 100 * float(f1.nanmean())

    def per_class(self) -> Tensor:
        """Return the recall of each class, (classes,); NaN for classes without samples."""
        return self.confusion.diagonal().double() / self.confusion.sum(1)

    def table(self, classes: Sequence[str], unit: str = "images") -> list[dict[str, Any]]:
        """Return a row for each class: number of ``unit``, recall, precision, most frequent wrong prediction."""
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


def class_numbers(names: Sequence[str], weights: zoo.Weights) -> list[int]:
    """Return the number of each class of a set among the classes of weights.

    Raises:
        DataError: the weights lack a class of the set.
    """
    index = {name: i for i, name in enumerate(weights.classes)}
    for name in names:
        if name not in index:
            raise DataError(f"class {name!r} is not one of {weights.name}{suggestion(name, weights.classes)}")
    return [index[name] for name in names]
