"""Classification of video files, with timelines of long videos and annotated copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import zoo
from tasks.devices import best_device
from tasks.errors import DataError, UserError
from tasks.outputs import OutputFolder, try_to_draw
from tasks.plots import timeline
from tasks.printing import printable
from tasks.progress import Progress, print_line
from tasks.reading import Unreadable, read_in_order, report_unread
from tasks.report import Sheet, best_classes
from tasks.shards import chunks
from tasks.video.decode import VideoInfo, decode_all, probe, read_frames
from tasks.video.encode import write_video
from tasks.video.evaluate import standardised
from tasks.video.sampling import ClipSampler
from tasks.video.transforms import crops

FILES = ("predictions.json", "contact_sheet.png")  # what is written for all videos together
TIMELINE, DRAWN_TIMELINE, ANNOTATED = ".timeline.json", ".timeline.png", ".annotated.mp4"  # endings of a video's files


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
    batch_size: int = 8,
    workers: int = 0,
    out: OutputFolder | None = None,
    report: Callable[[Prediction], object] = lambda found: None,
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
        batch_size: number of clips of a forward.
        workers: number of processes that read the videos.
        out: folder for ``FILES``; for videos longer than a window and a step also ``NAME.timeline.json`` and ``.png``;
            with ``annotate`` also ``NAME.annotated.mp4``.
        report: function that is called with each prediction at once, in the order of ``files``.

    Returns:
        Predictions in the order of ``files``, and the reason for each file that could not be read.

    Raises:
        UserError: a window or step that is not > 0, or ``annotate`` without ``out``.
    """
    # 1. Check the arguments, and choose the names of the files.
    for name, value in (("window", window), ("step", step)):
        if value is not None and not value > 0:
            raise UserError(f"{name}={value}: must be > 0 (seconds)")
    if annotate and out is None:
        raise UserError("annotate=True requires out, the folder of the annotated copies")
    stems = [] if out is None else out.stems(files, [TIMELINE, DRAWN_TIMELINE, ANNOTATED])
    # 2. Classify the videos one by one.
    model.to(best_device()).to(memory_format=torch.channels_last_3d).eval()
    classifier = _Classifier(model, weights, top, clips, window, step, batch_size, workers)
    predictions: list[Prediction] = []
    failed: dict[str, str] = {}
    sheet = Sheet()
    for number, info, found, picture in classifier.classified(files, failed):
        predictions.append(found)
        report(found)
        sheet.add(picture, found)
        if out is None:
            continue
        # 3. Write the files of a video.
        path, stem = files[number], stems[number]
        if annotate:
            try:
                write_annotated(path, info, found, out.path / f"{stem}{ANNOTATED}")
            except DataError as error:  # damage after the frames of the clips; the prediction is valid
                failed[str(path)] = str(error)
        if found.timeline:
            content = {"file": found.file, "weights": weights.name, "windows": [asdict(w) for w in found.timeline]}
            out.write_json(content, f"{stem}{TIMELINE}")
            drawn = out.path / f"{stem}{DRAWN_TIMELINE}"
            try_to_draw(partial(timeline, found.timeline, drawn), drawn)
    # 4. Report, and write the files of all videos.
    failed = {str(path): failed[str(path)] for path in files if str(path) in failed}  # in the order of the files
    report_unread(failed, len(files))
    if out is not None:
        rows = [{k: v for k, v in asdict(p).items() if k != "timeline"} for p in predictions]
        out.write_json({"weights": weights.name, "predictions": rows, "failed": failed}, "predictions.json")
        try_to_draw(lambda: sheet.write(out.path / "contact_sheet.png"), out.path / "contact_sheet.png")
    return predictions, failed


class _Job(NamedTuple):
    """Some clips of a video, which go through the net together.

    Attributes:
        number: position of the video among the files.
        path: path of the video.
        info: frame times of the video.
        indices: frame numbers (clips, frames).
        shown: whether a picture from their middle is returned too.
    """

    number: int
    path: Path
    info: VideoInfo
    indices: np.ndarray
    shown: bool = False


