"""``rescalenet eval | predict | export`` for detectors, and their options.

The command line reads the options before it knows whether torch is needed, so the functions import what needs it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.errors import UserError
from tasks.options import BatchSize
from tasks.spec import load_model

if TYPE_CHECKING:
    import zoo
    from tasks.report import Evaluation


@dataclass(frozen=True)
class DetectionEvalOptions:
    """Options of ``rescalenet eval``."""

    batch_size: BatchSize = 1
    images: Annotated[Path | None, typer.Option(help="Folder or zip file of the images.")] = None
    fast: Annotated[bool, typer.Option(help="Compute the metrics with faster-coco-eval.")] = False


def run_eval(
    entry: zoo.Weights, data: Path, out: Path | None, workers: int, options: DetectionEvalOptions
) -> Evaluation:
    """Evaluate a detector by COCO's metrics, of all objects and of each category."""
    from tasks.detection.coco import load_coco
    from tasks.detection.evaluate import all_metrics, evaluate_weights
    from tasks.progress import print_line
    from tasks.report import Evaluation

    if options.images is None:
        raise UserError("a detector's evaluation needs --images FOLDER or --images FILE.zip, which has the images")
    model = load_model(entry)
    coco = load_coco(data, options.images, masks=model.has_masks, check="header")
    for line in coco.report():
        print_line(line)
    reports = evaluate_weights(
        model, entry, coco, out=out, fast=options.fast, batch_size=options.batch_size, workers=workers
    )
    # The lines of pycocotools, then a table with a row for each category and a column for each kind.
    lines = [f"{kind}\n{report.text}" for kind, report in reports.items()]
    lines.append(f"{'category':<24}" + "".join(f"{kind:>8}" for kind in reports))
    for name in coco.names:
        values = (report.per_category[name] for report in reports.values())
        lines.append(f"{name:<24}" + "".join(f"{'-' if v < 0 else format(v, '.3f'):>8}" for v in values))
    return Evaluation(all_metrics(reports), lines)


@dataclass(frozen=True)
class DetectionPredictOptions:
    """Options of ``rescalenet predict``."""

    threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score that is reported.")] = 0.5
    tile: Annotated[int | None, typer.Option(min=1, help="Side of tiles for large pictures, in pixels.")] = None
    overlap: Annotated[
        int | None, typer.Option(min=0, help="Overlap of tiles, in pixels; default: a quarter of a tile.")
    ] = None


def run_predict(entry: zoo.Weights, inputs: list[str], out: Path | None, options: DetectionPredictOptions) -> bool:
    """Print the objects in pictures, and return whether any picture could be read."""
    from tasks.detection.predict import detect_objects
    from tasks.images import find_images

    found, _ = detect_objects(
        load_model(entry),
        entry,
        find_images(inputs),
        threshold=options.threshold,
        tile=options.tile,
        overlap=options.overlap,
        out=out,
    )
    for p in found:
        counts = Counter(instance.label for instance in p.instances)
        typer.echo(f"{p.file}: " + (", ".join(f"{n} {label}" for label, n in counts.most_common()) or "nothing"))
    return bool(found)


@dataclass(frozen=True)
class DetectionExportOptions:
    """Options of ``rescalenet export``; there are none."""


def example_inputs(entry: zoo.Weights, options: DetectionExportOptions) -> tuple[Any, ...]:
    """Return a list of three images (3, H, W) of noise in 0..1, of different sizes."""
    from zoo.export.onnx import noise_images

    return (noise_images(),)
