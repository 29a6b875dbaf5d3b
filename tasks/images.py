"""Images from files: every mode and orientation becomes RGB, or the error names the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.v2.functional import pil_to_tensor

from tasks.errors import DataError
from tasks.files import find_files

EXTENSIONS = datasets.folder.IMG_EXTENSIONS


def find_images(paths: Sequence[str]) -> list[Path]:
    """Find the images among the given files and folders; see ``tasks.files.find_files``."""
    return find_files(paths, EXTENSIONS, "images")


def read_image(path: str | Path) -> Image.Image:
    """Read an image in RGB, turned to its EXIF orientation; see ``decode_image``."""
    return decode_image(path, str(path))


class Pixels:
    """Images by index as uint8 tensors (3, H, W), decoded at the first access or at every access.

    Args:
        read: function from an index to the image.
        keep: whether decoded images are kept in memory.
    """

    def __init__(self, read: Callable[[int], Image.Image], *, keep: bool) -> None:
        self.read = read
        self.kept: dict[int, Tensor] | None = {} if keep else None

    def __getitem__(self, index: int) -> Tensor:
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        pixels = pil_to_tensor(self.read(index))
        if self.kept is not None:
            self.kept[index] = pixels
        return pixels


def decode_image(source: str | Path | BinaryIO, name: str, size: tuple[int, int] | None = None) -> Image.Image:
    """Decode an image to RGB, turned to its EXIF orientation. 16-bit grey is scaled to 8 bits (65535 is white).

    Args:
        source: path of a file, or its content.
        name: name of the image in errors.
        size: width and height that annotations were made for; None: any size. The image is not turned where it has
            this size as it is stored and another one when turned.

    Raises:
        DataError: the image is missing, cannot be decoded, or is not of ``size``.
    """
    try:
        with Image.open(source) as image:
            turned = ImageOps.exif_transpose(image)
            if size is not None and turned.size != size and image.size == size:
                turned = image
            if size is not None and turned.size != size:
                raise DataError(
                    f"{name}: the image has {turned.width} x {turned.height} pixels, the annotations are for "
                    f"{size[0]} x {size[1]}; replace the image or correct the annotations"
                )
            return _rgb(turned, name)
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).replace(repr(source), "it")
        raise DataError(f"{name}: cannot be decoded as an image ({reason}); remove or replace it") from None


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64)  # PIL's own conversion would clip at 255
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise DataError(f"{name}: pixels of mode {image.mode!r} outside 0..65535; save it with 8 or 16 bits")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    return image.convert("RGB")
