"""Detections in COCO's results format: written with the ids of a COCO file, and read from files of any program.

The format is a list of objects with ``image_id``, ``category_id``, ``score``, and ``bbox`` (x, y, width, height) or
``segmentation`` (RLE). pycocotools, detectron2 and the servers of COCO read it.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypeAlias

import pydantic
from pycocotools import mask as rle
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from tasks.detection.coco import Coco, read_object, rle_counts
from tasks.detection.coco_schema import Category, NamedImage, PlainId
from tasks.detection.evaluate import CocoResult, Kind, results_of
from tasks.detection.image_files import parts_of
from tasks.errors import DataError
from tasks.outputs import Entries
from tasks.printing import listed
from tasks.progress import print_line
from zoo.errors import ZooError, reason_of
from zoo.jsontext import read_json

if TYPE_CHECKING:
    from tasks.detection.predict import Detections

LARGEST_FILE = 2**31  # bytes of a file of results, or of a COCO file
FILES: dict[Kind, str] = {"bbox": "results_bbox.json", "segm": "results_segm.json"}

Id: TypeAlias = int | float | str
_Finite = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e9, le=1e9)]


class _Rle(TypedDict):
    size: tuple[Annotated[int, Field(strict=True)], Annotated[int, Field(strict=True)]]
    counts: Annotated[str, Field(strict=True)] | list[Annotated[int, Field(strict=True, ge=0)]]


class _Result(TypedDict):
    image_id: PlainId  # as the loader has those of the set
    category_id: PlainId
    score: _Finite
    bbox: NotRequired[
        Annotated[list[_Finite], Field(min_length=4, max_length=4)] | Annotated[list[Any], Field(max_length=0)]
    ]
    segmentation: NotRequired[_Rle]


_IMAGES, _CATEGORIES, _RESULTS = (TypeAdapter(list[kind]) for kind in (NamedImage, Category, _Result))  # type: ignore[valid-type]


class ImageIds:
    """The ids of the images and categories of a COCO file, with or without annotations, as the file writes them.

    They are checked as the loader does, which makes numbers of ids that are text; other programs compare both.

    Args:
        path: path of the file.

    Raises:
        DataError: a file that is missing or has no lists of images and categories.
    """

    def __init__(self, path: Path) -> None:
        content = read_object(path)
        self.path = path
        self._images: dict[str, list[Id]] = defaultdict(list)
        images = _checked(path, "images", content.get("images"), _IMAGES)
        for image, written in zip(images, content["images"], strict=True):
            self._images[_key(image["file_name"])].append(written["id"])
        named = _checked(path, "categories", content.get("categories"), _CATEGORIES)
        pairs = zip(named, content["categories"], strict=True)
        self.categories: dict[str, Id] = {}
        for category, written in sorted(pairs, key=lambda pair: pair[0]["id"]):
            self.categories.setdefault(category["name"], written["id"])  # the class of several of a name, as loaded

    def of(self, file: Path) -> Id | None:
        """Return the id of a picture: of the image whose name is the end of the picture's path, the longest first."""
        parts = file.absolute().parts
        for count in range(len(parts), 0, -1):
            found = self._images.get(_key("/".join(parts[-count:])), [])
            if len(found) == 1:
                return found[0]
        return None

    def require_some(self, files: Sequence[Path], classes: Sequence[str]) -> None:
        """Check that results can be written, and print which pictures and classes the file lacks.

        Raises:
            DataError: no picture, or no class, is in the file.
        """
        lost = [str(file) for file in files if self.of(file) is None]
        if len(lost) == len(files):
            raise DataError(
                f"{self.path}: has none of the pictures by its file_name (e.g. {files[0]}); give their COCO file"
            )
        unknown = [name for name in classes if name not in self.categories]
        if len(unknown) == len(classes):
            raise DataError(
                f"{self.path}: has none of the classes ({listed(classes, 5)}) among its categories "
                f"({listed(list(self.categories), 5)}); rename them in the file"
            )
        if lost:
            print_line(
                f"{self.path}: {len(lost)} pictures are not in it, and left out of the results: {listed(lost, 3)}"
            )
        if unknown:
            print_line(
                f"{self.path}: objects of classes that it lacks are left out of the results: {listed(unknown, 5)}"
            )


