"""COCO JSON annotations and the images they are of: read, checked, and every defect counted and named.

What would make training or its figures wrong is refused before training starts; what can be handled is handled and
reported (``Coco.notes``). Evaluation sees the file's annotations as they are.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from tasks.errors import DataError
from tasks.images import decode_image
from tasks.progress import Progress

Check = Literal["none", "header", "decode"]


class ImageFiles:
    """Images by the file names of an annotation file, in a folder or a zip file.

    Names are looked up below ``path`` itself and, in a zip file, below its one top folder (as COCO's has).

    Raises:
        DataError: neither ``path`` nor ``path``.zip is there, or a zip file that is damaged.
    """

    def __init__(self, path: Path) -> None:
        zipped = path if path.suffix.lower() == ".zip" else path.with_name(path.name + ".zip")
        self.path = path if path.is_dir() else zipped
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        self._members: dict[str, str] = {}
        if path.is_dir():
            return
        if not zipped.is_file():
            raise DataError(f"{path}: no such folder, and no zip file of that name either")
        names = [name for name in self._zip().namelist() if not name.endswith("/")]
        self._members = {name: name for name in names}
        tops = {name.partition("/")[0] for name in names}
        if len(tops) == 1 and all("/" in name for name in names):
            self._members |= {name.partition("/")[2]: name for name in names}

    def _zip(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():  # a file handle is not to be shared by processes
            try:
                self._opened = os.getpid(), zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError) as error:
                raise DataError(f"{self.path}: not a complete zip file ({error})") from None
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __contains__(self, name: str) -> bool:
        return name in self._members if self._members else (self.path / name).is_file()

    def label(self, name: str) -> str:
        """What messages call an image."""
        return f"{self.path}/{name}"

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            DataError: missing, or damaged in its zip file.
        """
        try:
            if self._members:
                return self._zip().read(self._members[name])
            return (self.path / name).read_bytes()
        except (KeyError, FileNotFoundError):
            raise DataError(f"{self.label(name)}: no such file") from None
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{self.label(name)}: cannot be read ({error})") from None


@dataclass
class ImageRecord:
    """An image and its annotations (COCO's dicts)."""

    id: int
    file_name: str
    width: int
    height: int
    annotations: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Coco:
    """A checked set.

    Attributes:
        path: of the annotation file.
        images: in the file's order.
        categories: COCO's ids, rising; label k of the net (from 1) is ``categories[k - 1]``.
        names: of the categories, in the same order.
        files: where the images are.
        notes: what was found and handled: reason -> examples.
    """

    path: Path
    images: list[ImageRecord]
    categories: tuple[int, ...]
    names: tuple[str, ...]
    files: ImageFiles
    notes: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, keep: Callable[[ImageRecord], bool]) -> Coco:
        """The set of the images that ``keep`` chooses."""
        images = [image for image in self.images if keep(image)]
        return Coco(self.path, images, self.categories, self.names, self.files, self.notes)

    def read(self, image: ImageRecord) -> Image.Image:
        """The image in RGB, as its annotations see it.

        Raises:
            DataError: see ``decode_image``.
        """
        content = io.BytesIO(self.files.read(image.file_name))
        return decode_image(content, self.files.label(image.file_name), (image.width, image.height))

    def ground_truth(self) -> dict[str, Any]:
        """COCO's JSON of these images for an evaluator, with crowds, and areas where the file has none."""
        annotations = []
        for image in self.images:
            for annotation in image.annotations:
                box = annotation["bbox"]
                area = annotation.get("area", box[2] * box[3])
                annotations.append({**annotation, "area": area, "iscrowd": annotation.get("iscrowd", 0)})
        return {
            "info": {},
            "images": [
                {"id": i.id, "file_name": i.file_name, "width": i.width, "height": i.height} for i in self.images
            ],
            "annotations": annotations,
            "categories": [{"id": i, "name": n} for i, n in zip(self.categories, self.names, strict=True)],
        }

    def objects(self, image: ImageRecord, *, masks: bool) -> list[dict[str, Any]]:
        """What a net is trained on: no crowds, no degenerate boxes or masks."""
        return [a for a in image.annotations if not a.get("iscrowd", 0) and not defect(a, image, masks=masks)]

    def report(self) -> list[str]:
        """A line for each kind of defect that was handled, with how often and the first few."""
        lines = []
        for reason, examples in self.notes.items():
            shown = ", ".join(examples[:3]) + (", ..." if len(examples) > 3 else "")
            lines.append(f"{self.path}: {len(examples)} {reason}: {shown}")
        return lines


