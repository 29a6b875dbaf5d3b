"""Reading the frames of a video file by number, exactly and without decoding the whole file.

``probe`` reads the packets of a file once, and decodes them only if the container cannot be trusted. It finds the time
of every frame and the key frames. ``read_frames`` seeks to the last key frame before each requested frame, skips
pictures that no other picture refers to, and converts only the requested frames to RGB. It decodes with one thread,
because PyAV hangs when decoding with frame threads stops early. Frames are identified by their time stamps and equal
those of a decode from beginning to end. If a frame cannot be decoded, the call fails; no frame is replaced by another,
and frames that follow a damaged one are not trusted before the next key frame.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from tasks.errors import DataError
from tasks.video.containers import EXTENSIONS, moving_streams
from tasks.video.containers import opened as _opened
from tasks.video.times import Run, from_runs, length_of, repaired, rising, to_runs

__all__ = ["EXTENSIONS", "VideoInfo", "decode_all", "find_frames", "probe", "read_frames"]

# Containers whose packets carry the presentation times of the decoded frames. AVI has no such times, and its packed
# B-frames are decoded in another order than that of their packets. ``probe`` decodes files of other containers once.
_TRUSTED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_HIDING = ("vp8",)  # codecs with packets of their own for pictures that are never shown
_UNSEEKABLE = ("gif", "apng")  # every packet counts as a key frame, also if it changes a part of the picture before
# Decoders that can skip non-reference pictures safely: no other picture of these codecs depends on them.
_SKIPPING = ("h264", "mpeg4", "mpeg1video", "mpeg2video")
_NEAR = 4  # frames; up to this distance from the next key frame, decoding on is cheaper than seeking
_REORDERING = 16  # frames; no codec delays a frame by more
_MOST_ERRORS = 100  # packets in a row that cannot be read, after which a file has ended
_CUT = 0.5  # seconds by which a stream may be shorter than its tag states
MOST_FRAMES = 10_000_000  # of a file: four days at 30 frames per second
_FLATTEST = Fraction(1, 8)  # width of a pixel over its height; a smaller or larger ratio is an error of the file
_HDR = (16, 18)  # transfer functions of HDR: SMPTE 2084 (PQ) and ARIB STD-B67 (HLG), as numbered in ITU-T H.273

Note = Literal["even", "mended", "cut", "damaged", "interlaced", "hdr", "streams", "past_end"]
NOTES: dict[Note, str] = {
    "even": "have no times of their own; their frames count as evenly spaced at the declared rate",
    "mended": "lack some times, or have some that do not rise; these frames are placed between their neighbours",
    "cut": "are cut; clips from the missing part fail",
    "damaged": "have damaged frames; clips with one of them fail",
    "interlaced": "are interlaced: moving edges are combs; deinterlace them with ffmpeg -vf bwdif",
    "hdr": "have HDR colours, which look pale to a net; convert them to SDR",
    "streams": "have several video streams, of which the best is read",
    "past_end": "end before their part in the list does; clips come from what is there",
}


@dataclass(frozen=True)
class VideoInfo:
    """The frame times, key frames and picture size of a video.

    Attributes:
        first: time of the first frame, in units of ``time_base`` seconds.
        steps: the times of the other frames, as runs (``tasks.video.times``). Runs need little memory, which matters
            for sets of many videos.
        time_base: unit of the times, in seconds.
        keys: numbers of the key frames, from which decoding can start.
        seekable: True if frames are found by the times of the stream; False if they are counted from the beginning.
        width: width of the picture in pixels, after rotation.
        height: height of the picture in pixels, after rotation.
        pixel_ratio: width of a displayed pixel over its height, after rotation; not 1 for anamorphic videos.
        delay: seconds from the begin of the file, on the clock of a player, to the first frame.
        codec: FFmpeg's name of the codec.
        notes: oddities of the file, keys of ``NOTES``.
    """

    first: int
    steps: tuple[Run, ...]
    time_base: Fraction
    keys: tuple[int, ...]
    seekable: bool
    width: int
    height: int
    pixel_ratio: float = 1.0
    delay: float = 0.0
    codec: str = ""
    notes: tuple[Note, ...] = ()

    @classmethod
    def from_times(
        cls,
        pts: Sequence[int],
        *,
        time_base: Fraction,
        keys: tuple[int, ...],
        seekable: bool,
        width: int,
        height: int,
        **more: Any,
    ) -> VideoInfo:
        """Create the description from the time of each frame; see the class for the other arguments."""
        return cls(pts[0], to_runs(pts), time_base, keys, seekable, width, height, **more)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return 1 + sum(run[-1] for run in self.steps)

    @property
    def pts(self) -> np.ndarray:
        """Times of the frames in order, in units of ``time_base`` seconds: int64 (frames,)."""
        return from_runs(self.first, self.steps)

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
        return float(length_of(self.steps) * self.time_base)


@dataclass
class _Packets:
    """The packets of a stream, without decoding them.

    Attributes:
        times: presentation time of each packet, None where it has none.
        keys: times of the packets that are key frames.
        first_is_key: whether the first packet is a key frame.
        damaged: whether packets are marked as damaged, or cannot be read.
        promised: number of frames that the container announces; 0 if it does not.
        end: time at which the last picture ends, in units of ``time_base``.
        duration: time at which the stream ends by Matroska's tag, in seconds; 0: unknown.
        rate: frame rate that the container or the codec declares.
        format: FFmpeg's name of the container.
        codec: FFmpeg's name of the codec.
        time_base: unit of the times, in seconds.
        start: begin of the file on the clock of a player, in seconds; None: unknown.
        streams: number of video streams.
    """

    times: list[int | None] = field(default_factory=list)
    keys: set[int] = field(default_factory=set)
    first_is_key: bool = False
    damaged: bool = False
    promised: int = 0
    end: int = 0
    duration: float = 0.0
    rate: Fraction | None = None
    format: str = ""
    codec: str = ""
    time_base: Fraction = Fraction(1)
    start: float | None = None
    streams: int = 1


@dataclass
class _Decoded:
    """The frames of a stream, in the order of display.

    Attributes:
        times: time of each frame, None where it has none.
        decoding_times: time at which each frame was to be decoded, the second best choice.
        lost: times of packets that cannot be decoded.
        first: the first frame.
        pixel_ratio: width of a displayed pixel over its height.
    """

    times: list[int | None] = field(default_factory=list)
    decoding_times: list[int | None] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    first: Any = None
    pixel_ratio: float = 1.0


def probe(path: str | Path) -> VideoInfo:
    """Read the times of all frames of a video, its key frames and its size.

    A file that is cut or has damaged packets is described whole, as far as its container states it; its missing frames
    cannot be read.

    Raises:
        DataError: a file that is missing, empty or not a video, or has no frame that can be decoded.
    """
    path = Path(path)
    # 1. Read all packets without decoding them.
    with _opened(path) as (container, stream):
        packets = _read_packets(container, stream)
    if not packets.times:
        raise DataError(f"{path}: has no frames; get it again")
    unique = None not in packets.times and len(set(packets.times)) == len(packets.times)
    # Packets before the first key frame give no pictures, so that their times are not those of frames.
    # Nor do those that are shown before it, as after a cut at an open group of pictures: they need the part cut off.
    trusted = packets.format in _TRUSTED and packets.codec not in _HIDING and unique and packets.first_is_key
    trusted = trusted and packets.times[0] == min(time for time in packets.times if time is not None)
    # 2. Decode all frames; if the packets' times are trusted, the first ones alone, to check that FFmpeg can decode it.
    with _opened(path) as (container, stream):
        decoded = _decode_all(container, stream, only_first=trusted)
    if decoded.first is None:
        raise DataError(f"{path}: none of its {len(packets.times)} packets can be decoded")
    # 3. Choose the frames' times: the packets' in order of display, the decoded ones, or evenly spaced ones.
    notes: list[Note] = []
    first, seekable = decoded.first, packets.format not in _UNSEEKABLE
    step, time_base = _usual_step(packets), packets.time_base
    if trusted:
        pts = sorted(time for time in packets.times if time is not None)
    else:
        by_decoding = not rising(decoded.times) and rising(decoded.decoding_times)
        chosen = decoded.decoding_times if by_decoding else decoded.times
        known = sum(time is not None for time in chosen)
        if not known and step is None:
            raise DataError(f"{path}: has neither time stamps nor a frame rate; convert it to MP4")
        if not known or (not _spread(chosen) and packets.rate):
            pts, changed, time_base = list(range(len(chosen))), len(chosen), 1 / Fraction(packets.rate or 1)
            notes.append("even")
        else:
            pts, changed = repaired(chosen, step or 1)
            notes += ["mended"] if changed else []
        # Only times that packets have, and no two of them, lead to the same frame after a seek.
        seekable &= not changed and not by_decoding and None not in packets.times
        seekable &= set(pts) <= set(packets.times)
        if seekable and (lost := set(decoded.lost) - set(pts)):
            pts = sorted({*pts, *lost})
    # 4. Add the frames that a cut file lacks.
    if trusted and (missing := _missing(packets, pts)):
        usual = max(1, round((pts[-1] - pts[0]) / (len(pts) - 1)))
        pts += [pts[-1] + usual * number for number in range(1, missing + 1)]
        notes.append("cut")
    elif packets.damaged or decoded.lost:
        notes.append("damaged")
    # 5. Describe the file.
    notes += ["interlaced"] if first.interlaced_frame else []
    notes += ["hdr"] if first.color_trc in _HDR else []
    notes += ["streams"] if packets.streams > 1 else []
    late = packets.start is not None and packets.format != "avi" and seekable
    delay = float(pts[0] * packets.time_base) - (packets.start or 0.0) if late else 0.0
    width, height = _displayed_size(first)
    return VideoInfo.from_times(
        pts,
        time_base=time_base,
        keys=tuple(i for i, time in enumerate(pts) if time in packets.keys) if seekable else (0,),
        seekable=seekable,
        width=width,
        height=height,
        pixel_ratio=decoded.pixel_ratio,
        delay=round(max(0.0, delay), 6),
        codec=packets.codec,
        notes=tuple(notes),
    )


def _read_packets(container: Any, stream: Any) -> _Packets:
    """Read all packets of a stream."""
    found = _Packets(
        promised=stream.frames,
        rate=stream.average_rate or stream.guessed_rate or stream.base_rate,
        format=container.format.name,
        codec=stream.codec_context.name,
        time_base=stream.time_base,
        duration=_seconds(stream.metadata.get("DURATION", "")),
        start=None if container.start_time is None else container.start_time / av.time_base,
        streams=len(moving_streams(container)),
    )
    discarded = 0
    for packet in _packets(container, stream):
        if packet is None:
            found.damaged = True
        elif packet.size and packet.is_discard:
            discarded += 1
        elif packet.size:
            found.damaged |= packet.is_corrupt
            if not found.times:
                found.first_is_key = packet.is_keyframe
            found.times.append(packet.pts)
            if packet.pts is not None:
                found.end = max(found.end, packet.pts + (packet.duration or 0))
            if packet.is_keyframe and packet.pts is not None:
                found.keys.add(packet.pts)
            if len(found.times) > MOST_FRAMES:
                raise DataError(f"{container.name[5:]}: has more than {MOST_FRAMES} frames; cut it into parts")
    found.promised -= discarded
    return found


def _seconds(text: str) -> float:
    """Return the seconds of a tag of Matroska, as 00:01:02.5; 0 for another text."""
    found = re.fullmatch(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d{1,9})?)", text)
    return 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3]) if found else 0.0


def _missing(packets: _Packets, pts: Sequence[int]) -> int:
    """Return the number of frames that a container announces and does not have, as after a download that was cut.

    Args:
        packets: packets of the stream.
        pts: times of the frames.
    """
    if len(pts) < 2:
        return 0
    step = float(packets.time_base) * (pts[-1] - pts[0]) / (len(pts) - 1)  # seconds
    lacking = packets.duration - float(packets.time_base) * packets.end
    count = packets.promised - len(packets.times) if packets.damaged else 0
    count = max(count, round(lacking / step) if lacking > max(_CUT, 3 * step) else 0)
    return min(max(0, count), MOST_FRAMES - len(pts))


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the packets of a stream from the current position, the last one empty; None for one that cannot be read."""
    errors = 0
    while errors < _MOST_ERRORS:
        try:
            for packet in container.demux(stream):
                errors = 0
                yield packet
            return
        except FFmpegError:
            errors += 1
        yield None


