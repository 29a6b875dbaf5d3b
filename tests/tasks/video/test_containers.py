"""Files that people have: containers, names, covers, odd begins, pixels that are not square."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tasks.errors import DataError
from tasks.video.containers import EXTENSIONS
from tasks.video.decode import decode_all, probe, read_frames
from tests.helpers.video import picture, video
from tests.tasks.video.test_decode import check


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("camcorder.mts", {"g": 9, "bf": 2}),
        ("camcorder.m2ts", {"g": 9, "bf": 2}),
        ("dvd.vob", {"codec": "mpeg2video", "g": 9, "bf": 2}),
        ("old.mpg", {"codec": "mpeg2video", "g": 9, "bf": 2}),
        ("broadcast.mxf", {"codec": "mpeg2video", "g": 9, "bf": 2}),
        ("windows.wmv", {"codec": "wmv2"}),
        ("flash.flv", {"codec": "flv"}),
        ("flash_h264.flv", {"g": 9, "bf": 2}),
        ("phone.3gp", {"codec": "h263", "size": (176, 144)}),
        ("h264.avi", {"g": 9, "bf": 2}),
        ("alt_ref.webm", {"codec": "libvpx", "g": 9, "auto_alt_ref": 1, "lag_in_frames": 16}),
        ("hevc.mkv", {"codec": "libx265", "g": 9, "x265_params": "log-level=none"}),
        ("lossless.mkv", {"codec": "ffv1"}),
    ],
)
def test_endings_and_containers(tmp_path, name, settings):
    info = check(video(tmp_path / name, **settings), rounds=3)
    assert info.frames == 40
    assert info.fps == pytest.approx(25)
    assert info.duration == pytest.approx(1.6)
    assert os.path.splitext(name)[1] in EXTENSIONS


@pytest.mark.parametrize(
    "name",
    ["12:30:45.mp4", "http:x.mp4", "a%03d.mp4", "%s.mp4", "-y.mp4", "a#b?c=d.mp4", "a|b.mp4", " .mp4", "[a]{b}*.mp4"],
)
def test_a_name_is_only_a_name(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video("plain.mp4", count=3)
    os.rename("plain.mp4", name)
    assert probe(name).frames == 3
    assert len(read_frames(name, probe(name), [0, 2])) == 2


def test_a_name_that_is_not_utf_8(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    video(tmp_path / "a.mp4", count=3).rename(path)
    assert read_frames(path, probe(path), [1]).shape == (1, 48, 64, 3)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nother.ts\n#EXT-X-ENDLIST\n", "a.m3u8"),
        ("ffconcat version 1.0\nfile other.ts\n", "a.mp4"),
        ("ffconcat version 1.0\nfile other.ts\n", "a.ffconcat"),
        ("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 1 RTP/AVP 96\n", "a.sdp"),
    ],
)
def test_a_playlist_opens_no_other_file(tmp_path, content, name):
    video(tmp_path / "other.ts", count=30)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}: (is not a video but|cannot be decoded)"):
        probe(tmp_path / name)


def gif(path, format, transparent=False):
    """Five pictures with their times; a transparent one has no other colour than that behind it."""
    images = [Image.new("RGBA" if transparent else "RGB", (20, 10), (40 * n, 0, 200)) for n in range(5)]
    if transparent:
        for image in images:
            image.paste((0, 0, 0, 0), (0, 0, 10, 10))
    images[0].save(path, format, save_all=True, append_images=images[1:], duration=[100, 200, 100, 50, 100])
    return path


@pytest.mark.parametrize(("name", "format"), [("a.gif", "GIF"), ("a.apng", "PNG")])
def test_moving_pictures(tmp_path, name, format):
    info = probe(gif(tmp_path / name, format))
    assert (info.frames, info.seekable) == (5, False)
    np.testing.assert_allclose(info.times, [0, 0.1, 0.3, 0.4, 0.45], atol=1e-3)
    frames = read_frames(tmp_path / name, info, [4, 1])
    assert np.abs(frames[:, 5, 15, 0].astype(int) - [160, 40]).max() <= 4


@pytest.mark.parametrize(("name", "format"), [("a.gif", "GIF"), ("a.apng", "PNG")])
def test_transparent_pixels_lie_on_white(tmp_path, name, format):
    (frame,) = read_frames(tmp_path / name, probe(gif(tmp_path / name, format, transparent=True)), [2])
    assert (frame[5, 5] == 255).all()
    assert frame[5, 15, 2] > 190


def test_a_cover_is_no_video(tmp_path):
    """A song with its cover has no video; a video with one is read, whatever the order of the streams."""
    cover = tmp_path / "cover.png"
    Image.new("RGB", (300, 300), "red").save(cover)
    for name, moving in (("song.mp4", False), ("film.mp4", True)):
        source = video(tmp_path / "a.mp4", count=10, audio=True)
        with av.open(str(tmp_path / name), "w") as out, av.open(str(source)) as a, av.open(str(cover)) as b:
            pictures = out.add_stream_from_template(b.streams.video[0])
            pictures.disposition = av.stream.Disposition.attached_pic.value
            kept = {s.index: out.add_stream_from_template(s) for s in a.streams if moving or s.type == "audio"}
            for packet in b.demux(video=0):
                if packet.dts is not None:
                    packet.stream = pictures
                    out.mux(packet)
            for packet in a.demux():
                if packet.dts is not None and packet.stream.index in kept:
                    packet.stream = kept[packet.stream.index]
                    out.mux(packet)
    with pytest.raises(DataError, match="song.mp4: has no video stream"):
        probe(tmp_path / "song.mp4")
    info = probe(tmp_path / "film.mp4")
    assert (info.frames, info.width, info.notes) == (10, 64, ())


def test_the_largest_of_several_videos_is_read_and_reported(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, size in zip(streams, ((64, 48), (160, 120)), strict=True):
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for n in range(8):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(picture(n, stream.width, stream.height), format="rgb24")
                frame.pts = n
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode(None))
    info = probe(path)
    assert (info.width, info.height, info.frames, info.notes) == (160, 120, 8, ("streams",))
    assert read_frames(path, info, [3]).shape == (1, 120, 160, 3)
    assert next(decode_all(path)).shape == (120, 160, 3)


def test_pixels_that_are_not_square(tmp_path):
    path = tmp_path / "anamorphic.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for n in range(4):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(n), format="rgb24")))
        out.mux(stream.encode(None))
    info = probe(path)
    assert (info.width, info.height) == (64, 48)
    assert info.pixel_ratio == pytest.approx(4 / 3, abs=1e-5)


def test_a_video_that_begins_after_its_sound(tmp_path):
    """Times of segments are those of a player, whose clock begins with the sound."""
    path, source = tmp_path / "late.mkv", video(tmp_path / "a.mp4", count=20, rate=10, audio=True, bf=0)
    with av.open(str(source)) as whole, av.open(str(path), "w") as out:
        kept = {stream.index: out.add_stream_from_template(stream) for stream in whole.streams}
        for packet in whole.demux():
            if packet.dts is not None:
                if packet.stream.type == "video":
                    late = round(0.7 / packet.time_base)
                    packet.pts, packet.dts = packet.pts + late, packet.dts + late
                packet.stream = kept[packet.stream.index]
                out.mux(packet)
    info = probe(path)
    with av.open(str(path)) as container:
        begin, first = container.start_time / av.time_base, next(container.decode(video=0)).time
    assert info.delay == pytest.approx(first - begin, abs=1e-5)
    assert 0.6 < info.delay < 0.9  # 0.7 s, and the lead-in of the sound's encoder
    assert info.times[0] == 0
    assert info.duration == pytest.approx(2.0)


def test_doubled_and_missing_times_of_packets_cost_no_others(tmp_path):
    """An open group at the begin, as after a cut without encoding: packets before the first picture, varying times."""
    times = np.cumsum(np.random.RandomState(0).choice([33, 34, 250], 60)).tolist()
    source = video(
        tmp_path / "a.mp4",
        count=60,
        pts=times,
        x264_params="keyint=20:min-keyint=20:open-gop=1:bframes=3:b-adapt=0:scenecut=0",
    )
    with av.open(str(source)) as whole, av.open(str(tmp_path / "cut.mkv"), "w") as out:
        stream = out.add_stream_from_template(whole.streams.video[0])
        keys, first = 0, None
        for packet in whole.demux(video=0):
            keys += packet.is_keyframe and packet.dts is not None
            if packet.dts is not None and keys >= 2:
                first = packet.pts if first is None else first
                packet.stream, packet.pts, packet.dts = stream, packet.pts - first, packet.dts - first
                out.mux(packet)
    info = check(tmp_path / "cut.mkv")
    with av.open(str(tmp_path / "cut.mkv")) as container:
        expected = [frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(info.times, np.array(expected) - expected[0], atol=1e-6)
    assert "even" not in info.notes


def test_a_codec_that_ffmpeg_does_not_know(tmp_path):
    """The size of such a stream is unknown too."""
    path = video(tmp_path / "a.mkv", count=5)
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_UNKNOWN/CODEC"))
    with pytest.raises(DataError, match=r"a.mkv: its codec is not known to FFmpeg; convert it to H.264"):
        probe(path)
