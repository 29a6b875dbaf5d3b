"""Objects in pictures: boxes, labels and masks as JSON, drawn copies, and large pictures in tiles."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
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
from torchvision.transforms import v2

import zoo
from tasks.detection.boxes import BoxIndex, area, overlap_area
from tasks.detection.choice import Choice
from tasks.detection.coco import Coco
from tasks.detection.detector import Detector
from tasks.detection.evaluate import CocoResult
from tasks.detection.found import Found, Packed
from tasks.detection.results import CocoResults, ImageIds
from tasks.devices import best_device
from tasks.errors import DataError, UserError
from tasks.images import PictureNotes
from tasks.outputs import Entries, OutputFolder, try_to_draw, unique_stems
from tasks.plots import draw_instances
from tasks.progress import print_line
from tasks.reading import read_each, report_unread
from tasks.scans import Scan, open_by_region, open_whole
from tasks.shards import chunks

FILES = ("predictions.json",)  # what is written for all pictures together
DRAWN = ".objects.png"  # ending of a picture's drawn copy
OVERVIEW = 4096  # pixels of the longer side of a scan's drawn copy
CLIPPED = 0.5  # a cut part of an object is dropped if more than this share of it lies in a kept object


@dataclass
class Instance:
    """One object found.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the picture.
        packed: mask as run lengths; None from Faster R-CNN.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    packed: Packed | None = None

    @property
    def mask(self) -> np.ndarray | None:
        """Bool array (h, w) of the part of the picture whose upper left corner is ``corner``; None without masks."""
        return None if self.packed is None else self.packed.array()

    @property
    def corner(self) -> tuple[int, int]:
        """Upper left corner of ``mask`` (x, y)."""
        return (0, 0) if self.packed is None else self.packed.corner

    def to_json(self, width: int, height: int) -> dict[str, Any]:
        """Return label, score, box as x1, y1, x2, y2, and the mask as compressed RLE of the whole picture."""
        content: dict[str, Any] = {"label": self.label, "score": self.score, "box": list(self.box)}
        if self.packed is not None:
            content["segmentation"] = self.packed.in_image(width, height)
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
            instance.packed = found.masks[i]
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
    # Whole instances come before cut ones, and each group by score, because kept instances exclude later ones.
    order = sorted(range(len(parts)), key=lambda i: (parts[i][1], -parts[i][0].score))
    kept: dict[str, BoxIndex] = defaultdict(BoxIndex)  # boxes of each class
    result: list[Instance] = []
    for i in order:
        instance, cut = parts[i]
        others = kept[instance.label]
        own = area(instance.box)
        for other in others.near(instance.box):
            shared = overlap_area(instance.box, other)
            # the same object, found by two tiles, or a cut part of an object that another tile has whole
            if shared > iou * (own + area(other) - shared) or (cut and shared > CLIPPED * own):
                break
        else:
            others.add(instance.box)
            result.append(instance)
    return sorted(result, key=lambda instance: -instance.score)