def _decode_all(container: Any, stream: Any, *, only_first: bool) -> _Decoded:
    """Decode a stream, or up to its first frame."""
    found = _Decoded()
    for packet in _packets(container, stream):
        if packet is None:
            continue
        try:
            frames = packet.decode()
        except FFmpegError:
            if found.first is not None and packet.pts is not None:
                found.lost.append(packet.pts)
            continue
        for frame in frames:
            if found.first is None:
                if frame.is_corrupt and not only_first:
                    continue  # of a recording that begins between two key frames
                found.first, found.pixel_ratio = frame, _pixel_ratio(frame, stream)
                if only_first:
                    return found
            found.times.append(frame.pts)
            found.decoding_times.append(frame.dts)
    # at the end, decoders return frames without a decoding time
    step = found.decoding_times[-1:] == [None] and _last_step(found.decoding_times)
    for number, time in enumerate(found.decoding_times):
        if time is None and step and number and (before := found.decoding_times[number - 1]) is not None:
            found.decoding_times[number] = before + step
    return found


def _last_step(times: Sequence[int | None]) -> int:
    """Return the step between the last two times that are known; 0 if there are no two."""
    known = [time for time in times if time is not None][-2:]
    return max(0, known[-1] - known[0]) if len(known) == 2 else 0


