"""Pictures from files: every mode and orientation becomes RGB, grey or the net's channels, or the error names the file.

Transparent pictures are composed onto white (``BACKGROUND``), in training as in evaluation and prediction. 16-bit
pictures are read on the scale 0..65535. Of pictures with several frames the first is read (``has_frames``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.v2.functional import pil_to_tensor

from tasks.arrays import reading_arrays
from tasks.errors import DataError
from tasks.files import find_files
from tasks.printing import printable
from tasks.progress import print_line
from zoo.errors import one_line

# Pillow warns of each damaged piece of metadata; what keeps a picture from being decoded is an error.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# Pillow refuses twice this number, and warns from there on. Its own default lies below A0 at 450 dpi.
LARGEST = 2**28  # pixels of a picture that is decoded as a whole, which takes 0.8 GB in RGB
if Image.MAX_IMAGE_PIXELS is not None and Image.MAX_IMAGE_PIXELS < LARGEST // 2:
    Image.MAX_IMAGE_PIXELS = LARGEST // 2
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Picture: TypeAlias = Image.Image | Tensor  # a tensor (C, H, W) of uint8 where PIL has no mode of C channels
Exposure = Literal["black", "white"]

EXTENSIONS = (*datasets.folder.IMG_EXTENSIONS, ".jpe", ".jfif", ".gif", ".mpo", ".pbm", ".pnm")
BACKGROUND = "white"  # colour behind transparent pixels
DARK, LIGHT = 16, 239  # limits of the 8-bit values of a picture that is nearly black, and nearly white
MOST = 0.999  # share of the values beyond the limit
_FRAMES = "rescalenet: more frames"  # key of PIL's info
FRAMES_HINT = "several frames, of which the first is read"
EXPOSURE_HINTS: dict[Exposure, str] = {
    "black": "16-bit pictures are read on the scale 0..65535, so multiply 12-bit values (0..4095) by 16",
    "white": "values above the scale are cut off",
}


def endings_for(channels: int) -> tuple[str, ...]:
    """Return the endings of the pictures of a number of channels: arrays (.npy) too where pictures have others."""
    return EXTENSIONS if channels in (1, 3) else (*EXTENSIONS, ".npy")


def find_images(paths: Sequence[str], channels: int = 3, others: Sequence[str] = ()) -> list[Path]:
    """Find the images among the given files and folders, and print what was left out; see ``tasks.files.find_files``.

    Args:
        paths: files and folders.
        channels: number of channels that are read (``read_picture``).
        others: further endings.
    """
    found = find_files(paths, (*endings_for(channels), *others), "images")
    if found.left_out:
        print_line(f"left out: {found.left_out}")
    return found.files


def read_image(path: str | Path) -> Image.Image:
    """Read an image in RGB, turned to its EXIF orientation; see ``decode_image``."""
    return decode_image(path, str(path))


def read_picture(path: str | Path, channels: int = 3) -> Picture:
    """Read a picture with a number of channels, turned to its EXIF orientation.

    Three channels are RGB, one is grey. Another number is that of the file's channels, which are read as they are:
    RGBA and CMYK pictures have four. Arrays of numpy (``.npy``) of shape (H, W, C) may have any number.

    Args:
        path: path of the picture, or of an array of uint8 or uint16.
        channels: number of channels.

    Raises:
        DataError: the picture is missing, cannot be decoded, or has another number of channels.
    """
    if Path(path).suffix.lower() == ".npy":
        return _read_array(Path(path), channels)
    if channels in (1, 3):
        image = read_image(path)
        return image if channels == 3 else image.convert("L")
    return _decoded(path, str(path), lambda image: _with_channels(image, str(path), channels))


def to_pixels(picture: Picture) -> Tensor:
    """Return a picture as a uint8 tensor (C, H, W)."""
    return picture if isinstance(picture, Tensor) else pil_to_tensor(picture)


def require_shape(picture: Picture, short_side: int, name: str) -> Picture:
    """Return a picture, unless it would have too many pixels once its short side is resized: 1 x 5000 gets millions.

    Args:
        picture: picture as it is read.
        short_side: length of its short side after the resize, in pixels.
        name: name of the picture in the error.

    Raises:
        DataError: more pixels than the limit for one picture.
    """
    width, height = picture.size if isinstance(picture, Image.Image) else (picture.shape[2], picture.shape[1])
    if _too_many(short_side * short_side * max(width, height) // min(width, height)):
        raise DataError(
            f"{name}: {width} x {height} pixels, which have more than the limit for one picture once the short side is "
            f"resized to {short_side}; crop or remove it"
        )
    return picture


def _too_many(pixels: int) -> bool:
    """Return whether these are more pixels than Pillow decodes."""
    return Image.MAX_IMAGE_PIXELS is not None and pixels > 2 * Image.MAX_IMAGE_PIXELS


def to_rgb(picture: Picture) -> Image.Image:
    """Return a picture for people: its first three channels, or its first alone in grey."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    shown = picture[:3] if len(picture) >= 3 else picture[:1].expand(3, -1, -1)
    return Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy())


