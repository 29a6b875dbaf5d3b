"""Reading and checking of COCO JSON annotations and their images.

Defects that would make training or metrics wrong are refused before training starts. Defects that can be handled are
handled and reported, with counts and examples (``Coco.notes``). Evaluation uses the annotations of the file unchanged.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from tasks.detection.coco_schema import KEYS, wrong_entries
from tasks.errors import DataError
from tasks.images import decode_image
from tasks.progress import Progress
from zoo.errors import one_line

Check = Literal["none", "header", "decode"]

LARGEST_FILE = 2**29  # bytes of an image file: more than 16-bit RGB of the largest picture that is decoded
# what zipfile and its decompressors raise for members that are damaged, encrypted or of an unknown method
_UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)


class ImageFiles:
    """Image files in a folder or a zip file, by the file names of an annotation file.

    In a zip file, names may leave out the top folder if there is only one, as in the files of COCO.

    Args:
        path: path of the folder, or of the zip file with or without .zip.

    Raises:
        DataError: a path that does not exist, or a damaged zip file.
    """

    def __init__(self, path: Path) -> None:
        zipped = path if path.suffix.lower() == ".zip" else path.with_name(path.name + ".zip")
        self.path = path if path.is_dir() else zipped
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        self._members: dict[str, str] = {}
        if path.is_dir():
            return
        if not zipped.is_file():
            raise DataError(f"{path}: no such folder, and no zip file {zipped.name} beside it")
        names = [name for name in self._zip().namelist() if not name.endswith("/")]
        self._members = {name: name for name in names}
        tops = {name.partition("/")[0] for name in names}
        if len(tops) == 1 and all("/" in name for name in names):
            self._members |= {name.partition("/")[2]: name for name in names}

    def _zip(self) -> zipfile.ZipFile:
        """Return the open zip file of this process; processes that share a file handle would move its position."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = os.getpid(), zipfile.ZipFile(self.path)
            except _UNREADABLE as error:
                raise DataError(f"{self.path}: not a complete zip file ({one_line(error)})") from None
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __contains__(self, name: str) -> bool:
        return name in self._members if self._members else (self.path / name).is_file()

    def label(self, name: str) -> str:
        """Return the name of an image in messages."""
        return f"{self.path}/{name}"

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            DataError: a file that is missing, too large for an image, or damaged or encrypted in its zip file.
        """
        try:
            if self._members:
                size = self._zip().getinfo(self._members[name]).file_size
            else:
                size = (self.path / name).stat().st_size
            if size > LARGEST_FILE:
                raise DataError(f"{self.label(name)}: {size} bytes, an image must have at most {LARGEST_FILE}")
            return self._zip().read(self._members[name]) if self._members else (self.path / name).read_bytes()
        except (KeyError, FileNotFoundError):
            raise DataError(f"{self.label(name)}: no such file") from None
        except _UNREADABLE as error:
            raise DataError(f"{self.label(name)}: cannot be read ({one_line(error)})") from None


@dataclass
class ImageRecord:
    """An image of an annotation file.

    Attributes:
        id: id of COCO.
        file_name: name of the image file.
        width: width in pixels.
        height: height in pixels.
        annotations: annotations of the image, as in the file.
    """

    id: int
    file_name: str
    width: int
    height: int
    annotations: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Coco:
    """A checked set of annotated images.

    Attributes:
        path: path of the annotation file.
        images: images in the order of the file.
        categories: category ids of COCO, rising; label k of the net (from 1) is ``categories[k - 1]``.
        names: names of the categories, in the same order.
        files: image files.
        notes: defects that were handled: reason -> affected images or annotations.
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
        """Return the set of the images for which ``keep`` is true."""
        images = [image for image in self.images if keep(image)]
        return Coco(self.path, images, self.categories, self.names, self.files, self.notes)

    def read(self, image: ImageRecord) -> Image.Image:
        """Return the image in RGB, turned as its annotations require.

        Raises:
            DataError: an image that ``decode_image`` refuses.
        """
        content = io.BytesIO(self.files.read(image.file_name))
        return decode_image(content, self.files.label(image.file_name), (image.width, image.height))

    def ground_truth(self) -> dict[str, Any]:
        """Return the COCO JSON of these images for an evaluator, with crowds; missing areas are those of the boxes."""
        annotations = []
        for image in self.images:
            for annotation in image.annotations:
                box = annotation["bbox"]
                area = annotation.get("area", box[2] * box[3])
                found = {**annotation, "area": area, "iscrowd": annotation.get("iscrowd", 0)}
                if isinstance(annotation.get("segmentation"), list):
                    # evaluators cannot rasterise polygons of fewer than three corners, nor no polygons
                    empty = {"size": [image.height, image.width], "counts": [image.height * image.width]}
                    found["segmentation"] = polygons(annotation) or empty
                annotations.append(found)
        return {
            "info": {},
            "images": [
                {"id": i.id, "file_name": i.file_name, "width": i.width, "height": i.height} for i in self.images
            ],
            "annotations": annotations,
            "categories": [{"id": i, "name": n} for i, n in zip(self.categories, self.names, strict=True)],
        }

    def objects(self, image: ImageRecord, *, masks: bool) -> list[dict[str, Any]]:
        """Return the annotations to train on: without crowds and without boxes or masks that have no area."""
        return [a for a in image.annotations if not a.get("iscrowd", 0) and not defect(a, image, masks=masks)]

    def samples(self) -> Iterator[tuple[object, ...]]:
        """Yield what identifies each image and its annotations; masks are not compared."""
        number = {category: i for i, category in enumerate(self.categories)}
        for image in self.images:
            objects = [(number[a["category_id"]], a["bbox"], a.get("iscrowd", 0)) for a in image.annotations]
            yield image.file_name, image.width, image.height, objects

    def report(self) -> list[str]:
        """Return a line for each kind of defect that was handled, with its count and the first three examples."""
        return [f"{self.path}: {line}" for line in _summary(self.notes)]


