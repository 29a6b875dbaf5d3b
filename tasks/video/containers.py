"""Opening of video files: which kinds of file are read, and which stream of a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.error import ArgumentError, FFmpegError

from tasks.errors import DataError

EXTENSIONS = (
    *(".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts", ".ogv"),
    *(".mts", ".m2ts", ".m2t", ".mod", ".tod", ".vob", ".m2v", ".mpv", ".mxf", ".3g2", ".asf", ".f4v", ".divx", ".dv"),
    *(".qt", ".ogm", ".rm", ".rmvb", ".wtv", ".dav", ".gif", ".apng"),
)
PICTURES = (".gif", ".apng")  # of these, which sets of pictures have too

# Demuxers of FFmpeg that read one file of moving pictures. Others are not tried: playlists (hls, concat, dash) open
# other files and addresses, and pictures, subtitles and text are no videos.
FORMATS = (
    *("mov", "matroska", "avi", "mpegts", "mpegtsraw", "mpeg", "asf", "flv", "live_flv", "ogg", "mxf", "gif", "apng"),
    *("dv", "rm", "nut", "wtv", "gxf", "dhav", "ivf", "yuv4mpegpipe", "h264", "hevc", "m4v", "mpegvideo", "mjpeg"),
    *("vc1", "av1", "obu", "h261", "h263", "dirac", "cavsvideo", "vvc", "nsv", "amv", "swf", "smjpeg", "mjpeg_2000"),
)
MOST_PIXELS = 2**26  # of a picture; 8K has half as many
_STILL = (
    av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails | av.stream.Disposition.still_image
)  # covers and previews


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open the container and its best video stream for decoding; yield both.

    Raises:
        DataError: a problem with the file, also while the caller decodes; the message begins with the path.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise DataError(f"{path}: is empty; get it again")
        # With "file:" no name is an address. The options are not given to streams too: PyAV 17.0 crashes where streams
        # come after the header (MPEG-PS). "replace", because titles that are not UTF-8 do not matter here.
        options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
        with av.open(f"file:{os.fspath(path)}", container_options=options, metadata_errors="replace") as container:
            stream = best_stream(container)
            if stream is None:
                raise DataError(f"{path}: has no video stream")
            if stream.codec_context is None:
                raise DataError(f"{path}: its codec is not known to FFmpeg; convert it to H.264")
            stream.thread_type = "SLICE"  # frame threads hang when decoding stops early
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
            yield container, stream
    except (FFmpegError, UnicodeError, OSError) as error:
        if isinstance(error, ArgumentError) and error.filename is not None:  # as av.open does
            raise DataError(f"{path}: is not a video but a picture, playlist or text; remove it") from None
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be decoded as a video ({reason}); remove it or get it again") from None


def best_stream(container: Any) -> Any:
    """Return the video stream that players show; None if there is none.

    It is the default one, of several the largest, and never a cover or preview.
    """
    return max(moving_streams(container), key=_rank, default=None)


def _rank(stream: Any) -> tuple[bool, bool, int]:
    """Return a key of a stream: whether its codec is known, whether it is the default, and its pixels."""
    if stream.codec_context is None:  # which also lacks the size
        return False, False, 0
    return True, bool(stream.disposition & av.stream.Disposition.default), stream.width * stream.height


def moving_streams(container: Any) -> list[Any]:
    """Return the video streams that are no covers or previews."""
    return [stream for stream in container.streams.video if not stream.disposition & _STILL]
