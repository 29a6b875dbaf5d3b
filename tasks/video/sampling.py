"""Choice of the frames of a clip by time, so that clips have one pace at any frame rate, constant or not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks.video.decode import VideoInfo
from zoo import VideoTransform

# part of a video (begin, end) in seconds on the clock of a player, which begins with the file; None: the whole video
Segment = tuple[float, float] | None
_EPSILON = 1e-4  # seconds; larger than the rounding errors of the times


@dataclass(frozen=True)
class ClipSampler:
    """Sampler of the frame numbers of clips.

    With an ``interval``, the frames of a clip are that far apart, and the clip starts where it fits into the video; if
    the video is too short, its last frame is repeated. Without an interval, the video is divided into as many parts as
    the clip has frames, and each part gives one frame. A segment of a video is treated as a video of its own: no frame
    of a clip begins before or after it, unless none begins in it.

    Attributes:
        layout: transform whose ``frames``, ``interval`` and ``fps`` describe a clip.
    """

    layout: VideoTransform

    def random(self, info: VideoInfo, generator: np.random.Generator, segment: Segment = None) -> np.ndarray:
        """Return a clip at a random place, or without an interval a random frame of each part: int (frames,)."""
        begin, length = _span(info, segment)
        if self.layout.interval is None:
            parts = np.arange(self.layout.frames) + generator.random(self.layout.frames)
            seconds = begin + parts * (length / self.layout.frames)
        else:
            seconds = begin + generator.random() * self._start_range(info, length) + self._offsets(info)
        return _within(info, frames_at(info, seconds), begin, length)

    def uniform(self, info: VideoInfo, clips: int, segment: Segment = None) -> np.ndarray:
        """Return clips spread evenly over the video, from its start to its end: int (clips, frames).

        A single clip is the middle one.
        """
        begin, length = _span(info, segment)
        if self.layout.interval is None:
            places = (np.arange(clips) + 0.5) / clips  # (clips,), place in each part, 0..1
            parts = np.arange(self.layout.frames) + places[:, None]
            seconds = begin + parts * (length / self.layout.frames)
        else:
            places = np.linspace(0, 1, clips) if clips > 1 else np.array([0.5])  # (clips,), 0: first start, 1: last
            seconds = begin + places[:, None] * self._start_range(info, length) + self._offsets(info)
        return _within(info, frames_at(info, seconds), begin, length)

    def span(self, info: VideoInfo) -> float:
        """Return the seconds from the first frame of a clip to the end of its last."""
        return info.duration if self.layout.interval is None else float(self._offsets(info)[-1]) + 1 / info.fps

    def _offsets(self, info: VideoInfo) -> np.ndarray:
        """Return the seconds from the first frame of a clip to each of its frames: (frames,)."""
        assert self.layout.interval is not None
        return np.arange(self.layout.frames) * (self.layout.interval / (self.layout.fps or info.fps))

    def _start_range(self, info: VideoInfo, length: float) -> float:
        """Return the seconds between the first and the last possible start of a clip."""
        return max(0.0, length - self.span(info))


def _span(info: VideoInfo, segment: Segment) -> tuple[float, float]:
    """Return begin and length of the segment within the video, in seconds from the first frame."""
    if segment is None:
        return 0.0, info.duration
    begin, end = (min(max(0.0, second - info.delay), info.duration) for second in segment)
    return begin, max(0.0, end - begin)


def _within(info: VideoInfo, numbers: np.ndarray, begin: float, length: float) -> np.ndarray:
    """Return frame numbers within a part of the video; see ``_span`` for the last two arguments."""
    first, after = np.searchsorted(info.times, [begin - _EPSILON, begin + length - _EPSILON])
    if first >= after:  # no frame begins in the part: the one that is displayed then
        first = after = frames_at(info, np.array(begin))
    else:
        after -= 1
    return numbers.clip(first, after)


def frames_at(info: VideoInfo, seconds: np.ndarray) -> np.ndarray:
    """Return the number of the frame displayed at each time; after the end it is the last frame.

    Args:
        info: description of the video.
        seconds: times in seconds from the first frame, of any shape, which the result has too.
    """
    numbers = np.searchsorted(info.times, seconds + _EPSILON, side="right") - 1
    return numbers.clip(0, info.frames - 1)
