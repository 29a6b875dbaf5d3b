"""Which frames make a clip: by time, so that videos of any and of changing rate are seen at one pace."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks.video.decode import VideoInfo
from zoo import VideoTransform

Segment = tuple[float, float] | None  # the part of a video that counts, in seconds; None for all of it
_EPSILON = 1e-4  # seconds that rounding may be off


@dataclass(frozen=True)
class ClipSampler:
    """Frame numbers of clips.

    A clip with an ``interval`` has its frames that far apart, and starts where it fits into the video; the last frame
    is repeated where the video is too short. Without one the video is cut into as many parts as the clip has frames,
    and each gives one.
    """

    layout: VideoTransform

    def random(self, info: VideoInfo, generator: np.random.Generator, segment: Segment = None) -> np.ndarray:
        """(frames,): one clip at a random place; without an interval a random frame of each part."""
        begin, length = _span(info, segment)
        if self.layout.interval is None:
            parts = np.arange(self.layout.frames) + generator.random(self.layout.frames)
            return frames_at(info, begin + parts * (length / self.layout.frames))
        return frames_at(info, begin + generator.random() * self._room(info, length) + self._offsets(info))

    def uniform(self, info: VideoInfo, clips: int, segment: Segment = None) -> np.ndarray:
        """(clips, frames): spread evenly from the first that fits to the last; one clip is the middle one."""
        begin, length = _span(info, segment)
        if self.layout.interval is None:
            places = (np.arange(clips) + 0.5) / clips  # within each part
            parts = np.arange(self.layout.frames) + places[:, None]
            return frames_at(info, begin + parts * (length / self.layout.frames))
        places = np.linspace(0, 1, clips) if clips > 1 else np.array([0.5])
        return frames_at(info, begin + places[:, None] * self._room(info, length) + self._offsets(info))

    def span(self, info: VideoInfo) -> float:
        """Seconds from the first frame of a clip to the end of the last."""
        return info.duration if self.layout.interval is None else float(self._offsets(info)[-1]) + 1 / info.fps

    def _offsets(self, info: VideoInfo) -> np.ndarray:
        assert self.layout.interval is not None
        return np.arange(self.layout.frames) * (self.layout.interval / (self.layout.fps or info.fps))

    def _room(self, info: VideoInfo, length: float) -> float:
        """Seconds between the first and the last start."""
        return max(0.0, length - self.span(info))


def _span(info: VideoInfo, segment: Segment) -> tuple[float, float]:
    """Beginning and length of what counts, in seconds."""
    begin, end = segment or (0.0, info.duration)
    begin = min(begin, info.duration)
    return begin, max(0.0, min(end, info.duration) - begin)


def frames_at(info: VideoInfo, seconds: np.ndarray) -> np.ndarray:
    """Numbers of the frames that are on the screen at times (any shape), the last one after the end."""
    found = np.searchsorted(info.times, seconds + _EPSILON, side="right") - 1
    return found.clip(0, info.frames - 1)
