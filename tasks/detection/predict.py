"""Objects in pictures: boxes, labels and masks as JSON, drawn copies, and large pictures in tiles."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms import v2

import zoo
from tasks.detection.coco import Coco
from tasks.detection.detector import Detector
from tasks.detection.evaluate import CocoResult
from tasks.detection.found import Found, bounding_part, full_rle
from tasks.devices import best_device
from tasks.errors import UserError
from tasks.images import read_image
from tasks.outputs import OutputFolder, try_to_draw, unique_stems
from tasks.plots import draw_instances
from tasks.progress import print_line
from tasks.reading import read_each, report_unread
from tasks.shards import chunks

FILES = ("predictions.json",)  # what is written for all pictures together
DRAWN = ".objects.png"  # ending of a picture's drawn copy
CLIPPED = 0.5  # a cut part of an object is dropped if more than this share of it lies in a kept object


@dataclass
class Instance:
    """One object found.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the picture.
        mask: bool array (h, w) of the part of the picture whose upper left corner is ``corner`` (x, y); None from
            Faster R-CNN.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None
    corner: tuple[int, int] = (0, 0)

    def to_json(self, width: int, height: int) -> dict[str, Any]:
        """Return label, score, box as x1, y1, x2, y2, and the mask as compressed RLE of the whole picture."""
        content: dict[str, Any] = {"label": self.label, "score": self.score, "box": list(self.box)}
        if self.mask is not None:
            content["segmentation"] = full_rle(self.mask, self.corner, width, height)
        return content


@dataclass
class Detections:
    """The objects found in a picture, best first."""

    file: str
    width: int
    height: int
    instances: list[Instance]

    def to_json(self) -> dict[str, Any]:
        """Return file, size and instances."""
        found = [instance.to_json(self.width, self.height) for instance in self.instances]
        return {"file": self.file, "width": self.width, "height": self.height, "instances": found}


def to_instances(found: Found, classes: Sequence[str]) -> list[Instance]:
    """Convert what a detector found in one image or tile to instances."""
    instances = []
    boxes, labels, scores = (values.tolist() for values in (found.boxes, found.labels, found.scores))
    for i, (box, label, score) in enumerate(zip(boxes, labels, scores, strict=True)):
        instance = Instance(classes[label - 1], score, tuple(box))
        if found.masks is not None:
            instance.mask, instance.corner = found.masks[i]
        instances.append(instance)
    return instances


