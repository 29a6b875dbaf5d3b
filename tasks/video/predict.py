"""Classification of video files, with timelines of long videos and annotated copies."""

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
from tasks.files import read_each, report_unread
from tasks.plots import timeline
from tasks.progress import print_line
from tasks.report import Sheet, best_classes
from tasks.video.decode import VideoInfo, decode_all, probe, read_frames
from tasks.video.encode import write_video
from tasks.video.evaluate import standardised
from tasks.video.sampling import ClipSampler
from tasks.video.transforms import crops
from zoo.files import write_json

_BATCH = 8  # number of clips of a forward


@dataclass
class Window:
    """A part of a video and its most likely classes.

    Attributes:
        begin: begin of the part in seconds.
        end: end of the part in seconds.
        classes: names of the classes, best first.
        scores: softmax of each of them.
    """

    begin: float
    end: float
    classes: list[str]
    scores: list[float]


@dataclass
class Prediction:
    """The most likely classes of a video.

    Attributes:
        file: path of the video.
        duration: duration in seconds.
        classes: names of the classes, best first.
        scores: mean softmax over the clips, of each of them.
        timeline: windows in order of time; empty for short videos.
    """

    file: str
    duration: float
    classes: list[str]
    scores: list[float]
    timeline: list[Window] = field(default_factory=list)


