"""``rescalenet eval | predict | export`` for image classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

import zoo
from tasks.classification.data import folder_images
from tasks.classification.evaluate import evaluate_weights
from tasks.classification.predict import predict as classify
from tasks.images import find_images
from tasks.run import load_model


def evaluate(entry: zoo.Weights, data: Path, out: Path | None, batch_size: int | None, workers: int) -> None:
    """Top-1, the table of classes, and ``metrics.json`` and ``confusion.png``."""
    images = folder_images(data)
    result = evaluate_weights(load_model(entry), entry, images, out=out, batch_size=batch_size or 256, workers=workers)
    show_result(result.table(entry.classes), result.metrics(), "images")


def show_result(table: Sequence[Mapping[str, Any]], metrics: Mapping[str, float], unit: str) -> None:
    """A line for each class, with its number of ``unit``, and one for the metrics."""
    typer.echo(f"{'class':<24}{unit:>8}{'recall':>9}{'precision':>11}  most often taken for")
    for row in table:
        recall, precision = ("-" if row[k] is None else f"{row[k]:.1%}" for k in ("recall", "precision"))
        typer.echo(f"{row['class']:<24}{row[unit]:>8}{recall:>9}{precision:>11}  {row['taken_for']}")
    typer.echo("  ".join(f"{key} {value:.6g}" for key, value in metrics.items()))


def predict(entry: zoo.Weights, inputs: list[str], out: Path, top: int = 5) -> bool:
    """Classes of pictures; whether any could be read."""
    predictions, _ = classify(load_model(entry), entry, find_images(inputs), top=top, out=out)
    for p in predictions:
        typer.echo(f"{p.file}: " + ", ".join(f"{k} {s:.1%}" for k, s in zip(p.classes, p.scores, strict=True)))
    return bool(predictions)


def export(entry: zoo.Weights, target: Path, fold: bool, size: int | None = None) -> str:
    """ONNX, verified; what to say of it."""
    from zoo.export.onnx import export_onnx

    assert isinstance(entry.transform, zoo.InputTransform)
    model = load_model(entry)
    side = size or entry.transform.size
    model = zoo.fold(model) if fold else model
    return str(export_onnx(model, target, input_size=side, in_chans=entry.config.in_chans))
