"""Large pictures that are read by region: TIFF in tiles or strips, BigTIFF, SVS. Requires the extra ``scans``.

tifffile is used rather than OpenSlide: it reads strips as well as tiles, 16 bits, and the compressions of scanners,
maps and fax, where OpenSlide reads tiles of 8 bits. Both read SVS.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tasks.errors import DataError
from tasks.images import LARGEST, TooLarge, on_background, read_image
from zoo.errors import one_line

ENDINGS = (".svs", ".btf")  # of scans, beside those of pictures
TIFF = (".tif", ".tiff", ".btf", ".svs")  # endings of files that may be read by region
FROM = 2**25  # pixels from which a picture is read by region: 100 MB in RGB
KEPT = 2**27  # bytes of decoded tiles and strips that are kept for the next regions
BAND = 2**24  # pixels that an overview reads at once

HINT = "a TIFF in tiles or strips is read by region, with --tile 1024"
MISSING = "reading it by region needs tifffile: pip install 'rescalenet-zoo[scans]'"


class _Opened(NamedTuple):
    """An open file: tifffile's object, its first picture in all stored sizes, and the last decoded parts of it."""

    file: Any
    pages: list[Any]
    kept: OrderedDict[tuple[int, int], np.ndarray]


class Scan:
    """The first picture of a TIFF file, of which regions are read. It may be pickled; the file is opened at first use.

    Args:
        path: path of the file.

    Attributes:
        size: width and height in pixels.

    Raises:
        DataError: a file that is no TIFF or damaged, or pixels that are no colours.
        ImportError: the extra is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: _Opened | None = None
        page = self._opened().pages[0]
        kinds = {"MINISBLACK": (1, 2), "MINISWHITE": (1, 2), "RGB": (3, 4), "YCBCR": (3,), "PALETTE": (1,)}
        name = getattr(page.photometric, "name", "")
        bits = (8,) if name == "PALETTE" else (1, 8, 16)
        unsigned = page.dtype in ("bool", "uint8", "uint16") and page.bitspersample in bits
        if page.samplesperpixel not in kinds.get(name, ()) or not unsigned:
            raise DataError(
                f"{path}: {page.samplesperpixel} channels of {page.dtype} ({name}, {page.bitspersample} bits); a scan "
                "must be grey or RGB with 1, 8 or 16 bits, or have a palette with 8"
            )
        self.size = (int(page.imagewidth), int(page.imagelength))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_state": None}

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.size[0]

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.size[1]

    def crop(self, region: tuple[int, int, int, int]) -> Image.Image:
        """Return a region (left, upper, right, lower) in RGB.

        Raises:
            DataError: a part of the file that cannot be decoded.
        """
        return self._read(0, region)

    def overview(self, longest: int) -> Image.Image:
        """Return the whole picture in RGB, reduced to a longer side of at most ``longest`` pixels."""
        factor = min(1.0, longest / max(self.size))
        size = max(1, round(self.width * factor)), max(1, round(self.height * factor))
        # the smallest of the stored sizes that is large enough
        pages = self._opened().pages
        level = max(i for i, page in enumerate(pages) if i == 0 or page.imagewidth >= size[0])
        width, height = int(pages[level].imagewidth), int(pages[level].imagelength)
        shown = Image.new("RGB", size)
        step = max(BAND // width, 1)
        for top in range(0, height, step):
            bottom = min(top + step, height)
            first, last = round(top * size[1] / height), round(bottom * size[1] / height)
            if last > first:
                band = self._read(level, (0, top, width, bottom))
                shown.paste(band.resize((size[0], last - first), Image.Resampling.BOX), (0, first))
        return shown

    def _opened(self) -> _Opened:
        if self._state is None:
            self._state = _open(self.path)
        return self._state

    def _read(self, level: int, region: tuple[int, int, int, int]) -> Image.Image:
        """Return a region of a stored size in RGB."""
        left, upper, right, lower = region
        page = self._opened().pages[level]
        channels = page.samplesperpixel
        pixels = np.zeros((lower - upper, right - left, channels), dtype=page.dtype)
        rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        across, down = -(-page.imagewidth // columns), -(-page.imagelength // rows)
        # each tile or strip that meets the region; channels may be stored apart, one after the other
        apart = channels if page.planarconfig == 2 and channels > 1 else 1
        for plane in range(apart):
            for y in range(upper // rows, -(-lower // rows)):
                for x in range(left // columns, -(-right // columns)):
                    piece = self._piece(level, (plane * down + y) * across + x)
                    if piece is None:  # a tile that the file leaves out is empty
                        continue
                    top, begin = y * rows, x * columns
                    of_piece = piece[max(upper - top, 0) : lower - top, max(left - begin, 0) : right - begin]
                    place = pixels[max(top - upper, 0) :, max(begin - left, 0) :][
                        : of_piece.shape[0], : of_piece.shape[1]
                    ]
                    if apart > 1:
                        place[..., plane] = of_piece[..., 0]
                    else:
                        place[:] = of_piece
        return _rgb(pixels, page)

    def _piece(self, level: int, number: int) -> np.ndarray | None:
        """Return a decoded tile or strip (h, w, channels); the last ones are kept."""
        file, pages, kept = self._opened()
        key = level, number
        if key in kept:
            kept.move_to_end(key)
            return kept[key]
        page = pages[level]
        try:
            if not page.databytecounts[number]:
                return None
            file.filehandle.seek(page.dataoffsets[number])
            data = file.filehandle.read(page.databytecounts[number])
            piece = page.decode(data, number, jpegtables=page.jpegtables)[0]
        except Exception as error:  # of many decoders, for a file that may contain anything
            raise DataError(
                f"{self.path}: a part cannot be decoded ({one_line(str(error))}); remove or replace it"
            ) from None
        piece = None if piece is None else piece[0]
        if piece is not None:
            kept[key] = piece
            while len(kept) > 1 and sum(one.nbytes for one in kept.values()) > KEPT:
                kept.popitem(last=False)
        return piece


def _open(path: Path) -> _Opened:
    import imagecodecs  # noqa: F401  (tifffile decodes with it)
    import tifffile

    try:
        file = tifffile.TiffFile(path)
        levels: list[Any] = [level.pages[0] for level in file.series[0].levels]
        pages = [page.aspage() for page in levels]
        for page in pages:
            _check_layout(page)
        pages.sort(key=lambda page: -page.imagewidth)
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a TIFF ({one_line(str(error))}); remove or replace it") from None
    return _Opened(file, pages, OrderedDict())


def _check_layout(page: Any) -> None:
    """Refuse sizes that are no numbers, tiles and strips that are too large to be decoded, and incomplete palettes.

    Raises:
        ValueError: with the reason.
    """
    least = {"imagewidth": 1, "imagelength": 1, "samplesperpixel": 1, "tilewidth": 0, "tilelength": 0}
    least["rowsperstrip"] = 1 if page.tilewidth == 0 else 0
    for key, lowest in least.items():
        value = getattr(page, key)
        if not isinstance(value, int) or value < lowest:
            raise ValueError(f"{key} {value!r}")
    if page.is_tiled and not page.tilelength:
        raise ValueError("tilelength 0")
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    if min(rows, page.imagelength) * columns > LARGEST:
        raise ValueError(f"tiles or strips of {columns} x {rows} pixels")
    colours = getattr(page.colormap, "shape", None), getattr(page.colormap, "dtype", None)
    if getattr(page.photometric, "name", "") == "PALETTE" and colours != ((3, 256), np.uint16):
        raise ValueError("a palette that is not of 256 colours")


def _rgb(pixels: np.ndarray, page: Any) -> Image.Image:
    """Return pixels (h, w, channels) of a page in RGB, on white where they are transparent."""
    name = page.photometric.name
    if name == "PALETTE":
        return Image.fromarray((page.colormap[:, pixels[..., 0]] >> 8).astype(np.uint8).transpose(1, 2, 0))
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    elif pixels.dtype == np.uint16:
        pixels = (pixels / np.float32(257)).round().astype(np.uint8)  # as of other pictures: 65535 is white
    colours = 3 if pixels.shape[-1] >= 3 else 1
    if name == "MINISWHITE":
        pixels[..., :colours] = 255 - pixels[..., :colours]
    extra = next(iter(page.extrasamples), 0)
    if pixels.shape[-1] > colours and extra in (1, 2):  # premultiplied, and not
        mode = {(1, 1): "La", (1, 2): "LA", (3, 1): "RGBa", (3, 2): "RGBA"}[colours, int(extra)]
        return on_background(Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes()))
    if colours == 1:
        return Image.fromarray(np.ascontiguousarray(pixels[..., 0])).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(pixels[..., :3]))


def open_by_region(path: Path) -> Image.Image | Scan:
    """Return a picture in RGB, or the scan of which regions are read where a TIFF is large.

    Raises:
        DataError: a picture that cannot be read, or that is too large and no TIFF.
    """
    missing = False
    if path.suffix.lower() in TIFF:
        try:
            scan = Scan(path)
            if scan.width * scan.height >= FROM:
                return scan
        except ImportError:
            missing = True
        except DataError:  # ``read_image`` names the reason, or reads what tifffile does not
            pass
    try:
        return read_image(path)
    except TooLarge as error:
        raise TooLarge(f"{error}; {MISSING if missing else HINT}") from None


def open_whole(path: Path) -> Image.Image:
    """Return a picture in RGB, see ``tasks.images.read_image``; the error of one that is too large names the way.

    Raises:
        DataError: a picture that cannot be read.
    """
    try:
        return read_image(path)
    except TooLarge as error:
        raise TooLarge(f"{error}; {HINT}") from None
