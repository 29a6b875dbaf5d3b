"""Classification of video files, with timelines of long videos and annotated copies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import zoo
from tasks.devices import best_device
from tasks.errors import DataError, UserError
from tasks.outputs import Entries, OutputFolder, try_to_draw
from tasks.plots import timeline
from tasks.printing import listed, printable
from tasks.progress import Progress, print_line
from tasks.reading import Unreadable, read_in_order, report_unread
from tasks.report import Sheet, best_classes
from tasks.shards import chunks
from tasks.video.data import SHOWN, as_clip, print_notes
from tasks.video.decode import Found, Note, VideoInfo, decode_all, find_frames, probe, read_frames, stacked
from tasks.video.encode import write_video
from tasks.video.evaluate import standardised
from tasks.video.sampling import ClipSampler
from tasks.video.transforms import FrameResize, crops, displayed

FILES = ("predictions.json", "contact_sheet.png")  # what is written for all videos together
PICTURE = 360  # pixels of the long side of a video's picture
MOST_WINDOWS = 100_000  # of the timeline of a video
_TOGETHER = 256  # files that are looked into before the first of them is classified
_CLIPS_AT_ONCE = 64  # clips of a job of a file that is decoded from the beginning each time
TIMELINE, DRAWN_TIMELINE, ANNOTATED = ".timeline.json", ".timeline.png", ".annotated.mp4"  # endings of a video's files


@dataclass
class Window:
    """A part of a video and its most likely classes.

    Attributes:
        begin: begin of the part in seconds, on the clock of a player.
        end: end of the part in seconds.
        classes: names of the classes, best first.
        scores: softmax of each of them.
    """

    begin: float
    end: float
    classes: list[str]
    scores: list[float]


@dataclass
class UnreadWindow:
    """A part of a video that could not be read, in seconds, and the reason."""

    begin: float
    end: float
    reason: str


@dataclass
class Prediction:
    """The most likely classes of a video.

    Attributes:
        file: path of the video.
        duration: duration in seconds.
        classes: names of the classes, best first.
        scores: mean softmax over the clips that could be read, of each of them; over the windows if no clip could.
        timeline: windows that could be read, in order of time; empty for short videos.
        unread_clips: number of the clips that could not be read.
        unread_windows: windows that could not be read, in order of time.
    """

    file: str
    duration: float
    classes: list[str]
    scores: list[float]
    timeline: list[Window] = field(default_factory=list)
    unread_clips: int = 0
    unread_windows: list[UnreadWindow] = field(default_factory=list)


def classify_videos(
    model: zoo.Backbone,
    weights: zoo.Weights,
    files: Sequence[Path],
    failed: dict[str, str],
    *,
    top: int = 5,
    clips: int = 10,
    window: float | None = None,
    step: float | None = None,
    annotate: bool = False,
    batch_size: int = 8,
    workers: int = 0,
    out: OutputFolder | None = None,
) -> Iterator[Prediction]:
    """Yield the classes of each video that can be read, in order; report the others, and clips and windows left out.

    The memory that is taken does not grow with the number of videos.

    Args:
        model: net of the weights.
        weights: transform, which defines the frames of a clip, and class names.
        files: paths of the videos.
        failed: mapping from file to reason, to which the files that cannot be read are added.
        top: number of classes to report for each video and window.
        clips: number of clips spread over the video; one is used if a clip is spread over the whole video itself.
        window: length of a timeline's windows in seconds; None: the length of a clip, or no timeline if a clip is
            spread over the whole video.
        step: seconds from window to window; None: half a window.
        annotate: whether to write a copy of each video, without sound, with the class in its pictures.
        batch_size: number of clips of a forward.
        workers: number of processes that read the videos.
        out: folder for ``FILES``; for videos longer than a window and a step also ``NAME.timeline.json`` and ``.png``;
            with ``annotate`` also ``NAME.annotated.mp4``. The files of a video are made after it is yielded.

    Raises:
        UserError: a window or step that is not > 0 and finite, or ``annotate`` without ``out``.
    """
    # 1. Check the arguments, and choose the names of the files.
    for name, value in (("window", window), ("step", step)):
        if value is not None and not 0 < value < inf:
            raise UserError(f"{name}={value}: must be > 0 and finite (seconds)")
    if annotate and out is None:
        raise UserError("annotate=True requires out, the folder of the annotated copies")
    stems = [] if out is None else out.stems(files, [TIMELINE, DRAWN_TIMELINE, ANNOTATED])
    entries = None if out is None else Entries(out.path)
    # 2. Classify the videos one by one.
    model.to(best_device()).to(memory_format=torch.channels_last_3d).eval()
    classifier = _Classifier(model, weights, top, clips, window, step, batch_size, workers)
    sheet = Sheet()
    for number, info, found, picture in classifier.classified(files, failed):
        yield found
        sheet.add(picture, found)
        if out is None or entries is None:
            continue
        # 3. Write the files of a video.
        path, stem = files[number], stems[number]
        if annotate:
            try:
                write_annotated(path, info, found, out.path / f"{stem}{ANNOTATED}")
            except DataError as error:  # damage after the frames of the clips; the prediction is valid
                failed[str(path)] = str(error)
        whole = asdict(found)
        entries.add({key: value for key, value in whole.items() if key != "timeline"})
        if found.timeline:
            content = {"file": found.file, "weights": weights.name, "windows": whole["timeline"]}
            out.write_json(content | {"unread_windows": whole["unread_windows"]}, f"{stem}{TIMELINE}")
            drawn = out.path / f"{stem}{DRAWN_TIMELINE}"
            try_to_draw(partial(timeline, found.timeline, drawn), drawn)
    # 4. Report, and write the files of all videos.
    unread = {str(path): failed[str(path)] for path in files if str(path) in failed}  # in the order of the files
    report_unread(unread, len(files))
    print_notes(classifier.odd, len(files))
    if out is not None and entries is not None:
        entries.write(out.path / "predictions.json", {"weights": weights.name, "failed": unread}, "predictions")
        try_to_draw(lambda: sheet.write(out.path / "contact_sheet.png"), out.path / "contact_sheet.png")


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


class _Read(NamedTuple):
    """The clips of a job that could be read.

    Attributes:
        clips: uint8 (clips that were read, T, 3, size, size).
        good: whether each clip of the job was read.
        reason: reason of the others; empty if all were read.
        picture: picture from the middle, if the job asks for it.
    """

    clips: Tensor
    good: list[bool]
    reason: str
    picture: Image.Image | None


class _Reader:
    """Function from a job to its clips, which other processes can call."""

    def __init__(self, transform: zoo.VideoTransform) -> None:
        self.transform = transform

    def __call__(self, job: _Job) -> _Read:
        rows, view = job.indices.tolist(), _View(self.transform, job.info.pixel_ratio)
        found = find_frames(job.path, job.info, job.indices.reshape(-1).tolist(), view)
        good = [not set(row) & set(found.missing) for row in rows]
        read = [as_clip(stacked(job.path, found.frames, row)) for row, whole in zip(rows, good, strict=True) if whole]
        clips = torch.stack(read) if read else torch.zeros(0, dtype=torch.uint8)
        reason = found.reason(job.path, job.info) if found.missing else ""
        return _Read(clips, good, reason, self._picture(job, found) if job.shown else None)

    def _picture(self, job: _Job, found: Found) -> Image.Image | None:
        """Return the middle frame at a size for people, or the one of those that were read; None without any."""
        chosen = [i for i in job.indices.reshape(-1).tolist() if i in found.frames]
        if not chosen:
            return None
        (frame,) = read_frames(job.path, job.info, [chosen[len(chosen) // 2]])
        picture = displayed(frame, job.info.pixel_ratio)
        picture.thumbnail((PICTURE, PICTURE))
        return picture


@dataclass(frozen=True)
class _View:
    """Function from a frame (H, W, 3) to its part that the net sees: (size, size, 3)."""

    transform: zoo.VideoTransform
    pixel_ratio: float

    def __call__(self, image: np.ndarray) -> np.ndarray:
        resized = FrameResize(self.transform.resize, self.transform, self.pixel_ratio)(image)
        view: np.ndarray = crops(as_clip(resized[None]), self.transform, 1)[0, 0].permute(1, 2, 0).contiguous().numpy()
        return view


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
        self.odd: dict[Note, list[str]] = defaultdict(list)  # files with each note

    def classified(
        self, files: Sequence[Path], failed: dict[str, str]
    ) -> Iterator[tuple[int, VideoInfo, Prediction, Image.Image]]:
        """Yield the number, frame times, prediction and middle picture of each video that can be read, in order.

        Args:
            files: paths of the videos.
            failed: mapping from file to reason, to which the files that cannot be read are added.
        """
        with Progress(len(files), 0, 1, unit="videos", enabled=len(files) > 4) as progress:
            # A part of the files at a time, so that memory does not grow with their number.
            for begin in range(0, len(files), _TOGETHER):
                numbers = range(begin, min(begin + _TOGETHER, len(files)))
                yield from self._classified(files, numbers, failed, progress)

    def _classified(
        self, files: Sequence[Path], numbers: range, failed: dict[str, str], progress: Progress
    ) -> Iterator[tuple[int, VideoInfo, Prediction, Image.Image]]:
        """Yield what ``classified`` yields for some of the files.

        Args:
            numbers: numbers of the files.
            progress: display, which counts files.
        """
        # 1. Look into the videos, and plan what is read of them.
        plans: dict[int, _Plan] = {}
        looks = read_in_order([files[number] for number in numbers], probe, workers=self.workers)
        for number, info in zip(numbers, looks, strict=True):
            if isinstance(info, Unreadable):
                failed[str(files[number])] = info.reason
                continue
            try:
                plans[number] = self._plan(number, files[number], info)
            except DataError as error:
                failed[str(files[number])] = str(error)
                continue
            for note in info.notes:
                self.odd[note].append(str(files[number]))
        # 2. Read and score job by job; a video is complete with its last job.
        jobs = [job for plan in plans.values() for job in (*plan.clips, *plan.windows)]
        scores: list[Tensor | None] = []  # (classes,) of each clip of the video so far; None: it could not be read
        reasons: list[str] = []  # of the same clips
        picture: Image.Image | None = None
        contents = read_in_order(jobs, _Reader(self.transform), workers=self.workers)
        for i, (job, content) in enumerate(zip(jobs, contents, strict=True)):
            if isinstance(content, Unreadable):
                content = _Read(torch.zeros(0), [False] * len(job.indices), content.reason, None)
            rows = iter(self._scores(content.clips)) if any(content.good) else iter(())
            scores += [next(rows) if whole else None for whole in content.good]
            reasons += [content.reason] * len(job.indices)
            picture = content.picture or picture
            if i + 1 < len(jobs) and jobs[i + 1].number == job.number:
                continue
            if any(row is not None for row in scores):
                found = self._prediction(plans[job.number], scores, reasons)
                yield job.number, job.info, found, picture or Image.new("RGB", (64, 48))
            else:
                failed[str(job.path)] = reasons[0]
            scores, reasons, picture = [], [], None
            progress.step(job.number + 1)

    def _plan(self, number: int, path: Path, info: VideoInfo) -> _Plan:
        """Return what is read of a video.

        Raises:
            DataError: a timeline of more than ``MOST_WINDOWS`` windows.
        """
        whole = self.transform.interval is None  # a clip is spread over the whole video
        indices = self.sampler.uniform(info, 1 if whole else self.clips)  # (clips, frames)
        # a file that cannot be sought is decoded from the beginning for each job
        size = self.batch_size if info.seekable else max(self.batch_size, _CLIPS_AT_ONCE)
        middle = len(indices) // 2 // size  # the job with the middle clip
        parts = [indices[i : i + size] for i in range(0, len(indices), size)]
        clips = [_Job(number, path, info, part, shown=i == middle) for i, part in enumerate(parts)]
        # the middle clip of each window of the timeline
        spans = self._windows(path, info)
        rows = [self.sampler.uniform(info, 1, span) for span in spans]  # (1, frames) each
        windows = [_Job(number, path, info, np.concatenate(part)) for part in chunks(rows, size)]
        return _Plan(clips, windows, spans)

    def _scores(self, clips: Tensor) -> Tensor:
        """Return the softmax (clips, classes) of uint8 clips (clips, T, 3, size, size)."""
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            parts = [
                self.model(standardised(part.to(device), self.transform, torch.float32)).softmax(1)
                for part in clips.split(self.batch_size)
            ]
        return torch.cat(parts).cpu()

    def _prediction(self, plan: _Plan, scores: Sequence[Tensor | None], reasons: Sequence[str]) -> Prediction:
        """Return the prediction of a video.

        Args:
            plan: plan of what was to be read.
            scores: scores (classes,) of each clip and then of each window; None where it could not be read.
            reasons: reason of each that could not be read.
        """
        path, info = plan.clips[0].path, plan.clips[0].info
        count = sum(len(job.indices) for job in plan.clips)
        clips = [row for row in scores[:count] if row is not None]
        windows = [row for row in scores[count:] if row is not None]
        best = best_classes(torch.stack(clips or windows).mean(0), self.classes, self.top)
        found = Prediction(str(path), round(info.duration, 3), *best, unread_clips=count - len(clips))
        for (begin, end), row, reason in zip(plan.spans, scores[count:], reasons[count:], strict=True):
            if row is None:
                found.unread_windows.append(UnreadWindow(round(begin, 3), round(end, 3), reason))
            else:
                best = best_classes(row, self.classes, self.top)
                found.timeline.append(Window(round(begin, 3), round(end, 3), *best))
        _report_damage(found, count, len(plan.spans), reasons)
        return found

    def _windows(self, path: Path, info: VideoInfo) -> list[tuple[float, float]]:
        """Return begin and end in seconds of a timeline's windows; none if the video is shorter than two of them."""
        length = self.window or (None if self.transform.interval is None else self.sampler.span(info))
        if length is None:
            return []
        stride = self.step or length / 2
        if info.duration < length + stride:
            return []
        count = int((info.duration - length) / stride + 1e-9) + 1
        if count > MOST_WINDOWS:
            raise DataError(
                f"{path}: its {info.duration:.0f} s would have {count} windows of {length:g} s, one each {stride:g} s; "
                f"there may be {MOST_WINDOWS}: raise --window or --step, or correct the times of the file"
            )
        begins = [k * stride for k in range(count)]
        if begins[-1] + length < info.duration - 1e-6:
            begins.append(info.duration - length)  # the steps may end before the video does
        return [(info.delay + begin, info.delay + begin + length) for begin in begins]


