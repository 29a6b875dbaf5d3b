"""Long runs of a command: its memory while it runs, and whether each of its inputs is accounted for."""

from __future__ import annotations

import io
import json
import os
import random
import stat
import statistics
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.commands import environment
from tests.helpers.paths import ROOT

# Function that writes a file, whose name it is given without ending. It returns the path by which a search meets it.
Write = Callable[[Path, random.Random], Path]
# What becomes of a file: it has a result, it has a reason, or it may have either. All else is the reason for which a
# search leaves it out, in the words of the report; of other endings it is the ending.
READ, FAILED, EITHER = "read", "failed", "either"
HIDDEN, LINK, SPECIAL = "hidden", "links that lead nowhere or in a circle", "that are no ordinary files"


@dataclass
class Watched:
    """A command that has ended.

    Attributes:
        code: exit code.
        lines: lines on stdout.
        errors: text on stderr.
        memory: resident megabytes of the process at each line.
        peak: the most that it had until its last line.
    """

    code: int
    lines: list[str] = field(default_factory=list)
    errors: str = ""
    memory: list[float] = field(default_factory=list)
    peak: float = 0.0

    def growth(self) -> float:
        """Return by how many megabytes the last quarter's median is above that of the second quarter."""
        quarter = len(self.memory) // 4
        return statistics.median(self.memory[-quarter:]) - statistics.median(self.memory[quarter : 2 * quarter])


def watch(*arguments: object, errors: Path, folder: Path = ROOT) -> Watched:
    """Run ``rescalenet`` with these arguments in a process of its own.

    Args:
        arguments: arguments of the command.
        errors: file for what it writes on stderr.
        folder: folder in which it runs.
    """
    command = [sys.executable, "-m", "tasks.cli", *map(str, arguments)]
    with errors.open("wb") as sink:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=sink, cwd=folder, env=environment(), text=True
        )
        found = Watched(0)
        assert process.stdout is not None
        for line in process.stdout:
            found.lines.append(line)
            found.memory.append(megabytes(process.pid, "VmRSS"))
            found.peak = max(found.peak, megabytes(process.pid, "VmHWM"))
        found.code = process.wait()
    found.errors = errors.read_text(errors="replace")
    return found


def megabytes(pid: int, what: str) -> float:
    """Return an entry of a process's status in megabytes (Linux); 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(what)), 0.0)


def assert_accounted(fates: Mapping[Path, str], lines: Sequence[str], failed: Mapping[str, str], errors: str) -> None:
    """Each file has one result, or one reason, or is counted as left out, and there are no others.

    Args:
        fates: what becomes of each file.
        lines: results as JSON, with the name of the file as ``file``.
        failed: reason by file.
        errors: text on stderr.
    """
    answered = [json.loads(line)["file"] for line in lines]
    assert len(answered) == len(set(answered))
    assert not set(answered) & set(failed)
    of = {fate: {shown(file) for file in fates if fates[file] == fate} for fate in (READ, FAILED, EITHER)}
    assert of[READ] <= set(answered) <= of[READ] | of[EITHER]
    assert of[FAILED] <= set(failed) <= of[FAILED] | of[EITHER]
    assert {*answered, *failed} == of[READ] | of[FAILED] | of[EITHER]
    assert all(reason.strip() for reason in failed.values())
    said = errors.replace("\r", "\n").splitlines()
    assert [line for line in said if line.startswith("left out: ")] == [left_out_line(fates)]
    assert sum(line.startswith("skipped: ") for line in said) == len(failed)
    assert f"{len(failed)} of {len(answered) + len(failed)} files could not be read" in said


def left_out_line(fates: Mapping[Path, str]) -> str:
    """The line that reports what a search leaves out."""
    counts = Counter(fates.values())
    endings = sorted((-number, fate) for fate, number in counts.items() if fate.startswith(".") or fate == "no ending")
    named = ", ".join(ending for _, ending in endings[:5]) + (", ..." if len(endings) > 5 else "")
    other = {f"with other endings ({named})": -sum(number for number, _ in endings)}
    parts = {HIDDEN: counts[HIDDEN], **other, LINK: counts[LINK], SPECIAL: counts[SPECIAL]}
    return "left out: " + ", ".join(f"{number} {reason}" for reason, number in parts.items())


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


def saved(ending: str, mode: str = "RGB", largest: int = 90, named: str | None = None, **options: object) -> Write:
    """A picture of a format and mode, by default with the format's ending in its name."""

    def write(path: Path, random_: random.Random) -> Path:
        image = noise(random_, largest)
        grey = np.asarray(image)[..., 0]
        if mode == "I;16":
            image = Image.fromarray(grey.astype(np.uint16) * 257)
        elif mode == "F":
            image = Image.fromarray(grey.astype(np.float32) / 255)
        elif mode == "RGBA":
            image.putalpha(random_.randint(0, 255))
        elif mode == "LAB":
            image = Image.merge("LAB", image.split())
        else:
            image = image.convert(mode)
        return written(path, named or ending, encoded(image, ending, **options))

    return write


