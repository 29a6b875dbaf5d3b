"""Colours of frames: by the matrix and range that the file states, whatever PyAV's default."""

import av
import numpy as np
import pytest

from tasks.video.decode import probe, read_frames
from tests.helpers.video import picture, video

COLOURS = np.array([[200, 30, 30], [30, 180, 40], [30, 40, 200], [190, 190, 20]], np.uint8)
MATRICES = {"bt709": (0.2126, 0.0722), "smpte170m": (0.299, 0.114)}  # weights of red and blue (ITU-R BT.709, BT.601)


def yuv(matrix: str, full: bool) -> np.ndarray:
    """Return four columns of COLOURS, 32 pixels wide, as planes of yuv420p, (96, 128)."""
    red, blue = MATRICES[matrix]
    r, g, b = np.repeat(np.repeat(COLOURS[None], 64, 0), 32, 1).transpose(2, 0, 1) / 255.0
    luma = red * r + (1 - red - blue) * g + blue * b
    chroma = [(b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)]
    offset, scale, chroma_scale = (0, 255, 255) if full else (16, 219, 224)
    planes = [offset + scale * luma, *(128 + chroma_scale * plane[::2, ::2] for plane in chroma)]
    return np.concatenate([np.round(plane).ravel() for plane in planes]).astype(np.uint8).reshape(96, 128)


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", MATRICES)
def test_colours_follow_the_matrix_and_the_range_of_the_file(tmp_path, matrix, full):
    """Within 4 of 255: rounding and x264 at crf 3 err by up to 3, the wrong matrix by 24, the wrong range by 14."""
    path = tmp_path / "colours.mp4"
    stated = f"colormatrix={matrix}:colorprim={matrix}:transfer={matrix}:fullrange={'on' if full else 'off'}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "3", "x264-params": stated})
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(yuv(matrix, full), format="yuv420p")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (frame,) = read_frames(path, probe(path), [1])
    got = frame[32, 16::32].astype(int)
    assert np.abs(got - COLOURS).max() <= 4, got


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_ten_bits_are_eight_bits_with_more_steps(tmp_path, codec):
    """Encoded at crf 1, single values err by up to 11 of 255, all by 1; a wrong depth is off by a factor of 4."""
    found = {}
    for format in ("yuv444p", "yuv444p10le"):
        path = video(tmp_path / f"{format}.mp4", 6, codec=codec, pix_fmt=format, crf=1, bf=2)
        info = probe(path)
        assert (info.frames, info.notes) == (6, ())
        found[format] = read_frames(path, info, range(6)).astype(int)
    assert np.abs(found["yuv444p10le"] - found["yuv444p"]).mean() < 1
    assert np.abs(found["yuv444p10le"] - [picture(n) for n in range(6)]).mean() < 2


@pytest.mark.parametrize("format", ["yuv420p10le", "yuv444p", "yuvj420p", "bgr0", "rgb24"])
def test_colours_of_other_formats(tmp_path, format):
    """10 bit, full chroma, full range and RGB give the colours of the pictures that were encoded, without loss."""
    path = tmp_path / "colours.mkv"
    image = np.repeat(np.repeat(COLOURS[None], 64, 0), 32, 1)
    codec = "ffv1" if format != "yuvj420p" else "mjpeg"
    if format == "rgb24":
        codec, format = "qtrle", "rgb24"
        path = path.with_suffix(".mov")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 64, format
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (frame,) = read_frames(path, probe(path), [1])
    assert np.abs(frame[32, 16::32].astype(int) - COLOURS).max() <= 5
