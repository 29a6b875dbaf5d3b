"""Long runs of a command: its memory while it runs, and whether each of its inputs is accounted for."""

from __future__ import annotations

import io
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.commands import environment
from tests.helpers.paths import ROOT

Write = Callable[[Path, random.Random], None]  # function that writes a file of a name without ending


@dataclass
class Watched:
    """A command that has ended.

    Attributes:
        code: exit code.
        lines: lines on stdout.
        errors: text on stderr.
        memory: resident megabytes of the process at each line.
    """

    code: int
    lines: list[str] = field(default_factory=list)
    errors: str = ""
    memory: list[float] = field(default_factory=list)

    def growth(self) -> float:
        """Return by how many megabytes the last quarter's median is above that of the second quarter."""
        quarter = len(self.memory) // 4
        return statistics.median(self.memory[-quarter:]) - statistics.median(self.memory[quarter : 2 * quarter])


def watch(*arguments: object, errors: Path) -> Watched:
    """Run ``rescalenet`` with these arguments in a process of its own.

    Args:
        arguments: arguments of the command.
        errors: file for what it writes on stderr.
    """
    command = [sys.executable, "-m", "tasks.cli", *map(str, arguments)]
    with errors.open("wb") as sink:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sink, cwd=ROOT, env=environment(), text=True)
        found = Watched(0)
        assert process.stdout is not None
        for line in process.stdout:
            found.lines.append(line)
            found.memory.append(resident(process.pid))
        found.code = process.wait()
    found.errors = errors.read_text(errors="replace")
    return found


def resident(pid: int) -> float:
    """Return the resident megabytes of a process (Linux); 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)


def assert_accounted(files: Sequence[Path], lines: Sequence[str], failed: dict[str, str]) -> None:
    """Each file has one result, or one reason, and there are no others.

    Args:
        files: inputs.
        lines: results as JSON, with the name of the file as ``file``.
        failed: reason by file.
    """
    answered = [json.loads(line)["file"] for line in lines]
    assert len(answered) == len(set(answered))
    assert not set(answered) & set(failed)
    assert {*answered, *failed} == {shown(file) for file in files}
    assert all(reason.strip() for reason in failed.values())


def shown(file: Path) -> str:
    """The name of a file in JSON: bytes that are not UTF-8 are escaped."""
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in str(file))


# -- pictures ---------------------------------------------------------------------------------------

NAMES = ("a b", "$x$", "#1", "-n", "ä", "日本", "caf\udce9", "it's", "x" * 120, "e.tar", "%d", "~", "NUL")


def noise(random_: random.Random, largest: int = 90) -> Image.Image:
    """A picture of noise, of some size."""
    size = random_.randint(1, largest), random_.randint(1, largest)
    values = np.random.default_rng(random_.random().hex().encode()[3]).integers(0, 256, (size[1], size[0], 3))
    return Image.fromarray(values.astype(np.uint8))


def saved(ending: str, mode: str = "RGB", largest: int = 90, **options: object) -> Write:
    """A picture of a format and mode."""

    def write(path: Path, random_: random.Random) -> None:
        image = noise(random_, largest)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257)
        elif mode == "RGBA":
            image.putalpha(random_.randint(0, 255))
        else:
            image = image.convert(mode)
        path.with_name(path.name + ending).write_bytes(encoded(image, ending, **options))

    return write


def encoded(image: Image.Image, ending: str, **options: object) -> bytes:
    """The content of a picture's file. Pillow writes TIFF into no file whose name is not UTF-8."""
    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions()[ending.lower()], **options)
    return buffer.getvalue()


def cut(ending: str) -> Write:
    """A picture of which the end is missing."""

    def write(path: Path, random_: random.Random) -> None:
        content = encoded(noise(random_), ending)
        path.with_name(path.name + ending).write_bytes(content[: random_.randint(1, max(1, len(content) - 20))])

    return write


def other(ending: str, content: bytes) -> Write:
    """A file that is no picture."""
    return lambda path, random_: path.with_name(path.name + ending).write_bytes(content) and None


# what users' folders have, and how often
PICTURES: list[tuple[int, Write]] = [
    (30, saved(".jpg")),
    (20, saved(".png")),
    (4, saved(".JPG", "L")),
    (4, saved(".jpeg", "CMYK")),
    (4, saved(".png", "RGBA")),
    (4, saved(".png", "P")),
    (4, saved(".png", "1")),
    (4, saved(".png", "I;16")),
    (4, saved(".tif", "RGB", compression="tiff_lzw")),
    (4, saved(".webp")),
    (4, saved(".gif", "P")),
    (4, saved(".bmp")),
    (1, saved(".png", largest=700)),
    (4, cut(".jpg")),
    (4, cut(".png")),
    (2, other(".jpg", b"")),
    (2, other(".png", b"<html>404</html>")),
]


def make_files(folder: Path, count: int, kinds: Sequence[tuple[int, Write]], seed: int = 0) -> list[Path]:
    """Write files of mixed kinds, a hundred in a folder, some with odd names, and return their paths.

    Args:
        folder: folder to make.
        count: number of files.
        kinds: how often each kind occurs, and the function that writes one.
        seed: seed of all that is random.
    """
    random_ = random.Random(seed)
    weights, writers = zip(*kinds, strict=True)
    for number in range(count):
        odd = f"{random_.choice(NAMES)}_{number}" if random_.random() < 0.1 else f"{number:06d}"
        path = folder / f"{number // 100:04d}" / odd
        path.parent.mkdir(parents=True, exist_ok=True)
        random_.choices(writers, weights)[0](path, random_)
    return sorted(path for path in folder.rglob("*") if path.is_file())
