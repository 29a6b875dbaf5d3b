"""Valid videos of many containers and codecs, small enough to be read in some milliseconds."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import av
from PIL import Image

from tests.helpers.video import video

# file name: codec and its options
MADE = {
    "h264.mp4": {"g": 6, "bf": 2},
    "h264.mkv": {"g": 6, "bf": 2},
    "h264.ts": {"g": 6},
    "h264.flv": {"g": 6},
    "h264.avi": {"g": 6},
    "mpeg4.avi": {"codec": "mpeg4", "g": 6},
    "mpeg2.mpg": {"codec": "mpeg2video", "g": 6, "bf": 2},
    "mpeg2.mxf": {"codec": "mpeg2video", "g": 6},
    "wmv2.wmv": {"codec": "wmv2", "g": 6},
    "flv1.flv": {"codec": "flv", "g": 6},
    "vp8.webm": {"codec": "libvpx", "g": 6},
    "vp9.webm": {"codec": "libvpx-vp9", "g": 6},
    "h263.3gp": {"codec": "h263", "g": 6, "size": (128, 96)},
    "sound.mov": {"g": 6, "audio": True},
    "varying.mp4": {"g": 6, "pts": [0, 40, 80, 300, 340, 380, 900, 940, 980, 1000, 1040, 1080]},
}


def make_videos() -> dict[str, bytes]:
    """Return the bytes of each video, by its name."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in MADE.items():
            found[name] = video(Path(folder, name), 12, **options).read_bytes()
        front = Path(folder, "front.mp4")
        source = av.open(str(Path(folder, "h264.mp4")))
        with source, av.open(str(front), "w", options={"movflags": "+faststart"}) as out:
            stream = out.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
        found["front.mp4"] = front.read_bytes()
    images = [Image.linear_gradient("L").resize((32, 24)).rotate(30 * n).convert("RGB") for n in range(6)]
    for name, format in (("moving.gif", "GIF"), ("moving.apng", "PNG")):
        buffer = io.BytesIO()
        images[0].save(buffer, format, save_all=True, append_images=images[1:], duration=80)
        found[name] = buffer.getvalue()
    return found
