"""Reading of clips and training steps of video nets: python -m benchmarks.video

``--what read`` counts clips per second from random places of 10 s videos. Our reader is compared with decoding the
whole video and with the other readers that are installed (torchcodec, decord). The videos are H.264 at 340 x 256, the
usual size of Kinetics, and are rendered here unless ``--videos`` names others. ``--what feed`` compares the time to
decode and transform a clip with the time of a training step for a clip. ``--what step`` compares time and saved memory
of a training step with BatchNorm and with the bare convolutions (``floor``).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import zoo
from benchmarks import measure
from benchmarks.baselines import naive
from benchmarks.memory import sample, saved_per_image
from tasks.video.config import DataSection
from tasks.video.decode import VideoInfo, decode_all, probe, read_frames
from tasks.video.encode import write_video
from tasks.video.sampling import ClipSampler
from tasks.video.sources import find_videos
from tasks.video.transforms import train_transform

# our name, torchvision's, frames, size
NETS = {"r3d18": ("rescale_r3d_18", "r3d_18", 16, 112), "i3d50": ("rescale_i3d_r50", None, 8, 224)}
LAYOUT = zoo.VideoTransform(8, 8, 30.0, 224, 256, (0.45,) * 3, (0.225,) * 3)


def builders(net: str) -> dict[str, Callable[[], nn.Module]]:
    """Return functions that build the nets by name.

    ``floor`` are bare convolutions with our shortcut, ``floor_conv`` the same with a strided convolution as shortcut.
    """
    ours, theirs, _, _ = NETS[net]
    bn = functools.partial(zoo.create_model, ours, scheme="bn")
    if theirs is not None:
        bn = functools.partial(torchvision.models.get_model, theirs, num_classes=400)
    return {
        "floor": functools.partial(zoo.create_model, ours, scheme="none"),
        "floor_conv": functools.partial(zoo.create_model, ours, scheme="none", shortcut="conv"),
        "rescale": functools.partial(zoo.create_model, ours),
        "naive": lambda: naive(zoo.create_model(ours)),
        "bn": bn,
        "gn": functools.partial(zoo.create_model, ours, scheme="gn"),
    }


def build(net: str, variant: str, device: str) -> nn.Module:
    """Return a new net, channels last; all nets have the same seed."""
    torch.manual_seed(0)
    return builders(net)[variant]().to(device).to(memory_format=torch.channels_last_3d).train()


def step(net: str, variant: str, batch: int, arguments: argparse.Namespace) -> Callable[[], object]:
    """Return a function that runs forward and backward of a new net on a fixed batch."""
    _, _, frames, size = NETS[net]
    model = build(net, variant, arguments.device)
    torch.manual_seed(1)
    x = sample(batch, arguments.size or size, frames=arguments.frames or frames, device=arguments.device)
    y = torch.randint(400, (batch,), device=arguments.device)

    def do() -> None:
        half = torch.autocast(arguments.device, torch.bfloat16) if arguments.bf16 else contextlib.nullcontext()
        with half:
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        model.zero_grad()

    return do


def render(folder: Path, count: int, keys: int) -> list[Path]:
    """Write videos of 10 s of a moving random texture at 30 frames per second; return their paths.

    Args:
        folder: folder of the videos.
        count: number of videos.
        keys: number of frames from key frame to key frame.
    """
    height, width = 256, 340

    def frames(number: int) -> Iterator[np.ndarray]:
        """Yield the frames of a video: uint8 (H, W, 3)."""
        random = np.random.RandomState(number)
        texture = random.randint(0, 256, (height // 4 + 80, width // 4 + 80, 3)).astype(np.uint8)
        for t in range(300):
            x, y = int(40 + 39 * np.sin(t / 50 + number)), int(40 + 39 * np.cos(t / 31))
            yield texture[y : y + height // 4, x : x + width // 4].repeat(4, 0).repeat(4, 1)

    paths = [folder / f"{number}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        write_video(path, frames(number), 30, options={"g": str(keys), "crf": "23"})
    return paths


@contextlib.contextmanager
def videos(arguments: argparse.Namespace) -> Iterator[list[tuple[Path, VideoInfo]]]:
    """Yield the videos to read and their frame times; rendered videos are removed at the end."""
    if arguments.videos:
        paths = find_videos([str(path) for path in arguments.videos])
        yield [(path, probe(path)) for path in paths]
        return
    with tempfile.TemporaryDirectory() as folder:
        yield [(path, probe(path)) for path in render(Path(folder), arguments.count, arguments.keys)]


def whole(path: Path, indices: Sequence[int]) -> np.ndarray:
    """Decode and convert all frames and return the requested ones, as naive readers do."""
    frames = list(decode_all(path))
    return np.stack([frames[i] for i in indices])


def decoded(path: Path, indices: Sequence[int]) -> np.ndarray:
    """Decode all frames and convert the requested ones: the least work of a reader that does not seek."""
    requested, found = set(indices), {}
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"
        stream.codec_context.thread_count = 1
        for i, frame in enumerate(container.decode(stream)):
            if i in requested:
                found[i] = frame.to_ndarray(format="rgb24")
    return np.stack([found[i] for i in indices])


def by_torchcodec(make: Any, mode: str, path: Path, info: VideoInfo, indices: Sequence[int]) -> Any:
    """Return a clip read by torchcodec.

    Args:
        make: class VideoDecoder, which is imported only if it is installed.
        mode: seek mode.
        path: path of the video.
        info: unused, as all readers have it.
        indices: frame numbers.
    """
    return make(str(path), num_ffmpeg_threads=1, seek_mode=mode).get_frames_at(list(indices)).data


def readers(example: Path) -> dict[str, Callable[[Path, VideoInfo, Sequence[int]], Any]]:
    """Return the installed readers by name: functions (path, info, frame numbers) -> frames.

    All readers open the file for each clip and use one thread.

    Args:
        example: video with which torchcodec is tried.
    """
    found: dict[str, Callable[[Path, VideoInfo, Sequence[int]], Any]] = {
        "ours": lambda path, info, indices: read_frames(path, info, indices),
        "full decode": lambda path, info, indices: whole(path, indices),
        "full decode, clip converted": lambda path, info, indices: decoded(path, indices),
    }
    try:
        from torchcodec.decoders import VideoDecoder

        VideoDecoder(str(example))  # fails here if FFmpeg's libraries are missing
        modes: tuple[Literal["exact", "approximate"], ...] = ("exact", "approximate")
        for mode in modes:
            found[f"torchcodec, {mode}"] = functools.partial(by_torchcodec, VideoDecoder, mode)
    except (ImportError, RuntimeError, OSError) as error:
        print(f"torchcodec is left out: {str(error).splitlines()[0]}")
    try:
        import decord

        def by_decord(path: Path, info: VideoInfo, indices: Sequence[int]) -> Any:
            """Return a clip read by decord."""
            return decord.VideoReader(str(path), num_threads=1).get_batch(list(indices)).asnumpy()

        found["decord"] = by_decord
    except (ImportError, OSError) as error:
        print(f"decord is left out: {error}")
    return found


def read(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the clips per second of each reader, with the same clips for all; return the rows of the results."""
    sampler, random = ClipSampler(LAYOUT), np.random.default_rng(0)
    with videos(arguments) as found:
        by_name = readers(found[0][0])
        seconds: dict[str, list[float]] = {name: [] for name in by_name}
        wrong: dict[str, int] = dict.fromkeys(by_name, 0)
        for turn in range(arguments.repeats):
            # 1. Choose a clip, which every reader reads; each turn starts with another reader.
            path, info = found[turn % len(found)]
            indices = sampler.random(info, random).tolist()
            expected = read_frames(path, info, indices)
            names = list(by_name)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                begin = time.perf_counter()
                got = by_name[name](path, info, indices)
                seconds[name].append(time.perf_counter() - begin)
                # 2. Compare the frames; decoders round colours differently, other frames differ by more.
                pixels = np.asarray(got)
                pixels = pixels.transpose(0, 2, 3, 1) if pixels.shape[1] == 3 else pixels
                same = pixels.shape == expected.shape and np.abs(pixels.astype(int) - expected).mean() < 4
                wrong[name] += not same
        length = statistics.mean(info.duration for _, info in found)
        keys = statistics.mean(info.frames / max(len(info.keys), 1) for _, info in found)
    # 3. Show the table.
    title = f"Clips of 8 frames 8 apart, {len(found)} videos of {length:.1f} s, a key frame every {keys:.0f} frames"
    rows = measure.ratios(seconds, "ours")
    cells = [
        [
            name,
            f"{1 / statistics.median(seconds[name]):.1f}",
            f"{row['ratio']:.2f}",
            f"{row['quartile_1']:.2f} .. {row['quartile_3']:.2f}",
            str(wrong[name]),
        ]
        for name, row in rows.items()
    ]
    header = ["reader", "clips / s", "time / ours", "quartiles", "clips with other frames"]
    measure.show(f"{title}, {arguments.repeats} clips", header, cells)
    return [{"what": "read", "reader": name, "wrong": wrong[name], **row} for name, row in rows.items()]