def written(path: Path, ending: str, content: bytes) -> Path:
    """Write a file of this name with this ending, and return its path."""
    path = path.with_name(path.name + ending)
    path.write_bytes(content)
    return path


def encoded(image: Image.Image, ending: str, **options: object) -> bytes:
    """The content of a picture's file. Pillow writes TIFF into no file whose name is not UTF-8."""
    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions()[ending.lower()], **options)
    return buffer.getvalue()


def frames(ending: str) -> Write:
    """A picture of several frames or pages, of one size."""

    def write(path: Path, random_: random.Random) -> Path:
        first = noise(random_)
        more = [first.transpose(Image.Transpose.ROTATE_180), first.convert("L").convert("RGB")]
        return written(path, ending, encoded(first, ending, save_all=True, append_images=more))

    return write


def cut(ending: str) -> Write:
    """A picture of which the end is missing."""

    def write(path: Path, random_: random.Random) -> Path:
        content = encoded(noise(random_), ending)
        return written(path, ending, content[: random_.randint(1, max(1, len(content) - 20))])

    return write


def other(ending: str, content: bytes) -> Write:
    """A file that is no picture."""
    return lambda path, random_: written(path, ending, content)


# -- headers that state 60000 x 60000 pixels: decoded, they would take 10 GB

SIDE = 60_000


