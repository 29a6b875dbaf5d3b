"""Large pictures that are read by region: the pixels of the picture that is read as a whole."""

import pickle

import numpy as np
import pytest
from PIL import Image

from tasks.errors import DataError
from tasks.images import read_image
from tasks.scans import Scan, open_by_region, open_whole

KINDS = ["L", "LA", "RGB", "RGBA", "1", "P", "I;16"]
REGIONS = [(0, 0, 1, 1), (0, 0, 333, 222), (100, 37, 300, 39), (332, 221, 333, 222), (64, 0, 128, 222)]


def some_picture(mode):
    values = np.random.default_rng(0).integers(0, 256, (222, 333, 3), dtype=np.uint8)
    values[..., 0] //= 2
    image = Image.fromarray(values)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    image = image.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(values[..., 2]))
    return image


def assert_equal_regions(scan, whole):
    assert scan.size == whole.size
    for region in REGIONS:
        assert np.array_equal(np.asarray(scan.crop(region)), np.asarray(whole.crop(region))), region


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("mode", KINDS)
def test_strips_are_read_as_pillow_reads_them(mode, compression, tmp_path):
    pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    picture = some_picture(mode)
    picture.save(tmp_path / "a.tif", compression=compression)
    assert_equal_regions(Scan(tmp_path / "a.tif"), read_image(tmp_path / "a.tif"))


@pytest.mark.parametrize("kind", ["unspecified", "assocalpha", "unassalpha"])
def test_transparent_pixels_are_white(kind, tmp_path):
    """As of pictures that are read as a whole; a fourth channel that is no transparency is left out."""
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    pixels = np.random.default_rng(0).integers(0, 256, (222, 333, 4), dtype=np.uint8)
    pixels[..., 3] = np.linspace(0, 255, 333).round()
    if kind == "assocalpha":
        pixels[..., :3] = pixels[..., :3] * (pixels[..., 3:] / 255)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=[kind], tile=(64, 48))
    assert_equal_regions(Scan(tmp_path / "a.tif"), read_image(tmp_path / "a.tif"))


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "jpeg"])
def test_tiles_and_stored_reductions(compression, planes, big, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    pixels = np.asarray(some_picture("RGB").resize((333, 222), Image.Resampling.BOX)).copy()
    reduced = np.asarray(Image.fromarray(pixels).reduce(2))
    kind = {"tile": (64, 48), "compression": compression, "photometric": "rgb", "planarconfig": planes}

    def stored(values):
        return values if planes == "contig" else values.transpose(2, 0, 1)

    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=big) as writer:
        writer.write(stored(pixels), subifds=1, **kind)
        writer.write(stored(reduced), subfiletype=1, **kind)
    scan = Scan(tmp_path / "a.tif")
    whole = tifffile.imread(tmp_path / "a.tif")
    assert_equal_regions(
        scan, Image.fromarray(np.ascontiguousarray(whole if planes == "contig" else whole.transpose(1, 2, 0)))
    )
    assert scan.overview(100).size == (100, 67)
    small = np.asarray(scan.overview(167))
    if compression != "jpeg":
        assert np.array_equal(small, reduced)  # that is stored in the file
    again = pickle.loads(pickle.dumps(scan))
    assert again.crop((5, 6, 7, 8)).tobytes() == scan.crop((5, 6, 7, 8)).tobytes()


def test_an_overview_without_stored_reductions(tmp_path, monkeypatch):
    pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    ramp = np.linspace(0, 255, 400, dtype=np.uint8)[:, None].repeat(200, 1)
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    monkeypatch.setattr("tasks.scans.BAND", 200 * 30)
    shown = np.asarray(Scan(tmp_path / "a.tif").overview(40))
    assert shown.shape == (40, 20, 3)
    assert np.abs(shown[:, 0, 0].astype(float) - ramp.reshape(40, 10, 200).mean((1, 2))).max() < 8