def clipped_box(annotation: dict[str, Any], image: ImageRecord) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 within the image."""
    x, y, w, h = annotation["bbox"]
    return (
        min(max(x, 0.0), image.width),
        min(max(y, 0.0), image.height),
        min(max(x + w, 0.0), image.width),
        min(max(y + h, 0.0), image.height),
    )


def defect(annotation: dict[str, Any], image: ImageRecord, *, masks: bool) -> str | None:
    """Why an annotation cannot be trained on, if it cannot."""
    x1, y1, x2, y2 = clipped_box(annotation, image)
    if not (x2 > x1 and y2 > y1):
        return "annotations without area inside the image, not trained on"
    if masks and isinstance(annotation["segmentation"], list) and not polygons(annotation):
        return "annotations whose polygons have no area, not trained on"
    return None


def polygons(annotation: dict[str, Any]) -> list[list[float]]:
    """The polygons of an annotation that have three corners or more."""
    return [part for part in annotation["segmentation"] if len(part) >= 6 and len(part) % 2 == 0]


def decode_mask(annotation: dict[str, Any], height: int, width: int) -> np.ndarray:
    """The mask (height, width) of polygons, compressed or uncompressed RLE: uint8, 0 or 1."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        return rle.decode(rle.merge(rle.frPyObjects(polygons(annotation), height, width)))
    if isinstance(segmentation["counts"], list):
        return rle.decode(rle.frPyObjects(segmentation, height, width))
    return rle.decode(segmentation)


def load_coco(annotations: Path, images: Path, *, masks: bool, check: Check) -> Coco:
    """Read and check an annotation file and its images.

    Args:
        annotations: COCO JSON ("instances").
        images: folder or zip file.
        masks: whether annotations need a segmentation.
        check: of the images before use: none, their headers (presence, size), or all of their pixels.

    Raises:
        DataError: a file that is missing or not COCO's, entries without what is needed, double ids, unknown
            categories, images that are missing, unreadable or not of the size that the file says; with counts and
            the first few names.
    """
    content = _read_json(annotations)
    problems: dict[str, list[str]] = defaultdict(list)
    notes: dict[str, list[str]] = defaultdict(list)
    for key, needed in _NEEDED.items():
        if not isinstance(content.get(key), list):
            raise DataError(f"{annotations}: no list {key!r}; a COCO 'instances' file is expected")
        for i, entry in enumerate(content[key]):
            lacking = [name for name in needed if not isinstance(entry, dict) or name not in entry]
            if lacking:
                problems[f"entries of {key!r} without {lacking[0]!r}"].append(f"number {i}")
        if not any(problems.values()):
            _double(content[key], key, problems)
    for entry in content["images"]:
        sides = [entry.get("width"), entry.get("height")]
        if not all(isinstance(side, int) and side > 0 for side in sides):
            problems["images whose width and height are not whole numbers above 0"].append(f"{entry.get('file_name')}")
    _refuse(annotations, problems)

    categories = sorted(content["categories"], key=lambda category: category["id"])
    known = {category["id"] for category in categories}
    records = {i["id"]: ImageRecord(i["id"], i["file_name"], i["width"], i["height"]) for i in content["images"]}
    for annotation in content["annotations"]:
        name = f"id {annotation['id']}"
        image = records.get(annotation["image_id"])
        if annotation["category_id"] not in known:
            problems["annotations of a category that is not listed"].append(name)
            continue
        if image is None:
            notes["annotations of images that are not listed, left out"].append(name)
            continue
        if reason := _broken(annotation, image, masks=masks):
            problems[reason].append(name)
            continue
        image.annotations.append(annotation)
        if annotation.get("iscrowd", 0):
            continue
        if reason := defect(annotation, image, masks=masks):
            notes[reason].append(name)
    _refuse(annotations, problems)
    files = ImageFiles(images)
    images_list = list(records.values())
    if check != "none":
        _check_images(images_list, files, check, problems, notes)
        _refuse(annotations, problems)
    if empty := [image.file_name for image in images_list if not image.annotations]:
        notes["images without annotations"] = empty
    return Coco(
        annotations,
        images_list,
        tuple(category["id"] for category in categories),
        tuple(str(category["name"]) for category in categories),
        files,
        dict(notes),
    )


_NEEDED = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: a COCO 'instances' file is expected")
    return content


def _double(entries: list[dict[str, Any]], key: str, problems: dict[str, list[str]]) -> None:
    seen: set[Any] = set()
    for entry in entries:
        if entry["id"] in seen:
            problems[f"{key} with an id that another has"].append(f"id {entry['id']}")
        seen.add(entry["id"])


