"""``rescalenet eval | predict | check | export`` for image classifiers, and their options.

The command line reads the options before it knows whether torch is needed, so the functions import what needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import DataError
from tasks.options import (
    Augmentation,
    BatchSize,
    CheckOptions,
    ClassFilter,
    Features,
    Normalize,
    PredictOptions,
    Side,
    Softmax,
    Threshold,
    Top,
    chosen_classes,
    flips,
    thresholds,
)
from tasks.spec import load_model

if TYPE_CHECKING:
    import zoo
    from tasks.exporting import ExportRequest
    from tasks.report import Evaluation
    from zoo.export.graphs import Deployment


@dataclass(frozen=True)
class ClassificationEvalOptions:
    """Options of ``rescalenet eval``."""

    batch_size: BatchSize = 256
    tta: Augmentation | None = None


def run_eval(
    entry: zoo.Weights, data: Path, out: Path | None, workers: int, options: ClassificationEvalOptions
) -> Evaluation:
    """Evaluate weights on a folder or list of images; writes ``metrics.json`` and ``confusion.png`` into ``out``."""
    from tasks.classification.data import look_at_sample, read_set
    from tasks.classification.evaluate import FILES, evaluate_weights, with_failures
    from tasks.devices import process_state
    from tasks.outputs import OutputFolder
    from tasks.progress import print_line
    from tasks.report import Evaluation, class_lines
    from tasks.splits import describe_set

    flip, images = flips(options.tta), read_set(data, entry.config.in_chans)
    if out is not None:  # the command line has asked for earlier results, but knows no images
        OutputFolder(out, FILES, map(Path, images.paths or ()), overwrite=True)
    if process_state().is_main_process:
        lines = describe_set(len(images), "images", classes=len(images.classes), left_out=[images.left_out])
        for line in [*lines, *look_at_sample(images)]:
            print_line(line)
    failed: dict[str, str] = {}
    counts = evaluate_weights(
        load_model(entry),
        entry,
        images,
        out=out,
        batch_size=options.batch_size,
        workers=workers,
        flip=flip,
        failed=failed,
    )
    metrics, table = with_failures(counts.metrics(), failed), counts.table(entry.classes)
    return Evaluation(metrics, class_lines(table, metrics, "images"), table)


@dataclass(frozen=True)
class ClassificationPredictOptions(PredictOptions):
    """Options of ``rescalenet predict``."""

    top: Top = 5
    threshold: Threshold = "0"
    classes: ClassFilter | None = None
    tta: Augmentation | None = None
    batch_size: BatchSize = 32


def run_predict(entry: zoo.Weights, inputs: list[str], out: Path | None, options: ClassificationPredictOptions) -> bool:
    """Print the classes of pictures, and return whether any could be read."""
    from tasks.classification.predict import FILES, classify_images
    from tasks.devices import describe_run, process_state
    from tasks.images import find_images
    from tasks.outputs import OutputFolder
    from tasks.printing import Results, checked_format
    from tasks.progress import print_line
    from tasks.report import CLASS_COLUMNS, print_each

    # Check the options and the folder before anything is computed.
    format, flip = checked_format(options.format), flips(options.tta)
    only = chosen_classes(options.classes, entry.classes, entry.name)
    threshold = thresholds(options.threshold, entry.classes, entry.name, 0.0)
    files = find_images(inputs, entry.config.in_chans)
    folder = None if out is None else OutputFolder(out, FILES, files, overwrite=options.overwrite)
    # Classify; each result is printed at once.
    print_line(describe_run(process_state(), "fp32"))
    model = load_model(entry)
    results = Results(format, CLASS_COLUMNS)
    failed: dict[str, str] = {}
    classified = classify_images(
        model,
        entry,
        files,
        failed,
        top=options.top,
        threshold=threshold,
        only=only,
        flip=flip,
        batch_size=options.batch_size,
        workers=options.workers,
        out=folder,
    )
    if not print_each(results, classified):
        raise DataError(f"none of {len(files)} pictures could be read; the reasons are above")
    return True


@dataclass(frozen=True)
class ClassificationCheckOptions(CheckOptions):
    """Options of ``rescalenet check``."""


def run_check(data: Any, out: Path | None, options: ClassificationCheckOptions) -> bool:
    """Check the images of a config or folder; writes ``check.json`` and ``samples.png`` into ``out``."""
    from tasks.classification.check import check_data

    return check_data(data, out, options.limit, overwrite=options.overwrite)


@dataclass(frozen=True)
class ClassificationExportOptions:
    """Options of ``rescalenet export``."""

    size: Side | None = None
    normalize: Normalize = False
    softmax: Softmax = False
    features: Features = False


def run_export(entry: zoo.Weights, request: ExportRequest, options: ClassificationExportOptions) -> Deployment:
    """Return the graphs to export with their description."""
    from tasks.classification.export import deployment

    return deployment(entry, request, options)