def classify_videos(
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
    """Classify videos; report and skip those that cannot be read.

    Args:
        model: net of the weights.
        weights: transform, which defines the frames of a clip, and class names.
        files: paths of the videos.
        top: number of classes to report for each video and window.
        clips: number of clips spread over the video; one is used if a clip is spread over the whole video itself.
        window: length of a timeline's windows in seconds; None: the length of a clip, or no timeline if a clip is
            spread over the whole video.
        step: seconds from window to window; None: half a window.
        annotate: whether to write a copy of each video, without sound, with the class in its pictures.
        out: folder for ``predictions.json`` and ``contact_sheet.png``; for videos longer than a window and a step also
            ``NAME.timeline.json`` and ``.png``; with ``annotate`` also ``NAME.annotated.mp4``.

    Returns:
        Predictions in the order of ``files``, and the reason for each file that could not be read.

    Raises:
        UserError: a window or step that is not > 0, or ``annotate`` without ``out``.
    """
    # 1. Check the arguments.
    for name, value in (("window", window), ("step", step)):
        if value is not None and not value > 0:
            raise UserError(f"{name}={value}: must be > 0 (seconds)")
    if annotate and out is None:
        raise UserError("annotate=True requires out, the folder of the annotated copies")
    # 2. Classify the videos one by one.
    model.to(best_device()).to(memory_format=torch.channels_last_3d).eval()
    classifier = _Classifier(model, weights, top, clips, window, step)
    predictions: list[Prediction] = []
    failed: dict[str, str] = {}
    sheet = Sheet()
    for path, stem, (info, found, picture) in read_each(files, classifier, failed, unit="videos"):
        predictions.append(found)
        sheet.add(picture, found)
        if out is None:
            continue
        # 3. Write the files of a video.
        if annotate:
            try:
                write_annotated(path, info, found, out / f"{stem}.annotated.mp4")
            except DataError as error:  # damage after the frames of the clips; the prediction is valid
                failed[str(path)] = str(error)
        if found.timeline:
            content = {"file": found.file, "weights": weights.name, "windows": [asdict(w) for w in found.timeline]}
            write_json(content, out / f"{stem}.timeline.json")
            timeline(found.timeline, out / f"{stem}.timeline.png")
    # 4. Report, and write the files of all videos.
    report_unread(failed, len(files))
    if out is not None:
        rows = [{k: v for k, v in asdict(p).items() if k != "timeline"} for p in predictions]
        write_json({"weights": weights.name, "predictions": rows, "failed": failed}, out / "predictions.json")
        sheet.write(out / "contact_sheet.png")
    return predictions, failed


class _Classifier:
    """Function from the path of a video to its classes and timeline; see ``classify_videos`` for the arguments."""

    def __init__(
        self,
        model: zoo.Backbone,
        weights: zoo.Weights,
        top: int,
        clips: int,
        window: float | None,
        step: float | None,
    ) -> None:
        assert isinstance(weights.transform, zoo.VideoTransform)
        self.model, self.classes, self.transform = model, weights.classes, weights.transform
        self.top, self.clips, self.window, self.step = top, clips, window, step
        self.sampler = ClipSampler(weights.transform)

    def __call__(self, path: Path) -> tuple[VideoInfo, Prediction, Image.Image]:
        """Return the frame times of a video, its prediction and its middle picture.

        Raises:
            DataError: a video that cannot be read.
        """
        info = probe(path)
        whole = self.transform.interval is None  # a clip is spread over the whole video
        # 1. Average the scores of the clips.
        indices = self.sampler.uniform(info, 1 if whole else self.clips)  # (clips, frames)
        scores, middle = _scores(self.model, self.transform, path, info, indices)  # scores (clips, classes)
        found = Prediction(str(path), round(info.duration, 3), *best_classes(scores.mean(0), self.classes, self.top))
        # 2. For the timeline, score the middle clip of each window.
        spans = self._windows(info)
        if spans:
            rows = np.concatenate([self.sampler.uniform(info, 1, span) for span in spans])  # (windows, frames)
            each, _ = _scores(self.model, self.transform, path, info, rows)  # (windows, classes)
            for (begin, end), row in zip(spans, each, strict=True):
                best = best_classes(row, self.classes, self.top)
                found.timeline.append(Window(round(begin, 3), round(end, 3), *best))
        return info, found, middle

    def _windows(self, info: VideoInfo) -> list[tuple[float, float]]:
        """Return begin and end in seconds of a timeline's windows; none if the video is shorter than two of them."""
        length = self.window or (None if self.transform.interval is None else self.sampler.span(info))
        if length is None:
            return []
        stride = self.step or length / 2
        if info.duration < length + stride:
            return []
        count = int((info.duration - length) / stride + 1e-9) + 1
        spans = [(k * stride, k * stride + length) for k in range(count)]
        if spans[-1][1] < info.duration - 1e-6:
            spans.append((info.duration - length, info.duration))  # the steps may end before the video does
        return spans


def _scores(
    model: zoo.Backbone, transform: zoo.VideoTransform, path: Path, info: VideoInfo, indices: np.ndarray
) -> tuple[Tensor, Image.Image]:
    """Return the softmax (clips, classes) of clips of a video, and a picture from the middle of the video.

    Args:
        model: net in eval mode.
        transform: input transform of the net.
        path: path of the video.
        info: frame times of the video.
        indices: frame numbers (clips, frames).
    """
    device = next(model.parameters()).device
    found: list[Tensor] = []
    for start in range(0, len(indices), _BATCH):
        part = indices[start : start + _BATCH]
        frames = read_frames(path, info, part.reshape(-1).tolist())  # (clips * T, H, W, 3)
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).unflatten(0, part.shape)  # (clips, T, 3, H, W)
        views = torch.cat([crops(clip, transform, 1) for clip in pixels])  # (clips, T, 3, size, size)
        with torch.inference_mode():
            found.append(model(standardised(views.to(device), transform, torch.float32)).softmax(1).cpu())
        if start == len(indices) // 2 // _BATCH * _BATCH:  # the batch with the middle clip
            picture = Image.fromarray(frames[len(frames) // 2])
    return torch.cat(found), picture


def write_annotated(path: Path, info: VideoInfo, found: Prediction, target: Path) -> None:
    """Write an H.264 copy of a video with its class, or that of each moment, in the upper left corner.

    Args:
        path: path of the video.
        info: frame times of the video.
        found: prediction; if it has a timeline, the class of each moment is shown.
        target: path of the copy.

    Raises:
        DataError: a video that cannot be decoded to its end.
    """
    font = ImageFont.load_default(size=max(11, info.height // 18))

    def caption(seconds: float) -> str:
        """Return the class of the window whose middle is closest to the time, or of the whole video."""
        windows = [w for w in found.timeline if w.begin <= seconds < w.end]
        best: Any = min(windows, key=lambda w: abs(seconds - (w.begin + w.end) / 2)) if windows else found
        return f"{best.classes[0]} {best.scores[0]:.0%}"

    def captioned() -> Iterator[np.ndarray]:
        """Yield the frames with their captions: uint8 (H, W, 3)."""
        # H.264's usual colour format requires even sides.
        size = (info.width + info.width % 2, info.height + info.height % 2)
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