class Pixels:
    """Images by index as uint8 tensors (C, H, W), decoded at the first access or at every access.

    Args:
        read: function from an index to the image.
        keep: whether decoded images are kept in memory.
    """

    def __init__(self, read: Callable[[int], Picture], *, keep: bool) -> None:
        self.read = read
        self.kept: dict[int, Tensor] | None = {} if keep else None

    def __getitem__(self, index: int) -> Tensor:
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        pixels = to_pixels(self.read(index))
        if self.kept is not None:
            self.kept[index] = pixels
        return pixels


def exposure(picture: Picture) -> Exposure | None:
    """Return whether a picture is nearly black or nearly white: all but a thousandth of its values."""
    counts = value_counts(picture).sum(0)  # of the values 0 to 255
    least = MOST * counts.sum()
    if counts[: DARK + 1].sum() >= least:
        return "black"
    return "white" if counts[LIGHT:].sum() >= least else None


def value_counts(picture: Picture) -> np.ndarray:
    """Return how often each channel has each value: int64 (C, 256)."""
    if isinstance(picture, Image.Image):
        return np.asarray(picture.histogram(), dtype=np.int64).reshape(-1, 256)
    return np.stack([torch.bincount(channel.flatten().long(), minlength=256).numpy() for channel in picture])


class TooLarge(DataError):
    """A picture of more pixels than are decoded as a whole."""


class PictureNotes:
    """Counts of pictures that are nearly black or nearly white, and of those with several frames."""

    def __init__(self) -> None:
        self.count = 0
        self.names: dict[Exposure, list[str]] = {"black": [], "white": []}
        self.frames: list[str] = []

    def add(self, name: str, picture: Picture) -> None:
        """Look at a picture."""
        self.count += 1
        if (found := exposure(picture)) is not None:
            self.names[found].append(name)
        if has_frames(picture):
            self.frames.append(name)

    def lines(self) -> list[str]:
        """Return a line for each kind of pictures of which there are any."""
        lines = [
            f"pictures that are nearly {kind} as they are read: {len(names)} of {self.count}, e.g. "
            f"{printable(names[0])}; look at them: {EXPOSURE_HINTS[kind]}"
            for kind, names in self.names.items()
            if names
        ]
        if self.frames:
            example = printable(self.frames[0])
            lines.append(f"pictures with {FRAMES_HINT}: {len(self.frames)} of {self.count}, e.g. {example}")
        return lines


def has_frames(picture: Picture) -> bool:
    """Return whether the file of a picture has further frames or pages of its size, which were not read.

    Previews are no frames: those of ``.mpo`` files, which cameras write, and smaller pages of TIFF files.
    """
    return isinstance(picture, Image.Image) and bool(picture.info.get(_FRAMES))


def _more_frames(image: Image.Image) -> bool:
    """Return whether a file, whose first frame has been decoded, has frames for ``has_frames``."""
    if image.format == "MPO":
        return False
    size = image.size
    try:
        several = bool(getattr(image, "is_animated", False))
        if several and image.format == "TIFF":
            image.seek(1)
            return image.size == size
        return several
    except Exception:  # of a decoder, for a damaged frame or page, which is none
        return False


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
    return _decoded(source, name, lambda image: _rgb(image, name), size)


def _decoded(
    source: str | Path | BinaryIO,
    name: str,
    convert: Callable[[Image.Image], Image.Image],
    size: tuple[int, int] | None = None,
) -> Image.Image:
    with _decoding(source, name), Image.open(source) as image:
        turned = ImageOps.exif_transpose(image)
        if size is not None and turned.size != size and image.size == size:
            turned = image
        if size is not None and turned.size != size:
            raise DataError(
                f"{name}: the image has {turned.width} x {turned.height} pixels, the annotations are for "
                f"{size[0]} x {size[1]}; replace the image or correct the annotations"
            )
        converted = convert(turned)
        converted.load()
        if _more_frames(image):  # last: a damaged second frame does not keep the first from being read
            converted.info[_FRAMES] = True
        return converted


class PictureHeader(NamedTuple):
    """What a file states of its picture.

    Attributes:
        mode: mode in PIL's words.
        stored: width and height as stored.
        turned: width and height after the turn to the EXIF orientation.
        orientation: EXIF orientation, 1 to 8.
    """

    mode: str
    stored: tuple[int, int]
    turned: tuple[int, int]
    orientation: int


