"""``predict`` over thousands of mixed pictures: every file is accounted for, and the memory stays flat."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zoo
from tests.helpers.detection import calibrated, sharpened, small
from tests.soak.watch import watch

pytestmark = pytest.mark.slow

FORMATS = (
    *(("png", "PNG", mode) for mode in ("L", "RGB", "RGBA", "P", "I;16", "1")),
    *(("jpg", "JPEG", mode) for mode in ("L", "RGB", "CMYK")),
    *(("tif", "TIFF", mode) for mode in ("RGB", "I;16")),
    *(("webp", "WEBP", "RGB"), ("bmp", "BMP", "RGB"), ("gif", "GIF", "P"), ("JPEG", "JPEG", "RGB")),
)
ODD = ("a b", "ü", "$x$", "-x", "100%", "a#b", "x:y", "名", "'", '"', "a;b", "\\", os.fsdecode(b"\xff"))


def picture(draw, mode, kind):
    """A picture of random blocks, a few of them large."""
    longest = draw.choice((20, 60, 120, 120, 1600) if draw.random() < 0.02 else (20, 60, 120))
    size = draw.randint(1, longest), draw.randint(1, longest)
    blocks = np.random.default_rng(draw.getrandbits(32)).integers(0, 256, (6, 6, 3), np.uint8)
    image = Image.fromarray(blocks).resize(size)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def bomb():
    """A PNG of 30,000 x 30,000 pixels by its header."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def mixed(folder: Path, count: int) -> Counter[str]:
    """Fill a folder with files, and return how many there are of each kind."""
    draw, made = random.Random(0), Counter()
    for i in range(count):
        ending, format, mode = draw.choice(FORMATS)
        content, kind = picture(draw, mode, format), draw.choices(KINDS, WEIGHTS)[0]
        name = f"{draw.choice(ODD)}{i}" if draw.random() < 0.2 else f"{i}"
        path = folder / f"{i % 7}" / f"{name}.{ending}"
        path.parent.mkdir(exist_ok=True)
        if kind == "cut":
            content = content[: draw.randrange(1, 12)]
        elif kind == "empty":
            content = b""
        elif kind == "text":
            content = b"<html>404</html>"
        elif kind == "floats":
            path, content = path.with_name(f"{i}.tif"), picture(draw, "F", "TIFF")
        elif kind == "noise":
            content = draw.randbytes(500)
        elif kind == "bomb":
            content = bomb()
        elif kind == "hidden":
            path = path.with_name(f"._{i}.png")
        elif kind == "other":
            path = path.with_name(f"{i}.txt")
        elif kind == "folder":
            path.mkdir()
            path /= "inside.png"
        elif kind == "link":
            path.symlink_to("nowhere")
        if kind != "link":
            path.write_bytes(content)
        made[kind] += 1
    return made


KINDS = ("good", "folder", "cut", "empty", "text", "noise", "floats", "bomb", "hidden", "other", "link")
WEIGHTS = (80, 1, 4, 2, 2, 2, 1, 1, 3, 3, 2)
BROKEN = ("cut", "empty", "text", "noise", "floats", "bomb")


@pytest.fixture
def classifier():
    return "rescalenet20_cifar.cifar10"


@pytest.fixture
def detector(tmp_path):
    model = small(min_size=64, max_size=96, proposals_test=20)
    calibrated(model)
    path = tmp_path / "detector.safetensors"
    zoo.save_weights(sharpened(model), path, transform=model.input, classes=["a", "b", "c"])
    return path


@pytest.mark.parametrize("weights", ["classifier", "detector"])
def test_predict(weights, count, tmp_path, request):
    (tmp_path / "in").mkdir()
    made = mixed(tmp_path / "in", count)
    weights = request.getfixturevalue(weights)
    seen = watch("predict", weights, tmp_path / "in", "--out", tmp_path / "out", "--format", "json", "--workers", 1)
    assert seen.code == 0, seen.errors[-2000:]
    assert "Traceback" not in seen.errors
    # Every file that is a picture, and every one that only looks so.
    written = json.loads((tmp_path / "out/predictions.json").read_text())
    found, failed = [each["file"] for each in written["predictions"]], list(written["failed"])
    assert len({*found, *failed}) == len(found) + len(failed)
    assert made.keys() == {*KINDS}
    assert len(found) == made["good"] + made["folder"]
    assert len(failed) == sum(made[kind] for kind in BROKEN)
    assert f"{len(failed)} of {len(found) + len(failed)} files could not be read" in seen.errors
    for number, reason in ((made["hidden"], "hidden"), (made["other"], "with other endings"), (made["link"], "links")):
        assert f"{number} {reason}" in seen.errors
    lines = [json.loads(line) for line in seen.output.splitlines()]
    assert [line["file"] for line in lines] == found
    # The inputs are as before: each has its bytes, and there are no new ones.
    assert sum(1 for path in (tmp_path / "in").rglob("*") if path.is_symlink() or path.is_file()) == count
    seen.assert_flat()
