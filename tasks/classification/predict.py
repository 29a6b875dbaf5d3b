"""Classes of pictures: predictions as JSON, and a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import zoo
from tasks.devices import best_device
from tasks.files import read_each, report_unread
from tasks.images import Exposures, read_picture, to_rgb
from tasks.progress import print_line
from tasks.report import Sheet, best_classes
from tasks.shards import chunks
from zoo.files import write_json


@dataclass
class ClassifiedImage:
    """A picture's most likely classes, with their softmax scores, best first."""

    file: str
    classes: list[str]
    scores: list[float]


def classify_images(
    model: zoo.Backbone,
    weights: zoo.Weights,
    files: Sequence[Path],
    *,
    top: int = 5,
    batch_size: int = 32,
    out: Path | None = None,
) -> tuple[list[ClassifiedImage], dict[str, str]]:
    """Classify pictures, and report those that cannot be read.

    Args:
        model: net of the weights.
        weights: input transform and class names.
        files: paths of the pictures.
        top: number of classes to report for each picture.
        batch_size: number of pictures of a forward.
        out: folder for ``predictions.json`` and ``contact_sheet.png`` (of the first pictures).

    Returns:
        Predictions in the order of ``files``, and the reason for each file that could not be read.
    """
    transform, classes = weights.transforms(), weights.classes
    device = best_device()
    model.to(device).eval()
    predictions: list[ClassifiedImage] = []
    failed: dict[str, str] = {}
    sheet, exposures = Sheet(), Exposures()

    def read(path: Path) -> tuple[Tensor, Image.Image]:
        picture = read_picture(path, weights.config.in_chans)
        pixels = transform(picture)  # (C, size, size)
        small = to_rgb(picture)
        small.thumbnail((360, 360))  # a batch of large pictures would not fit into memory
        return pixels, small

    # Predict batch by batch, while the files are read.
    with torch.inference_mode():
        for batch in chunks(read_each(files, read, failed, quiet_up_to=batch_size), batch_size):
            inputs = torch.stack([opened.content[0] for opened in batch])  # (N, 3, size, size)
            scores = model(inputs.to(device)).softmax(1).cpu()  # (N, classes)
            for opened, row in zip(batch, scores, strict=True):
                predictions.append(ClassifiedImage(str(opened.path), *best_classes(row, classes, top)))
                exposures.add(str(opened.path), opened.content[1])
                sheet.add(opened.content[1], predictions[-1])
    # Report and write the results.
    report_unread(failed, len(files))
    for line in exposures.lines():
        print_line(line)
    if out is not None:
        content = {"weights": weights.name, "predictions": [asdict(p) for p in predictions], "failed": failed}
        write_json(content, out / "predictions.json")
        sheet.write(out / "contact_sheet.png")
    return predictions, failed