class _Reader:
    """Function from a job to its clips, uint8 (clips, T, 3, size, size), and a picture; other processes can call it."""

    def __init__(self, transform: zoo.VideoTransform) -> None:
        self.transform = transform

    def __call__(self, job: _Job) -> tuple[Tensor, Image.Image | None]:
        frames = read_frames(job.path, job.info, job.indices.reshape(-1).tolist())  # (clips * T, H, W, 3)
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).unflatten(0, job.indices.shape)  # (clips, T, 3, H, W)
        views = torch.cat([crops(clip, self.transform, 1) for clip in pixels])
        return views, Image.fromarray(frames[len(frames) // 2]) if job.shown else None


class _Plan(NamedTuple):
    """What is read of a video: jobs of the clips, and of the windows of the timeline with begin and end in seconds."""

    clips: list[_Job]
    windows: list[_Job]
    spans: list[tuple[float, float]]


class _Classifier:
    """Classes and timelines of videos; see ``classify_videos`` for the arguments."""

    def __init__(
        self,
        model: zoo.Backbone,
        weights: zoo.Weights,
        top: int,
        clips: int,
        window: float | None,
        step: float | None,
        batch_size: int,
        workers: int,
    ) -> None:
        assert isinstance(weights.transform, zoo.VideoTransform)
        self.model, self.classes, self.transform = model, weights.classes, weights.transform
        self.top, self.clips, self.window, self.step = top, clips, window, step
        self.batch_size, self.workers = batch_size, workers
        self.sampler = ClipSampler(weights.transform)

    def classified(
        self, files: Sequence[Path], failed: dict[str, str]
    ) -> Iterator[tuple[int, VideoInfo, Prediction, Image.Image]]:
        """Yield the number, frame times, prediction and middle picture of each video that can be read, in order.

        Args:
            files: paths of the videos.
            failed: mapping from file to reason, to which the files that cannot be read are added.
        """
        # 1. Look into all videos, and plan what is read of them.
        plans: dict[int, _Plan] = {}
        for number, info in enumerate(read_in_order(files, probe, workers=self.workers)):
            if isinstance(info, Unreadable):
                failed[str(files[number])] = info.reason
            else:
                plans[number] = self._plan(number, files[number], info)
        # 2. Read and score job by job; a video is complete with its last job.
        jobs = [job for plan in plans.values() for job in (*plan.clips, *plan.windows)]
        scores: list[Tensor] = []  # (clips, classes) of each job of the video so far
        picture: Image.Image | None = None
        done = 0
        contents = read_in_order(jobs, _Reader(self.transform), workers=self.workers)
        with Progress(len(plans), 0, 1, unit="videos", enabled=len(files) > 4) as progress:
            for i, (job, content) in enumerate(zip(jobs, contents, strict=True)):
                if isinstance(content, Unreadable):
                    failed.setdefault(str(job.path), content.reason)
                elif str(job.path) not in failed:
                    scores.append(self._scores(content[0]))
                    picture = content[1] or picture
                if i + 1 < len(jobs) and jobs[i + 1].number == job.number:
                    continue
                if str(job.path) not in failed:
                    assert picture is not None
                    yield job.number, job.info, self._prediction(plans[job.number], torch.cat(scores)), picture
                scores, picture, done = [], None, done + 1
                progress.step(done)

    def _plan(self, number: int, path: Path, info: VideoInfo) -> _Plan:
        """Return what is read of a video."""
        whole = self.transform.interval is None  # a clip is spread over the whole video
        indices = self.sampler.uniform(info, 1 if whole else self.clips)  # (clips, frames)
        middle = len(indices) // 2 // self.batch_size  # the job with the middle clip
        parts = [indices[i : i + self.batch_size] for i in range(0, len(indices), self.batch_size)]
        clips = [_Job(number, path, info, part, shown=i == middle) for i, part in enumerate(parts)]
        # the middle clip of each window of the timeline
        spans = self._windows(info)
        rows = [self.sampler.uniform(info, 1, span) for span in spans]  # (1, frames) each
        windows = [_Job(number, path, info, np.concatenate(part)) for part in chunks(rows, self.batch_size)]
        return _Plan(clips, windows, spans)

    def _scores(self, views: Tensor) -> Tensor:
        """Return the softmax (clips, classes) of uint8 clips (clips, T, 3, size, size)."""
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            scores: Tensor = self.model(standardised(views.to(device), self.transform, torch.float32)).softmax(1)
        return scores.cpu()

    def _prediction(self, plan: _Plan, scores: Tensor) -> Prediction:
        """Return the prediction of a video from the scores (clips + windows, classes) of its jobs."""
        path, info = plan.clips[0].path, plan.clips[0].info
        count = sum(len(job.indices) for job in plan.clips)
        best = best_classes(scores[:count].mean(0), self.classes, self.top)
        found = Prediction(str(path), round(info.duration, 3), *best)
        for (begin, end), row in zip(plan.spans, scores[count:], strict=True):
            best = best_classes(row, self.classes, self.top)
            found.timeline.append(Window(round(begin, 3), round(end, 3), *best))
        return found

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
        return f"{printable(best.classes[0])} {best.scores[0]:.0%}"

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
