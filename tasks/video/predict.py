"""Videos -> classes: files and folders, JSON, a timeline of long videos, an annotated copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import zoo
from tasks.devices import best_device
from tasks.errors import DataError, UserError
from tasks.images import report_unread
from tasks.plots import contact_sheet, timeline
from tasks.progress import Progress, print_line
from tasks.video.decode import VideoInfo, decode_all, probe, read_frames
from tasks.video.encode import write_video
from tasks.video.evaluate import standardised
from tasks.video.sampling import ClipSampler
from tasks.video.transforms import crops
from zoo.files import write_json

SHEET_LIMIT = 60  # pictures on a contact sheet
_TOGETHER = 8  # clips of a forward


@dataclass
class Window:
    """A part of a video, in seconds, and its most likely classes, best first."""

    begin: float
    end: float
    classes: list[str]
    scores: list[float]


@dataclass
class Prediction:
    """A video's most likely classes with their scores (mean softmax over the clips), best first."""

    file: str
    duration: float
    classes: list[str]
    scores: list[float]
    timeline: list[Window] = field(default_factory=list)


def predict(
    model: zoo.Backbone,
    weights: zoo.Weights,
    files: Sequence[Path],
    *,
    top: int = 5,
    clips: int = 10,
    window: float | None = None,
    step: float | None = None,
    annotate: bool = False,
    out: Path | None = None,
) -> tuple[list[Prediction], dict[str, str]]:
    """Classify videos; those that cannot be read are reported, not fatal.

    Args:
        weights: say which frames make a clip, and give the class names.
        top: classes to report for each video and window.
        clips: spread over the video; a net whose clip is the whole video takes one.
        window: seconds of a timeline's windows; None: the length of a clip, or no timeline where a clip is the whole
            video.
        step: seconds from window to window; None: half a window.
        annotate: write a copy of each video with the class in it (without sound).
        out: folder for ``predictions.json``, ``contact_sheet.png``, and for each video longer than a window and a step
            ``NAME.timeline.json`` and ``.png``; ``NAME.annotated.mp4``.

    Returns:
        Predictions in the order of ``files``, and the reason for each file that could not be read.

    Raises:
        UserError: a window or step that is not greater than 0, or copies without a folder for them.
    """
    assert isinstance(weights.transform, zoo.VideoTransform)
    for name, value in (("window", window), ("step", step)):
        if value is not None and not value > 0:
            raise UserError(f"{name}={value}: seconds, greater than 0")
    if annotate and out is None:
        raise UserError("annotated copies need a folder to go to")
    model.to(best_device()).to(memory_format=torch.channels_last_3d).eval()
    predictions: list[Prediction] = []
    failed: dict[str, str] = {}
    pictures: list[Image.Image] = []
    names: set[str] = set()
    with Progress(len(files), 0, 1, unit="videos", enabled=len(files) > 4) as progress:
        for i, path in enumerate(files, 1):
            try:
                info = probe(path)
                found, picture = _classify(model, weights, path, info, top, clips, window, step)
            except DataError as error:
                failed[str(path)] = str(error)
                continue
            name = path.stem if path.stem not in names else f"{path.stem}_{i}"
            names.add(name)
            if out is not None and annotate:
                try:
                    annotated(path, info, found, out / f"{name}.annotated.mp4")
                except DataError as error:  # the prediction stays
                    failed[str(path)] = str(error)
            predictions.append(found)
            if len(pictures) < SHEET_LIMIT:
                pictures.append(picture)
            if out is not None and found.timeline:
                content = {"file": found.file, "weights": weights.name, "windows": [asdict(w) for w in found.timeline]}
                write_json(content, out / f"{name}.timeline.json")
                timeline(found.timeline, out / f"{name}.timeline.png")
            progress.step(i)
    report_unread(failed, len(files))
    if out is not None:
        rows = [{k: v for k, v in asdict(p).items() if k != "timeline"} for p in predictions]
        write_json({"weights": weights.name, "predictions": rows, "failed": failed}, out / "predictions.json")
        if pictures:
            captions = [f"{p.classes[0]} {p.scores[0]:.0%}\n{Path(p.file).name[:28]}" for p in predictions]
            contact_sheet(pictures, captions[: len(pictures)], out / "contact_sheet.png")
    return predictions, failed