def _broken(annotation: dict[str, Any], image: ImageRecord, *, masks: bool) -> str | None:
    """Why an annotation is not COCO's, if it is not."""
    box = annotation["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not np.isfinite(np.asarray(box, dtype=np.float64)).all():
        return "annotations whose bbox is not four finite numbers"
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        return "annotations without a segmentation, which Mask R-CNN needs" if masks else None
    if isinstance(segmentation, list):
        return _broken_polygons(segmentation, image)
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        return "annotations whose segmentation is neither polygons nor RLE"
    if list(segmentation["size"]) != [image.height, image.width]:
        return "annotations whose RLE has another size than the image"
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = rle_counts(counts)
    if sum(counts) != image.height * image.width or min(counts, default=0) < 0:
        return "annotations whose RLE counts do not fill the image"
    return None


def _broken_polygons(parts: list[Any], image: ImageRecord) -> str | None:
    """Return why polygons cannot be rasterised, if they cannot.

    pycocotools walks along each edge in steps of a fifth of a pixel and checks nothing: NaN and huge coordinates end
    the process with a segmentation fault (cocoapi issue 380). Polygons may reach beyond the image, as far as
    annotation tools write them.
    """
    reach = 2 * max(image.width, image.height, 1000)  # pixels
    for part in parts:
        if not isinstance(part, list):
            return "annotations whose polygons are not lists of numbers"
        try:
            values = np.asarray(part)
        except ValueError:  # lists of unequal length within the polygon
            return "annotations whose polygons are not lists of numbers"
        if not len(part):
            continue
        if values.ndim != 1 or values.dtype.kind not in "iuf":
            return "annotations whose polygons are not lists of numbers"
        for coordinates, side in ((values[0::2], image.width), (values[1::2], image.height)):
            if not ((coordinates >= -reach) & (coordinates <= side + reach)).all():  # NaN compares as False
                return "annotations whose polygons have points that are not finite or far outside of the image"
    return None


def rle_counts(text: str) -> list[int]:
    """The run lengths of COCO's compressed RLE; pycocotools would decode a damaged one to whatever is in memory.

    Six bits a character: five of them a number's next digits, the sixth set where it goes on; from the fourth number
    on, the difference to the one before the last (cocoapi, ``rleFrString``). Empty for what is no such text.
    """
    counts: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return []
        number |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            number -= 1 << shift
        counts.append(number + counts[-2] if len(counts) > 2 else number)
        number = shift = 0
    return [] if shift else counts


def _check_images(
    images: Sequence[ImageRecord],
    files: ImageFiles,
    check: Check,
    problems: dict[str, list[str]],
    notes: dict[str, list[str]],
) -> None:
    """Presence, size and, if asked for, pixels of all images, in threads (PIL and zlib release the lock)."""
    names: set[str] = set()
    for image in images:
        if image.file_name in names:
            problems["images that share a file"].append(image.file_name)
        names.add(image.file_name)

    def look(image: ImageRecord) -> tuple[str, str] | str | None:
        if image.file_name not in files:
            return "images that are missing", image.file_name
        label = files.label(image.file_name)
        try:
            content = files.read(image.file_name)
            with Image.open(io.BytesIO(content)) as opened:
                mode, orientation = opened.mode, opened.getexif().get(0x0112, 1)
                sizes = {opened.size, opened.size[::-1]} if orientation >= 5 else {opened.size}
            if (image.width, image.height) not in sizes:
                return "images whose size is not the annotations'", f"{image.file_name} ({opened.size})"
            if check == "decode":
                decode_image(io.BytesIO(content), label, (image.width, image.height))
        except (DataError, OSError, SyntaxError, ValueError) as error:
            return "images that cannot be decoded", f"{image.file_name} ({error})"
        if orientation != 1:
            return "images turned by their EXIF orientation"
        return None if mode in ("RGB", "L") else f"images of mode {mode}, converted to RGB"

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, Progress(len(images), 0, 1) as progress:
        for i, (image, found) in enumerate(zip(images, pool.map(look, images), strict=True), 1):
            if isinstance(found, tuple):
                problems[found[0]].append(found[1])
            elif found is not None:
                notes[found].append(image.file_name)
            progress.step(i)


def _refuse(path: Path, problems: dict[str, list[str]]) -> None:
    """One error for all problems found, if there are any."""
    found = [
        f"{len(names)} {reason}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for reason, names in problems.items()
        if names
    ]
    if found:
        raise DataError(f"{path}: {'; '.join(found)}. Correct or remove them")


def repeat_factors(images: Iterable[ImageRecord], threshold: float) -> list[float]:
    """How often each image is to be seen in an epoch (Gupta et al. 2019, LVIS, section 4.2 of the appendix).

    A category c is in a share f_c of the images; r_c = max(1, sqrt(threshold / f_c)); an image's factor is the largest
    r_c of its categories.
    """
    images = list(images)
    present = [{annotation["category_id"] for annotation in image.annotations} for image in images]
    counts: dict[int, int] = defaultdict(int)
    for categories in present:
        for category in categories:
            counts[category] += 1
    factor = {c: max(1.0, (threshold * len(images) / n) ** 0.5) for c, n in counts.items()}
    return [max((factor[c] for c in categories), default=1.0) for categories in present]