def feed(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the time to read and transform a clip, and that of a training step per clip; return the results."""
    section = DataSection.model_validate({"root": ".", "augment": {"short_side": [256, 320]}})
    sampler, transform, random = ClipSampler(LAYOUT), train_transform(section.augment, LAYOUT), np.random.default_rng(0)
    batch = arguments.batch[0]
    stepping = {net: step(net, "rescale", batch, arguments) for net in arguments.net}
    seconds: dict[str, list[float]] = {name: [] for name in ("read", "transform", *stepping)}
    with videos(arguments) as found:
        for turn in range(arguments.repeats):
            path, info = found[turn % len(found)]
            begin = time.perf_counter()
            frames = read_frames(path, info, sampler.random(info, random).tolist())
            middle = time.perf_counter()
            transform(torch.from_numpy(frames).permute(0, 3, 1, 2))
            seconds["read"].append(middle - begin)
            seconds["transform"].append(time.perf_counter() - middle)
            for net, do in stepping.items():
                begin = time.perf_counter()
                do()
                seconds[net].append((time.perf_counter() - begin) / batch)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    clip = medians["read"] + medians["transform"]
    cells = [[name, f"{value * 1e3:.1f}", f"{value / clip:.2f}"] for name, value in medians.items()]
    header = ["", "ms a clip", "/ (read + transform)"]
    measure.show(f"Reading and transforming 8 frames at 224 px, and a step's share, {arguments.repeats}", header, cells)
    return [{"what": "feed", "part": name, "seconds": value} for name, value in medians.items()]


def steps(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the saved memory and the time of a training step for each net; return the rows of the results."""
    results: list[dict[str, Any]] = []
    for net in arguments.net:
        ours, _, frames, size = NETS[net]
        frames, size = arguments.frames or frames, arguments.size or size
        # 1. Count the bytes saved for backward.
        saved = {}
        for variant in arguments.baselines:
            saved[variant] = saved_per_image(build(net, variant, arguments.device), size, frames=frames)
        cells = [
            [
                variant,
                f"{clip / 2**20:.2f}",
                *(f"{clip / saved[base][0]:.3f}" if base in saved else "" for base in ("floor", "floor_conv", "bn")),
                f"{constant / 1024:.1f}",
            ]
            for variant, (clip, constant) in saved.items()
        ]
        header = ["", "saved, MiB a clip", "/ floor", "/ floor_conv", "/ bn", "other saved, KiB"]
        measure.show(f"{ours}, {frames} x {size} px, fp32", header, cells)
        results += [{"what": "saved", "net": net, "rival": r, "clip": c, "constant": k} for r, (c, k) in saved.items()]
        # 2. Measure the time.
        for batch in arguments.batch:
            runs = {variant: step(net, variant, batch, arguments) for variant in arguments.baselines}
            title = f"{ours}, batch {batch}, {frames} x {size} px, forward and backward"
            seconds = measure.interleave(runs, arguments.repeats, title=title, device=arguments.device)
            rows = measure.ratios(seconds, "floor")
            measure.show_ratios(title, "floor", rows)
            results += [{"what": "step", "net": net, "batch": batch, "rival": r, **row} for r, row in rows.items()]
    return results


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measure.parser((__doc__ or "").split("\n")[0], nets=list(NETS))
    parser.set_defaults(net=list(NETS), size=None)
    parser.add_argument("--what", nargs="+", default=["read", "feed", "step"], choices=["read", "feed", "step"])
    parser.add_argument("--frames", type=int, help="step: number of frames of a clip; default: that of the net")
    parser.add_argument("--batch", type=int, nargs="+", default=[2])
    parser.add_argument("--bf16", action="store_true", help="step: autocast (on a GPU)")
    parser.add_argument("--repeats", type=int, default=30, help="interleaved rounds")
    measure.add_baselines(parser, list(builders("i3d50")))
    parser.add_argument("--videos", type=Path, nargs="+", help="files and folders to read, instead of rendered ones")
    parser.add_argument("--count", type=int, default=6, help="videos to render")
    parser.add_argument("--keys", type=int, default=250, help="rendered videos: frames from key frame to key frame")
    arguments = parser.parse_args()
    measure.start(arguments)
    parts = {"read": read, "feed": feed, "step": steps}
    measure.finish(arguments, [row for part in arguments.what for row in parts[part](arguments)])


if __name__ == "__main__":
    main()
