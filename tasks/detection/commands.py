"""``rescalenet eval | score | predict | export`` for detectors, and their options.

The command line reads the options before it knows whether torch is needed, so the functions import what needs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.errors import UserError
from tasks.files import input_path
from tasks.options import (
    Augmentation,
    BatchSize,
    CheckOptions,
    ClassFilter,
    Features,
    Normalize,
    PredictOptions,
    Threshold,
    chosen_classes,
    thresholds,
)
from tasks.spec import load_model

if TYPE_CHECKING:
    import zoo
    from tasks.detection.choice import Choice
    from tasks.detection.evaluate import CocoReport, Kind
    from tasks.detection.results import ImageIds
    from tasks.exporting import ExportRequest
    from tasks.report import Evaluation
    from zoo.export.graphs import Deployment


Fast = Annotated[bool, typer.Option(help="Compute the metrics with faster-coco-eval.")]
MOST = 10_000  # objects of an image: their proposals take a gigabyte
MaxDets = Annotated[
    int,
    typer.Option(
        min=1, max=MOST, help="Detections of an image that the metrics count, and that the detector reports at least."
    ),
]
Suppression = Annotated[
    float, typer.Option(min=0, max=1, help="Largest IoU of two objects of a class; default: the weights'.")
]


@dataclass(frozen=True)
class DetectionEvalOptions:
    """Options of ``rescalenet eval``."""

    batch_size: BatchSize = 1
    images: Annotated[Path | None, typer.Option(parser=input_path, help="Folder or zip file of the images.")] = None
    fast: Fast = False
    max_dets: MaxDets = 100
    nms: Suppression | None = None
    tta: Augmentation | None = None


def run_eval(
    entry: zoo.Weights, data: Path, out: Path | None, workers: int, options: DetectionEvalOptions
) -> Evaluation:
    """Evaluate a detector by COCO's metrics, of all objects and of each category."""
    from tasks.detection.choice import Choice
    from tasks.detection.coco import load_coco
    from tasks.detection.evaluate import evaluate_weights
    from tasks.detection.views import parse_views
    from tasks.devices import process_state
    from tasks.engine.ranks import from_main
    from tasks.progress import print_line
    from tasks.splits import describe_set

    if options.images is None:
        raise UserError("a detector's evaluation needs --images FOLDER or --images FILE.zip, which has the images")
    choice = Choice(nms=options.nms, views=parse_views(options.tta))
    model = load_model(entry)
    # Read the set once, in the main process, for all.
    images = options.images
    coco = from_main(process_state(), lambda: load_coco(data, images, masks=model.has_masks, check="header"))
    if process_state().is_main_process:
        for line in [*describe_set(len(coco), "images", classes=len(coco.names)), *coco.report()]:
            print_line(line)
    # Evaluate what can be read of it.
    failed: dict[str, str] = {}
    reports = evaluate_weights(
        model,
        entry,
        coco,
        out=out,
        fast=options.fast,
        batch_size=options.batch_size,
        workers=workers,
        failed=failed,
        choice=choice,
        limit=options.max_dets,
    )
    return _evaluation(reports, coco.names, {"images": len(coco) - len(failed), "failed": len(failed)})


def _evaluation(reports: Mapping[Kind, CocoReport], names: Sequence[str], counts: Mapping[str, int]) -> Evaluation:
    """Return the lines of pycocotools, then a table with a row for each category and a column for each kind."""
    from tasks.detection.evaluate import all_metrics
    from tasks.report import Evaluation

    lines = [line for kind, report in reports.items() for line in (kind, *report.text.splitlines())]
    lines.append(f"{'category':<24}" + "".join(f"{kind:>8}" for kind in reports))
    rows = []
    for name in names:
        values = {kind: report.per_category[name] for kind, report in reports.items()}
        lines.append(f"{name:<24}" + "".join(f"{'-' if v < 0 else format(v, '.3f'):>8}" for v in values.values()))
        rows.append({"class": name, **{f"{kind}_ap": None if v < 0 else v for kind, v in values.items()}})
    lines.append("  ".join(f"{key} {value}" for key, value in counts.items()))
    return Evaluation({**all_metrics(reports), **counts}, lines, rows)


@dataclass(frozen=True)
class DetectionScoreOptions:
    """Options of ``rescalenet score``."""

    fast: Fast = False
    max_dets: MaxDets = 100


def run_score(results: Path, data: Path, out: Path | None, options: DetectionScoreOptions) -> Evaluation:
    """Compute COCO's metrics of detections in a file; writes ``metrics.json`` into ``out``."""
    from tasks.detection.coco import load_coco
    from tasks.detection.evaluate import all_metrics, beyond_limit, coco_metrics
    from tasks.detection.results import choose_results, parse_results
    from tasks.progress import print_line
    from zoo.files import write_json

    # The masks of the set are needed for those of the results alone.
    given = parse_results(results)
    masks = any("segmentation" in result for result in given)
    boxes = any(result.get("bbox") for result in given)
    coco = load_coco(data, data.parent, masks=None if masks and boxes else masks, check="none")
    found, kinds = choose_results(results, given, coco)
    if "segm" in kinds and not coco.has_masks:
        print_line(f"{data}: has no masks, so that the boxes of {results} alone are scored")
        kinds = ("bbox",)
    if (note := beyond_limit(coco, options.max_dets)) is not None:
        print_line(note)
    reports = coco_metrics(coco, found, kinds, fast=options.fast, limit=options.max_dets)
    if out is not None:
        per_category = {kind: report.per_category for kind, report in reports.items()}
        write_json({"metrics": all_metrics(reports), "per_category": per_category}, out / "metrics.json")
    return _evaluation(reports, coco.names, {"images": len(coco), "results": len(found)})


