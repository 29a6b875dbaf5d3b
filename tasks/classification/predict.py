"""Pictures -> classes: a list of files and folders, JSON and a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

import zoo
from tasks.devices import best_device
from tasks.errors import DataError
from tasks.images import read_image, report_unread
from tasks.plots import contact_sheet
from tasks.progress import Progress
from zoo.files import write_json

SHEET_LIMIT = 60  # pictures on a contact sheet


@dataclass
class Prediction:
    """A picture's most likely classes, with their softmax scores, best first."""

    file: str
    classes: list[str]
    scores: list[float]


def predict(
    model: zoo.Backbone,
    weights: zoo.Weights,
    files: Sequence[Path],
    *,
    top: int = 5,
    batch_size: int = 32,
    out: Path | None = None,
) -> tuple[list[Prediction], dict[str, str]]:
    """Classify pictures; those that cannot be read are reported, not fatal.

    Args:
        weights: give the input transform and the class names.
        top: classes to report for each picture.
        out: folder for ``predictions.json`` and ``contact_sheet.png`` (of the first pictures).

    Returns:
        Predictions in the order of ``files``, and the reason for each file that could not be read.
    """
    transform, classes = weights.transforms(), weights.classes
    device = best_device()
    model.to(device).eval()
    predictions: list[Prediction] = []
    failed: dict[str, str] = {}
    thumbnails: list[Image.Image] = []
    with Progress(len(files), 0, 1, enabled=len(files) > batch_size) as progress, torch.inference_mode():
        for start in range(0, len(files), batch_size):
            names, inputs = [], []
            for path in files[start : start + batch_size]:
                try:
                    image = read_image(path)
                except DataError as error:
                    failed[str(path)] = str(error)
                    continue
                names.append(str(path))
                inputs.append(transform(image))
                if len(thumbnails) < SHEET_LIMIT:
                    image.thumbnail((360, 360))
                    thumbnails.append(image)
            if inputs:
                scores, order = model(torch.stack(inputs).to(device)).softmax(1).topk(min(top, len(classes)))
                for name, row, indices in zip(names, scores.tolist(), order.tolist(), strict=True):
                    predictions.append(Prediction(name, [classes[i] for i in indices], row))
            progress.step(min(start + batch_size, len(files)))
    report_unread(failed, len(files))
    if out is not None:
        content = {
            "weights": weights.name,
            "predictions": [asdict(p) for p in predictions],
            "failed": failed,
        }
        write_json(content, out / "predictions.json")
        if thumbnails:
            captions = [f"{p.classes[0]} {p.scores[0]:.0%}\n{Path(p.file).name[:28]}" for p in predictions]
            contact_sheet(thumbnails, captions[: len(thumbnails)], out / "contact_sheet.png")
    return predictions, failed
