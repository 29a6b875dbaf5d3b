"""``rescalenet eval | predict | export`` for video classifiers."""

from __future__ import annotations

from pathlib import Path

import typer

import zoo
from tasks.classification.commands import show_result
from tasks.config import read_holdout
from tasks.devices import process_state
from tasks.errors import DataError
from tasks.run import load_model
from tasks.video.data import report_failures
from tasks.video.evaluate import evaluate_weights
from tasks.video.index import Index
from tasks.video.predict import predict as classify
from tasks.video.sources import Videos, find_videos, folder_videos, kinetics_videos, list_videos


def read_set(data: Path, videos: Path | None = None, subset: str | None = None) -> tuple[Videos, Path]:
    """A set of labelled videos and the folder that they are in.

    Args:
        data: a folder of videos for each class, a file of 'path label' lines, or Kinetics' CSV.
        videos: the folder of the videos that a file lists; default: the file's.
        subset: file with the names of those to take, as ``data.holdout``.
    """
    if data.is_dir():
        root, found = data, folder_videos(data)
    else:
        root = videos or data.parent
        try:
            heading = data.open(encoding="utf-8-sig").readline()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{data}: not a folder of videos nor a list of them ({error})") from None
        found = (kinetics_videos if "youtube_id" in heading else list_videos)(data, root)
    if subset is not None:
        found = found.subset(read_holdout(subset, found.names()))
    return found, root


def evaluate(
    entry: zoo.Weights,
    data: Path,
    out: Path | None,
    batch_size: int | None,
    workers: int,
    videos: Path | None = None,
    subset: str | None = None,
    index: Path | None = None,
    clips: int = 1,
    crops: int = 1,
) -> None:
    """Top-1, top-5, mean class recall, macro-F1, single-clip and over all views; ``predictions.npz`` and more."""
    found, root = read_set(data, videos, subset)
    result = evaluate_weights(
        load_model(entry),
        entry,
        found,
        Index(index or root / "video_index.json", root),
        clips=clips,
        crops=crops,
        out=out,
        batch_size=batch_size or 8,
        workers=workers,
    )
    if not process_state().is_main_process:
        return
    report_failures(result.failures, len(found), "evaluation")
    show_result(result.table(), result.metrics(), "videos")


def predict(
    entry: zoo.Weights,
    inputs: list[str],
    out: Path,
    top: int = 5,
    clips: int = 10,
    window: float | None = None,
    step: float | None = None,
    annotate: bool = False,
) -> bool:
    """Classes of videos, timelines, annotated copies; whether any could be read."""
    predictions, _ = classify(
        load_model(entry),
        entry,
        find_videos(inputs),
        top=top,
        clips=clips,
        window=window,
        step=step,
        annotate=annotate,
        out=out,
    )
    for p in predictions:
        typer.echo(f"{p.file}: " + ", ".join(f"{k} {s:.1%}" for k, s in zip(p.classes, p.scores, strict=True)))
    return bool(predictions)


def export(entry: zoo.Weights, target: Path, fold: bool, size: int | None = None) -> str:
    """ONNX, verified; what to say of it."""
    from zoo.export.onnx import export_onnx

    transform = entry.transform
    assert isinstance(transform, zoo.VideoTransform)
    side = size or transform.size
    model = load_model(entry)
    shape = (transform.frames, side, side)
    return str(
        export_onnx(zoo.fold(model) if fold else model, target, input_size=shape, in_chans=entry.config.in_chans)
    )
