"""Frames by number: those of a full sequential decode, for files in the wild and for every awkward kind made here."""

import gc
import io
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tasks.errors import DataError
from tasks.video import decode
from tasks.video.decode import decode_all, probe, read_frames
from tests.helpers.commands import environment
from tests.helpers.paths import SHARED
from tests.helpers.video import picture, video

FIXTURES = sorted((SHARED / "data/video_fixtures").glob("*.[am][vp][i4]"))
WAGON = sorted((SHARED / "data/video_wagon/sample").rglob("*.mp4"))
SHAPES = sorted((SHARED / "data/video_shapes").rglob("*.mp4"))[::45]


def sequential(path):
    """Every frame, by PyAV's plainest loop and not by ours."""
    with av.open(str(path), metadata_errors="replace") as container:
        container.streams.video[0].thread_type = "NONE"
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def check(path, rounds=8, turns=0):
    """Random clips, single frames and all frames of a file equal the sequential decode's."""
    info = probe(path)
    full = [np.rot90(image, turns) for image in sequential(path)]
    assert info.frames == len(full)
    assert (info.height, info.width) == full[0].shape[:2]
    random = np.random.default_rng(0)
    last = info.frames - 1
    chosen = [[0], [last], [last, 0, last], list(range(info.frames))]
    for _ in range(rounds):
        step, start = random.integers(1, 9), random.integers(0, info.frames)
        chosen.append(np.minimum(start + np.arange(8) * step, last).tolist())
        chosen.append(random.integers(0, info.frames, 5).tolist())  # unsorted
    for indices in chosen:
        frames = read_frames(path, info, indices)
        assert frames.dtype == np.uint8
        for i, frame in zip(indices, frames, strict=True):
            assert np.array_equal(frame, full[i]), i
    assert all(np.array_equal(a, b) for a, b in zip(decode_all(path), full, strict=True))
    return info


@pytest.mark.skipif(not FIXTURES, reason="needs shared/data/video_fixtures, which is not on this machine")
@pytest.mark.parametrize("path", FIXTURES, ids=lambda p: p.name[:24])
def test_clips_in_the_wild(path):
    """All nine, also the one whose metadata is not UTF-8."""
    info = check(path, rounds=4)
    assert 1 < info.duration < 12


@pytest.mark.skipif(not WAGON, reason="needs shared/data/video_wagon, which is not on this machine")
@pytest.mark.parametrize(
    "path",
    [*(pytest.param(p, marks=pytest.mark.slow if n % 3 else ()) for n, p in enumerate(WAGON)), *SHAPES],
    ids=lambda p: p.stem,
)
def test_surveillance_and_synthetic_clips(path):
    assert check(path, rounds=3).seekable


# -- files made here --------------------------------------------------------------------------------


VARYING = np.cumsum(np.random.RandomState(3).choice([7, 33, 40, 41, 180], 40)).tolist()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vfr.mp4", {"pts": VARYING}),
        ("vfr.mkv", {"pts": VARYING, "g": 10}),
        ("vfr_without_b.mp4", {"pts": VARYING, "bf": 0, "g": 7}),
        ("open_gop.mp4", {"g": 8, "bf": 3, "x264_params": "open-gop=1:scenecut=0:b-pyramid=normal"}),
        ("one_gop.mov", {"g": 1000, "bf": 16}),
        ("only_keys.mp4", {"g": 1}),
        ("reordered.mkv", {"g": 12, "bf": 4, "x264_params": "b-adapt=0:b-pyramid=strict:ref=5"}),
        ("vp9.webm", {"codec": "libvpx-vp9", "g": 9, "pts": VARYING}),
        ("mpeg4_b.mp4", {"codec": "mpeg4", "bf": 2, "g": 9}),
        ("mpeg4.avi", {"codec": "mpeg4", "g": 9}),
        ("mpeg4_b.avi", {"codec": "mpeg4", "bf": 2, "g": 9}),
        ("stream.ts", {"g": 9, "bf": 2}),
        ("sound.mp4", {"audio": True, "g": 9}),
        ("odd.mkv", {"size": (50, 38)}),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_containers_and_codecs(tmp_path, name, settings):
    info = check(video(tmp_path / name, **settings))
    assert info.frames == 40
    if "pts" in settings:
        times = np.array(settings["pts"]) - settings["pts"][0]
        np.testing.assert_allclose(info.times * 1000, times, atol=1)
        assert info.seekable
    elif name != "mpeg4_b.avi":  # whose times are those of its packets, which are in another order
        assert info.fps == pytest.approx(25, rel=1e-3)
        assert info.duration == pytest.approx(1.6, rel=1e-3)
    if name.startswith("sound"):
        with av.open(str(tmp_path / name)) as container:
            assert len(container.streams.audio) == 1