def _report_damage(found: Prediction, clips: int, windows: int, reasons: Sequence[str]) -> None:
    """Print what of a video could not be read: the number of clips, and the windows by their times.

    Args:
        found: prediction from the rest.
        clips: number of the clips.
        windows: number of the windows.
        reasons: reasons, empty for those that were read.
    """
    lost = [f"{w.begin:g}-{w.end:g} s" for w in found.unread_windows]
    parts = [f"{found.unread_clips} of {clips} clips"] if found.unread_clips else []
    parts += [f"{len(lost)} of {windows} windows ({listed(lost, SHOWN)})"] if lost else []
    if parts:
        print_line(f"left out: {' and '.join(parts)}: {next(reason for reason in reasons if reason)}")


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
        windows = [w for w in found.timeline if w.begin <= info.delay + seconds < w.end]
        best: Any = min(windows, key=lambda w: abs(info.delay + seconds - (w.begin + w.end) / 2)) if windows else found
        return f"{printable(best.classes[0])} {best.scores[0]:.0%}"

    def captioned() -> Iterator[np.ndarray]:
        """Yield the frames with their captions: uint8 (H, W, 3)."""
        for pixels, seconds in zip(decode_all(path), info.times.tolist(), strict=False):
            picture = displayed(pixels, info.pixel_ratio)
            # H.264's usual colour format requires even sides.
            image = Image.new("RGB", (picture.width + picture.width % 2, picture.height + picture.height % 2))
            image.paste(picture)
            pen, text = ImageDraw.Draw(image), caption(seconds)
            pen.rectangle(pen.textbbox((4, 2), text, font=font), fill=(0, 0, 0))
            pen.text((4, 2), text, fill=(255, 255, 255), font=font)
            yield np.asarray(image)

    rate = Fraction(info.fps).limit_denominator(1001)
    times = ((info.pts - info.first).tolist(), info.time_base)
    write_video(target, captioned(), rate, options={"crf": "20", "preset": "fast"}, times=times)
    print_line(f"{target}: {found.duration:.1f} s, annotated")
