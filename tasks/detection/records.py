"""Images with their annotations, packed into a few arrays (``tasks.compact``): COCO has 860,000 annotations."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from tasks.compact import Packed

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

    def __init__(
        self,
        heads: Packed[tuple[ImageId, str]],
        bodies: Packed[list[dict[str, Any]]],
        sizes: np.ndarray,
        order: np.ndarray,
    ) -> None:
        self._heads, self._bodies, self._sizes, self._order = heads, bodies, sizes, order

    @classmethod
    def of(cls, images: Sequence[tuple[ImageId, str, int, int, list[dict[str, Any]]]]) -> Records:
        """Return the records of images: id, file name, width, height and annotations of each."""
        heads = Packed((id, name) for id, name, _, _, _ in images)
        bodies = Packed(annotations for _, _, _, _, annotations in images)
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
        id, name = self._heads[number]
        width, height = self._sizes[number].tolist()
        return ImageRecord(id, name, width, height, self._bodies.content(number))

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[index] for index in range(len(self)))
