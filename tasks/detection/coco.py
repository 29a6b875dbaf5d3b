"""Reading and checking of COCO JSON annotations and their images.

Defects that would make training or metrics wrong are refused before training starts. Defects that can be handled are
handled and reported, with counts and examples (``Coco.notes``). Training and evaluation see the same annotations, those
that the loader has made of the file.
"""

from __future__ import annotations

import gc
import gzip
import io
import json
import math
import os
import posixpath
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pycocotools import mask as rle

from tasks.detection.coco_boxes import Boxes
from tasks.detection.coco_schema import KEYS, checked_entries
from tasks.detection.extents import AT_ONCE, Extent, examine
from tasks.detection.image_files import ImageFiles
from tasks.detection.masks import decode_mask, encode_mask, polygons, rle_counts
from tasks.detection.records import ImageId, ImageRecord, Records
from tasks.errors import DataError
from tasks.images import EXPOSURE_HINTS, FRAMES_HINT, decode_image, exposure, has_frames, read_header
from tasks.progress import Progress
from tasks.shards import chunks
from tasks.textfiles import wide_encoding
from zoo.errors import one_line
from zoo.jsontext import unique_keys

__all__ = [
    "Coco",
    "ImageFiles",
    "ImageRecord",
    "clipped_box",
    "decode_mask",
    "load_coco",
    "read_object",
    "repeat_factors",
    "rle_counts",
]

Check = Literal["none", "header", "decode"]
Found = dict[str, list[str]]  # reason -> examples

LARGEST_JSON = 2**31  # bytes of an annotation file that is compressed; a small file may unpack to any size
LOOKED_AT = 16  # images of a set that are decoded to see whether they are nearly black, where not all are
MOST_CROWDS = 0.5  # share of crowds from which on they are reported
_FEDERATED = {"neg_category_ids", "not_exhaustive_category_ids"}  # keys of images in LVIS
BEYOND = 1.0  # pixels of a box outside of its image from which on it is reported


