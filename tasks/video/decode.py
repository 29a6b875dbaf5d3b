"""Frames of a video file by number: exact, and decoding only what they need.

``probe`` reads a file's packets once (without decoding them, where the container can be trusted) and gives the time
of every frame and those from which decoding can start. ``read_frames`` then seeks to the last such frame before
each frame that is wanted, decodes with one thread (PyAV hangs when decoding with frame threads stops early), leaves
out pictures that nothing refers to, and converts to RGB only what is wanted. Frames are found by their time stamp and
are those of a decode from the beginning to the end, or the call fails: nothing is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from tasks.errors import DataError

EXTENSIONS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts", ".ogv")

# Containers whose packets carry the presentation times of the frames that come out. Others (AVI has none, its packed
# B-frames come out in an order of their own) are decoded once by ``probe`` to see.
_TRUSTED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# Decoders that may leave out a picture without harm to any other: here "not a reference" means no reference at all.
_SKIPPING = ("h264", "mpeg4", "mpeg1video", "mpeg2video")
_NEAR = 4  # frames before a key frame, from which decoding on is cheaper than seeking


@dataclass(frozen=True)
class VideoInfo:
    """What ``probe`` found.

    Attributes:
        first: time of the first frame, in units of ``time_base`` seconds.
        steps: from frame to frame, as runs of equal ones: (step, how many). A set of videos holds many of these.
        keys: numbers of the frames from which decoding can start.
        seekable: whether the times are the stream's own. Else the file has no usable times: frames come evenly at the
            stream's nominal rate, and are reached by decoding from the beginning.
        width, height: of the picture as it is shown, after rotation.
    """

    first: int
    steps: tuple[tuple[int, int], ...]
    time_base: Fraction
    keys: tuple[int, ...]
    seekable: bool
    width: int
    height: int

    @classmethod
    def of(cls, pts: Sequence[int], *others: Any) -> VideoInfo:
        """From the time of each frame, and the attributes after ``steps``."""
        runs: list[tuple[int, int]] = []
        for before, after in pairwise(pts):
            step = after - before
            if runs and runs[-1][0] == step:
                runs[-1] = (step, runs[-1][1] + 1)
            else:
                runs.append((step, 1))
        return cls(pts[0], tuple(runs), *others)

    @property
    def frames(self) -> int:
        return 1 + sum(count for _, count in self.steps)

    @property
    def pts(self) -> np.ndarray:
        """(frames,) int64, times of the frames in order, in units of ``time_base`` seconds."""
        parts = [np.full(count, step, dtype=np.int64) for step, count in self.steps]
        return np.concatenate([np.array([self.first], dtype=np.int64), *parts]).cumsum()

    @property
    def times(self) -> np.ndarray:
        """(frames,) float64, seconds from the first frame."""
        return (self.pts - self.first) * float(self.time_base)

    @property
    def duration(self) -> float:
        """Seconds, the last frame shown as long as an average one."""
        return self._length + 1 / self.fps

    @property
    def fps(self) -> float:
        """Average frames per second."""
        return (self.frames - 1) / self._length if self.steps else 1.0

    @property
    def _length(self) -> float:
        """Seconds from the first frame to the last."""
        return float(sum(step * count for step, count in self.steps) * self.time_base)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Container and video stream, ready to decode; whatever goes wrong with the file is a DataError that names it."""
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise DataError(f"{path}: is empty; get it again")
        # names and comments in another encoding than UTF-8 are no reason to fail
        with av.open(str(path), metadata_errors="replace") as container:
            streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
            if not streams:
                raise DataError(f"{path}: has no video stream")
            if "pipe" in container.format.name or container.format.name in ("image2", "gif", "tty"):
                raise DataError(f"{path}: is not a video but {container.format.long_name!r}")
            stream = streams[0]
            if stream.codec_context is None:
                raise DataError(f"{path}: its codec is not known to FFmpeg; convert it to H.264")
            stream.thread_type = "SLICE"
            stream.codec_context.thread_count = 1
            yield container, stream
    except (FFmpegError, UnicodeError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be decoded as a video ({reason}); remove it or get it again") from None


def probe(path: str | Path) -> VideoInfo:
    """Times of all frames of a video.

    Raises:
        DataError: missing, empty, not a video, truncated or damaged.
    """
    path = Path(path)
    with _opened(path) as (container, stream):
        trusted = container.format.name in _TRUSTED
        packets: list[tuple[Any, bool]] = []
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                if packet.is_corrupt:
                    raise DataError(f"{path}: is truncated or damaged after {len(packets)} frames; get it again")
                packets.append((packet.pts, packet.is_keyframe))
        if not packets:
            raise DataError(f"{path}: has no frames; get it again")
        times = [pts for pts, _ in packets]
        usable = None not in times and len(set(times)) == len(times)
        trusted = trusted and usable and packets[0][1]  # what comes before the first key frame gives no pictures
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        time_base = stream.time_base
    decoded: list[Any] = []
    with _opened(path) as (container, stream):
        for frame in container.decode(stream):
            if not decoded:
                width, height = _shown(frame)
            decoded.append(frame.pts)
            if trusted:  # one frame shows that the codec is known
                break
    if not decoded:
        raise DataError(f"{path}: none of its {len(packets)} packets can be decoded")
    if trusted:
        decoded = sorted(times)
    elif not usable or None in decoded or sorted(set(decoded)) != decoded or not set(decoded) <= set(times):
        if not rate:
            raise DataError(f"{path}: has neither time stamps nor a frame rate; convert it to MP4")
        return VideoInfo.of(range(len(decoded)), 1 / Fraction(rate), (0,), False, width, height)
    starts = {pts for pts, key in packets if key}
    keys = tuple(i for i, pts in enumerate(decoded) if pts in starts)
    return VideoInfo.of(decoded, time_base, keys, True, width, height)


def read_frames(path: str | Path, info: VideoInfo, indices: Sequence[int]) -> np.ndarray:
    """RGB frames by number, turned as the file's rotation says: uint8 (len(indices), H, W, 3).

    Args:
        info: of this file, by ``probe``.
        indices: in any order; a frame may be wanted more than once.

    Raises:
        DataError: a frame that cannot be decoded, or a file that is missing or was changed.
    """
    path = Path(path)
    wanted = sorted({int(i) for i in indices})
    if not wanted or wanted[0] < 0 or wanted[-1] >= info.frames:
        raise DataError(f"{path}: frames {wanted[:1]}..{wanted[-1:]} of {info.frames} are wanted")
    found: dict[int, np.ndarray] = {}
    with _opened(path) as (container, stream):
        if info.seekable:
            _seek_and_decode(container, stream, info, wanted, found)
        else:
            last = wanted[-1]
            for number, frame in enumerate(container.decode(stream)):
                if number in wanted:
                    found[number] = _pixels(frame)
                if number >= last:
                    break
    if info.seekable and (rest := set(wanted) - found.keys()):  # some containers (MPEG-TS) seek past their beginning
        with _opened(path) as (container, stream):
            _decode(container, stream, {at: i for i, at in enumerate(info.pts.tolist())}, rest, found, False)
    if missing := [i for i in wanted if i not in found]:
        at = f"{float(info.times[missing[0]]):.2f} s"
        raise DataError(f"{path}: {len(missing)} frames cannot be decoded, the first at {at}; get it again")
    shapes = {image.shape for image in found.values()}
    if len(shapes) > 1:
        sizes = ", ".join(f"{s[1]} x {s[0]}" for s in sorted(shapes))
        raise DataError(f"{path}: its pictures change in size ({sizes}); convert it to one size")
    return np.stack([found[int(i)] for i in indices])


def decode_all(path: str | Path) -> Iterator[np.ndarray]:
    """All RGB frames from the first to the last, as ``read_frames`` gives them: uint8 (H, W, 3).

    Raises:
        DataError: the file cannot be decoded to its end.
    """
    with _opened(Path(path)) as (container, stream):
        for frame in container.decode(stream):
            yield _pixels(frame)


def _seek_and_decode(
    container: Any, stream: Any, info: VideoInfo, wanted: Sequence[int], found: dict[int, np.ndarray]
) -> None:
    """Fill ``found``, as far as it can be; a second attempt is for streams that do not start cleanly where they say."""
    pts = info.pts.tolist()
    number = {at: i for i, at in enumerate(pts)}
    keys = np.array(info.keys if info.keys and info.keys[0] == 0 else (0, *info.keys))
    for group in _groups(wanted, keys):
        start = int(np.searchsorted(keys, group[0], side="right")) - 1
        skipping = stream.codec_context.name in _SKIPPING
        for key, skip in ((start, skipping), (max(start - 1, 0), False)):
            missing = {i for i in group if i not in found}
            if missing:
                container.seek(pts[keys[key]], stream=stream)
                _decode(container, stream, number, missing, found, skip)


def _groups(wanted: Sequence[int], keys: np.ndarray) -> Iterator[list[int]]:
    """Runs of frames that are decoded without seeking in between."""
    group: list[int] = []
    for i in wanted:
        key = keys[np.searchsorted(keys, i, side="right") - 1]
        if group and key > group[-1] + _NEAR:
            yield group
            group = []
        group.append(i)
    yield group


def _decode(
    container: Any, stream: Any, number: dict[int, int], missing: set[int], found: dict[int, np.ndarray], skip: bool
) -> None:
    """Decode on from where the container is, until nothing is missing or the wanted frames lie far behind."""
    context = stream.codec_context
    last = max(missing)
    try:
        for packet in container.demux(stream):
            at = number.get(packet.pts) if packet.pts is not None else None
            if skip:
                context.skip_frame = "DEFAULT" if at is None or at in missing else "NONREF"
            for frame in packet.decode():
                i = number.get(frame.pts)
                if i in missing and not frame.is_corrupt:
                    found[i] = _pixels(frame)
                    missing.discard(i)
                if not missing or (i is not None and i > last + 16):  # more than any codec's reordering
                    return
    except FFmpegError:
        return  # another attempt follows; what is missing after the last is reported
    finally:
        context.skip_frame = "DEFAULT"


def _pixels(frame: Any) -> np.ndarray:
    image = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _shown(frame: Any) -> tuple[int, int]:
    """Width and height after rotation."""
    return (frame.height, frame.width) if round(frame.rotation / 90) % 2 else (frame.width, frame.height)
