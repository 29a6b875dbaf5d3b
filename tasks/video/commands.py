"""``rescalenet eval | predict | export`` for video classifiers, and their options.

The command line reads the options before it knows whether torch is needed, so the functions import what needs it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.errors import UserError
from tasks.files import input_path, name_or_path, output_path
from tasks.options import BatchSize, CheckOptions, Clips, Features, Normalize, PredictOptions, Side, Softmax, Top
from tasks.spec import load_model

if TYPE_CHECKING:
    import zoo
    from tasks.exporting import ExportRequest
    from tasks.report import Evaluation
    from zoo.export.graphs import Deployment

_LOOKED = 1000  # files of a folder by which its kind is recognised


@dataclass(frozen=True)
class VideoEvalOptions:
    """Options of ``rescalenet eval``."""

    batch_size: BatchSize = 8
    videos: Annotated[Path | None, typer.Option(parser=input_path, help="Folder of the videos that a file lists.")] = (
        None
    )
    subset: Annotated[
        str | None, typer.Option(parser=name_or_path, help="File with the names of the videos to evaluate.")
    ] = None
    index: Annotated[
        Path | None, typer.Option(parser=output_path, help="Default: video_index.json beside the videos.")
    ] = None
    clips: Clips = 1
    crops: Annotated[int, typer.Option(min=1, max=3, help="Crops of each clip, 1 or 3.")] = 1


def run_eval(entry: zoo.Weights, data: Path, out: Path | None, workers: int, options: VideoEvalOptions) -> Evaluation:
    """Evaluate weights on a set of videos; see ``tasks.video.evaluate.evaluate_weights`` for metrics and files."""
    from tasks.devices import process_state
    from tasks.progress import print_line
    from tasks.report import Evaluation, class_lines
    from tasks.splits import describe_set
    from tasks.video.data import read_set, report_damage, report_failures
    from tasks.video.evaluate import evaluate_weights
    from tasks.video.index import Index

    videos, root = read_set(data, options.videos, options.subset)
    if process_state().is_main_process:
        for line in describe_set(len(videos), "videos", classes=len(videos.classes), left_out=[videos.left_out]):
            print_line(line)
    result = evaluate_weights(
        load_model(entry),
        entry,
        videos,
        Index(options.index or root / "video_index.json", root),
        clips=options.clips,
        crops=options.crops,
        out=out,
        batch_size=options.batch_size,
        workers=workers,
    )
    if process_state().is_main_process:
        report_failures(result.failures, len(videos), "evaluation")
        report_damage(result.damaged, len(videos), "evaluation")
    metrics, table = result.metrics(), result.table()
    return Evaluation(metrics, class_lines(table, metrics, "videos"), table)


@dataclass(frozen=True)
class VideoPredictOptions(PredictOptions):
    """Options of ``rescalenet predict``."""

    top: Top = 5
    clips: Clips = 10
    window: Annotated[float | None, typer.Option(help="Length of a timeline's windows, in seconds.")] = None
    step: Annotated[float | None, typer.Option(help="Time between windows, in seconds; default: half a window.")] = None
    annotate: Annotated[bool, typer.Option(help="Write annotated copies.")] = False
    batch_size: BatchSize = 8


def run_predict(entry: zoo.Weights, inputs: list[str], out: Path | None, options: VideoPredictOptions) -> bool:
    """Print the classes of videos, write timelines and annotated copies; return whether any could be read."""
    from tasks.devices import describe_run, process_state
    from tasks.outputs import OutputFolder
    from tasks.printing import Results, checked_format
    from tasks.progress import print_line
    from tasks.report import CLASS_COLUMNS, print_each
    from tasks.video.predict import FILES, classify_videos
    from tasks.video.sources import find_videos

    # Check the options and the folder before anything is computed.
    format = checked_format(options.format)
    if options.annotate and out is None:
        raise UserError("--annotate writes videos: leave --no-files out")
    files = find_videos(inputs)
    folder = None if out is None else OutputFolder(out, FILES, files, overwrite=options.overwrite)
    # Classify; each result is printed at once.
    print_line(describe_run(process_state(), "fp32"))
    model = load_model(entry)
    results = Results(format, CLASS_COLUMNS)
    failed: dict[str, str] = {}
    classified = classify_videos(
        model,
        entry,
        files,
        failed,
        top=options.top,
        clips=options.clips,
        window=options.window,
        step=options.step,
        annotate=options.annotate,
        batch_size=options.batch_size,
        workers=options.workers,
        out=folder,
    )
    return print_each(results, classified) > 0


@dataclass(frozen=True)
class VideoCheckOptions(CheckOptions):
    """Options of ``rescalenet check``."""


def run_check(data: Any, out: Path | None, options: VideoCheckOptions) -> bool:
    """Check the videos of a config or folder; writes ``check.json`` and ``samples.png`` into ``out``."""
    from tasks.video.check import check_data

    return check_data(data, out, options.limit, overwrite=options.overwrite)


def recognises(path: Path) -> bool:
    """Return whether a path is data of this task: a folder of which most files, of the first found, are videos."""
    from tasks.video.containers import EXTENSIONS, PICTURES

    endings = (Path(name).suffix.lower() for _, _, names in os.walk(path) for name in names if name[0] != ".")
    videos = [ending in EXTENSIONS and ending not in PICTURES for ending in islice(endings, _LOOKED)]
    return 2 * sum(videos) > len(videos)


def prepare(config: Any) -> Path:
    """Look into all videos of a config, and return the index file.

    Training does the same at its start, where other processes wait for the first. An interrupted preparation continues.
    """
    from tasks.devices import available_cpus
    from tasks.video.data import index_path, index_videos, load_videos, print_notes, report_failures
    from tasks.video.index import Index

    path = index_path(config.data)
    workers = config.train.workers or available_cpus()
    for videos, name in zip(load_videos(config.data), ("training", "evaluation"), strict=True):
        indexed = index_videos(videos, Index(path, Path(config.data.root)), workers=workers)
        report_failures(indexed.failures, indexed.total, f"{name} set")
        print_notes(indexed.odd, indexed.total, f"{name} set")
    return path


@dataclass(frozen=True)
class VideoExportOptions:
    """Options of ``rescalenet export``."""

    size: Side | None = None
    normalize: Normalize = False
    softmax: Softmax = False
    features: Features = False


def run_export(entry: zoo.Weights, request: ExportRequest, options: VideoExportOptions) -> Deployment:
    """Return the graphs to export with their description."""
    from tasks.video.export import deployment

    return deployment(entry, request, options)