def clipped_box(annotation: dict[str, Any], image: ImageRecord) -> tuple[float, float, float, float]:
    """Return the part of the box inside the image: x1, y1, x2, y2 in pixels."""
    x, y, w, h = annotation["bbox"]
    return (
        min(max(x, 0.0), image.width),
        min(max(y, 0.0), image.height),
        min(max(x + w, 0.0), image.width),
        min(max(y + h, 0.0), image.height),
    )


def defect(annotation: dict[str, Any], image: ImageRecord, *, masks: bool) -> str | None:
    """Return why an annotation cannot be trained on, None if it can."""
    x1, y1, x2, y2 = clipped_box(annotation, image)
    if not (x2 > x1 and y2 > y1):
        return "annotations without area inside the image, not trained on"
    if masks and isinstance(annotation["segmentation"], list) and not polygons(annotation):
        return "annotations whose polygons have no area, not trained on"
    return None


def polygons(annotation: dict[str, Any]) -> list[list[float]]:
    """Return the polygons of an annotation that have at least three corners."""
    return [part for part in annotation["segmentation"] if len(part) >= 6 and len(part) % 2 == 0]


def decode_mask(annotation: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Return the mask of an annotation with polygons or RLE (compressed or not): uint8 (height, width), 0 or 1."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        return rle.decode(rle.merge(rle.frPyObjects(polygons(annotation), height, width)))
    if isinstance(segmentation["counts"], list):
        return rle.decode(rle.frPyObjects(segmentation, height, width))
    return rle.decode(segmentation)


def load_coco(annotations: Path, images: Path, *, masks: bool, check: Check) -> Coco:
    """Read and check an annotation file and its images.

    Args:
        annotations: path of the COCO JSON ("instances").
        images: path of the folder or the zip file of the images.
        masks: whether annotations must have a segmentation.
        check: check of the image files: none, their headers (existence and size), or also all of their pixels.

    Raises:
        DataError: a file that is missing or not COCO JSON, entries without a required key, equal ids, unknown
            categories, or images that are missing, unreadable or not of the annotated size. The message has counts and
            the first examples.
    """
    problems: dict[str, list[str]] = defaultdict(list)
    notes: dict[str, list[str]] = defaultdict(list)

    # 1. Check the form of the file.
    content = _read_json(annotations)
    _check_entries(annotations, content, problems)
    _refuse(annotations, problems)

    # 2. Check each annotation and add it to its image.
    categories = sorted(content["categories"], key=lambda category: category["id"])
    category_ids = {category["id"] for category in categories}
    records = {i["id"]: ImageRecord(i["id"], i["file_name"], i["width"], i["height"]) for i in content["images"]}
    for annotation in content["annotations"]:
        name = f"id {annotation['id']}"
        image = records.get(annotation["image_id"])
        if annotation["category_id"] not in category_ids:
            problems["annotations of a category that is not listed"].append(name)
        elif image is None:
            notes["annotations of images that are not listed, left out"].append(name)
        elif reason := _broken(annotation, image, masks=masks):
            problems[reason].append(name)
        else:
            image.annotations.append(annotation)
            if not annotation.get("iscrowd", 0) and (reason := defect(annotation, image, masks=masks)):
                notes[reason].append(name)
    _refuse(annotations, problems)

    # 3. Check the image files.
    files = ImageFiles(images)
    listed = list(records.values())
    if check != "none":
        _check_images(listed, files, check, problems, notes)
        _refuse(annotations, problems)
    if empty := [image.file_name for image in listed if not image.annotations]:
        notes["images without annotations"] = empty
    ids = tuple(category["id"] for category in categories)
    return Coco(annotations, listed, ids, tuple(str(category["name"]) for category in categories), files, dict(notes))


def _read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file whose top level is an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except RecursionError:
        raise DataError(f"{path}: not a COCO 'instances' file: arrays inside of arrays, too deep to be read") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not valid JSON ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: must be a COCO 'instances' file, an object; found {type(content).__name__}")
    return content


def _check_entries(path: Path, content: dict[str, Any], problems: dict[str, list[str]]) -> None:
    """Check that the lists of a COCO file exist, and that their entries follow the schema and have different ids.

    Args:
        path: path of the file, for messages.
        content: content of the file.
        problems: reason -> examples, to which problems are added.
    """
    for key in KEYS:
        if not isinstance(content.get(key), list):
            raise DataError(f"{path}: has no list {key!r}; must be a COCO 'instances' file")
        for reason, example in wrong_entries(key, content[key]):
            problems[reason].append(example)
        if problems:
            continue  # entries may have no id
        seen: set[int] = set()
        for entry in content[key]:
            if entry["id"] in seen:
                problems[f"{key} with an id that another has"].append(f"id {entry['id']}")
            seen.add(entry["id"])


def _broken(annotation: dict[str, Any], image: ImageRecord, *, masks: bool) -> str | None:
    """Return why an annotation does not follow the COCO format, None if it does."""
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        return "annotations without a segmentation, which Mask R-CNN requires" if masks else None
    if isinstance(segmentation, list):
        return _broken_polygons(segmentation, image)
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        return "annotations whose segmentation is neither polygons nor RLE"
    if segmentation["size"] != [image.height, image.width]:
        return "annotations whose RLE size does not match the image"
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = rle_counts(counts)
    if not isinstance(counts, list) or any(type(count) is not int for count in counts):
        return "annotations whose RLE counts are neither text nor whole numbers"
    if sum(counts) != image.height * image.width or min(counts, default=0) < 0:
        return "annotations whose RLE counts do not fill the image"
    return None


def _broken_polygons(parts: list[Any], image: ImageRecord) -> str | None:
    """Return why polygons cannot be rasterised, None if they can.

    pycocotools does not check polygons, and goes along each edge in steps of a fifth of a pixel. NaN and huge
    coordinates end the process with a segmentation fault (cocoapi issue 380). Points moderately far outside of the
    image are accepted, since annotation tools write them.
    """
    reach = 2 * max(image.width, image.height, 1000)  # pixels beyond the image
    for part in parts:
        if not isinstance(part, list):
            return "annotations whose polygons are not lists of numbers"
        try:
            values = np.asarray(part)
        except ValueError:  # numpy refuses lists of unequal length inside a polygon
            return "annotations whose polygons are not lists of numbers"
        if not len(part):
            continue
        if values.ndim != 1 or values.dtype.kind not in "iuf":
            return "annotations whose polygons are not lists of numbers"
        for coordinates, side in ((values[0::2], image.width), (values[1::2], image.height)):
            if not ((coordinates >= -reach) & (coordinates <= side + reach)).all():  # NaN compares as False
                return "annotations whose polygons have points that are not finite or far outside of the image"
    return None


_LONGEST_RUN = 40  # bits of a number in compressed RLE, of which masks need 32


def rle_counts(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed RLE, an empty list if the text is not valid.

    pycocotools does not check the text and decodes a damaged one to whatever is in memory. The format (cocoapi,
    ``rleFrString``): each character has six bits, of which five are the next digits of a number and the sixth is set if
    the number continues. From the fourth number on, the difference to the last number but one is stored.
    """
    counts: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return []
        number |= (bits & 0x1F) << shift
        shift += 5
        if shift > _LONGEST_RUN:
            return []
        if bits & 0x20:  # the number continues
            continue
        if bits & 0x10:  # the number is negative
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
    """Check that all image files exist, have the annotated size and, with ``check`` "decode", can be decoded.

    Args:
        images: images to check.
        files: image files of the set.
        check: "header" or "decode".
        problems: reason -> examples, to which defects are added that training cannot handle.
        notes: reason -> examples, to which the other defects are added.
    """
    # 1. Find images that share a file.
    names: set[str] = set()
    for image in images:
        if image.file_name in names:
            problems["images that share a file"].append(image.file_name)
        names.add(image.file_name)

    def inspect(image: ImageRecord) -> tuple[str, str] | str | None:
        """Return a problem and its example, or the reason of a note, or None."""
        if image.file_name not in files:
            return "images that are missing", image.file_name
        label = files.label(image.file_name)
        try:
            content = files.read(image.file_name)
            with Image.open(io.BytesIO(content)) as opened:
                mode, orientation = opened.mode, opened.getexif().get(0x0112, 1)
                # Orientations from 5 on exchange width and height; annotations may be of either picture.
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

    # 2. Inspect the files in threads, which run in parallel because PIL and zlib release Python's global lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, Progress(len(images), 0, 1) as progress:
        for i, (image, found) in enumerate(zip(images, pool.map(inspect, images), strict=True), 1):
            if isinstance(found, tuple):
                problems[found[0]].append(found[1])
            elif found is not None:
                notes[found].append(image.file_name)
            progress.step(i)


def _refuse(path: Path, problems: dict[str, list[str]]) -> None:
    """Raise one error for all problems, if there are any."""
    if problems:
        raise DataError(f"{path}: {'; '.join(_summary(problems))}. Correct or remove them")


def _summary(found: dict[str, list[str]]) -> list[str]:
    """Return 'count reason: examples' for each reason, with the first three examples."""
    return [
        f"{len(names)} {reason}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for reason, names in found.items()
    ]


def repeat_factors(images: Iterable[ImageRecord], threshold: float) -> list[float]:
    """Return how often each image is drawn per epoch (Gupta et al. 2019, LVIS, section 4.2 of the appendix).

    Category c occurs in a share f_c of the images and has the factor r_c = max(1, sqrt(threshold / f_c)). The factor of
    an image is the largest r_c of its categories, 1 without any.

    Args:
        images: images of the training set.
        threshold: share of the images below which a category is repeated.
    """
    images = list(images)
    present = [{annotation["category_id"] for annotation in image.annotations} for image in images]
    counts: dict[int, int] = defaultdict(int)
    for categories in present:
        for category in categories:
            counts[category] += 1
    factor = {c: max(1.0, (threshold * len(images) / n) ** 0.5) for c, n in counts.items()}
    return [max((factor[c] for c in categories), default=1.0) for categories in present]
