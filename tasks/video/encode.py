"""Writing of videos: H.264 in MP4."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from zoo.files import atomic_write


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    rate: int | Fraction,
    *,
    options: Mapping[str, str] | None = None,
    times: tuple[Sequence[int], Fraction] | None = None,
) -> None:
    """Write frames as a video; an interruption leaves no incomplete file.

    Args:
        path: path of the file.
        frames: RGB frames, uint8 (H, W, 3), one or more, all of one size with even height and width.
        rate: number of frames per second; the average number if ``times`` is given.
        options: options of the encoder (libx264).
        times: time of each frame, and the unit of the times in seconds; None: evenly spaced frames.
    """

    def write(temporary: Path) -> None:
        with av.open(str(temporary), "w", format="mp4") as container:
            stream: Any = container.add_stream("libx264", rate=rate, options=dict(options or {}))
            stream.pix_fmt = "yuv420p"  # the format that every player decodes
            if times is not None:
                stream.time_base = stream.codec_context.time_base = times[1]
            for number, pixels in enumerate(frames):
                if number == 0:
                    stream.height, stream.width = pixels.shape[:2]
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                if times is not None:
                    frame.pts, frame.time_base = times[0][number], times[1]
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))

    atomic_write(path, write)