def test_other_files_are_refused_in_a_line(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    tifffile.imwrite(
        tmp_path / "five.tif", np.zeros((20, 30, 5), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(DataError, match=r"five\.tif: 5 channels of uint8"):
        Scan(tmp_path / "five.tif")
    (tmp_path / "no.tif").write_bytes(b"II*\0nothing")
    with pytest.raises(DataError, match=r"no\.tif: cannot be read as a TIFF"):
        Scan(tmp_path / "no.tif")
    some_picture("RGB").save(tmp_path / "cut.tif", compression="tiff_lzw")
    content = bytearray((tmp_path / "cut.tif").read_bytes())
    content[2000:60000] = b"\xff" * 58000
    (tmp_path / "cut.tif").write_bytes(content)
    with pytest.raises(DataError, match=r"cut\.tif: "):
        Scan(tmp_path / "cut.tif").crop((0, 0, 333, 222))


LAYOUTS = {
    "tiles": {"tile": (64, 64)},
    "jpeg": {"tile": (64, 64), "compression": "jpeg"},
    "strips": {"rowsperstrip": 16, "compression": "zlib"},
    "palette": {"rowsperstrip": 16, "colormap": np.arange(768, dtype=np.uint16).reshape(3, 256)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_fields_are_refused_in_a_line(layout, tmp_path, monkeypatch):
    """Each field of the header with another value, type or count: the scan is read, or the file is named."""
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    monkeypatch.setattr("tasks.scans.FROM", 1)
    pixels = np.asarray(some_picture("RGB"))
    given = pixels[..., 0] if layout == "palette" else pixels
    photometric = "palette" if layout == "palette" else "rgb"
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, given, photometric=photometric, **LAYOUTS[layout])
    content, refused = path.read_bytes(), []
    first = int.from_bytes(content[4:8], "little")
    fields = range(first + 2, first + 2 + 12 * int.from_bytes(content[first : first + 2], "little"), 12)
    changes = [(8, 4, v) for v in (0, 1, 7, 65535, 2**32 - 1)]
    changes += [(2, 2, v) for v in (1, 2, 5, 11)] + [(4, 4, v) for v in (0, 2, 255)]
    for field in fields:
        for place, length, value in changes:
            damaged = bytearray(content)
            damaged[field + place : field + place + length] = value.to_bytes(length, "little")
            path.write_bytes(damaged)
            try:
                scan = open_by_region(path)
                width, height = scan.size
                scan.crop((max(width - 64, 0), max(height - 64, 0), width, height))
            except DataError as error:
                refused.append(str(error))
    assert len(refused) > len(fields)
    assert all(reason.startswith(f"{path}: ") and "\n" not in reason for reason in refused)


def test_parts_that_are_too_large_are_refused(tmp_path, monkeypatch):
    """A file in one strip is decoded as a whole, whatever region is read."""
    pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    some_picture("RGB").save(tmp_path / "a.tif", tiffinfo={278: 222})
    Scan(tmp_path / "a.tif")
    monkeypatch.setattr("tasks.scans.LARGEST", 333 * 222 - 1)
    with pytest.raises(DataError, match=r"a\.tif: cannot be read as a TIFF \(tiles or strips of 333 x 222 pixels"):
        Scan(tmp_path / "a.tif")


def test_small_pictures_and_other_formats_are_read_as_a_whole(tmp_path):
    for name in ("a.png", "a.tif"):
        some_picture("RGB").save(tmp_path / name)
        assert isinstance(open_by_region(tmp_path / name), Image.Image)
        assert open_whole(tmp_path / name).size == (333, 222)


def test_too_large_pictures_are_explained(tmp_path, monkeypatch):
    some_picture("RGB").save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for read in (open_by_region, open_whole):
        with pytest.raises(
            DataError, match=r"a\.png: .*shrink or divide it; a TIFF in tiles or strips is read by region"
        ):
            read(tmp_path / "a.png")


def test_a_large_tiff_without_the_extra_names_it(tmp_path, monkeypatch):
    some_picture("RGB").save(tmp_path / "a.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(DataError, match=r"a\.tif: .*needs tifffile: pip install 'rescalenet-zoo\[scans\]'"):
        open_by_region(tmp_path / "a.tif")
