"""Where annotation tools put COCO files and their images, found from the begin of each file."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tasks.detection.image_files import ImageFiles
from tasks.errors import DataError
from tasks.textfiles import wide_encoding

_BEGIN = 2**20  # characters in which a COCO file names its lists and an image
_NAME = re.compile(r'"(?:file_name|coco_url)"\s*:\s*("(?:[^"\\]|\\.)*")')
_LIST = re.compile(r'"(?:images|annotations|categories)"\s*:\s*\[')
ENDINGS = (".json", ".json.gz")
FOLDERS = ("", "images", "data", "JPEGImages")  # beside an annotation file, or beside the folder that it is in
SETS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}  # by part of a name


class Annotated(NamedTuple):
    """An annotation file and the folder or zip file of its images."""

    annotations: Path
    images: Path


def is_coco(path: Path) -> bool:
    """Return whether a file is a COCO file by its name and begin, or a folder has one where tools put them."""
    if path.is_dir():
        return next(_files(path), None) is not None
    return path.name.lower().endswith(ENDINGS) and _LIST.search(_begin(path)) is not None


def find_sets(path: Path, images: Path | None = None) -> dict[str, Annotated]:
    """Return the sets of a folder by name, or the one of an annotation file as ``train``.

    In a folder these are the sets that name themselves train and val, by their file or their folder; otherwise its only
    file, as ``train``.

    Args:
        path: annotation file, or folder with annotation files.
        images: folder or zip file of the images; None: where tools put them.

    Raises:
        DataError: several files that name no set, or two that name the same; or no place has the images.
    """
    if path.is_file():
        return {"train": Annotated(path, images or _images_of(path))}
    named: dict[str, list[Path]] = {}
    others = []
    found = list(_files(path))
    # COCO has captions_train2017.json and others beside it
    for file in [file for file in found if file.name.startswith("instances")] or found:
        words = re.split(r"[^a-z]+", str(file.relative_to(path)).lower())
        name = next((SETS[word] for word in reversed(words) if word in SETS), None)
        if name is None:
            others.append(file)
        elif name not in named or len(named[name][0].parts) == len(
            file.parts
        ):  # those of a folder further in are others
            named.setdefault(name, []).append(file)
    if not named and len(others) == 1:
        named = {"train": others}
    files = [file for group in named.values() for file in group] or others
    if "train" not in named or any(len(group) > 1 for group in named.values()):
        shown = ", ".join(str(file.relative_to(path)) for file in files[:5])
        raise DataError(f"{path}: has several COCO files ({shown}); give one of them, or a config")
    return {
        name: Annotated(named[name][0], images or _images_of(named[name][0]))
        for name in ("train", "val")
        if name in named
    }


def _files(folder: Path) -> Iterator[Path]:
    """Yield the COCO files of a folder, of the folders in it, and of those in these."""
    for pattern in ("*", "*/*", "*/*/*"):
        for path in sorted(folder.glob(pattern)):
            if path.name.lower().endswith(ENDINGS) and path.is_file() and is_coco(path):
                yield path


def _begin(path: Path) -> str:
    """Return the begin of a text file, empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(_BEGIN)
            if content.startswith(b"\x1f\x8b"):
                file.seek(0)
                with gzip.open(file) as unpacked:
                    content = unpacked.read(_BEGIN)
    except (OSError, EOFError, ValueError):
        return ""
    return content.decode(wide_encoding(content) or "utf-8-sig", errors="ignore")


def _images_of(path: Path) -> Path:
    """Return the folder or zip file that has the images of an annotation file.

    Raises:
        DataError: no place that tools use has them.
    """
    names = [found[1] for found in _NAME.finditer(_begin(path))][:3]
    # COCO's instances_train2017.json is in annotations/, its images in train2017/
    stem = path.name.split(".")[0].removeprefix("instances_")
    places = [path.parent / folder for folder in (*FOLDERS, stem)]
    places += [path.parent.parent / folder for folder in (stem, *FOLDERS[1:], "")]
    for place in places:
        try:
            files = ImageFiles(place)
        except DataError:
            continue
        if names and all(files.locate(_text(name)) is not None for name in names):
            return place
    looked = ", ".join(dict.fromkeys(map(str, places)))
    raise DataError(f"{path}: the images are not found in {looked}; give --images FOLDER or --images FILE.zip")


def _text(quoted: str) -> str:
    """Return a text of JSON, empty if it is not valid."""
    try:
        return str(json.loads(quoted))
    except ValueError:
        return ""
