"""Classes of pictures: predictions as JSON, and a contact sheet."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import zoo
from tasks.classification.evaluate import class_scores
from tasks.devices import best_device
from tasks.images import PictureNotes, read_picture, require_shape, to_rgb
from tasks.outputs import Entries, OutputFolder, try_to_draw
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
    failed: dict[str, str],
    *,
    top: int = 5,
    threshold: Mapping[str, float] | None = None,
    only: Container[str] | None = None,
    flip: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    out: OutputFolder | None = None,
) -> Iterator[ClassifiedImage]:
    """Yield the classes of each picture that can be read, in order, and report the others at the end.

    The memory that is taken does not grow with the number of pictures.

    Args:
        model: net of the weights.
        weights: input transform and class names.
        files: paths of the pictures.
        failed: mapping from file to reason, to which the files that cannot be read are added.
        top: number of classes to report for each picture.
        threshold: lowest score of each class; None: 0.
        only: classes to report; None: all.
        flip: whether scores are means over the picture and its mirror image.
        batch_size: number of pictures of a forward.
        workers: number of processes that read the pictures.
        out: folder for ``FILES``; the contact sheet has the first pictures.
    """
    device = best_device()
    model.to(device).eval()
    entries = None if out is None else Entries(out.path)
    sheet, notes = Sheet(), PictureNotes()
    # 1. Predict batch by batch, while the files are read.
    opened = read_each(files, Reader(weights), failed, workers=workers, quiet_up_to=batch_size)
    for batch in chunks(opened, batch_size):
        inputs = torch.stack([file.content[0] for file in batch])  # (N, C, size, size)
        with torch.inference_mode():
            scores = class_scores(model, inputs.to(device), flip=flip).cpu()  # (N, classes)
        for file, row in zip(batch, scores, strict=True):
            best = best_classes(row, weights.classes, top, threshold=threshold, only=only)
            found = ClassifiedImage(str(file.path), *best)
            yield found
            if entries is not None:
                entries.add(asdict(found))
            notes.add(str(file.path), file.content[1])
            sheet.add(file.content[1], found)
    # 2. Report what is missing, and write the files; the picture may fail.
    report_unread(failed, len(files))
    for line in notes.lines():
        print_line(line)
    if out is not None and entries is not None:
        entries.write(out.path / "predictions.json", {"weights": weights.name, "failed": failed}, "predictions")
        try_to_draw(lambda: sheet.write(out.path / "contact_sheet.png"), out.path / "contact_sheet.png")
