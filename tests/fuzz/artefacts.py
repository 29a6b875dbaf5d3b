"""Valid artefacts: those of version 0.1.0, with the data that they were made of, and a few more."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from tests.helpers.paths import ROOT

FOLDER = ROOT / "tests/data/v0.1.0"
TASKS = ("image", "image_bn", "detection", "video", "text")

_spec = importlib.util.spec_from_file_location("make_old_artefacts", FOLDER / "make.py")
assert _spec is not None
assert _spec.loader is not None
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


def write_fixed(folder: Path) -> None:
    """Write all artefacts and their data into a folder."""
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    make.write_data(folder)
    make.restore_times(folder)


def parts(weights: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and body of a safetensors file."""
    length = int.from_bytes(weights[:8], "little")
    return json.loads(weights[8 : 8 + length]), weights[8 + length :]


def joined(header: bytes, body: bytes) -> bytes:
    """Return a safetensors file."""
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + body


def weights(kind: str) -> bytes:
    """Return the weights of a kind."""
    return (FOLDER / "weights" / f"{kind}.safetensors").read_bytes()


def picture(format: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (20, 14), **options: Any) -> bytes:
    """Return the bytes of a picture with a gradient."""
    buffer = io.BytesIO()
    image = Image.linear_gradient("L").resize(size).convert(mode)
    image.save(buffer, format, **options)
    return buffer.getvalue()
