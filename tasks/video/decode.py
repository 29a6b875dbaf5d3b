"""Reading the frames of a video file by number, exactly and without decoding the whole file.

``probe`` reads the packets of a file once, and decodes them only if the container cannot be trusted. It finds the time
of every frame and the key frames. ``read_frames`` seeks to the last key frame before each requested frame, skips
pictures that no other picture refers to, and converts only the requested frames to RGB. It decodes with one thread,
because PyAV hangs when decoding with frame threads stops early. Frames are identified by their time stamps and equal
those of a decode from beginning to end. If a frame cannot be decoded, the call fails; no frame is replaced by another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from tasks.errors import DataError

EXTENSIONS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts", ".ogv")

# Containers whose packets carry the presentation times of the decoded frames. AVI has no such times, and its packed
# B-frames are decoded in another order than that of their packets. ``probe`` decodes files of other containers once.
_TRUSTED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# Decoders that can skip non-reference pictures safely: no other picture of these codecs depends on them.
_SKIPPING = ("h264", "mpeg4", "mpeg1video", "mpeg2video")
_NEAR = 4  # frames; up to this distance from the next key frame, decoding on is cheaper than seeking
_REORDERING = 16  # frames; no codec delays a frame by more


@dataclass(frozen=True)
class VideoInfo:
    """The frame times, key frames and picture size of a video.

    Attributes:
        first: time of the first frame, in units of ``time_base`` seconds.
        steps: time steps between successive frames, as runs (step, number of equal steps). Runs need little memory,
            which matters for sets of many videos.
        time_base: unit of the times, in seconds.
        keys: numbers of the key frames, from which decoding can start.
        seekable: True if the times are those of the stream. False if the file has no usable times: the frames are then
            spaced evenly at the frame rate that the stream declares, and reading decodes from the beginning.
        width: width in pixels of the displayed picture, after rotation.
        height: height in pixels of the displayed picture, after rotation.
    """

    first: int
    steps: tuple[tuple[int, int], ...]
    time_base: Fraction
    keys: tuple[int, ...]
    seekable: bool
    width: int
    height: int

    @classmethod
    def from_times(
        cls, pts: Sequence[int], *, time_base: Fraction, keys: tuple[int, ...], seekable: bool, width: int, height: int
    ) -> VideoInfo:
        """Create the description from the time of each frame; see the class for the other arguments."""
        steps = (after - before for before, after in pairwise(pts))
        runs = tuple((step, sum(1 for _ in equal)) for step, equal in groupby(steps))
        return cls(pts[0], runs, time_base, keys, seekable, width, height)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return 1 + sum(count for _, count in self.steps)

    @property
    def pts(self) -> np.ndarray:
        """Times of the frames in order, in units of ``time_base`` seconds: int64 (frames,)."""
        parts = [np.full(count, step, dtype=np.int64) for step, count in self.steps]
        return np.concatenate([np.array([self.first], dtype=np.int64), *parts]).cumsum()

    @property
    def times(self) -> np.ndarray:
        """Seconds from the first frame to each frame: float64 (frames,)."""
        return (self.pts - self.first) * float(self.time_base)

    @property
    def duration(self) -> float:
        """Duration in seconds; the last frame counts as long as an average frame."""
        return self._length + 1 / self.fps

    @property
    def fps(self) -> float:
        """Average number of frames per second; 1 for a video of one frame."""
        return (self.frames - 1) / self._length if self.steps else 1.0

    @property
    def _length(self) -> float:
        """Number of seconds from the first frame to the last."""
        return float(sum(step * count for step, count in self.steps) * self.time_base)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open the container and its first video stream for decoding; yield both.

    Raises:
        DataError: a problem with the file, also while the caller decodes; the message begins with the path.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise DataError(f"{path}: is empty; get it again")
        # "replace", because titles and comments that are not UTF-8 do not matter here.
        with av.open(str(path), metadata_errors="replace") as container:
            streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
            if not streams:
                raise DataError(f"{path}: has no video stream")
            if "pipe" in container.format.name or container.format.name in ("image2", "gif", "tty"):
                raise DataError(f"{path}: is not a video but {container.format.long_name!r}")
            stream = streams[0]
            if stream.codec_context is None:
                raise DataError(f"{path}: its codec is not known to FFmpeg; convert it to H.264")
            stream.thread_type = "SLICE"  # frame threads hang when decoding stops early
            stream.codec_context.thread_count = 1
            yield container, stream
    except (FFmpegError, UnicodeError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be decoded as a video ({reason}); remove it or get it again") from None


def probe(path: str | Path) -> VideoInfo:
    """Read the times of all frames of a video, its key frames and its size.

    Raises:
        DataError: a file that is missing, empty, not a video, truncated or damaged.
    """
    path = Path(path)
    # 1. Read all packets without decoding them.
    packets: list[tuple[Any, bool]] = []  # presentation time, and whether it is a key frame
    with _opened(path) as (container, stream):
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                if packet.is_corrupt:
                    raise DataError(f"{path}: is truncated or damaged after {len(packets)} frames; get it again")
                packets.append((packet.pts, packet.is_keyframe))
        if not packets:
            raise DataError(f"{path}: has no frames; get it again")
        packet_times = [pts for pts, _ in packets]
        usable = None not in packet_times and len(set(packet_times)) == len(packet_times)
        # Packets before the first key frame give no pictures, so that their times are not those of frames.
        trusted = container.format.name in _TRUSTED and usable and packets[0][1]
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        time_base = stream.time_base
    # 2. Decode all frames; the first alone if the packets' times are trusted, to check that FFmpeg can decode it.
    decoded: list[Any] = []  # time of each frame
    with _opened(path) as (container, stream):
        for frame in container.decode(stream):
            if not decoded:
                width, height = _displayed_size(frame)
            decoded.append(frame.pts)
            if trusted:
                break
    if not decoded:
        raise DataError(f"{path}: none of its {len(packets)} packets can be decoded")
    # 3. Choose the frames' times: the packets' in order of display, the decoded ones, or evenly spaced ones.
    if trusted:
        pts = sorted(packet_times)
    elif usable and None not in decoded and sorted(set(decoded)) == decoded and set(decoded) <= set(packet_times):
        pts = decoded
    elif rate:
        evenly, base = range(len(decoded)), 1 / Fraction(rate)
        return VideoInfo.from_times(evenly, time_base=base, keys=(0,), seekable=False, width=width, height=height)
    else:
        raise DataError(f"{path}: has neither time stamps nor a frame rate; convert it to MP4")
    key_times = {time for time, is_key in packets if is_key}
    keys = tuple(i for i, time in enumerate(pts) if time in key_times)
    return VideoInfo.from_times(pts, time_base=time_base, keys=keys, seekable=True, width=width, height=height)


def read_frames(path: str | Path, info: VideoInfo, indices: Sequence[int]) -> np.ndarray:
    """Return RGB frames by number, rotated for display: uint8 (len(indices), H, W, 3).

    Args:
        info: result of ``probe`` for this file.
        indices: frame numbers in any order, with or without repetitions.

    Raises:
        DataError: a frame that does not exist or cannot be decoded, or a file that is missing or was changed.
    """
    path = Path(path)
    requested = sorted({int(i) for i in indices})
    if not requested:
        raise DataError(f"{path}: no frame requested; request at least one")
    if outside := [i for i in (requested[0], requested[-1]) if not 0 <= i < info.frames]:
        raise DataError(f"{path}: frame {outside[0]} requested, the video has {info.frames}; the first is frame 0")
    found: dict[int, np.ndarray] = {}  # frame number -> (H, W, 3)
    # 1. Decode the requested frames: with seeking, or all frames up to the last requested one.
    with _opened(path) as (container, stream):
        if info.seekable:
            _seek_and_decode(container, stream, info, requested, found)
        else:
            needed = set(requested)
            for number, frame in enumerate(container.decode(stream)):
                if number in needed:
                    found[number] = _pixels(frame)
                if number >= requested[-1]:
                    break
    # 2. Decode the rest from the beginning: in some containers (MPEG-TS) a seek leads past the requested frames.
    if info.seekable and (rest := set(requested) - found.keys()):
        with _opened(path) as (container, stream):
            _decode(container, stream, _numbers(info), rest, found, False)
    # 3. Check that every frame was found and that all have one size.
    if missing := [i for i in requested if i not in found]:
        time = f"{float(info.times[missing[0]]):.2f} s"
        raise DataError(f"{path}: {len(missing)} frames cannot be decoded, the first at {time}; get it again")
    shapes = {image.shape for image in found.values()}
    if len(shapes) > 1:
        sizes = ", ".join(f"{s[1]} x {s[0]}" for s in sorted(shapes))
        raise DataError(f"{path}: its pictures change in size ({sizes}); convert it to one size")
    return np.stack([found[int(i)] for i in indices])


def decode_all(path: str | Path) -> Iterator[np.ndarray]:
    """Yield all RGB frames from the first to the last, equal to those of ``read_frames``: uint8 (H, W, 3).

    Raises:
        DataError: a file that cannot be decoded to its end.
    """
    with _opened(Path(path)) as (container, stream):
        for frame in container.decode(stream):
            yield _pixels(frame)


def _seek_and_decode(
    container: Any, stream: Any, info: VideoInfo, requested: Sequence[int], found: dict[int, np.ndarray]
) -> None:
    """Add the requested frames (rising numbers) to ``found``, as far as they can be decoded."""
    pts, numbers = info.pts, _numbers(info)
    keys = np.array(info.keys if info.keys and info.keys[0] == 0 else (0, *info.keys))
    can_skip = stream.codec_context.name in _SKIPPING
    for group in _groups(requested, keys):
        start = int(np.searchsorted(keys, group[0], side="right")) - 1
        # The second attempt starts one key frame earlier, for streams that do not decode cleanly from a key frame.
        for key, skip in ((start, can_skip), (max(start - 1, 0), False)):
            if missing := {i for i in group if i not in found}:
                container.seek(int(pts[keys[key]]), stream=stream)
                _decode(container, stream, numbers, missing, found, skip)


def _numbers(info: VideoInfo) -> dict[int, int]:
    """Return the number of each frame by its time."""
    return {pts: number for number, pts in enumerate(info.pts.tolist())}


def _groups(requested: Sequence[int], keys: np.ndarray) -> Iterator[list[int]]:
    """Yield runs of the requested frames, each of which is decoded without seeking inside it."""
    group: list[int] = []
    for i in requested:
        key = keys[np.searchsorted(keys, i, side="right") - 1]
        if group and key > group[-1] + _NEAR:
            yield group
            group = []
        group.append(i)
    yield group


def _decode(
    container: Any, stream: Any, numbers: dict[int, int], missing: set[int], found: dict[int, np.ndarray], skip: bool
) -> None:
    """Decode from the current position and move frames from ``missing`` to ``found``.

    Stops when nothing is missing, when the missing frames must have passed, or at an error.

    Args:
        numbers: number of each frame by its time.
        skip: skip non-reference pictures that are not missing.
    """
    context = stream.codec_context
    last = max(missing)
    try:
        for packet in container.demux(stream):
            number = numbers.get(packet.pts) if packet.pts is not None else None
            if skip:
                context.skip_frame = "DEFAULT" if number is None or number in missing else "NONREF"
            for frame in packet.decode():  # often an earlier frame than the packet's
                i = numbers.get(frame.pts)
                if i in missing and not frame.is_corrupt:
                    found[i] = _pixels(frame)
                    missing.discard(i)
                if not missing or (i is not None and i > last + _REORDERING):
                    return
    except FFmpegError:
        return  # the caller tries again from another position, and reports what is still missing then
    finally:
        context.skip_frame = "DEFAULT"


def _pixels(frame: Any) -> np.ndarray:
    """Return the RGB pixels, rotated for display: uint8 (H, W, 3)."""
    image = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _displayed_size(frame: Any) -> tuple[int, int]:
    """Return width and height after rotation."""
    return (frame.height, frame.width) if round(frame.rotation / 90) % 2 else (frame.width, frame.height)