def png_bomb() -> bytes:
    """A PNG of one compressed row."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 + 3 * SIDE))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg_bomb() -> bytes:
    """A JPEG of 8 x 8 pixels with another size in its frame header."""
    content = bytearray(encoded(Image.new("RGB", (8, 8)), ".jpg"))
    struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, SIDE, SIDE)
    return bytes(content)


def gif_bomb() -> bytes:
    """A GIF with a large screen, and a picture as large."""
    content = bytearray(encoded(Image.new("P", (8, 8)), ".gif"))
    struct.pack_into("<HH", content, 6, SIDE, SIDE)
    struct.pack_into("<HH", content, content.index(b"\x2c\0\0\0\0\x08\0\x08\0") + 5, SIDE, SIDE)
    return bytes(content)


def tiff_bomb() -> bytes:
    """A TIFF of 8 x 8 pixels with another width and length among its tags."""
    content = bytearray(encoded(Image.new("RGB", (8, 8)), ".tif"))
    (start,) = struct.unpack_from("<I", content, 4)
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", content, start)[0], 12):
        tag, kind, number = struct.unpack_from("<HHI", content, entry)
        if tag in (256, 257):
            assert (kind, number) in ((3, 1), (4, 1))
            struct.pack_into("<I", content, entry + 8, SIDE)
    return bytes(content)


def bmp_bomb() -> bytes:
    """A BMP of 8 x 8 pixels with another size in its header."""
    content = bytearray(encoded(Image.new("RGB", (8, 8)), ".bmp"))
    struct.pack_into("<ii", content, 18, SIDE, SIDE)
    return bytes(content)


# -- what else is in folders


def in_folder(write: Write, folder: str, *, met: bool = True) -> Write:
    """A file in a folder of its own; met: the search comes to the file, otherwise it stops at the folder."""

    def write_there(path: Path, random_: random.Random) -> Path:
        inner = path.with_name(folder.format(path.name))
        inner.mkdir(exist_ok=True)
        inside = write(inner / path.name, random_)
        return inside if met else inner

    return write_there


def named(name: str) -> Write:
    """A file that is no picture, with a name that has the given one in it."""

    def write(path: Path, random_: random.Random) -> Path:
        return written(path.with_name(name.format(path.name)), "", b"\0\5\x16\7\0\2\0\0Mac OS X")

    return write


def link(target: str, ending: str = "") -> Write:
    """A symbolic link, to a path relative to the folder that it is in."""

    def write(path: Path, random_: random.Random) -> Path:
        place = path.with_name(path.name + ending)
        place.symlink_to(target.format(place.name))
        return place

    return write


def linked_outside(write: Write, *, folder: bool) -> Write:
    """A link to a file, or to the folder of a file, outside of the folder that is searched."""

    def write_both(path: Path, random_: random.Random) -> Path:
        outside = path.parents[2] / "outside" / path.name
        outside.mkdir(parents=True)
        file = write(outside / "1", random_)
        if folder:
            path.symlink_to(outside)
            return path / file.name
        place = path.with_name(path.name + file.suffix)
        place.symlink_to(file)
        return place

    return write_both


def special(kind: int) -> Write:
    """A pipe or a socket, named like a picture."""

    def write(path: Path, random_: random.Random) -> Path:
        path = path.with_name(path.name + ".jpg")
        os.mknod(path, kind | 0o600)
        return path

    return write


# what users' folders have: how often, what becomes of it, and how it is written
PICTURES: list[tuple[int, str, Write]] = [
    (60, READ, saved(".jpg")),
    (40, READ, saved(".png")),
    (8, READ, saved(".JPG", "L")),
    (8, READ, saved(".jpeg", "CMYK")),
    (8, READ, saved(".png", "RGBA")),
    (8, READ, saved(".png", "P")),
    (8, READ, saved(".png", "1")),
    (8, READ, saved(".png", "I;16")),
    (8, READ, saved(".webp")),
    (8, READ, saved(".gif", "P")),
    (8, READ, saved(".bmp")),
    (2, READ, saved(".png", largest=700)),
    (4, READ, saved(".jpg", named=".JPG.jpg")),
    (4, READ, saved(".png", named=".tar.PnG")),
    (4, READ, saved(".png", named=".jpg")),
    (4, READ, saved(".webp", named=".jpeg")),
    *((4, READ, saved(".tif", mode)) for mode in ("RGB", "CMYK", "P", "I;16", "1", "LAB", "RGBA")),
    (4, READ, saved(".TIFF", "RGB", compression="tiff_lzw")),
    *((4, READ, frames(ending)) for ending in (".gif", ".tif", ".webp", ".png", ".mpo")),
    (4, FAILED, saved(".tif", "F")),
    (8, EITHER, cut(".jpg")),
    (8, FAILED, cut(".png")),
    (4, EITHER, cut(".gif")),
    (4, EITHER, cut(".tif")),
    (4, FAILED, other(".jpg", b"")),
    (4, FAILED, other(".png", b"<html>404</html>")),
    (1, FAILED, other(".png", png_bomb())),
    (1, FAILED, other(".JPEG", jpeg_bomb())),
    (1, FAILED, other(".gif", gif_bomb())),
    (1, FAILED, other(".tif", tiff_bomb())),
    (1, FAILED, other(".bmp", bmp_bomb())),
    (4, HIDDEN, named("._{}.jpg")),
    (2, HIDDEN, named(".DS_Store")),
    (2, HIDDEN, named("Thumbs.db")),
    (1, HIDDEN, named("Icon\r")),
    (1, HIDDEN, in_folder(saved(".jpg"), ".ipynb_checkpoints", met=False)),
    (1, HIDDEN, in_folder(saved(".jpg"), "__MACOSX", met=False)),
    (8, ".xml", other(".xml", b"<annotation/>")),
    (6, ".json", other(".json", b"{}")),
    (4, ".txt", other(".jpg.txt", b"0 0.5 0.5 1 1\n")),
    (3, ".heic", other(".HEIC", b"\0\0\0\x18ftypheic")),
    (2, ".part", other(".jpg.part", b"")),
    (2, ".jpg~", other(".jpg~", b"")),
    (2, "no ending", named("README")),
    (2, READ, in_folder(saved(".jpg"), "{}.jpg")),
    (2, READ, linked_outside(saved(".png"), folder=False)),
    (2, READ, linked_outside(saved(".png"), folder=True)),
    (2, FAILED, linked_outside(other(".png", b""), folder=False)),
    (2, LINK, link("gone/{}", ".jpg")),
    (2, LINK, link("{}", ".jpg")),
    (1, LINK, link("..")),
    (1, LINK, link(".", ".png")),
    (1, SPECIAL, special(stat.S_IFIFO)),
    (1, SPECIAL, special(stat.S_IFSOCK)),
]


def make_files(folder: Path, count: int, kinds: Sequence[tuple[int, str, Write]], seed: int = 0) -> dict[Path, str]:
    """Write files of mixed kinds, a hundred in a folder, some with odd names, and return what becomes of each.

    Args:
        folder: folder to make; the targets of links are written beside it.
        count: number of files, of which some may be the same: a folder has one ``Thumbs.db``.
        kinds: how often each kind occurs, what becomes of its files, and the function that writes one.
        seed: seed of all that is random.
    """
    random_ = random.Random(seed)
    found: dict[Path, str] = {}
    for number in range(count):
        odd = f"{random_.choice(NAMES)}_{number}" if random_.random() < 0.1 else f"{number:06d}"
        path = folder / f"{number // 100:04d}" / odd
        path.parent.mkdir(parents=True, exist_ok=True)
        # each kind once at first
        (kind,) = [kinds[number]] if number < len(kinds) else random_.choices(kinds, [kind[0] for kind in kinds])
        found[kind[2](path, random_)] = kind[1]
    return found