def _usual_step(packets: _Packets) -> int | None:
    """Return the time from frame to frame at the declared rate; None if no rate is declared."""
    return max(1, round(1 / (packets.rate * packets.time_base))) if packets.rate else None


def _spread(times: Sequence[int | None]) -> bool:
    """Return whether there are two different times, or a single frame."""
    return len(times) == 1 or len({time for time in times if time is not None}) > 1


class Found(NamedTuple):
    """Frames that were read, and the numbers of those that cannot be decoded, in rising order."""

    frames: dict[int, np.ndarray]
    missing: list[int]

    def reason(self, path: str | Path, info: VideoInfo) -> str:
        """Return why the missing frames cannot be read, in one line."""
        time = f"{float(info.times[self.missing[0]]) + info.delay:.2f} s"
        count = len(self.missing)
        what = "1 frame cannot be decoded," if count == 1 else f"{count} frames cannot be decoded, the first"
        return f"{path}: {what} at {time}; get it again"


def read_frames(
    path: str | Path,
    info: VideoInfo,
    indices: Sequence[int],
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Return RGB frames by number, rotated for display: uint8 (len(indices), H, W, 3).

    Args:
        info: result of ``probe`` for this file.
        indices: frame numbers in any order, with or without repetitions.
        prepare: function from each frame (H, W, 3) to what is returned of it, as one that makes it smaller; it is
            called as soon as a frame is decoded, so that large frames are never in memory together. None: the frames.

    Raises:
        DataError: a frame that does not exist or cannot be decoded, or a file that is missing or was changed.
    """
    found = find_frames(path, info, indices, prepare)
    if found.missing:
        raise DataError(found.reason(path, info))
    return stacked(path, found.frames, indices)


def stacked(path: str | Path, frames: dict[int, np.ndarray], indices: Sequence[int]) -> np.ndarray:
    """Return frames by number as one array: (len(indices), H, W, 3).

    Raises:
        DataError: frames of several sizes.
    """
    chosen = [frames[int(i)] for i in indices]
    shapes = {image.shape for image in chosen}
    if len(shapes) > 1:
        sizes = ", ".join(f"{s[1]} x {s[0]}" for s in sorted(shapes))
        raise DataError(f"{path}: its pictures change in size ({sizes}); convert it to one size")
    return np.stack(chosen)


def find_frames(
    path: str | Path,
    info: VideoInfo,
    indices: Sequence[int],
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Found:
    """Return those of the frames that can be decoded, see ``read_frames``, and the numbers of the others.

    Raises:
        DataError: a frame that does not exist, or a file that cannot be opened.
    """
    path = Path(path)
    requested = sorted({int(i) for i in indices})
    if not requested:
        raise DataError(f"{path}: no frame requested; request at least one")
    if outside := [i for i in (requested[0], requested[-1]) if not 0 <= i < info.frames]:
        raise DataError(f"{path}: frame {outside[0]} requested, the video has {info.frames}; the first is frame 0")
    found: dict[int, np.ndarray] = _Prepared(prepare)  # frame number -> (H, W, 3)
    shown = _Display()
    # 1. Decode the requested frames: with seeking, or all frames up to the last requested one.
    with _opened(path) as (container, stream):
        if info.seekable:
            _seek_and_decode(container, stream, info, requested, found, shown)
        else:
            _count_and_decode(container, stream, requested, found, shown)
    # 2. Decode the rest from the beginning: in some containers (MPEG-TS) a seek leads past the requested frames.
    if info.seekable and (rest := set(requested) - found.keys()):
        with _opened(path) as (container, stream):
            _decode(container, stream, _numbers(info), rest, found, shown, False)
    return Found(dict(found), [i for i in requested if i not in found])


class _Prepared(dict[int, np.ndarray]):
    """Frames by number, each of which goes through a function when it is added."""

    def __init__(self, prepare: Callable[[np.ndarray], np.ndarray] | None) -> None:
        super().__init__()
        self.prepare = prepare

    def __setitem__(self, number: int, image: np.ndarray) -> None:
        super().__setitem__(number, image if self.prepare is None else self.prepare(image))


def decode_all(path: str | Path) -> Iterator[np.ndarray]:
    """Yield all RGB frames from the first to the last, equal to those of ``read_frames``: uint8 (H, W, 3).

    Raises:
        DataError: a file that cannot be decoded to its end.
    """
    shown = _Display()
    with _opened(Path(path)) as (container, stream):
        for frame in container.decode(stream):
            yield shown(frame)


def _seek_and_decode(
    container: Any,
    stream: Any,
    info: VideoInfo,
    requested: Sequence[int],
    found: dict[int, np.ndarray],
    shown: _Display,
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
                try:
                    container.seek(int(pts[keys[key]]), stream=stream)
                except FFmpegError:  # a container that cannot seek
                    return
                _decode(container, stream, numbers, missing, found, shown, skip, set(pts[keys].tolist()))


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


class _Trust:
    """Which decoded frames are those of a decode without errors: none between damage and the next key frame.

    Args:
        keys: times of the key frames. After a seek no frame is trusted before one of these: the index of a container
            may be wrong, and some demuxers (MPEG-PS) make up other times then. None at the beginning of a file.
    """

    def __init__(self, keys: Collection[int] | None = None) -> None:
        self.keys, self.trusted = keys, keys is None

    def of(self, frame: Any) -> bool:
        """Return whether a frame is trusted."""
        starts = frame.key_frame and (self.keys is None or frame.pts in self.keys)
        self.trusted = not frame.is_corrupt and (self.trusted or starts)
        return self.trusted


def _frames(container: Any, stream: Any, trust: _Trust, prepare: Callable[[Any], None]) -> Iterator[tuple[Any, bool]]:
    """Yield the frames from the current position on, each with whether it is trusted.

    Args:
        prepare: function that is called with each packet before it is decoded.
    """
    for packet in _packets(container, stream):
        if packet is None:
            trust.trusted = False
            continue
        prepare(packet)
        if packet.is_corrupt:
            trust.trusted = False
        try:
            frames = packet.decode()
        except FFmpegError:
            trust.trusted = False
            continue
        for frame in frames:
            yield frame, trust.of(frame)


def _decode(
    container: Any,
    stream: Any,
    numbers: dict[int, int],
    missing: set[int],
    found: dict[int, np.ndarray],
    shown: _Display,
    skip: bool,
    sought: Collection[int] | None = None,
) -> None:
    """Decode from the current position and move frames from ``missing`` to ``found``.

    Stops when nothing is missing, or when the missing frames must have passed.

    Args:
        numbers: number of each frame by its time.
        skip: skip non-reference pictures that are not missing.
        sought: times of the key frames, if the position is that of a seek; None at the beginning.
    """
    context = stream.codec_context
    last, trust = max(missing), _Trust(sought)

    def choose(packet: Any) -> None:
        number = numbers.get(packet.pts) if packet.pts is not None else None
        if skip:
            context.skip_frame = "DEFAULT" if number is None or number in missing else "NONREF"

    try:
        # a frame is often an earlier one than that of the packet that was decoded last
        for frame, trusted in _frames(container, stream, trust, choose):
            i = numbers.get(frame.pts)
            if i is None and sought is not None:
                trust.trusted = False  # other times than those of a decode from the beginning
            if i in missing and trusted:
                found[i] = shown(frame)
                missing.discard(i)
            if not missing or (i is not None and i > last + _REORDERING):
                return
    finally:
        context.skip_frame = "DEFAULT"


def _count_and_decode(
    container: Any, stream: Any, requested: Sequence[int], found: dict[int, np.ndarray], shown: _Display
) -> None:
    """Add the requested frames (rising numbers) to ``found``, counted from the beginning as ``probe`` counts them."""
    needed, number = set(requested), -1
    for frame, trusted in _frames(container, stream, _Trust(), lambda packet: None):
        if number < 0 and frame.is_corrupt:
            continue
        number += 1
        if number in needed and trusted:
            found[number] = shown(frame)
        if number >= requested[-1]:
            return


class _Turn(NamedTuple):
    """How a picture is displayed: rows exchanged with columns, then mirrored left-right, then upside down."""

    exchanged: bool = False
    mirrored: bool = False
    inverted: bool = False

    def of(self, image: np.ndarray) -> np.ndarray:
        """Return a picture (H, W, 3) as it is displayed; itself where nothing is to be done."""
        if self.exchanged:
            image = image.swapaxes(0, 1)
        if self.mirrored or self.inverted:
            image = image[:: -1 if self.inverted else 1, :: -1 if self.mirrored else 1]
        return image


def _turn(frame: Any) -> _Turn:
    """Return how a frame is displayed, to the nearest right angle: by the matrix that phones and editors store.

    With (a, b; c, d) of the matrix, the pixel (x, y) is displayed at (a x + c y, b x + d y). The rotation alone, which
    PyAV states, does not distinguish a mirrored picture from one that is upside down.
    """
    stored = frame.side_data.get("DISPLAYMATRIX")
    content = b"" if stored is None else bytes(stored)
    if len(content) != 36:
        return _Turn()
    a, b, _, c, d, *_ = struct.unpack("=9i", content)
    if abs(b) + abs(c) > abs(a) + abs(d):
        return _Turn(True, c < 0, b < 0)
    return _Turn(False, a < 0, d < 0)


class _Display:
    """Converts the frames of a file to what is displayed.

    All are turned as the first one. A frame of PyAV whose side data were looked at refers to itself, so that its memory
    is not free before Python looks for such circles, which may be in a forked process that loads data. A frame that
    converted itself has FFmpeg's threads for it, which such a process lacks and would wait for. So one converter, which
    no circle contains, serves all frames.
    """

    def __init__(self) -> None:
        self.turn: _Turn | None = None
        self.converter = VideoReformatter()

    def __call__(self, frame: Any) -> np.ndarray:
        """Return the RGB pixels, on white where they are transparent, turned for display: uint8 (H, W, 3)."""
        if self.turn is None:
            self.turn = _turn(frame)
        if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
            image = _on_white(self.converter.reformat(frame, format="rgba").to_ndarray())
        else:
            image = self.converter.reformat(frame, format="rgb24").to_ndarray()
        turned = self.turn.of(image)
        return image if turned is image else np.ascontiguousarray(turned)


def _on_white(image: np.ndarray) -> np.ndarray:
    """Compose RGBA pixels onto white: uint8 (H, W, 4) -> (H, W, 3)."""
    alpha = image[..., 3:].astype(np.uint16)
    return ((image[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _pixel_ratio(frame: Any, stream: Any) -> float:
    """Return the width of a displayed pixel over its height, after the turn for display."""
    ratio = stream.sample_aspect_ratio
    if not ratio or not _FLATTEST <= ratio <= 1 / _FLATTEST:
        return 1.0
    return round(float(1 / ratio if _turn(frame).exchanged else ratio), 6)


def _displayed_size(frame: Any) -> tuple[int, int]:
    """Return width and height after the turn for display."""
    return (frame.height, frame.width) if _turn(frame).exchanged else (frame.width, frame.height)