def read_header(source: str | Path | BinaryIO, name: str, *, to_end: bool = False) -> PictureHeader:
    """Return what a file states of its picture.

    Args:
        source: path of a file, or its content.
        name: name of the image in errors.
        to_end: whether EXIF data behind the pixels of a PNG are read too, for which these are decoded.

    Raises:
        DataError: a file that is missing or no picture, or a picture of more pixels than are decoded.
    """
    with _decoding(source, name), Image.open(source) as image:
        found = (image.getexif() if to_end else Image.Image.getexif(image)).get(0x0112, 1)
        orientation = found if isinstance(found, int) and 1 <= found <= 8 else 1
        turned = image.size[::-1] if orientation >= 5 else image.size  # these exchange width and height
        return PictureHeader(image.mode, image.size, turned, orientation)


@contextmanager
def _decoding(source: str | Path | BinaryIO, name: str) -> Iterator[None]:
    """Raise what decoders raise as ``DataError`` with the name of the image."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None
    except Image.DecompressionBombError as error:
        reason = one_line(str(error)).partition(", could")[0]
        raise TooLarge(f"{name}: cannot be decoded as an image ({reason}); shrink or divide it") from None
    except UnidentifiedImageError:
        reason = "not a picture, or of an unknown format"
        raise DataError(f"{name}: cannot be decoded as an image ({reason}); remove or replace it") from None
    except Exception as error:  # a damaged file can end in any error of a decoder: struct.error, IndexError, ...
        reason = one_line(str(error).replace(repr(source), "it")) or type(error).__name__
        raise DataError(f"{name}: cannot be decoded as an image ({reason}); remove or replace it") from None


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """Return an image of any mode in RGB, on white where it is transparent."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_16_bit(image, name).convert("RGB")
    if image.mode == "LAB":  # which PIL converts by colour profiles only
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
        assert converted is not None  # it is None for a change in place
        return converted
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return on_background(image)
    return image.convert("RGB")


def on_background(image: Image.Image) -> Image.Image:
    """Return an image that has transparent pixels in RGB, on white."""
    if image.mode in ("RGBa", "La"):  # premultiplied
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), colours).convert("RGB")


def _from_16_bit(image: Image.Image, name: str) -> Image.Image:
    """Return an image of integers 0..65535 in 8-bit grey; PIL's own conversion would clip at 255."""
    if image.mode == "F":
        raise DataError(f"{name}: pixels of mode 'F' (floats) have no fixed scale; save it with 8 or 16 bits")
    values = np.asarray(image).astype(np.float64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise DataError(f"{name}: pixels of mode {image.mode!r} outside 0..65535; save it with 8 or 16 bits")
    key = image.info.get("transparency")
    if isinstance(key, int):
        values[values == key] = 65535
    return Image.fromarray((values / 257).round().astype(np.uint8))


def _with_channels(image: Image.Image, name: str, channels: int) -> Image.Image:
    """Return an image as it is, if it has this number of 8-bit channels."""
    bands = image.getbands()
    if len(bands) != channels or image.mode in ("PA", "RGBa", "La", "I", "F") or image.mode.startswith("I;16"):
        raise DataError(
            f"{name}: has {len(bands)} channels ({image.mode}), the net takes {channels}; pictures of RGBA and CMYK "
            "have 4, arrays (H, W, C) in .npy files any number"
        )
    return image


def _read_array(path: Path, channels: int) -> Picture:
    """Read an array (H, W, C), or (H, W) for one channel, of uint8 or uint16 values."""
    try:
        with reading_arrays():
            values = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception as error:  # of numpy's reader, for a file that may contain anything
        raise DataError(f"{path}: not an array of numpy ({one_line(str(error))}); remove or replace it") from None
    shape = (*values.shape, 1) if values.ndim == 2 and channels == 1 else values.shape
    if len(shape) != 3 or shape[2] != channels or values.dtype not in (np.uint8, np.uint16) or 0 in shape:
        raise DataError(
            f"{path}: an array {values.shape} of {values.dtype}; must be (H, W, {channels}) of uint8 or uint16"
        )
    if _too_many(shape[0] * shape[1]):
        raise DataError(f"{path}: {shape[0]} x {shape[1]} pixels are more than the limit for one picture; divide it")
    if values.dtype == np.uint16:
        values = (np.asarray(values) / 257).round()  # as of 16-bit pictures: 65535 is white
    pixels = np.ascontiguousarray(values, dtype=np.uint8).reshape(shape)
    if channels in (1, 3):
        return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
