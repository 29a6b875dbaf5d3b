"""The schema of a COCO "instances" file: types, ranges and finiteness of all that is read of it.

An annotation file may come from anywhere. pycocotools and the training read its values without a check, so that text in
place of a number ends an evaluation, and a box of 1e308 pixels a step.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, NotRequired

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from zoo.errors import reason_of

LARGEST_ID = 2**53  # from there on, numbers as other programs read them are not exact
_FAR = 1e9  # pixels, for coordinates of boxes
_MOST_PIXELS = 2**31 - 1  # of an image; run lengths are 32-bit numbers


def _printable(text: str) -> str:
    """Return a name that every terminal and file can show."""
    if any(
        ord(character) < 32 or 127 <= ord(character) < 160 or 0xD800 <= ord(character) < 0xE000 for character in text
    ):
        raise ValueError("must not have control characters or halves of characters")
    return text


def _inner_path(name: str) -> str:
    """Return the name of a file below the images' folder."""
    path = PurePath(_printable(name))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("must be the path of a file below the folder of the images, without '..'")
    return name


def _number(value: Any) -> Any:
    """Return a value that is no truth value, which Python takes for 0 and 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _flag(value: Any) -> int:
    if value not in (0, 1) or not isinstance(value, int | float):
        raise ValueError("must be 0 or 1")
    return int(value)


_Id = Annotated[int, Field(strict=True, ge=-LARGEST_ID, le=LARGEST_ID)]
_Pixels = Annotated[float, BeforeValidator(_number), Field(strict=True, allow_inf_nan=False, ge=-_FAR, le=_FAR)]
_Area = Annotated[float, BeforeValidator(_number), Field(strict=True, allow_inf_nan=False, ge=0, le=_FAR**2)]
_Name = Annotated[str, Field(strict=True, max_length=1000), AfterValidator(_printable)]
_File = Annotated[str, Field(strict=True, max_length=1000), AfterValidator(_inner_path)]
_Side = Annotated[int, Field(strict=True, gt=0, le=_MOST_PIXELS)]


class _Image(TypedDict):
    id: _Id
    file_name: _File
    width: _Side
    height: _Side


class _Category(TypedDict):
    id: _Id
    name: _Name


class _Annotation(TypedDict):
    id: _Id
    image_id: _Id
    category_id: _Id
    bbox: Annotated[list[_Pixels], Field(min_length=4, max_length=4)]
    area: NotRequired[_Area]
    iscrowd: NotRequired[Annotated[int, BeforeValidator(_flag)]]
    segmentation: NotRequired[Any]


_SCHEMA: dict[str, TypeAdapter[Any]] = {
    "images": TypeAdapter(list[_Image]),
    "categories": TypeAdapter(list[_Category]),
    "annotations": TypeAdapter(list[_Annotation]),
}
KEYS = tuple(_SCHEMA)


def wrong_entries(key: str, entries: list[Any]) -> list[tuple[str, str]]:
    """Return a reason and an example for each wrong value in one of the lists of a COCO file.

    Args:
        key: name of the list, one of ``KEYS``.
        entries: the list.
    """
    try:
        _SCHEMA[key].validate_python(entries)
    except pydantic.ValidationError as error:
        return [_explained(key, entries, found) for found in error.errors(include_url=False)]
    if key == "images" and (large := [i for i in entries if i["width"] * i["height"] > _MOST_PIXELS]):
        return [("images of more than 2**31 - 1 pixels", str(image["file_name"])) for image in large]
    return []


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
