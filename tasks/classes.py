"""Classes of weights and of data, which are matched by name: the same number may mean another class in each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import zoo
from tasks.progress import print_line


def matching_rows(stored: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the row of a last layer with which each class starts: its own, or for a new class one that is left.

    >>> matching_rows(["ant", "bee", "cat"], ["cat", "dog", "ant"])
    [2, 1, 0]

    Args:
        stored: names of the classes of the rows.
        classes: names of the classes to train on, as many as rows.
    """
    own = {name: row for row, name in enumerate(stored)}
    free = iter([row for row, name in enumerate(stored) if name not in set(classes)])
    return [own[name] if name in own else next(free) for name in classes]


def order_last_layer(model: zoo.Backbone, weights: zoo.Weights, classes: Sequence[str]) -> None:
    """Put the rows of the last layer of a net in the order of the classes to train on, and report what is new.

    Nothing is done where the net has a new last layer, because the number of classes differs.

    Args:
        model: net with the weights.
        weights: weights of the net, with its classes.
        classes: classes to train on, in order.
    """
    stored = weights.classes
    if len(stored) != len(classes) or tuple(stored) == tuple(classes):
        return
    rows = torch.tensor(matching_rows(stored, classes))
    with torch.no_grad():
        for name, values in model.fc.named_parameters():
            if name in ("weight", "bias"):
                values.copy_(values[rows.to(values.device)])
    new = sum(name not in set(stored) for name in classes)
    what = "in another order" if not new else f"{new} of {len(classes)} new, which start as those that they replace"
    print_line(f"classes: {what}; the rows of the last layer of {weights.name} follow their names")