class CocoResults:
    """The files of results of some pictures, which are written at the end.

    Args:
        folder: folder of the files, see ``FILES``.
        ids: ids of images and categories.
        masks: whether there is a file of masks.
    """

    def __init__(self, folder: Path, ids: ImageIds, *, masks: bool) -> None:
        self.folder, self.ids = folder, ids
        self.entries: dict[Kind, Entries] = {kind: Entries(folder) for kind in FILES if kind == "bbox" or masks}

    def add(self, file: Path, found: Detections) -> None:
        """Add the objects of a picture."""
        if (image := self.ids.of(file)) is None:
            return
        for instance in found.instances:
            if (category := self.ids.categories.get(instance.label)) is None:
                continue
            x1, y1, x2, y2 = instance.box
            result: CocoResult = {
                "image_id": image,
                "category_id": category,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": instance.score,
            }
            if instance.packed is not None:
                result["segmentation"] = instance.packed.in_image(found.width, found.height)
            for kind, entries in self.entries.items():
                entries.add(results_of([result], kind)[0])

    def write(self) -> None:
        """Write the files."""
        for kind, entries in self.entries.items():
            entries.write(self.folder / FILES[kind])


def parse_results(path: Path) -> list[CocoResult]:
    """Return the entries of a file of results.

    Raises:
        DataError: a file that is missing or no list of results.
    """
    results: list[CocoResult] = _checked(path, "results", _json(path), _RESULTS)
    return results


def choose_results(path: Path, results: list[CocoResult], data: Coco) -> tuple[list[CocoResult], tuple[Kind, ...]]:
    """Choose the detections of a set, and print what is left out.

    Args:
        path: path of the file of the results, for messages.
        results: entries of the file, of which all have boxes, all have masks, or all have both; changed in place.
        data: set of images with annotations.

    Returns:
        Detections of the set's images and categories, and the kinds that all of them have: bbox, segm or both.

    Raises:
        DataError: masks that do not fit their images, or no entry of the set's images and categories.
    """
    # 1. Choose the results of the set, and check their masks.
    records = {image.id: image for image in data.images}
    left_out: Counter[str] = Counter()
    kept = []
    for number, result in enumerate(results):
        if not result.get("bbox"):  # detectron2 and pycocotools write an empty one beside a mask
            result.pop("bbox", None)
        if result["image_id"] not in records:
            left_out["images that the set lacks"] += 1
        elif result["category_id"] not in data.categories:
            left_out["categories that the set lacks"] += 1
        else:
            if "segmentation" in result:
                record = records[result["image_id"]]
                result["segmentation"] = _compressed(
                    result["segmentation"], record.height, record.width, f"{path}: result {number}"
                )
            kept.append(result)
    # 2. Report what is left out.
    for reason, count in left_out.items():
        print_line(f"{path}: {count} of {len(results)} results are of {reason}, left out")
    if results and not kept:
        raise DataError(
            f"{path}: no result is of the images and categories of {data.path}; give the set that it belongs to"
        )
    # 3. Find what all have: boxes, masks or both.
    kinds: list[Kind] = []
    for kind, key in (("bbox", "bbox"), ("segm", "segmentation")):
        count = sum(key in result for result in kept)
        if count == len(kept):
            kinds.append(kind)  # type: ignore[arg-type]
        elif count:
            raise DataError(f"{path}: {count} of {len(kept)} results have {key!r}; all must have it, or none")
    if not kinds:
        raise DataError(f"{path}: results have neither 'bbox' nor 'segmentation'")
    return kept, tuple(kinds)


def _key(name: str) -> str:
    """Return the name of an image as those of other systems and other Unicode forms are compared."""
    return unicodedata.normalize("NFC", "/".join(parts_of(name)))


def _json(path: Path) -> Any:
    try:
        return read_json(path, longest=LARGEST_FILE)
    except ZooError as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None


def _checked(path: Path, key: str, content: Any, schema: TypeAdapter[Any]) -> Any:
    """Return a list that follows a schema."""
    try:
        return schema.validate_python(content)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the list"
        what = "is missing" if first["type"] == "missing" else reason_of(first)
        raise DataError(f"{path}: {key} are not those of COCO's format: {place}: {what}") from None


def _compressed(mask: dict[str, Any], height: int, width: int, name: str) -> dict[str, Any]:
    """Return RLE of an image as compressed RLE; pycocotools decodes damaged text to whatever is in memory."""
    counts = mask["counts"]
    runs = rle_counts(counts) if isinstance(counts, str) else counts
    if list(mask["size"]) != [height, width]:
        raise DataError(f"{name}: a mask of {mask['size'][0]} x {mask['size'][1]}, the image has {height} x {width}")
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise DataError(f"{name}: the RLE counts do not fill the image")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts}
    encoded = rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
