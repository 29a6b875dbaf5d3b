"""``rescalenet check`` for videos: every file is indexed, and one clip of each is read as evaluation reads it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import zoo
from tasks.check import SHOWN, Report, stops_at_start
from tasks.devices import available_cpus
from tasks.errors import UserError
from tasks.outputs import OutputFolder, try_to_draw
from tasks.printing import listed, printable
from tasks.progress import Progress
from tasks.reading import Unreadable, read_in_order
from tasks.splits import describe_sets
from tasks.video.config import VideoConfig
from tasks.video.data import EvalSet, Indexed
from tasks.video.decode import NOTES
from tasks.video.model import VideoClassification
from tasks.video.sampling import ClipSampler
from zoo.files import atomic_write

FILES = ("check.json", "samples.png")  # what is written
ROWS, FRAMES = 8, 4  # videos on the sheet, and frames of a clip
TILE = 160  # side of a picture on the sheet, in pixels
UNEVEN = 10  # ratio of the largest class to the smallest that is warned of


@dataclass
class CheckedSet:
    """A set of which clips were read.

    Attributes:
        name: name of the set: train or val.
        videos: all videos.
        looked: number of the videos of which the middle clip was read.
        unread: reason for each whose middle clip cannot be decoded, by its name.
    """

    name: str
    videos: Indexed
    looked: int = 0
    unread: dict[str, str] = field(default_factory=dict)


def check_data(data: VideoConfig | Path, out: Path | None, limit: int | None, *, overwrite: bool = False) -> bool:
    """Check the videos of a config, print the report, and return whether training would run.

    Args:
        data: config.
        out: folder for ``FILES``.
        limit: number of videos of each set of which a clip is read; None: all. The index has all in any case.
        overwrite: whether earlier results in the folder are replaced.

    Raises:
        UserError, ZooError: a set that cannot be found, settings that do not go together, a folder that cannot be
            written or has earlier results.
    """
    if isinstance(data, Path):
        raise UserError(
            f"{data}: a folder of videos is checked with a config: rescalenet check CONFIG data.root={data}; "
            "docs/finetune_video.md has one"
        )
    folder = None if out is None else OutputFolder(out, FILES, overwrite=overwrite)
    report = Report()
    # 1. Find and index the videos; how many may fail is compared below, after all have been looked at.
    allowed = data.data.max_failed
    lenient = data.model_copy(update={"data": data.data.model_copy(update={"max_failed": 1.0})})
    task = VideoClassification(lenient, workers=available_cpus(), report=False)
    sets = [CheckedSet("train", task.train_videos), CheckedSet("val", task.val_videos)]
    train, val = (found.videos.total for found in sets)
    report.lines += describe_sets(train, val, "videos", classes=len(task.classes), left_out=task.left_out)
    # 2. Read clips, and describe the sets.
    report.content |= {"input": asdict(task.transform), "sets": {}}
    for found in sets:
        _look(found, task.transform, limit)
        _describe(found, task.transform, report)
    _describe_classes(sets, report)
    failed = len(sets[0].videos.failures) / sets[0].videos.total
    if failed > allowed:
        report.stops.append(f"train: {failed:.1%} of the videos cannot be read, data.max_failed is {allowed:.1%}")
    report.stops += stops_at_start(task)
    # 3. Write the results.
    if folder is not None:
        report.write(folder.path)
        sheet = folder.path / "samples.png"
        try_to_draw(lambda: draw_samples(task, sheet), sheet)
    return report.show()


def _look(checked: CheckedSet, transform: zoo.VideoTransform, limit: int | None) -> None:
    """Read the middle clips of a set, evenly spread if there is a limit."""
    count = len(checked.videos)
    chosen = np.unique(np.linspace(0, count - 1, min(limit or count, count)).astype(int)).tolist()
    views = read_in_order(chosen, EvalSet(checked.videos, transform, 1, 1).__getitem__, workers=available_cpus())
    with Progress(len(chosen), 0, 1, unit="videos") as progress:
        for done, (number, found) in enumerate(zip(chosen, views, strict=True), 1):
            reason = found.reason if isinstance(found, Unreadable) else found.failure
            if reason:
                checked.unread[checked.videos.items[number].name] = reason
            progress.step(done, set=checked.name)
    checked.looked = len(chosen)


def _describe(checked: CheckedSet, transform: zoo.VideoTransform, report: Report) -> None:
    """Add the durations, rates, sizes, codecs and faults of a set to the report."""
    name, videos = checked.name, checked.videos
    # Durations, rates, sizes, codecs.
    infos = list(videos.infos)
    sampler = ClipSampler(transform)
    clip = None if transform.interval is None else max(sampler.span(info) for info in infos)
    short = [video.name for video, info in zip(videos.items, infos, strict=True) if info.duration < sampler.span(info)]
    values: dict[str, list[float]] = {
        "seconds": [round(info.duration, 3) for info in infos],
        "fps": [round(info.fps, 3) for info in infos],
        "width": [info.width for info in infos],
        "height": [info.height for info in infos],
    }
    codecs = Counter(info.codec or "unknown" for info in infos)
    # All numbers and names, for the file.
    content: dict[str, Any] = {
        "videos": videos.total,
        "clips_read": checked.looked,
        **{key: {"min": min(v), "median": sorted(v)[len(v) // 2], "max": max(v)} for key, v in values.items()},
        "codecs": dict(codecs.most_common()),
        "shorter_than_a_clip": short if clip is not None else [],
        "unreadable": videos.failures,
        "unreadable_clips": checked.unread,
        "odd": dict(videos.odd),
    }
    report.content["sets"][name] = content
    shown = [
        f"{key} {content[key]['min']:g} to {content[key]['max']:g} (median {content[key]['median']:g})"
        for key in values
    ]
    report.lines.append(f"{name}: {len(videos)} of {videos.total} videos; {', '.join(shown)}")
    report.lines.append(f"{name}: codecs " + ", ".join(f"{codec} {count}" for codec, count in codecs.most_common()))
    if clip is not None and short:
        report.lines.append(
            f"{name}: videos shorter than a clip of {clip:.2g} s, which repeat their last frame: {len(short)} of "
            f"{len(videos)}"
        )
    # Faults, the same reasons together.
    for what, failures in (
        ("videos that cannot be read", videos.failures),
        ("clips that cannot be read", checked.unread),
    ):
        if failures:
            report.warnings.append(f"{name}: {what}: {len(failures)} of {videos.total}")
            report.warnings += [f"{name}: {line}" for line in by_reason(failures)]
    for note, names in videos.odd.items():
        shown_names = listed([printable(each) for each in names], SHOWN)
        report.warnings.append(f"{name}: {len(names)} of {videos.total} videos {NOTES[note]}: {shown_names}")


def by_reason(failures: dict[str, str]) -> list[str]:
    """Return a line for each reason, with the number of its videos and the names of the first.

    Args:
        failures: mapping from the name of a video to the reason, which may begin with a path.
    """
    groups: dict[str, list[str]] = {}
    for name, reason in failures.items():
        kind = re.sub(r"\d+(\.\d+)?", "N", reason.rpartition(": ")[2])  # without path and numbers
        groups.setdefault(kind, []).append(name)
    ranked = sorted(groups.items(), key=lambda pair: -len(pair[1]))
    return [f"{len(names)} {printable(kind)}: {listed([*map(printable, names)], SHOWN)}" for kind, names in ranked]


def _describe_classes(checked: Sequence[CheckedSet], report: Report) -> None:
    """Add the number of readable videos of each class to the report."""
    classes = checked[0].videos.classes
    counts = [Counter(video.label for video in found.videos.items) for found in checked]
    for found, count in zip(checked, counts, strict=True):
        report.content["sets"][found.name]["classes"] = {name: count[i] for i, name in enumerate(classes)}
    report.lines.append(f"{'class':<32}" + "".join(f"{found.name:>9}" for found in checked))
    for i, name in enumerate(classes[: 10 * SHOWN]):
        report.lines.append(f"{printable(name):<32}" + "".join(f"{count[i]:>9}" for count in counts))
    if len(classes) > 10 * SHOWN:
        report.lines.append(f"... and {len(classes) - 10 * SHOWN} more classes")
    numbers = [counts[0][i] for i in range(len(classes))]
    if len(classes) < 2:
        report.stops.append("train: one class only; training needs two classes or more")
    if empty := [name for name, number in zip(classes, numbers, strict=True) if not number]:
        report.warnings.append(f"train: classes without a readable video: {listed([*map(printable, empty)], SHOWN)}")
    elif max(numbers) >= UNEVEN * min(numbers):
        report.warnings.append(f"train: the largest class has {max(numbers)} videos, the smallest {min(numbers)}")


def draw_samples(task: VideoClassification, path: Path) -> None:
    """Draw frames as the net sees them: of the middle clip as in evaluation, then of an augmented clip in training."""
    train, videos = task.train_set(), task.train_videos
    evaluated = EvalSet(videos, task.transform, 1, 1)
    chosen = np.unique(np.linspace(0, len(videos) - 1, ROWS).astype(int)).tolist()
    frames = np.unique(np.linspace(0, task.transform.frames - 1, FRAMES).astype(int)).tolist()
    font = ImageFont.load_default(size=13)
    gap, line = 6, 20
    step = TILE + gap
    size = (gap + 2 * len(frames) * step + gap, line + len(chosen) * (step + line) + gap)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, text in enumerate(("as in evaluation", "augmented")):
        pen.text((gap + column * (len(frames) * step + gap), 2), text, fill="black", font=font)
    # A row for each video, under its class and name.
    for row, number in enumerate(chosen):
        top = line + row * (step + line)
        video = videos.items[number]
        pen.text((gap, top), printable(f"{videos.classes[video.label]}: {video.name}"), fill="black", font=font)
        for column, clip in enumerate((evaluated[number].clips[0], train[0, number].clip)):
            for place, frame in enumerate(frames):
                tile = Image.fromarray(clip[frame].permute(1, 2, 0).contiguous().numpy()).resize((TILE, TILE))
                sheet.paste(tile, (gap + column * (len(frames) * step + gap) + place * step, top + line))
    atomic_write(path, lambda temporary: sheet.save(temporary, format="PNG"))