@dataclass
class Coco:
    """A checked set of annotated images.

    Attributes:
        path: path of the annotation file.
        images: images in the order of the file.
        categories: category ids of COCO; label k of the net (from 1) is ``categories[k - 1]``. They rise, unless the
            order of the classes is that of another set.
        names: names of the categories, in the same order.
        files: image files.
        notes: defects that were handled: reason -> affected images or annotations.
        texts: ids that the file writes as text and that are numbers here, by their key in results.
    """

    path: Path
    images: Sequence[ImageRecord]
    categories: tuple[int, ...]
    names: tuple[str, ...]
    files: ImageFiles
    notes: Found
    texts: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, keep: Callable[[ImageRecord], bool]) -> Coco:
        """Return the set of the images for which ``keep`` is true."""
        chosen = [number for number, image in enumerate(self.images) if keep(image)]
        images = self.images
        kept = images.take(chosen) if isinstance(images, Records) else [images[number] for number in chosen]
        return replace(self, images=kept)

    def read(self, image: ImageRecord) -> Image.Image:
        """Return the image in RGB, turned as its annotations require.

        Raises:
            DataError: an image that ``decode_image`` refuses.
        """
        content = io.BytesIO(self.files.read(image.file_name))
        return decode_image(content, self.files.label(image.file_name), (image.width, image.height))

    @property
    def has_masks(self) -> bool:
        """Whether any annotation has a mask."""
        return any("segmentation" in annotation for image in self.images for annotation in image.annotations)

    def as_written(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Return a detection in COCO's results format with the ids as the file writes them, for other programs."""
        return {**result, **{key: str(result[key]) for key, ids in self.texts.items() if result[key] in ids}}

    def counts(self) -> dict[str, int]:
        """Return the number of annotations of each category by its name, without crowds."""
        name_of = dict(zip(self.categories, self.names, strict=True))
        found = dict.fromkeys(self.names, 0)
        for image in self.images:
            for annotation in image.annotations:
                if annotation["category_id"] in name_of and not annotation["iscrowd"]:
                    found[name_of[annotation["category_id"]]] += 1
        return found

    def with_names(self, names: Sequence[str]) -> Coco:
        """Return the set with the categories of another one in its order, found by name.

        Raises:
            DataError: annotations of a category that the other set lacks.
        """
        if tuple(names) == self.names:
            return self
        own = dict(zip(self.names, self.categories, strict=True))
        if lost := [name for name, count in self.counts().items() if count and name not in set(names)]:
            raise DataError(f"{self.path}: has annotations of {lost[0]!r}, which the training set does not list")
        new = iter(range(max([0, *self.categories]) + 1, max([0, *self.categories]) + len(names) + 1))
        return replace(self, names=tuple(names), categories=tuple(own[n] if n in own else next(new) for n in names))

    def ground_truth(self) -> dict[str, Any]:
        """Return the COCO JSON of these images for an evaluator: the loader's boxes and masks, crowds too.

        Annotations are numbered from 1: pycocotools takes the id 0 for "not found". Areas are those of the file, of the
        masks where it has none or others, and of the boxes where there are no masks.
        """
        annotations: list[dict[str, Any]] = []
        for image in self.images:
            for annotation in image.annotations:
                found = {**annotation, "id": len(annotations) + 1}
                if "segmentation" in found:
                    encoded = encode_mask(found, image.height, image.width)
                    found["segmentation"] = {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}
                    found.setdefault("area", float(rle.area(encoded)))
                found.setdefault("area", found["bbox"][2] * found["bbox"][3])
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
        """Return the annotations to train on: those of single objects, with ``masks`` those that have one."""
        return [a for a in image.annotations if not a["iscrowd"] and (not masks or "segmentation" in a)]

    def samples(self) -> Iterator[tuple[object, ...]]:
        """Yield what identifies each image and its annotations; masks are not compared."""
        number = {category: i for i, category in enumerate(self.categories)}
        for image in self.images:
            objects = [(number[a["category_id"]], a["bbox"], a["iscrowd"]) for a in image.annotations]
            yield image.file_name, image.width, image.height, objects

    def report(self) -> list[str]:
        """Return a line for each kind of defect that was handled, with its count and the first three examples."""
        return [f"{self.path}: {line}" for line in summary(self.notes)]


def clipped_box(annotation: Mapping[str, Any], image: ImageRecord) -> tuple[float, float, float, float]:
    """Return the part of the box inside the image: x1, y1, x2, y2 in pixels."""
    x, y, w, h = annotation["bbox"]
    return (
        min(max(x, 0.0), image.width),
        min(max(y, 0.0), image.height),
        min(max(x + w, 0.0), image.width),
        min(max(y + h, 0.0), image.height),
    )


def load_coco(annotations: Path, images: Path, *, masks: bool | None, check: Check) -> Coco:
    """Read and check an annotation file and its images.

    Args:
        annotations: path of the COCO JSON ("instances"), which may be compressed by gzip.
        images: path of the folder or the zip file of the images.
        masks: whether annotations must have a segmentation; None: if any has one.
        check: check of the image files: none, their headers (existence and size), or also all of their pixels.

    Raises:
        DataError: a file that is missing or not COCO JSON, entries without a required key, equal ids, unknown
            categories, boxes in another layout, or images that are missing, unreadable or not of the annotated size.
            The message has counts and the first examples.
    """
    found = _read_set(annotations, images, masks)
    if check != "none":
        _check_images(found, check)
    if empty := [image.file_name for image in found.images if not image.annotations]:
        found.notes["images without annotations"] = empty
    found.notes = dict(found.notes)
    return found


@contextmanager
def _without_collection() -> Iterator[None]:
    """Suspend Python's search for cycles, which goes through the millions of values of a file again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_collection()
def _read_set(annotations: Path, images: Path, masks: bool | None) -> Coco:
    """Read and check an annotation file; see ``load_coco``."""
    problems: Found = defaultdict(list)
    notes: Found = defaultdict(list)

    # 1. Check the form of the file.
    content = read_object(annotations)
    entries = _checked(annotations, content, problems)
    _refuse(annotations, problems)
    federated = [image for image in content["images"] if _FEDERATED & image.keys()]
    if federated:
        notes[
            "images with LVIS's lists of categories that were looked for, which COCO's metrics do not read (objects of "
            "other categories count as wrong)"
        ] = [str(image.get("file_name", f"id {image['id']}")) for image in federated]
    texts = {
        key: frozenset(
            entry["id"] for entry, raw in zip(entries[name], content[name], strict=True) if _is_text(raw, entry)
        )
        for key, name in (("image_id", "images"), ("category_id", "categories"))
    }
    del content

    if masks is None:
        masks = any(annotation.get("segmentation") for annotation in entries["annotations"])

    # 2. Find the classes.
    own_id = _classes(entries["categories"], entries["annotations"], notes)
    names = {entry["id"]: entry["name"] for entry in entries["categories"] if own_id.get(entry["id"]) == entry["id"]}

    # 3. Check each annotation and add it to its image.
    owners = {image["id"]: image for image in entries["images"]}
    kept: dict[ImageId, list[dict[str, Any]]] = {id: [] for id in owners}
    for annotation in _corrected(entries["annotations"], owners, own_id, problems, notes, masks=masks):
        kept[annotation["image_id"]].append(annotation)
    _refuse(annotations, problems)
    ids = sorted(names)
    records = Records.of([(i["id"], i["file_name"], i["width"], i["height"], kept[i["id"]]) for i in owners.values()])
    return Coco(annotations, records, tuple(ids), tuple(names[id] for id in ids), ImageFiles(images), notes, texts)


def _is_text(raw: dict[str, Any], entry: dict[str, Any]) -> bool:
    """Return whether the id of an entry is a number that the file writes as text."""
    return isinstance(raw["id"], str) and isinstance(entry["id"], int)


def read_object(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file whose top level is an object, in UTF-8, UTF-16 or UTF-32, or compressed.

    Raises:
        DataError: a file that is missing or is none.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(content)) as unpacked:
                content = unpacked.read(LARGEST_JSON + 1)
            if len(content) > LARGEST_JSON:
                raise DataError(f"{path}: has more than {LARGEST_JSON} bytes when unpacked; unpack it with gzip -d")
        text = content.decode(wide_encoding(content) or "utf-8-sig")
        del content
        value = json.loads(text, object_pairs_hook=unique_keys)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except RecursionError:
        raise DataError(f"{path}: not a COCO 'instances' file: arrays inside of arrays, too deep to be read") from None
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not valid JSON ({one_line(error)})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: must be a COCO 'instances' file, an object; found {type(value).__name__}")
    return value


def _checked(path: Path, content: dict[str, Any], problems: Found) -> dict[str, list[dict[str, Any]]]:
    """Return the lists of a COCO file with what is read of them: entries of the schema with different ids.

    Args:
        path: path of the file, for messages.
        content: content of the file.
        problems: reason -> examples, to which problems are added.
    """
    entries = {}
    for key in KEYS:
        if not isinstance(content.get(key), list):
            raise DataError(f"{path}: has no list {key!r}; must be a COCO 'instances' file")
        entries[key], wrong = checked_entries(key, content[key])
        for reason, example in wrong:
            problems[reason].append(example)
        seen: set[ImageId] = set()
        for entry in entries[key]:
            if entry["id"] in seen:
                problems[f"{key} with an id that another has"].append(f"id {entry['id']}")
            seen.add(entry["id"])
    return entries


def _classes(categories: list[dict[str, Any]], annotations: list[dict[str, Any]], notes: Found) -> dict[int, int]:
    """Return the id of the class of each category, without categories that are no classes.

    Args:
        categories: categories of the file.
        annotations: annotations of the file.
        notes: reason -> examples, to which is added.
    """
    used = {annotation["category_id"] for annotation in annotations}
    own_id: dict[int, int] = {}
    first: dict[str, int] = {}
    for category in sorted(categories, key=lambda category: category["id"]):
        id, name = category["id"], category["name"]
        shown = f"{name} (id {id})"
        if id not in used and _is_placeholder(category, categories):
            notes["categories that only name the project (no annotations, above all others), no classes"].append(shown)
            continue
        if name in first:
            notes["categories with the name of another, one class with it"].append(shown)
        own_id[id] = first.setdefault(name, id)
    of_classes = {own_id.get(id) for id in used}
    if unused := [name for name, id in first.items() if id not in of_classes]:
        notes["classes without annotations"] = unused
    folded: dict[str, list[str]] = defaultdict(list)
    for name in first:
        folded[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    if alike := [" and ".join(map(repr, names)) for names in folded.values() if len(names) > 1]:
        notes["classes whose names differ only in case, spaces or Unicode form"] = alike
    return own_id


def _is_placeholder(category: dict[str, Any], categories: list[dict[str, Any]]) -> bool:
    """Return whether a category is the root that Roboflow puts above all others under the project's name."""
    others = [other for other in categories if other is not category]
    return (
        category.get("supercategory") in (None, "", "none")
        and bool(others)
        and all(other.get("supercategory") == category["name"] for other in others)
    )


def _corrected(
    annotations: list[dict[str, Any]],
    owners: Mapping[ImageId, dict[str, Any]],
    own_id: Mapping[int, int],
    problems: Found,
    notes: Found,
    *,
    masks: bool,
) -> Iterator[dict[str, Any]]:
    """Yield the annotations that can be used, with boxes inside of their images; report the others.

    Args:
        annotations: annotations of the file.
        owners: images of the file by id.
        own_id: id of the class of each category.
        problems: reason -> examples, to which defects are added for which the file is refused.
        notes: reason -> examples, to which the other defects are added.
        masks: whether annotations must have a segmentation.
    """
    # 1. Find the annotations that follow the format, and measure their masks.
    listed: list[tuple[dict[str, Any], dict[str, Any]]] = []  # with their images
    for annotation in annotations:
        name, image = f"id {annotation['id']}", owners.get(annotation["image_id"])
        if annotation["category_id"] not in own_id:
            problems["annotations of a category that is not listed"].append(name)
        elif image is None:
            notes["annotations of images that are not listed, left out"].append(name)
        elif annotation.get("segmentation") is None and masks:
            problems["annotations without a segmentation, which Mask R-CNN requires"].append(name)
        else:
            listed.append((annotation, image))
    followed: list[dict[str, Any]] = []
    extents: list[Extent | None] = []
    boxes = Boxes()
    for (annotation, image), extent in zip(listed, _extents(listed), strict=True):
        name = f"id {annotation['id']}"
        if isinstance(extent, str):
            problems[extent].append(name)
            continue
        followed.append(annotation)
        extents.append(extent)
        boxes.names.append(name)
        boxes.boxes.append(annotation["bbox"])
        boxes.sizes.append((image["width"], image["height"]))
        measured = None if extent is None or annotation.get("iscrowd") else extent.drawn
        boxes.extents.append((math.nan,) * 4 if measured is None else measured)
        area = annotation.get("area")
        boxes.areas.append(math.nan if area is None else area)
    if masks and followed and not any(annotation["segmentation"] for annotation in followed):
        problems["annotations with an empty segmentation, all of the file (a Faster R-CNN needs boxes only)"] = (
            boxes.names
        )
    # 2. Compare the boxes with the masks and the images.
    if problems:
        return
    found, reported, apart = boxes.examine()
    problems.update(found)
    notes.update(reported)
    crowds = [name for name, annotation in zip(boxes.names, followed, strict=True) if annotation.get("iscrowd")]
    if crowds and len(crowds) >= MOST_CROWDS * len(followed):
        notes[
            "annotations that are crowds (iscrowd=1), not trained on (CVAT marks masks from its brush so; set it to 0 "
            "for single objects)"
        ] = crowds
    if repeated := _repeated(followed):
        notes["annotations equal to another of their image, kept (an evaluation counts each)"] = repeated
    # 3. Correct what can be corrected.
    for name, annotation, extent, wrong in zip(boxes.names, followed, extents, apart.tolist(), strict=True):
        image = owners[annotation["image_id"]]
        if (reason := _defect(annotation, extent, image, masks=masks)) is not None:
            notes[reason].append(name)
            continue
        yield _clean(name, annotation, extent, image, own_id, notes, wrong=wrong, masks=masks)


def _extents(listed: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[Extent | str | None]:
    """Yield what ``examine`` finds of the mask of each annotation with its image; None where there is none."""
    for part in chunks(listed, AT_ONCE):
        masked = [(a["segmentation"], image) for a, image in part if a.get("segmentation") is not None]
        sizes = [(image["height"], image["width"]) for _, image in masked]
        found = iter(examine([segmentation for segmentation, _ in masked], sizes))
        yield from (None if annotation.get("segmentation") is None else next(found) for annotation, _ in part)


def _repeated(annotations: Iterable[dict[str, Any]]) -> list[str]:
    """Return the names of annotations that have image, category, box and mask of an earlier one."""
    seen: dict[tuple[object, ...], list[object]] = defaultdict(list)
    found = []
    for annotation in annotations:
        masks = seen[annotation["image_id"], annotation["category_id"], *annotation["bbox"]]
        if any(mask == annotation.get("segmentation") for mask in masks):
            found.append(f"id {annotation['id']}")
        else:
            masks.append(annotation.get("segmentation"))
    return found


def _defect(annotation: dict[str, Any], extent: Extent | None, image: dict[str, Any], *, masks: bool) -> str | None:
    """Return why an annotation cannot be used, None if it can."""
    x, y, w, h = annotation["bbox"]
    if not (min(x + w, image["width"]) > max(x, 0) and min(y + h, image["height"]) > max(y, 0) and w > 0 and h > 0):
        return "annotations without area inside the image, left out"
    if masks and (extent is None or extent.box is None):
        if isinstance(annotation["segmentation"], list):
            return "annotations whose polygons have no area inside the image, left out"
        return "annotations whose RLE has no pixels, left out"
    return None


def _clean(
    name: str,
    annotation: dict[str, Any],
    extent: Extent | None,
    image: dict[str, Any],
    own_id: Mapping[int, int],
    notes: Found,
    *,
    wrong: bool,
    masks: bool,
) -> dict[str, Any]:
    """Return an annotation as training and evaluation see it.

    Args:
        name: name of the annotation in messages.
        annotation: annotation of the file.
        extent: box and area of its mask, if it has one.
        image: image of the annotation.
        own_id: id of the class of each category.
        notes: reason -> examples, to which corrections are added.
        wrong: whether the box disagrees with the mask.
        masks: whether masks are used.
    """
    x, y, w, h = annotation["bbox"]
    if wrong and extent is not None and extent.box is not None:
        used = "the mask's box is used" if masks else "the box is used"
        notes[f"annotations whose bbox is not that of their mask, {used}"].append(name)
        if masks:
            x1, y1, x2, y2 = extent.box
            x, y, w, h = x1, y1, x2 - x1, y2 - y1
    beyond = max(-x, -y, x + w - image["width"], y + h - image["height"])
    if beyond > 0:
        if beyond > BEYOND:
            notes["annotations whose bbox reaches beyond the image, cut off"].append(name)
        x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, image["width"]), min(y + h, image["height"])
        x, y, w, h = x1, y1, x2 - x1, y2 - y1
    if min(w, h) < 1:
        notes["annotations whose bbox is narrower than a pixel"].append(name)
    if annotation.get("ignore") and not annotation.get("iscrowd"):
        notes["annotations with a key 'ignore', which COCO's evaluation and this one do not read"].append(name)
    clean = {
        "id": annotation["id"],
        "image_id": annotation["image_id"],
        "category_id": own_id[annotation["category_id"]],
        "bbox": [float(x), float(y), float(w), float(h)],
        "iscrowd": annotation.get("iscrowd", 0),
    }
    # The area decides whether an object is small, medium or large. The mask's is exact where the file's is wrong.
    area = annotation.get("area")
    measured = w * h if extent is None else extent.area
    if extent is None and area is not None and 0 < area <= measured + 1:  # of a mask that the file does not have
        measured = area
    if area is not None and abs(area - measured) <= 0.15 * measured + 30:
        clean["area"] = area
    elif area is not None:
        notes["annotations whose area is not that of their mask or box, which is used"].append(name)
    if masks:
        clean["segmentation"] = annotation["segmentation"]
        if isinstance(annotation["segmentation"], list) and len(polygons(annotation)) < len(annotation["segmentation"]):
            notes["annotations with polygons of fewer than three corners beside others, which are used"].append(name)
    elif extent is not None:
        clean.setdefault("area", extent.area)
    return clean


def _check_images(data: Coco, check: Check) -> None:
    """Check that all image files exist, have the annotated size and, with ``check`` "decode", can be decoded.

    Args:
        data: set, to whose notes defects are added that can be handled.
        check: "header" or "decode".

    Raises:
        DataError: other defects.
    """
    problems: Found = defaultdict(list)
    images, files, notes = data.images, data.files, data.notes
    step = max(1, -(-len(images) // LOOKED_AT))  # of the images that are decoded in any case

    def inspect(number: int) -> tuple[str, str] | list[str]:
        """Return a problem and its example, or the reasons of notes."""
        image = images[number]
        place = files.locate(image.file_name)
        if place is None:
            return "images that are missing", image.file_name
        reasons = ["images whose leading folders are left out to find them"] if place.shortened else []
        size = (image.width, image.height)
        try:
            content = files.read(image.file_name)
            header = read_header(io.BytesIO(content), files.label(image.file_name))
            # Annotations may be of the stored picture or of the turned one.
            if size not in (header.stored, header.turned):
                header = read_header(io.BytesIO(content), files.label(image.file_name), to_end=True)
            if size not in (header.stored, header.turned):
                own = " x ".join(map(str, header.turned))
                return "images whose size is not the annotations'", (
                    f"{image.file_name} ({own}, annotated {image.width} x {image.height})"
                )
            if check == "decode":
                reasons += _pixel_notes(decode_image(io.BytesIO(content), files.label(image.file_name), size))
            elif number % step == 0:
                with suppress(DataError):  # left to those who need the image
                    reasons += _pixel_notes(decode_image(io.BytesIO(content), image.file_name, size))
        except DataError as error:
            return "images that cannot be decoded", f"{image.file_name} ({error})"
        if header.orientation != 1 and size == header.turned:
            reasons.append("images turned by their EXIF orientation")
        elif header.orientation != 1:
            reasons.append("images not turned by their EXIF orientation, as their annotations are of the stored size")
        elif header.mode not in ("RGB", "L"):
            reasons.append(f"images of mode {header.mode}, converted to RGB")
        return reasons

    # 1. Inspect the files in threads, which run in parallel because PIL and zlib release Python's global lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, Progress(len(images), 0, 1) as progress:
        for i, found in enumerate(pool.map(inspect, range(len(images)))):
            if isinstance(found, tuple):
                problems[found[0]].append(found[1])
            else:
                for reason in found:
                    notes[reason].append(images[i].file_name)
            progress.step(i + 1)
    # 2. Find images that share a file.
    seen: set[str] = set()
    for image in images:
        place = files.locate(image.file_name)
        path = posixpath.normpath(image.file_name if place is None else place.path)
        if path in seen:
            problems["images that share a file"].append(image.file_name)
        seen.add(path)
    # 3. Name the folder in which missing images were looked for.
    if missing := problems.pop("images that are missing", None):
        other = files.elsewhere(missing[0])
        hint = f"; {other} is there: is this the right folder?" if other else ""
        problems["images that are missing"] = missing
        problems[f"(searched in {files.path}{hint})"] = []
    _refuse(data.path, problems)


def _pixel_notes(image: Image.Image) -> list[str]:
    """Return the reasons of notes about an image that is nearly black or white, or has several frames."""
    kind = exposure(image)
    reasons = [] if kind is None else [f"images that are nearly {kind} as they are read ({EXPOSURE_HINTS[kind]})"]
    return [*reasons, f"images with {FRAMES_HINT}"] if has_frames(image) else reasons


def _refuse(path: Path, problems: Found) -> None:
    """Raise one error for all problems, if there are any."""
    if problems:
        raise DataError(f"{path}: {'; '.join(summary(problems))}. Correct or remove them")


def summary(found: Mapping[str, Sequence[str]]) -> list[str]:
    """Return 'count reason: examples' for each reason, with the first three examples."""
    return [
        f"{len(names)} {reason}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else reason
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
    present = [{annotation["category_id"] for annotation in image.annotations} for image in images]
    counts: dict[int, int] = defaultdict(int)
    for categories in present:
        for category in categories:
            counts[category] += 1
    factor = {c: max(1.0, (threshold * len(present) / n) ** 0.5) for c, n in counts.items()}
    return [max((factor[c] for c in categories), default=1.0) for categories in present]