def test_cut_from_the_middle_of_a_group(tmp_path):
    """Remuxed without its first key frame: pictures that cannot be decoded are not counted."""
    source, target = video(tmp_path / "all.mp4", g=20, bf=2), tmp_path / "cut.mp4"
    with av.open(str(source)) as whole, av.open(str(target), "w") as cut:
        stream = cut.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None and packet.dts >= 0:
                packet.stream = stream
                cut.mux(packet)
    check(target)


def test_without_time_stamps(tmp_path):
    """A bare H.264 stream: frames come evenly, in the order of a decode."""
    with av.open(str(video(tmp_path / "a.mp4", g=10, bf=2))) as source, av.open(str(tmp_path / "b.h264"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    info = check(tmp_path / "b.h264")
    assert not info.seekable
    assert np.array_equal(info.pts, np.arange(40))


@pytest.mark.parametrize(("degrees", "turns"), [(90, 3), (180, 2), (270, 1)])
def test_rotation(tmp_path, degrees, turns):
    """A phone's clip, turned clockwise by so many degrees for display: the matrix of the track's header says so."""
    path = video(tmp_path / "turned.mp4", count=9)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version 0: the matrix comes 40 bytes in
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = struct.pack(">9i", cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    content[at : at + 36] = matrix
    path.write_bytes(content)
    info = check(path, turns=turns)
    assert (info.width, info.height) == ((48, 64) if turns % 2 else (64, 48))
    upright, turned = picture(0).astype(int), read_frames(path, info, [0])[0].astype(int)
    clockwise = np.rot90(upright, -degrees // 90)
    assert np.abs(clockwise - turned).mean() < 12  # H.264's loss
    assert np.abs(np.rot90(clockwise, 2) - turned).mean() > 30


TURNS = {  # matrix (a, b; c, d): what becomes of rows and columns
    "mirrored": ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda image: image[::-1]),
    "transposed": ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
    "transposed the other way": ((0, -1, -1, 0), lambda image: image.swapaxes(0, 1)[::-1, ::-1]),
    "turned by 3 degrees": ((0.9986, 0.0523, -0.0523, 0.9986), lambda image: image),
}


@pytest.mark.parametrize("kind", TURNS)
def test_mirrored_pictures(tmp_path, kind):
    """As front cameras and editors store them; their rotation alone is 180 degrees, or none."""
    (a, b, c, d), change = TURNS[kind]
    path = video(tmp_path / "mirrored.mp4", count=9)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    content[at : at + 36] = struct.pack(">9i", *(round(v * 65536) for v in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    path.write_bytes(content)
    info = probe(path)
    shown = change(picture(0).astype(int))
    assert (info.height, info.width) == shown.shape[:2]
    assert np.abs(read_frames(path, info, [0])[0].astype(int) - shown).mean() < 12  # H.264's loss


def test_leading_pictures_of_a_cut_are_not_frames(tmp_path):
    """After a cut at an open group, pictures before the first key frame have packets and are never shown."""
    options = "keyint=10:min-keyint=10:open-gop=1:bframes=3:b-adapt=0:scenecut=0:log-level=none"
    whole = video(tmp_path / "whole.mp4", 40, codec="libx265", x265_params=options)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mkv"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.dts is not None]
        begin = [i for i, packet in enumerate(packets) if packet.is_keyframe][1]
        first = packets[begin].dts
        for packet in packets[begin:]:
            packet.stream, packet.pts, packet.dts = stream, packet.pts - first, packet.dts - first
            out.mux(packet)
    info = check(tmp_path / "cut.mkv")
    assert info.frames < len(packets) - begin
    assert info.notes == ()


def test_frames_are_free_as_soon_as_they_are_converted(tmp_path):
    """Frames that refer to themselves would stay until Python looks for circles: gigabytes of 4K video."""
    path = video(tmp_path / "a.mp4", count=60)
    info = probe(path)
    gc.collect()
    gc.disable()
    try:
        read_frames(path, info, range(60))
        assert sum(type(each) is av.VideoFrame for each in gc.get_objects()) <= 2
    finally:
        gc.enable()


def test_frames_that_are_left_do_not_hold_up_a_forked_process(tmp_path):
    """A data loading process may be the one that frees them; FFmpeg's threads are not in it."""
    path = video(tmp_path / "a.mp4")
    info = probe(path)
    gc.collect()
    gc.disable()
    try:
        read_frames(path, info, [0, 9])
        list(decode_all(path))
        if (child := os.fork()) == 0:
            signal.alarm(60)  # ends it if it waits
            gc.collect()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        gc.enable()


def broken(tmp_path, kind):
    path = tmp_path / f"{kind}.mp4"
    whole = video(tmp_path / "whole.mp4", g=10).read_bytes()
    if kind == "missing":
        return path
    if kind == "a_folder":
        path.mkdir()
        return path
    buffer = io.BytesIO()
    Image.fromarray(picture(1)).save(buffer, "PNG")
    front = video(tmp_path / "front.mp4", count=200, movflags="+faststart").read_bytes()
    sound = tmp_path / "sound.mp4"
    if kind == "sound_only":
        with av.open(str(sound), "w") as container:
            stream = container.add_stream("aac", rate=8000, layout="mono")
            chunk = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
            chunk.sample_rate = 8000
            container.mux(stream.encode(chunk))
            container.mux(stream.encode(None))
    content = {
        "empty": b"",
        "text": b"this is no video\n" * 100,
        "noise": np.random.RandomState(0).bytes(20000),
        "picture": buffer.getvalue(),
        "cut_before_the_header": whole[: len(whole) // 2],
        "cut_after_the_header": front[: front.index(b"mdat") + 5],
        "sound_only": sound.read_bytes() if sound.exists() else b"",
        "header_alone": front[: front.index(b"mdat") + 4],
    }[kind]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("a_folder", "no such file"),
        ("empty", "is empty"),
        ("text", "(cannot be decoded as a video|has no video stream|is not a video)"),
        ("noise", "(cannot be decoded as a video|has no video stream)"),
        ("picture", "is not a video but"),
        ("cut_before_the_header", "cannot be decoded as a video"),
        ("cut_after_the_header", "none of its 1 packets can be decoded"),
        ("sound_only", "has no video stream"),
        ("header_alone", "(truncated|cannot be decoded|has no frames)"),
    ],
)
def test_broken_files_are_one_clear_line(tmp_path, kind, message):
    path = broken(tmp_path, kind)
    with pytest.raises(DataError, match=message) as caught:
        probe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_in_the_pictures_keeps_its_beginning(tmp_path):
    path = video(tmp_path / "a.mp4", count=200, g=10, movflags="+faststart")
    whole = read_frames(path, probe(path), [0, 90])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    info = probe(path)
    assert (info.frames, info.notes) == (200, ("cut",))
    assert np.array_equal(read_frames(path, info, [0, 90]), whole)
    with pytest.raises(DataError, match=r"a.mp4: 1 frame cannot be decoded, at 7.60 s; get it again"):
        read_frames(path, info, [0, 190])


def test_a_file_that_changes_after_it_was_probed(tmp_path):
    path = video(tmp_path / "a.mp4", count=200, g=10, movflags="+faststart")
    info = probe(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match=r"a.mp4: 1 frame cannot be decoded, at 7.60 s"):
        read_frames(path, info, [0, 190])
    path.unlink()
    with pytest.raises(DataError, match="a.mp4: no such file"):
        read_frames(path, info, [0])


def test_pictures_that_are_out_of_range(tmp_path):
    path = video(tmp_path / "a.mp4", count=5)
    info = probe(path)
    for indices, message in (
        ([3, 9], "frame 9 requested, the video has 5; the first is frame 0"),
        ([-1, 2], "frame -1 requested, the video has 5"),
        ([], "no frame requested; request at least one"),
    ):
        with pytest.raises(DataError, match=f"a.mp4: {message}"):
            read_frames(path, info, indices)


def test_only_requested_frames_are_decoded(tmp_path, monkeypatch):
    """Of 200 frames in groups of 10, a clip near the end touches a few: counted at the conversion and the decoder."""
    path = video(tmp_path / "a.mp4", count=200, g=10, bf=2)
    info = probe(path)
    assert len(info.keys) >= 20
    converted = []
    convert = decode._Display.__call__
    monkeypatch.setattr(
        decode._Display, "__call__", lambda shown, frame: converted.append(frame.pts) or convert(shown, frame)
    )
    read_frames(path, info, [150, 157, 196])
    assert converted == [int(info.pts[i]) for i in (150, 157, 196)]
    decoded = []
    with decode._opened(Path(path)) as (container, stream):

        class Counted:
            def demux(self, s):
                for packet in container.demux(s):
                    decoded.append(packet.pts)
                    yield packet

            def seek(self, *args, **kwargs):
                container.seek(*args, **kwargs)

        decode._seek_and_decode(Counted(), stream, info, [150, 157, 196], {}, decode._Display())
    assert len(decoded) < 40


def test_stopping_early_never_hangs(tmp_path):
    """Many readers that stop after one frame, in a process of their own that must end by itself."""
    path = video(tmp_path / "a.mp4", count=120, g=60, bf=3)
    script = (
        "import sys; from tasks.video.decode import *\n"
        "info = probe(sys.argv[1])\n"
        "for i in range(60): read_frames(sys.argv[1], info, [i]); next(decode_all(sys.argv[1]))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=60, env=environment())
