"""Short videos, and training runs on them."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

import zoo
from tasks.engine import Trainer
from tasks.spec import check, make_task
from tasks.video.config import DataSection
from tasks.video.encode import write_video


def picture(number, width=64, height=48):
    """A picture that no other number has, and that compresses."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([(x * 3 + number * 5) % 256, (y * 4 + number * 9) % 256, np.full_like(x, number * 2 % 256)], -1)
    image[height // 4 : height // 2, (number * 3) % width :] = (
        255 - image[height // 4 : height // 2, (number * 3) % width :]
    )
    return image.astype(np.uint8)


def video(
    path,
    count=40,
    *,
    codec="libx264",
    pts=None,
    rate=25,
    size=(64, 48),
    audio=False,
    movflags="",
    pix_fmt="yuv420p",
    **options,
):
    """A small video; ``pts`` in milliseconds makes its rate vary; ``movflags`` are of the container."""
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream(
            codec, rate=rate, options={k.replace("_", "-"): str(v) for k, v in options.items()}
        )
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        if pts is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if audio:
            sound = container.add_stream("aac", rate=8000, layout="mono")
        for n in range(count):
            frame = av.VideoFrame.from_ndarray(picture(n, *size), format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[n], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio:
            samples = (np.sin(np.arange(8000 * count // rate) / 5) * 8000).astype(np.int16)
            for i, start in enumerate(range(0, len(samples) - 1024, 1024)):
                chunk = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="s16", layout="mono")
                chunk.sample_rate, chunk.pts = 8000, 1024 * i
                container.mux(sound.encode(chunk))
            container.mux(sound.encode(None))
    return path


def layout(frames=8, interval=8.0, fps=30.0, size=16, resize=16):
    return zoo.VideoTransform(frames, interval, fps, size, resize, (0.5,) * 3, (0.25,) * 3)


def write_weights(path):
    """Write weights of a narrow, calibrated net for clips of 4 frames and the classes down, right and still."""
    torch.manual_seed(0)
    model = zoo.create_model("rescale_r3d_10", width=0.25, num_classes=3)
    zoo.calibrate(model, [torch.randn(4, 3, 4, 16, 16)])
    classes = ["down", "right", "still"]
    zoo.save_weights(model, path, transform=layout(4, 2.0, 10.0, 16, 18), classes=classes, meta={"licence": "MIT"})
    return path


def section(**data):
    return DataSection.model_validate(
        {"root": "x", "size": 16, "resize": 16, "augment": {"short_side": [16, 24], "colour": 0.4}, **data}
    )


def write_bar(path, name, random, count=12):
    x, y = random.randint(0, 8), random.randint(0, 6)

    def picture(i):
        image = random.randint(0, 60, (20, 32, 3)).astype(np.uint8)
        a, b = x + 2 * i * (name == "right"), y + i * (name == "down")
        image[b : b + 4, a : a + 5] = 230
        return image

    write_video(path, map(picture, range(count)), 10, options={"g": "6"})


def config(root, output, model=None, data=None, **train):
    content = {
        "task": "video",
        "output": str(output),
        "model": {"name": "rescale_r3d_10", "options": {"width": 0.25}, **(model or {})},
        "data": {
            "root": str(root),
            "index": str(Path(output).parent / "index.json"),
            "clip": {"frames": 4, "interval": None, "fps": None},
            "size": 16,
            "resize": 16,
            "augment": {"short_side": [16, 20], "flip": 0},
            "eval_batch_size": 4,
            **(data or {}),
        },
        "train": {
            "epochs": 2,
            "batch_size": 8,
            "optimizer": {"name": "adamw", "lr": 0.003, "clip_norm": 1.0},
            "log_every": 1,
            "checkpoint_minutes": 0,
            "calibration_batches": 2,
            **train,
        },
    }
    return check(content, "the test's config")


def fit(root, output, **settings):
    return Trainer(make_task(config(root, output, **settings))).fit()
