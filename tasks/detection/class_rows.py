"""Last layers of a detector whose classes are those of other data, matched by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

import zoo
from tasks.classes import matching_rows
from tasks.detection.rcnn import Detector
from tasks.progress import print_line

_BY_CLASS = ("cls_score.", "bbox_pred.", "mask_fcn_logits.")  # layers that have rows of classes


def follow_names(model: Detector, weights: zoo.Weights, classes: Sequence[str]) -> None:
    """Give each class the rows that its name has in the last layers of the weights, and report what is new.

    With as many classes as the weights have, a new class starts with the rows of one that is gone. Otherwise its rows
    stay fresh.

    Args:
        model: detector that was created from the weights for the number of classes.
        weights: weights of the detector, with its classes.
        classes: classes to train on, in order.
    """
    stored = tuple(weights.classes)
    if not stored or stored == tuple(classes):
        return
    own = {name: row for row, name in enumerate(stored)}
    equal = len(stored) == len(classes)
    rows = matching_rows(stored, classes) if equal else [own.get(name) for name in classes]
    state = weights.load()
    heads: dict[str, nn.Module] = {"roi_heads.box_predictor.": model.roi_heads.box_predictor}
    if model.has_masks:
        heads["roi_heads.mask_predictor."] = model.roi_heads.mask_predictor
    for prefix, head in heads.items():
        given = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        head.load_state_dict(_chosen(head.state_dict(), given, rows, len(stored)))
    new = sum(name not in own for name in classes)
    start = "start as those that they replace" if equal else "start fresh"
    parts = [f"{new} of {len(classes)} new, which {start}" if new else f"all {len(classes)} known"]
    if gone := sum(name not in set(classes) for name in stored):
        parts.append(f"{gone} of the weights' {len(stored)} not used")
    print_line(f"classes: {', '.join(parts)}; the rows of the last layers of {weights.name} follow their names")


def _chosen(
    fresh: Mapping[str, Tensor], given: Mapping[str, Tensor], rows: Sequence[int | None], stored: int
) -> dict[str, Tensor]:
    """Return the state of last layers.

    Args:
        fresh: state as it is, for the classes to train on.
        given: state of the weights.
        rows: number of each class in the weights; None for a class that they lack.
        stored: number of classes of the weights.
    """
    state = {}
    for key, values in fresh.items():
        source = given[key].to(values)
        if not key.startswith(_BY_CLASS):
            state[key] = source
            continue
        blocks = values.shape[0] // (len(rows) + 1)  # rows of a class: 1, or 4 of a box; the background comes first
        known = [(0, 0), *((i + 1, row + 1) for i, row in enumerate(rows) if row is not None)]
        to, of = zip(*known, strict=True)
        merged = values.clone().unflatten(0, (len(rows) + 1, blocks))
        merged[torch.tensor(to)] = source.unflatten(0, (stored + 1, blocks))[torch.tensor(of)]
        state[key] = merged.flatten(0, 1)
    return state
