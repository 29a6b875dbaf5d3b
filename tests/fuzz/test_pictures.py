"""Pictures of all formats and modes, cut, damaged, with false sizes and odd metadata."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.artefacts import picture
from tests.fuzz.harness import FAST
from tests.fuzz.structures import NAMES, damaged

VALID = {
    "rgb.png": picture(),
    "grey.png": picture(mode="L"),
    "alpha.png": picture(mode="RGBA"),
    "palette.png": picture(mode="P"),
    "bits.png": picture(mode="1"),
    "grey16.png": picture(mode="I;16"),
    "interlaced.png": picture(size=(9, 5)),
    "rgb.jpg": picture("JPEG"),
    "cmyk.jpg": picture("JPEG", "CMYK"),
    "progressive.jpg": picture("JPEG", progressive=True),
    "palette.gif": picture("GIF", "P"),
    "rgb.tif": picture("TIFF"),
    "lzw.tif": picture("TIFF", compression="tiff_lzw"),
    "jpeg.tif": picture("TIFF", compression="jpeg"),
    "float.tif": picture("TIFF", "F"),
    "int.tif": picture("TIFF", "I"),
    "lab.tif": picture("TIFF", "LAB"),
    "rgb.webp": picture("WEBP"),
    "rgb.bmp": picture("BMP"),
    "rgb.ppm": picture("PPM"),
}
_frames = [Image.new("P", (8, 8), i) for i in range(3)]
for _name, _format in (("frames.gif", "GIF"), ("frames.webp", "WEBP"), ("frames.tif", "TIFF"), ("frames.png", "PNG")):
    _buffer = io.BytesIO()
    _frames[0].save(_buffer, _format, save_all=True, append_images=_frames[1:])
    VALID[_name] = _buffer.getvalue()
for _name, _values in (("rgb.npy", np.zeros((20, 14, 3), np.uint8)), ("deep.npy", np.zeros((9, 9, 3), np.uint16))):
    _buffer = io.BytesIO()
    np.save(_buffer, _values)
    VALID[_name] = _buffer.getvalue()


def exif(orientation: int | bytes, tail: bytes = b"") -> bytes:
    """EXIF with an orientation, of a false type if it is given as bytes."""
    kind = 3 if isinstance(orientation, int) else 2
    value = struct.pack("<HH", orientation, 0) if isinstance(orientation, int) else orientation
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI", 0x112, kind, 1) + value + b"\0\0\0\0" + tail


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    """A PNG whose header may not fit its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


SIDES = (0, 1, 2, 7, 20, 3000, 20_000, 65_535, 2**31 - 1, 2**32 - 1)


@st.composite
def pngs(draw):
    """PNG files put together of chunks."""
    sizes = [draw(st.sampled_from(SIDES)) for _ in range(2)]
    pixels = zlib.compress(bytes(draw(st.sampled_from((0, 10, 1000, 10**6)))))
    chunks = [
        chunk(b"IDAT", pixels),
        chunk(b"IDAT", pixels[: len(pixels) // 2]),
        chunk(b"PLTE", b"\1\2\3" * draw(st.integers(0, 300))),
        chunk(b"tRNS", b"\1" * draw(st.integers(0, 300))),
        chunk(b"eXIf", exif(draw(st.integers(0, 9)))[6:]),
        chunk(b"iCCP", b"x\0\0" + zlib.compress(b"x" * 1000)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="6"/>'),
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7))),
        chunk(b"tEXt", b"a\0" + b"\x1b[31m"),
        chunk(b"gAMA", b"\0\0\0\0"),
        chunk(b"acTL", struct.pack(">II", 2**31, 0)),
    ]
    chosen = draw(st.lists(st.sampled_from(chunks), max_size=4))
    return png(*sizes, draw(st.sampled_from((1, 2, 4, 8, 16, 3))), draw(st.sampled_from((0, 2, 3, 4, 6, 7))), *chosen)


@st.composite
def jpegs(draw):
    """JPEG files with another EXIF or another size in their header."""
    content = VALID[draw(st.sampled_from(("rgb.jpg", "cmyk.jpg", "progressive.jpg")))]
    if draw(st.booleans()):
        orientation = draw(st.one_of(st.integers(0, 65_535), st.binary(min_size=4, max_size=4)))
        segment = draw(damaged(exif(orientation))) if draw(st.booleans()) else exif(orientation, b"\xff" * 8)
        content = content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:]
    place = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
    if draw(st.booleans()) and place > 0:
        sides = struct.pack(">HH", *(draw(st.sampled_from((0, 1, 15, 300, 5000, 65_535))) for _ in range(2)))
        content = content[: place + 5] + sides + content[place + 9 :]
    return content


@st.composite
def pictures(draw):
    """A picture's name and bytes."""
    name = draw(st.sampled_from(sorted(VALID)))
    content = draw(st.one_of(st.just(VALID[name]), damaged(VALID[name]), damaged(VALID[name]), pngs(), jpegs()))
    return name, content


TOGETHER = 5  # pictures of one command


def test_predictions(harness, fuzz):
    """A folder of odd pictures beside a good one, or one picture alone."""

    def run(case):
        chosen, kind, alone = case
        files = {f"a/{number}.{name}": content for number, (name, content) in enumerate(chosen)}
        inputs = next(iter(files)) if alone else "a"
        if not alone:
            files["a/good.png"] = VALID["rgb.png"]
        weights = f"{harness.fixed}/weights/{kind}.safetensors"
        harness.check(files, ["predict", weights, inputs, "--out", "out/p"], peak=2**30)

    kinds = st.sampled_from(("image", "image", "image", "image_bn", "detection"))
    sets = st.lists(pictures(), min_size=TOGETHER, max_size=TOGETHER)
    fuzz(st.tuples(sets, kinds, st.sampled_from((False, False, True))), run, FAST // TOGETHER)


def test_a_photograph_with_objects(harness):
    """25 million pixels in 14 kB; a mask of the whole picture for each object would take 100 MB."""
    content = io.BytesIO()
    Image.new("L", (5000, 5000), 128).save(content, "JPEG", quality=1)
    weights = f"{harness.fixed}/weights/detection.safetensors"
    command = ["predict", weights, "a.jpg", "--threshold", "0", "--out", "out/p"]
    assert harness.check({"a.jpg": content.getvalue()}, command, peak=2**30) == [0]
    found = json.loads((harness.box / "work/out/p/predictions.json").read_text())["predictions"][0]
    assert len(found["instances"]) > 20
    assert (harness.box / "work/out/p/a.objects.png").exists()


def test_names(harness, fuzz):
    """A folder for each class, one with an odd picture of an odd name."""

    def run(case):
        (name, content), other = case
        files = {f"set/{folder}/0.png": VALID["rgb.png"] for folder in ("a", "b", "ç")}
        files[f"set/a/{other}{name}"] = content
        weights = f"{harness.fixed}/weights/image.safetensors"
        predict = ["predict", weights, f"set/a/{other}{name}", "--out", "out/p"]
        harness.check(files, ["eval", weights, "set"], predict, peak=2**30)

    names = [name for name in NAMES if not {"\0", "/", "\ud800"} & {*name} and len(name) < 200]
    contents = st.one_of(st.just(("a.png", VALID["rgb.png"])), pictures())
    fuzz(st.tuples(contents, st.sampled_from(("", *names))), run, FAST // 8)