def detect_image(
    model: Detector,
    image: Image.Image | Scan,
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
        image: RGB picture, or a scan, of which a tile at a time is read.
        classes: class names.
        threshold: lowest score that is reported.
        tile: side in pixels of the squares that a larger picture is cut into; None: the picture is not cut.
        overlap: overlap of neighbouring tiles, in pixels, more than an object's size; None: a quarter of the tile.
        batch_size: number of tiles of a forward.

    Raises:
        UserError: the overlap is not less than the tile.
        DataError: a part of a scan cannot be decoded.
    """
    return _detect_image(model, image, classes, threshold, tile, overlap, batch_size)[0]


def _detect_image(
    model: Detector,
    image: Image.Image | Scan,
    classes: Sequence[str],
    threshold: float,
    tile: int | None,
    overlap: int | None,
    batch_size: int,
) -> tuple[list[Instance], int]:
    """Detect the objects in a picture, see ``detect_image``; also return the largest number of a tile."""
    # A small picture goes through the net as one.
    if tile is None or max(image.size) <= tile:
        (found,) = detect_whole(model, [image.crop((0, 0, *image.size))], classes, threshold)
        return found, len(found)
    # A large one goes through it tile by tile.
    overlap = checked_overlap(tile, overlap)
    parts: list[tuple[Instance, bool]] = []
    most = 0
    corners = product(tile_corners(image.height, tile, overlap), tile_corners(image.width, tile, overlap))
    size = min(tile, image.width), min(tile, image.height)
    for batch in chunks(corners, batch_size):
        pieces = [image.crop((x, y, x + size[0], y + size[1])) for y, x in batch]
        for (y, x), found in zip(batch, detect_whole(model, pieces, classes, threshold), strict=True):
            parts += [_placed(part, x, y, image.size, size) for part in found]
            most = max(most, len(found))
    return merge_tiles(parts), most


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
    if part.packed is not None:
        part.packed = part.packed.moved(x, y)
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
                instance.packed = Packed.of(rle.decode(result["segmentation"]).view(bool))
            found.append(instance)
        draw_instances(data.read(record), found, out / f"{stem}.png")


@dataclass(frozen=True)
class Tiles:
    """Squares that larger pictures are cut into.

    Attributes:
        side: side in pixels.
        overlap: overlap of neighbours in pixels, more than an object's size; None: a quarter of the side.
    """

    side: int
    overlap: int | None = None


def detect_each(
    model: Detector,
    weights: zoo.Weights,
    files: Sequence[Path],
    failed: dict[str, str],
    *,
    choice: Choice,
    tiles: Tiles | None = None,
    batch_size: int = 1,
    workers: int = 0,
    out: OutputFolder | None = None,
    ids: ImageIds | None = None,
) -> Iterator[Detections]:
    """Yield the objects of each picture that can be read, in order, and report what is missing at the end.

    The memory that is taken does not grow with the number of pictures.

    Args:
        model: detector of the weights.
        weights: class names.
        files: paths of the pictures.
        failed: mapping from file to reason, to which the files that cannot be read are added.
        choice: thresholds and limits.
        tiles: tiles of larger pictures; None: they are not cut.
        batch_size: number of pictures, or of tiles of a picture, of a forward.
        workers: number of processes that read the pictures.
        out: folder for ``FILES`` and ``NAME.objects.png``, a drawn copy of each picture, made after it is yielded.
        ids: ids with which results in COCO's format are written too (``tasks.detection.results``); None: they are not.
    """
    # 1. Choose the names of the files before anything is computed.
    stems = [] if out is None else out.stems(files, [DRAWN])
    entries = None if out is None else Entries(out.path)
    results = None if out is None or ids is None else CocoResults(out.path, ids, masks=model.has_masks)
    model.to(best_device()).eval()
    limit = choice.detections or model.roi_heads.detections_per_img
    notes = PictureNotes()
    side = math.inf if tiles is None else tiles.side  # of the largest part of a picture that goes through the net
    shrunk, full = 0, 0  # pictures that were made much smaller, and that have as many objects as are reported
    # 2. Detect batch by batch; the objects are yielded before they are drawn.
    read = open_whole if tiles is None else open_by_region
    with choice.applied(model):
        for batch in chunks(read_each(files, read, failed, workers=workers), batch_size if tiles is None else 1):
            try:
                found = _detect_batch(model, [opened.content for opened in batch], weights.classes, tiles, batch_size)
            except DataError as error:  # of a part of a scan, which is alone in its batch
                failed[str(batch[0].path)] = str(error)
                continue
            for opened, (instances, most) in zip(batch, found, strict=True):
                detections = Detections(str(opened.path), *opened.content.size, instances)
                shrunk += min(side, max(opened.content.size)) > 2 * model.input.max_size
                full += most >= limit
                if isinstance(opened.content, Image.Image):  # a scan is never read as a whole
                    notes.add(str(opened.path), opened.content)
                if entries is not None:
                    entries.add(detections.to_json())
                if results is not None:
                    results.add(opened.path, detections)
                yield detections
                if out is not None:
                    target = out.path / f"{stems[opened.number]}{DRAWN}"
                    try_to_draw(partial(_draw, opened.content, instances, target), target)
    # 3. Report what is missing, and write the results.
    report_unread(failed, len(files))
    for line in notes.lines():
        print_line(line)
    if shrunk:
        what = "pictures" if tiles is None else "pictures, tile by tile,"
        print_line(
            f"{shrunk} {what} were shrunk to less than half to fit the net; give --tile {model.input.min_size} to see "
            "small objects"
        )
    if full:
        where = "a tile" if tiles is not None else "a picture"
        print_line(
            f"{full} of {len(files) - len(failed)} pictures have {limit} objects, the most that are reported of "
            f"{where}: others may be missing; raise the limit with --detections"
        )
    if out is not None and entries is not None:
        content = {"weights": weights.name, "threshold": choice.shown(weights.classes), "failed": failed}
        entries.write(out.path / "predictions.json", content, "predictions")
    if results is not None:
        results.write()


def _detect_batch(
    model: Detector, images: Sequence[Image.Image | Scan], classes: Sequence[str], tiles: Tiles | None, batch_size: int
) -> list[tuple[list[Instance], int]]:
    """Return the objects of each picture of a batch, and the largest number of one forward of it."""
    if tiles is None:
        whole = [image for image in images if isinstance(image, Image.Image)]
        return [(found, len(found)) for found in detect_whole(model, whole, classes, 0.0)]
    return [_detect_image(model, image, classes, 0.0, tiles.side, tiles.overlap, batch_size) for image in images]


def _draw(image: Image.Image | Scan, instances: Sequence[Instance], target: Path) -> None:
    """Draw the objects into a copy of a picture, of a scan into a reduced one."""
    if isinstance(image, Scan):
        shown = image.overview(OVERVIEW)
        draw_instances(shown, instances, target, factor=shown.width / image.width)
    else:
        draw_instances(image, instances, target)


def detect_objects(
    model: Detector,
    weights: zoo.Weights,
    files: Sequence[Path],
    *,
    threshold: float = 0.5,
    tiles: Tiles | None = None,
    out: OutputFolder | None = None,
) -> tuple[list[Detections], dict[str, str]]:
    """Detect objects in pictures, and report those that cannot be read; see ``detect_each``.

    Args:
        model: detector of the weights.
        weights: class names.
        files: paths of the pictures.
        threshold: lowest score that is reported.
        tiles: tiles of larger pictures; None: they are not cut.
        out: folder of the files.

    Returns:
        Predictions in the order of ``files``, and the reason for each file that could not be read.
    """
    failed: dict[str, str] = {}
    choice = Choice.of_classes(weights.classes, dict.fromkeys(weights.classes, threshold))
    return list(detect_each(model, weights, files, failed, choice=choice, tiles=tiles, out=out)), failed