@dataclass(frozen=True)
class DetectionPredictOptions(PredictOptions):
    """Options of ``rescalenet predict``."""

    threshold: Threshold = "0.5"
    classes: ClassFilter | None = None
    detections: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST, help="Largest number of objects of a picture, or of a tile; default: the weights'."
        ),
    ] = None
    nms: Suppression | None = None
    tta: Augmentation | None = None
    tile: Annotated[int | None, typer.Option(min=1, help="Side of tiles for large pictures, in pixels.")] = None
    overlap: Annotated[
        int | None, typer.Option(min=0, help="Overlap of tiles, in pixels; default: a quarter of a tile.")
    ] = None
    coco: Annotated[
        Path | None,
        typer.Option(parser=input_path, help="COCO file with the pictures' ids; results in COCO's format are added."),
    ] = None
    batch_size: BatchSize = 1


def run_predict(entry: zoo.Weights, inputs: list[str], out: Path | None, options: DetectionPredictOptions) -> bool:
    """Print the objects in pictures, and return whether any picture could be read."""
    from tasks.detection.predict import FILES, Detections, Tiles, checked_overlap, detect_each
    from tasks.detection.results import FILES as RESULTS
    from tasks.devices import describe_run, process_state
    from tasks.images import find_images
    from tasks.outputs import OutputFolder
    from tasks.printing import Results, checked_format, printable
    from tasks.progress import print_line
    from tasks.scans import ENDINGS

    # 1. Check the options and the folder before anything is computed.
    format, choice = checked_format(options.format), _chosen(entry, options)
    tiles = None
    if options.tile is not None:
        tiles = Tiles(options.tile, checked_overlap(options.tile, options.overlap))
    elif options.overlap is not None:
        raise UserError(f"--overlap {options.overlap}: is that of tiles; give their side with --tile too")
    files = find_images(inputs, others=ENDINGS)
    ids = _image_ids(options.coco, files, entry, out)
    names = FILES if ids is None else (*FILES, *RESULTS.values())
    folder = None if out is None else OutputFolder(out, names, files, overwrite=options.overwrite)
    # 2. Load the detector.
    print_line(describe_run(process_state(), "fp32"))
    model = load_model(entry)
    results = Results(format, ("file", "class", "score", "x1", "y1", "x2", "y2"))

    def report(found: Detections) -> None:
        """Print the number of objects of each class, an object of JSON, or a row for each object."""
        counts = Counter(instance.label for instance in found.instances)
        line = f"{found.file}: " + (", ".join(f"{n} {label}" for label, n in counts.most_common()) or "nothing")
        rows = [(found.file, instance.label, instance.score, *instance.box) for instance in found.instances]
        results.add(printable(line), found.to_json() if format == "json" else {}, rows)

    # 3. Detect; the objects of each picture are printed at once.
    failed: dict[str, str] = {}
    detected = detect_each(
        model,
        entry,
        files,
        failed,
        choice=choice,
        tiles=tiles,
        batch_size=options.batch_size,
        workers=options.workers,
        out=folder,
        ids=ids,
    )
    count = 0
    for found in detected:
        report(found)
        count += 1
    return count > 0


def _chosen(entry: zoo.Weights, options: DetectionPredictOptions) -> Choice:
    """Return the thresholds and limits of the options."""
    from tasks.detection.choice import Choice
    from tasks.detection.views import parse_views

    return Choice.of_classes(
        entry.classes,
        thresholds(options.threshold, entry.classes, entry.name, 0.5),
        chosen_classes(options.classes, entry.classes, entry.name),
        detections=options.detections,
        nms=options.nms,
        views=parse_views(options.tta),
    )


def _image_ids(coco: Path | None, files: Sequence[Path], entry: zoo.Weights, out: Path | None) -> ImageIds | None:
    """Return the ids of ``--coco``, which must have some of the pictures; None without the option."""
    from tasks.detection.results import ImageIds

    if coco is None:
        return None
    if out is None:
        raise UserError(f"--coco {coco}: is for files of results; leave --no-files out")
    ids = ImageIds(coco)
    ids.require_some(files, entry.classes)
    return ids


@dataclass(frozen=True)
class DetectionCheckOptions(CheckOptions):
    """Options of ``rescalenet check``."""

    images: Annotated[Path | None, typer.Option(parser=input_path, help="Folder or zip file of the images.")] = None


def run_check(data: Any, out: Path | None, options: DetectionCheckOptions) -> bool:
    """Check the data of a config, COCO file or folder; writes ``check.json`` and ``samples.png`` into ``out``."""
    from tasks.detection.check import check_data

    return check_data(data, out, options.limit, images=options.images, overwrite=options.overwrite)


def recognises(path: Path) -> bool:
    """Return whether a path is data of this task: a COCO file, or a folder that has one."""
    from tasks.detection.layouts import is_coco

    return is_coco(path)


@dataclass(frozen=True)
class DetectionExportOptions:
    """Options of ``rescalenet export``."""

    normalize: Normalize = False
    features: Features = False


def run_export(entry: zoo.Weights, request: ExportRequest, options: DetectionExportOptions) -> Deployment:
    """Return the graphs to export with their description."""
    from tasks.detection.export import deployment

    return deployment(entry, request, options)
