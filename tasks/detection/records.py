"""Images with their annotations, packed into a few arrays: processes that load data share them instead of copying them.

Python counts the references to an object in the object itself, so that a forked process copies the memory of every
dict that it looks at. COCO has 860,000 annotations.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

ImageId = int | str


@dataclass(frozen=True)
class ImageRecord:
    """An image of an annotation file.

    Attributes:
        id: id of the file.
        file_name: name of the image file.
        width: width in pixels.
        height: height in pixels.
        packed: annotations, as ``Records`` has them.
    """

    id: ImageId
    file_name: str
    width: int
    height: int
    packed: bytes = b""

    @property
    def annotations(self) -> list[dict[str, Any]]:
        """Annotations of the image as new dicts, which the caller may change.

        They have ``id``, ``image_id``, ``category_id``, ``bbox`` inside of the image, ``iscrowd``, and, where they are
        known, ``area`` and ``segmentation``.
        """
        return pickle.loads(self.packed) if self.packed else []  # of this process's own making


class Records(Sequence[ImageRecord]):
    """Images in order; each is unpacked when it is asked for.

    Args:
        heads: id and file name of each image, packed.
        bodies: annotations of each image, packed.
        sizes: width and height of each image, (N, 2).
        order: number of each image of this set in the arrays.
    """

    def __init__(self, heads: Packed, bodies: Packed, sizes: np.ndarray, order: np.ndarray) -> None:
        self._heads, self._bodies, self._sizes, self._order = heads, bodies, sizes, order

    @classmethod
    def of(cls, images: Sequence[tuple[ImageId, str, int, int, list[dict[str, Any]]]]) -> Records:
        """Return the records of images: id, file name, width, height and annotations of each."""
        heads = Packed.of((id, name) for id, name, _, _, _ in images)
        bodies = Packed.of(annotations for _, _, _, _, annotations in images)
        sizes = np.array([(width, height) for _, _, width, height, _ in images], dtype=np.int64).reshape(-1, 2)
        return cls(heads, bodies, sizes, np.arange(len(images)))

    @property
    def sizes(self) -> np.ndarray:
        """Width and height of each image, (N, 2)."""
        return self._sizes[self._order]

    def take(self, numbers: Sequence[int]) -> Records:
        """Return the images at these numbers, which share the memory of these ones."""
        return Records(self._heads, self._bodies, self._sizes, self._order[np.asarray(numbers, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> Records: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | Records:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        number = int(self._order[index])
        id, name = pickle.loads(self._heads[number])
        width, height = self._sizes[number].tolist()
        return ImageRecord(id, name, width, height, self._bodies[number])

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[index] for index in range(len(self)))


class Packed:
    """Values as one array of bytes.

    Args:
        content: bytes of all values, one after the other.
        ends: position behind each value.
    """

    def __init__(self, content: np.ndarray, ends: np.ndarray) -> None:
        self._content, self._ends = content, ends

    @classmethod
    def of(cls, values: Iterable[Any]) -> Packed:
        """Return plain values (numbers, text, lists, dicts, None) packed."""
        content, ends = bytearray(), []
        for value in values:
            content += pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
            ends.append(len(content))
        return cls(np.frombuffer(bytes(content), dtype=np.uint8), np.array(ends, dtype=np.int64))

    def __getitem__(self, number: int) -> bytes:
        begin = int(self._ends[number - 1]) if number else 0
        return self._content[begin : int(self._ends[number])].tobytes()