def _classify(
    model: zoo.Backbone,
    weights: zoo.Weights,
    path: Path,
    info: VideoInfo,
    top: int,
    clips: int,
    window: float | None,
    step: float | None,
) -> tuple[Prediction, Image.Image]:
    """The prediction of a video, and its middle picture."""
    transform = weights.transform
    assert isinstance(transform, zoo.VideoTransform)
    sampler = ClipSampler(transform)
    indices = sampler.uniform(info, 1 if transform.interval is None else clips)
    scores, middle = _scores(model, transform, path, info, indices)
    found = Prediction(str(path), round(info.duration, 3), *_best(scores.mean(0), weights.classes, top))
    length = window or (None if transform.interval is None else sampler.span(info))
    if length is None:
        return found, middle
    stride = step or length / 2
    if info.duration < length + stride:
        return found, middle
    count = int((info.duration - length) / stride + 1e-9) + 1
    spans = [(k * stride, k * stride + length) for k in range(count)]
    if spans[-1][1] < info.duration - 1e-6:
        spans.append((info.duration - length, info.duration))  # up to the end
    rows = np.concatenate([sampler.uniform(info, 1, span) for span in spans])
    each, _ = _scores(model, transform, path, info, rows)
    for (begin, end), row in zip(spans, each, strict=True):
        found.timeline.append(Window(round(begin, 3), round(end, 3), *_best(row, weights.classes, top)))
    return found, middle


def _scores(
    model: zoo.Backbone, transform: zoo.VideoTransform, path: Path, info: VideoInfo, indices: np.ndarray
) -> tuple[Tensor, Image.Image]:
    """(clips, classes) softmax of clips given by frame numbers (clips, frames), and the picture in their middle."""
    device = next(model.parameters()).device
    found: list[Tensor] = []
    for start in range(0, len(indices), _TOGETHER):
        part = indices[start : start + _TOGETHER]
        frames = read_frames(path, info, part.reshape(-1).tolist())
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).unflatten(0, part.shape)
        views = torch.cat([crops(clip, transform, 1) for clip in pixels])
        with torch.inference_mode():
            found.append(model(standardised(views.to(device), transform, torch.float32)).softmax(1).cpu())
        if start == len(indices) // 2 // _TOGETHER * _TOGETHER:
            picture = Image.fromarray(frames[len(frames) // 2])
    return torch.cat(found), picture


def _best(scores: Tensor, classes: Sequence[str], top: int) -> tuple[list[str], list[float]]:
    values, order = scores.topk(min(top, len(classes)))
    return [classes[i] for i in order.tolist()], values.tolist()


def annotated(path: Path, info: VideoInfo, found: Prediction, target: Path) -> None:
    """An H.264 copy of a video with the class of each moment, or of the whole, in the upper left corner.

    Raises:
        DataError: the video cannot be decoded to its end.
    """
    font = ImageFont.load_default(size=max(11, info.height // 18))

    def caption(seconds: float) -> str:
        windows = [w for w in found.timeline if w.begin <= seconds < w.end]
        best: Any = min(windows, key=lambda w: abs(seconds - (w.begin + w.end) / 2)) if windows else found
        return f"{best.classes[0]} {best.scores[0]:.0%}"

    def captioned() -> Iterator[np.ndarray]:
        size = (
            info.width + info.width % 2,
            info.height + info.height % 2,
        )  # H.264's usual colour format wants even sides
        for pixels, seconds in zip(decode_all(path), info.times.tolist(), strict=False):
            image = Image.new("RGB", size)
            image.paste(Image.fromarray(pixels))
            pen, text = ImageDraw.Draw(image), caption(seconds)
            pen.rectangle(pen.textbbox((4, 2), text, font=font), fill=(0, 0, 0))
            pen.text((4, 2), text, fill=(255, 255, 255), font=font)
            yield np.asarray(image)

    rate = Fraction(info.fps).limit_denominator(1001)
    times = ((info.pts - info.first).tolist(), info.time_base)
    write_video(target, captioned(), rate, options={"crf": "20", "preset": "fast"}, times=times)
    print_line(f"{target}: {found.duration:.1f} s, annotated")
