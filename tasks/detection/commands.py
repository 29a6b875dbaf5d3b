"""``rescalenet eval | predict | export`` for detectors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import typer

import zoo
from tasks.detection.coco import load_coco
from tasks.detection.detector import create_detector
from tasks.detection.evaluate import evaluate_weights
from tasks.detection.predict import predict as detect
from tasks.devices import process_state
from tasks.errors import UserError
from tasks.images import find_images
from tasks.progress import print_line


def evaluate(
    entry: zoo.Weights,
    data: Path,
    out: Path | None,
    batch_size: int | None,
    workers: int,
    images: Path | None = None,
    fast: bool = False,
) -> None:
    """COCO's figures, of all and of each category."""
    if images is None:
        raise UserError("evaluation of a detector needs --images, the folder or zip file of the images")
    model = create_detector(entry.config.name, entry.name)
    coco = load_coco(data, images, masks=model.has_masks, check="header")
    for line in coco.report():
        print_line(line)
    reports = evaluate_weights(model, entry, coco, out=out, fast=fast, batch_size=batch_size or 1, workers=workers)
    if not process_state().is_main_process:
        return
    for kind, report in reports.items():
        typer.echo(f"{kind}\n{report.text}")
    heads = "".join(f"{kind:>8}" for kind in reports)
    typer.echo(f"{'category':<24}{heads}")
    for name in coco.names:
        values = (report.per_category[name] for report in reports.values())
        typer.echo(f"{name:<24}" + "".join(f"{'-' if v < 0 else format(v, '.3f'):>8}" for v in values))


def predict(
    entry: zoo.Weights,
    inputs: list[str],
    out: Path,
    threshold: float = 0.5,
    tile: int | None = None,
    overlap: int | None = None,
) -> bool:
    """Objects in pictures; whether any could be read."""
    model = create_detector(entry.config.name, entry.name)
    found, _ = detect(model, entry, find_images(inputs), threshold=threshold, tile=tile, overlap=overlap, out=out)
    for p in found:
        counts = Counter(instance.label for instance in p.instances)
        typer.echo(f"{p.file}: " + (", ".join(f"{n} {label}" for label, n in counts.most_common()) or "nothing"))
    return bool(found)


def export(entry: zoo.Weights, target: Path, fold: bool) -> str:
    """ONNX of the whole detector, verified; what to say of it."""
    from zoo.export.onnx import export_detector_onnx

    detector = create_detector(entry.config.name, entry.name)
    return str(export_detector_onnx(zoo.fold(detector) if fold else detector, target))
