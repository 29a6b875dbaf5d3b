"""Classes of pictures: predictions as JSON, and a contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import zoo
from tasks.classification.evaluate import class_scores
from tasks.devices import best_device
from tasks.images import PictureNotes, read_picture, require_shape, to_rgb
from tasks.outputs import OutputFolder, try_to_draw
from tasks.progress import print_line
from tasks.reading import read_each, report_unread
from tasks.report import Sheet, best_classes
from tasks.shards import chunks

FILES = ("predictions.json", "contact_sheet.png")  # what is written for all pictures together


@dataclass
class ClassifiedImage:
    """A picture's most likely classes, with their softmax scores, best first."""

    file: str
    classes: list[str]
    scores: list[float]


class Reader:
    """Function from a path to the net's input (C, size, size) and a small RGB picture; other processes can call it.

    Args:
        weights: input transform and number of channels.
    """

    def __init__(self, weights: zoo.Weights) -> None:
        assert isinstance(weights.transform, zoo.InputTransform)
        self.transform, self.channels = weights.transforms(), weights.config.in_chans
        self.short_side = weights.transform.resize

    def __call__(self, path: Path) -> tuple[Tensor, Image.Image]:
        picture = require_shape(read_picture(path, self.channels), self.short_side, str(path))
        pixels = self.transform(picture)
        small = to_rgb(picture)
        small.thumbnail((360, 360))  # a batch of large pictures would not fit into memory
        return pixels, small


def classify_images(
    model: zoo.Backbone,
    weights: zoo.Weights,
    files: Sequence[Path],
    *,
    top: int = 5,
    threshold: Mapping[str, float] | None = None,
    only: Container[str] | None = None,
    flip: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    out: OutputFolder | None = None,
    report: Callable[[ClassifiedImage], object] = lambda found: None,
) -> tuple[list[ClassifiedImage], dict[str, str]]:
    """Classify pictures, and report those that cannot be read.

    Args:
        model: net of the weights.
        weights: input transform and class names.
        files: paths of the pictures.
        top: number of classes to report for each picture.
        threshold: lowest score of each class; None: 0.
        only: classes to report; None: all.
        flip: whether scores are means over the picture and its mirror image.
        batch_size: number of pictures of a forward.
        workers: number of processes that read the pictures.
        out: folder for ``FILES``; the contact sheet has the first pictures.
        report: function that is called with each prediction at once, in the order of ``files``.

    Returns:
        Predictions in the order of ``files``, and the reason for each file that could not be read.
    """
    device = best_device()
    model.to(device).eval()
    predictions: list[ClassifiedImage] = []
    failed: dict[str, str] = {}
    sheet, notes = Sheet(), PictureNotes()
    # 1. Predict batch by batch, while the files are read.
    opened = read_each(files, Reader(weights), failed, workers=workers, quiet_up_to=batch_size)
    with torch.inference_mode():
        for batch in chunks(opened, batch_size):
            inputs = torch.stack([file.content[0] for file in batch])  # (N, C, size, size)
            scores = class_scores(model, inputs.to(device), flip=flip).cpu()  # (N, classes)
            for file, row in zip(batch, scores, strict=True):
                best = best_classes(row, weights.classes, top, threshold=threshold, only=only)
                predictions.append(ClassifiedImage(str(file.path), *best))
                report(predictions[-1])
                notes.add(str(file.path), file.content[1])
                sheet.add(file.content[1], predictions[-1])
    # 2. Report what is missing, and write the files; the picture may fail.
    report_unread(failed, len(files))
    for line in notes.lines():
        print_line(line)
    if out is not None:
        content = {"weights": weights.name, "predictions": [asdict(p) for p in predictions], "failed": failed}
        out.write_json(content, "predictions.json")
        try_to_draw(lambda: sheet.write(out.path / "contact_sheet.png"), out.path / "contact_sheet.png")
    return predictions, failed
