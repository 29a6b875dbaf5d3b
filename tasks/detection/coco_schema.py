"""The schema of a COCO "instances" file: types, ranges and finiteness of all that is read of it.

An annotation file may come from anywhere. pycocotools and the training read its values without a check, so that text in
place of a number ends an evaluation, and a box of 1e308 pixels a step. Tools write ids as whole numbers, as floats and
as text; here ``3``, ``3.0`` and ``"3"`` are one id.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, NotRequired
from urllib.parse import urlsplit

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from tasks.detection.image_files import parts_of
from zoo.errors import reason_of

LARGEST_ID = 2**53  # from there on, numbers as other programs read them are not exact
LONGEST = 1000  # characters of a name
_FAR = 1e9  # pixels, for coordinates of boxes
_MOST_PIXELS = 2**31 - 1  # of an image; run lengths are 32-bit numbers
_DECIMAL = re.compile(r"0|-?[1-9][0-9]{0,15}")


def _printable(text: str) -> str:
    """Return a name that every terminal and file can show."""
    if any(
        ord(character) < 32 or 127 <= ord(character) < 160 or 0xD800 <= ord(character) < 0xE000 for character in text
    ):
        raise ValueError("must not have control characters or halves of characters")
    return text


def _inner_path(name: str) -> str:
    """Return the name of a file below the images' folder; see ``tasks.detection.image_files.ImageFiles``."""
    parts = parts_of(_printable(name))
    if ".." in parts or not parts:
        raise ValueError("must be the path of a file below the folder of the images, without '..'")
    return name


def _is_number(value: Any) -> bool:
    """Return whether a value is a number, and no truth value, which Python takes for 0 and 1."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _flag(value: Any) -> int:
    if value is None:
        return 0
    if not isinstance(value, int | float) or value not in (0, 1):
        raise ValueError("must be 0 or 1")
    return int(value)


def _plain_id(value: Any) -> int | str:
    """Return an id as a whole number where it is one in any form, otherwise as text."""
    if isinstance(value, str):
        if not value or len(value) > LONGEST:
            raise ValueError(f"must be a whole number or a text of 1 to {LONGEST} characters")
        return int(value) if _DECIMAL.fullmatch(value) else _printable(value)
    if not _is_number(value) or value != value or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("must be a whole number or text")
    if abs(value) > LARGEST_ID:
        raise ValueError("must be a whole number within 2**53")
    return int(value)


def _plain_number(value: Any) -> int:
    """Return the id of a category, whose order is that of the labels."""
    found = _plain_id(value)
    if not isinstance(found, int):
        raise ValueError("must be a whole number")
    return found


def _area(value: Any) -> float | None:
    """Return an area; None where the file has none."""
    if value is None:
        return None
    if not _is_number(value) or not 0 <= value <= _FAR**2:
        raise ValueError("must be a finite number >= 0")
    return float(value)


def _whole(value: Any) -> Any:
    """Return a whole number that is written as a float as a whole number."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _FAR else value


def _with_file_name(value: Any) -> Any:
    """Return an image with the file name that its address has where there is none, as in LVIS."""
    if isinstance(value, dict) and "file_name" not in value and isinstance(value.get("coco_url"), str):
        try:
            path = urlsplit(value["coco_url"]).path
        except ValueError:  # brackets that are no address
            return value
        return {**value, "file_name": path.lstrip("/")}
    return value


PlainId = Annotated[Any, AfterValidator(_plain_id)]
_Pixels = Annotated[float, BeforeValidator(_number), Field(strict=True, allow_inf_nan=False, ge=-_FAR, le=_FAR)]
_Name = Annotated[str, Field(strict=True, max_length=LONGEST), AfterValidator(_printable)]
_File = Annotated[str, Field(strict=True, max_length=LONGEST), AfterValidator(_inner_path)]
_Side = Annotated[int, BeforeValidator(_whole), Field(strict=True, gt=0, le=_MOST_PIXELS)]


class _Named(TypedDict):
    id: PlainId
    file_name: _File


class _Image(_Named):
    width: _Side
    height: _Side


class Category(TypedDict):
    """A category; its id is a whole number, also where the file has text."""

    id: Annotated[Any, AfterValidator(_plain_number)]
    name: _Name
    supercategory: NotRequired[Any]


class _Annotation(TypedDict):
    id: PlainId
    image_id: PlainId
    category_id: PlainId
    bbox: Annotated[list[_Pixels], Field(min_length=4, max_length=4)]
    area: NotRequired[Annotated[Any, AfterValidator(_area)]]
    iscrowd: NotRequired[Annotated[Any, AfterValidator(_flag)]]
    ignore: NotRequired[Any]
    segmentation: NotRequired[Any]


NamedImage = Annotated[_Named, BeforeValidator(_with_file_name)]  # of a file whose pictures have their own sizes
_SCHEMA: dict[str, TypeAdapter[Any]] = {
    "images": TypeAdapter(list[Annotated[_Image, BeforeValidator(_with_file_name)]]),
    "categories": TypeAdapter(list[Category]),
    "annotations": TypeAdapter(list[_Annotation]),
}
KEYS = tuple(_SCHEMA)


def checked_entries(key: str, entries: list[Any]) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Check one of the lists of a COCO file.

    Args:
        key: name of the list, one of ``KEYS``.
        entries: the list.

    Returns:
        The entries with what is read of them, and a reason and an example for each wrong value; without entries where
        there are any.
    """
    try:
        checked = _SCHEMA[key].validate_python(entries)
    except pydantic.ValidationError as error:
        return [], [_explained(key, entries, found) for found in error.errors(include_url=False)]
    if key == "images" and (large := [i for i in checked if i["width"] * i["height"] > _MOST_PIXELS]):
        return [], [("images of more than 2**31 - 1 pixels", str(image["file_name"])) for image in large]
    return checked, []


def _explained(key: str, entries: list[Any], error: Any) -> tuple[str, str]:
    """Return the reason and the example of one of pydantic's errors."""
    number, *path = error["loc"]
    entry, field = entries[number], path[0] if path else ""
    if error["type"] == "missing" or not isinstance(entry, dict):
        return f"entries of {key!r} without {field or 'id'!r}", f"number {number}"
    if field in ("width", "height"):
        return "images whose width and height are not whole numbers above 0", f"{entry.get('file_name')!s:.80}"
    if field == "bbox":
        return "annotations whose bbox is not four finite numbers", f"id {entry.get('id')!r:.80}"
    named = f"id {entry.get('id')!r:.80}" if field != "id" else f"number {number}"
    return f"{key} whose {field} is not valid ({reason_of(error)})", f"{named}, {error['input']!r:.80}"