def tile_corners(length: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles begin along a side: at most ``tile - overlap`` apart, and the last tile ends with the side."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def merge_tiles(parts: Sequence[tuple[Instance, bool]], iou: float = 0.5) -> list[Instance]:
    """Merge the instances of overlapping tiles, in the picture's coordinates.

    Of instances of one class that overlap by ``iou``, the best is kept. An instance that a tile's border cut is kept
    only if no kept one covers half of it: where tiles overlap by more than an object's size, another tile has the
    object whole.

    Args:
        parts: pairs of an instance and whether a tile's border cut it.
        iou: intersection over union above which two instances are the same object.
    """
    boxes = torch.tensor([part.box for part, _ in parts], dtype=torch.float64).reshape(-1, 4)  # (N, 4)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)  # (N,)
    # Whole instances come before cut ones, and each group by score, because kept instances exclude later ones.
    order = sorted(range(len(parts)), key=lambda i: (parts[i][1], -parts[i][0].score))
    kept: list[int] = []
    for i in order:
        instance, cut = parts[i]
        others = boxes[[j for j in kept if parts[j][0].label == instance.label]]  # (K, 4), of the same class
        if len(others):
            # 1. the same object, found by two tiles
            if float(box_iou(boxes[i : i + 1], others).max()) > iou:
                continue
            # 2. a cut part of an object that another tile has whole
            if cut:
                low, high = torch.maximum(boxes[i, :2], others[:, :2]), torch.minimum(boxes[i, 2:], others[:, 2:])
                shared = (high - low).clamp(min=0).prod(1)  # (K,), in pixels
                if float((shared / areas[i]).max()) > CLIPPED:
                    continue
        kept.append(i)
    return sorted((parts[i][0] for i in kept), key=lambda instance: -instance.score)


def detect_image(
    model: Detector,
    image: Image.Image,
    classes: Sequence[str],
    *,
    threshold: float = 0.5,
    tile: int | None = None,
    overlap: int | None = None,
    batch_size: int = 1,
) -> list[Instance]:
    """Detect the objects in a picture, best first.

    Args:
        model: detector in eval mode, on its device.
        image: RGB picture.
        classes: class names.
        threshold: lowest score that is reported.
        tile: side in pixels of the squares that a larger picture is cut into; None: the picture is not cut.
        overlap: overlap of neighbouring tiles, in pixels, more than an object's size; None: a quarter of the tile.
        batch_size: number of tiles of a forward.

    Raises:
        UserError: the overlap is not less than the tile.
    """
    # A small picture goes through the net as one.
    if tile is None or max(image.size) <= tile:
        return detect_whole(model, [image], classes, threshold)[0]
    # A large one goes through it tile by tile.
    overlap = checked_overlap(tile, overlap)
    pixels = _pixels(model, image)  # (3, H, W)
    parts: list[tuple[Instance, bool]] = []
    corners = product(tile_corners(image.height, tile, overlap), tile_corners(image.width, tile, overlap))
    for batch in chunks(corners, batch_size):
        pieces = [pixels[:, y : y + tile, x : x + tile] for y, x in batch]  # (3, <= tile, <= tile) each
        with torch.inference_mode():
            each = model.detect(pieces, threshold)
        for (y, x), piece, found in zip(batch, pieces, each, strict=True):
            size = piece.shape[-1], piece.shape[-2]
            parts += [_placed(part, x, y, image.size, size) for part in to_instances(found, classes)]
    return merge_tiles(parts)


def detect_whole(
    model: Detector, images: Sequence[Image.Image], classes: Sequence[str], threshold: float
) -> list[list[Instance]]:
    """Detect the objects in each of some pictures in one forward, see ``detect_image``."""
    with torch.inference_mode():
        each = model.detect([_pixels(model, image) for image in images], threshold)
    return [to_instances(found, classes) for found in each]


def checked_overlap(tile: int, overlap: int | None) -> int:
    """Return the overlap of tiles, by default a quarter of a tile.

    Raises:
        UserError: the overlap is not less than the tile.
    """
    overlap = tile // 4 if overlap is None else overlap
    if not 0 <= overlap < tile:
        raise UserError(f"overlap={overlap}: must be >= 0 and < tile={tile}")
    return overlap


def _pixels(model: Detector, image: Image.Image) -> Tensor:
    """Return an RGB picture as (3, H, W) in 0..1 on the device of the model."""
    device = next(model.parameters()).device
    return v2.functional.pil_to_tensor(image).to(device).float().div_(255)


def _placed(part: Instance, x: int, y: int, picture: tuple[int, int], tile: tuple[int, int]) -> tuple[Instance, bool]:
    """Move an instance from a tile's coordinates to the picture's, and return whether a border of the tile cut it.

    Args:
        part: instance found in the tile; changed in place.
        x, y: upper left corner of the tile in the picture.
        picture, tile: width and height.
    """
    x1, y1, x2, y2 = part.box
    cut = (
        (x1 < 1 and x > 0)
        or (y1 < 1 and y > 0)
        or (x2 > tile[0] - 1 and x + tile[0] < picture[0])
        or (y2 > tile[1] - 1 and y + tile[1] < picture[1])
    )  # within a pixel of a border that is not the picture's
    part.box = (x1 + x, y1 + y, x2 + x, y2 + y)
    part.corner = (part.corner[0] + x, part.corner[1] + y)
    return part, cut


def draw_results(
    data: Coco, results: Sequence[CocoResult], out: Path, *, count: int = 4, threshold: float = 0.5
) -> None:
    """Draw the detections of an evaluation in the set's first images that have objects: ``out/NAME.png``."""
    records = [image for image in data.images if image.annotations][:count]
    for record, stem in zip(records, unique_stems([Path(r.file_name) for r in records]), strict=True):
        found = []
        for result in (r for r in results if r["image_id"] == record.id and r["score"] >= threshold):
            x, y, w, h = result["bbox"]
            label = data.names[data.categories.index(result["category_id"])]
            instance = Instance(label, result["score"], (x, y, x + w, y + h))
            if "segmentation" in result:
                instance.mask, instance.corner = bounding_part(rle.decode(result["segmentation"]).astype(bool))
            found.append(instance)
        draw_instances(data.read(record), found, out / f"{stem}.png")


def detect_objects(
    model: Detector,
    weights: zoo.Weights,
    files: Sequence[Path],
    *,
    threshold: float = 0.5,
    only: Container[str] | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    batch_size: int = 1,
    workers: int = 0,
    out: OutputFolder | None = None,
    report: Callable[[Detections], object] = lambda found: None,
) -> tuple[list[Detections], dict[str, str]]:
    """Detect objects in pictures, and report those that cannot be read.

    Args:
        model: detector of the weights.
        weights: class names.
        files: paths of the pictures.
        threshold: lowest score that is reported.
        only: classes to report; None: all.
        tile, overlap: side and overlap of tiles in pixels, see ``detect_image``.
        batch_size: number of pictures, or of tiles of a picture, of a forward.
        workers: number of processes that read the pictures.
        out: folder for ``FILES`` and ``NAME.objects.png``, a drawn copy of each picture.
        report: function that is called with the objects of each picture at once, in the order of ``files``.

    Returns:
        Predictions in the order of ``files``, and the reason for each file that could not be read.
    """
    # 1. Choose the names of the files before anything is computed.
    stems = [] if out is None else out.stems(files, [DRAWN])
    model.to(best_device()).eval()
    predictions: list[Detections] = []
    failed: dict[str, str] = {}
    shrunk = 0
    # 2. Detect batch by batch; the objects are reported before they are drawn.
    for batch in chunks(read_each(files, read_image, failed, workers=workers), batch_size):
        images = [opened.content for opened in batch]
        shrunk += sum(tile is None and max(image.size) > 2 * model.input.max_size for image in images)
        if tile is None:
            each = detect_whole(model, images, weights.classes, threshold)
        else:
            each = [
                detect_image(
                    model,
                    image,
                    weights.classes,
                    threshold=threshold,
                    tile=tile,
                    overlap=overlap,
                    batch_size=batch_size,
                )
                for image in images
            ]
        for opened, found in zip(batch, each, strict=True):
            kept = [instance for instance in found if only is None or instance.label in only]
            predictions.append(Detections(str(opened.path), *opened.content.size, kept))
            report(predictions[-1])
        if out is not None:
            for opened, detections in zip(batch, predictions[-len(batch) :], strict=True):
                target = out.path / f"{stems[opened.number]}{DRAWN}"
                try_to_draw(partial(draw_instances, opened.content, detections.instances, target), target)
    # 3. Report what is missing, and write the results.
    report_unread(failed, len(files))
    if shrunk:
        print_line(
            f"{shrunk} pictures were shrunk to less than half to fit the net; give a tile size to see small objects"
        )
    if out is not None:
        content = {
            "weights": weights.name,
            "threshold": threshold,
            "predictions": [p.to_json() for p in predictions],
            "failed": failed,
        }
        out.write_json(content, "predictions.json")
    return predictions, failed
