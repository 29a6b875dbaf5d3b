"""COCO evaluation: 12 metrics of boxes and of masks, AP by category, by pycocotools or faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.utils.data import Dataset

import zoo
from tasks.detection.choice import Choice
from tasks.detection.coco import Coco
from tasks.detection.data import EvalSet
from tasks.detection.detector import Detector
from tasks.detection.found import Found
from tasks.devices import describe_run, make_accelerator
from tasks.errors import DataError, UserError
from tasks.progress import Progress, print_line
from tasks.reading import Readable, Unreadable, report_unread, require_readable
from tasks.shards import as_list, gather_in_order, own_loader
from zoo.errors import suggestion
from zoo.files import write_json
from zoo.modules import evaluating

Kind = Literal["bbox", "segm"]
CocoResult = dict[str, Any]  # a detection in COCO's results format

LIMIT = 100  # detections of an image that COCO's metrics count, the best ones
_AREAS = ("all", "small", "medium", "large")  # of objects, as pycocotools numbers them


def metric_names(limit: int = LIMIT) -> tuple[str, ...]:
    """Return the names of COCO's 12 metrics in the order of pycocotools; limits are part of the recalls' names."""
    return ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
            *(f"ar{most}" for most in _limits(limit)), "ar_small", "ar_medium", "ar_large")  # fmt: skip


def _limits(limit: int) -> list[int]:
    """Return the numbers of an image's detections that are counted for the recalls, COCO's maxDets."""
    return [1, min(10, limit), limit]


@dataclass
class CocoReport:
    """COCO's metrics of boxes or masks.

    Attributes:
        kind: bbox or segm.
        stats: values of ``metric_names``; -1 where there is no object of the size.
        per_category: AP of each category by name; -1 without objects.
        limit: number of an image's detections that are counted, the best ones.
    """

    kind: Kind
    stats: list[float]
    per_category: dict[str, float]
    limit: int = LIMIT

    def metrics(self) -> dict[str, float]:
        """Return box_ap, box_ap50, ... or mask_ap, ..., as shares (not percent)."""
        prefix = "box" if self.kind == "bbox" else "mask"
        return {f"{prefix}_{name}": value for name, value in zip(metric_names(self.limit), self.stats, strict=True)}

    @property
    def text(self) -> str:
        """pycocotools' 12 lines."""
        lines = []
        for name, value in zip(metric_names(self.limit), self.stats, strict=True):
            title = "Average Precision  (AP)" if name.startswith("ap") else "Average Recall     (AR)"
            tail = name[2:].lstrip("_")
            overlap = {"50": "0.50", "75": "0.75"}.get(tail, "0.50:0.95") if name.startswith("ap") else "0.50:0.95"
            area = tail if tail in ("small", "medium", "large") else "all"
            limit = int(tail) if name.startswith("ar") and tail.isdecimal() else self.limit
            lines.append(f" {title} @[ IoU={overlap:<9} | area={area:>6} | maxDets={limit:>3} ] = {value:0.3f}")
        return "\n".join(lines)


def all_metrics(reports: Mapping[Kind, CocoReport]) -> dict[str, float]:
    """Return the metrics of boxes and masks together."""
    return {key: value for report in reports.values() for key, value in report.metrics().items()}


def kinds_of(*, masks: bool) -> tuple[Kind, ...]:
    """Return the kinds that are evaluated: boxes, and masks if there are any."""
    return ("bbox", "segm") if masks else ("bbox",)


def categories_of(data: Coco, classes: Sequence[str], source: str) -> list[int | None]:
    """Return the set's category id of each class of a detector, found by name; None for classes that the set lacks.

    Raises:
        DataError: the detector lacks a category of which the set has objects.
    """
    ids = dict(zip(data.names, data.categories, strict=True))
    missing = {name for name in data.names if name not in set(classes)}
    for name, count in data.counts().items() if missing else ():
        if count and name in missing:
            where = f"{data.path} (images in {data.files.path})"
            raise DataError(f"{where}: category {name!r} is not one of {source}{suggestion(name, classes)}")
    return [ids.get(name) for name in classes]


def to_results(found: Found, image_id: int | str, categories: Sequence[int | None]) -> list[CocoResult]:
    """Convert what a detector found to COCO results: boxes as x, y, width, height, masks as compressed RLE.

    Args:
        found: objects of one image.
        image_id: COCO's id of the image.
        categories: COCO's id of each label; objects of labels without one are left out.
    """
    corners = found.boxes.double()  # (N, 4) as x1, y1, x2, y2
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
    results: list[CocoResult] = []
    labels, scores = found.labels.tolist(), found.scores.tolist()
    for i, (label, box, score) in enumerate(zip(labels, boxes, scores, strict=True)):
        category = categories[label - 1]
        if category is None:
            continue
        result: CocoResult = {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
        if found.masks is not None:
            result["segmentation"] = found.rle(i)
        results.append(result)
    return results


def detect(
    model: Detector,
    data: Coco,
    accelerator: Accelerator,
    *,
    categories: Sequence[int | None] | None = None,
    batch_size: int = 1,
    workers: int = 0,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
    failed: dict[int, str] | None = None,
) -> list[CocoResult]:
    """Run the detector over a set, split over the ranks; every rank returns all results, in the set's order.

    Args:
        model: detector, on the device.
        data: set of images.
        accelerator: processes of the run.
        categories: COCO's id of each of the detector's labels; None: those of ``data``, on which it was trained.
        batch_size: number of images of a forward on each rank.
        workers: number of data loading processes.
        dtype: type of the model's input.
        progress: whether progress is shown.
        failed: mapping from an image's position in the set to the reason, to which the images that cannot be read are
            added, on every rank; None: such an image is an error.
    """
    categories = data.categories if categories is None else categories
    position = {image.id: number for number, image in enumerate(data.images)}
    samples_of: Dataset[Any] = EvalSet(data) if failed is None else Readable(EvalSet(data))
    loader = own_loader(samples_of, accelerator, batch_size, workers=workers, collate=as_list)
    unread: dict[int, Unreadable] = {}
    found: dict[int, list[CocoResult]] = {}  # by the image's position in the set
    show = progress and accelerator.is_main_process
    progress_bar = Progress(len(loader), 0, batch_size * accelerator.num_processes, enabled=show)
    with evaluating(model), torch.no_grad(), progress_bar as bar:
        for i, batch in enumerate(loader, 1):
            samples = [sample for sample in batch if not isinstance(sample, Unreadable)]
            unread |= {sample.number: sample for sample in batch if isinstance(sample, Unreadable)}
            images = [image.to(accelerator.device).to(dtype).div_(255) for image, _ in samples]  # (3, H, W) each
            with accelerator.autocast():
                each = model.detect(images) if images else []
            for one, (_, image_id) in zip(each, samples, strict=True):
                found[position[image_id]] = to_results(one, image_id, categories)
            bar.step(i)
    if failed is not None:
        failed.update(gather_in_order(unread))
    return [result for results in gather_in_order(found) for result in results]


def readable_part(data: Coco, unread: Mapping[int, str]) -> tuple[Coco, dict[str, str]]:
    """Return the set of the images that could be read, and the reason for each of the others by its name.

    Args:
        data: set of images.
        unread: mapping from an image's position in the set to the reason.

    Raises:
        DataError: no image can be read.
    """
    require_readable([unread[number] for number in sorted(unread)], len(data), "images")
    missing = {data.images[number].id for number in unread}
    names = {data.images[number].file_name: reason for number, reason in unread.items()}
    return data.subset(lambda image: image.id not in missing), names


def coco_metrics(
    data: Coco, results: list[CocoResult], kinds: Sequence[Kind], *, fast: bool = False, limit: int = LIMIT
) -> dict[Kind, CocoReport]:
    """Compute COCO's metrics of detections against the set's annotations, with COCO's rules for crowds.

    Args:
        data: set with annotations.
        results: detections in COCO's results format.
        kinds: bbox, segm or both.
        fast: whether faster-coco-eval computes the metrics: the same numbers, in less time.
        limit: number of an image's detections that are counted, the best ones (COCO's maxDets).

    Raises:
        UserError: ``fast`` is set, and faster-coco-eval is not installed.
    """
    # Choose the implementation.
    if fast:
        try:
            from faster_coco_eval import COCO as coco_class
            from faster_coco_eval import COCOeval_faster as eval_class
        except ImportError:
            raise UserError("fast evaluation needs faster_coco_eval: pip install 'rescalenet-zoo[fast-eval]'") from None
    else:
        coco_class, eval_class = COCO, COCOeval
    # Evaluate each kind; both implementations print, which is not shown.
    reports: dict[Kind, CocoReport] = {}
    content, results = renumbered(data.ground_truth(), results)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _indexed(coco_class, content)
    for kind in kinds:
        with contextlib.redirect_stdout(io.StringIO()):
            detections = _indexed(coco_class, {**truth.dataset, "annotations": _as_annotations(results, kind)})
            evaluation = eval_class(truth, detections, kind)
            evaluation.params.imgIds = [image["id"] for image in content["images"]]
            evaluation.params.maxDets = _limits(limit)
            evaluation.evaluate()
            evaluation.accumulate()
        # summarize() knows a limit of 100 only. The means here are those that it computes.
        precision = np.asarray(evaluation.eval["precision"])  # (thresholds, recalls, categories, areas, limits)
        recall = np.asarray(evaluation.eval["recall"])  # (thresholds, categories, areas, limits)
        stats = [_mean(precision[chosen, :, :, 0, -1]) for chosen in (slice(None), 0, 5)]  # IoU 0.50:0.95, 0.50, 0.75
        stats += [_mean(precision[..., area, -1]) for area in range(1, len(_AREAS))]
        stats += [_mean(recall[..., 0, number]) for number in range(3)]
        stats += [_mean(recall[..., area, -1]) for area in range(1, len(_AREAS))]
        number = {category: k for k, category in enumerate(sorted(data.categories))}  # the evaluator's order
        named = zip(data.categories, data.names, strict=True)
        per_category = {name: _mean(precision[:, :, number[category], 0, -1]) for category, name in named}
        reports[kind] = CocoReport(kind, stats, per_category, limit)
    return reports


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values that are defined, -1 if none is."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def beyond_limit(data: Coco, limit: int = LIMIT, setting: str = "--max-dets") -> str | None:
    """Return a line about images with more objects than the metrics count; None if there are none.

    Args:
        data: set with annotations.
        limit: number of an image's detections that the metrics count.
        setting: name of the setting of the limit, which the line gives as the remedy.
    """
    counts = [sum(not a.get("iscrowd", 0) for a in image.annotations) for image in data.images]
    if not (over := [count for count in counts if count > limit]):
        return None
    return (
        f"{data.path}: {len(over)} of {len(data)} images have more than {limit} objects (up to {max(over)}), and "
        f"COCO's metrics count {limit} detections of an image: AP and AR stay below 1; raise the limit with {setting}"
    )


def renumbered(truth: dict[str, Any], results: Sequence[CocoResult]) -> tuple[dict[str, Any], list[CocoResult]]:
    """Return ground truth and detections with images numbered from 1, in the order of their ids; ids may be text.

    Args:
        truth: ground truth (``Coco.ground_truth``).
        results: detections in COCO's results format.

    Raises:
        DataError: a detection in an image that the ground truth does not have.
    """
    ids = sorted((image["id"] for image in truth["images"]), key=lambda id: (isinstance(id, str), id))
    number = {id: i for i, id in enumerate(ids, 1)}
    unknown = [result["image_id"] for result in results if result["image_id"] not in number]
    if unknown:
        raise DataError(f"results of image {unknown[0]!r}, which the set does not have")
    return {
        **truth,
        "images": [{**image, "id": number[image["id"]]} for image in truth["images"]],
        "annotations": [{**a, "image_id": number[a["image_id"]]} for a in truth["annotations"]],
    }, [{**result, "image_id": number[result["image_id"]]} for result in results]


def _indexed(coco_class: Any, dataset: dict[str, Any]) -> Any:
    coco = coco_class()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def results_of(results: list[CocoResult], kind: Kind) -> list[CocoResult]:
    """Return the part of detections that one kind needs: given both, pycocotools would size masks by their boxes."""
    other = "segmentation" if kind == "bbox" else "bbox"
    return [{key: value for key, value in result.items() if key != other} for result in results]


def _as_annotations(results: list[CocoResult], kind: Kind) -> list[dict[str, Any]]:
    """Convert results to annotations as pycocotools' loadRes does, which does not accept an empty list."""
    annotations = []
    for i, result in enumerate(results_of(results, kind), 1):
        area = result["bbox"][2] * result["bbox"][3] if kind == "bbox" else float(rle.area(result["segmentation"]))
        annotations.append({**result, "id": i, "area": area, "iscrowd": 0})
    return annotations


def evaluate_weights(
    model: Detector,
    weights: zoo.Weights,
    data: Coco,
    *,
    out: Path | None = None,
    fast: bool = False,
    batch_size: int = 1,
    workers: int = 0,
    failed: dict[str, str] | None = None,
    choice: Choice | None = None,
    limit: int = LIMIT,
) -> dict[Kind, CocoReport]:
    """Evaluate a detector on a set.

    Args:
        model: detector of the weights.
        weights: class names; the set's categories are all or some of them.
        data: set with annotations.
        out: folder for ``results_bbox.json`` and ``results_segm.json`` (COCO's results format) and ``metrics.json``
            (with the per-category table).
        fast: whether faster-coco-eval computes the metrics, see ``coco_metrics``.
        batch_size: number of images of a forward on each rank.
        workers: number of data loading processes.
        failed: mapping from image to reason, to which the images that cannot be read are added.
        choice: thresholds and limits of the detector; None: its own.
        limit: number of an image's detections that the metrics count, and at least the detector's own limit.

    Raises:
        DataError: the weights lack a category of the set, or no image can be read.
    """
    # 1. Detect, with the set's categories found by name.
    categories = categories_of(data, weights.classes, weights.name)
    accelerator = make_accelerator()
    if accelerator.is_main_process:
        print_line(describe_run(accelerator, "fp32"))
        if (note := beyond_limit(data, limit)) is not None:
            print_line(note)
    model.to(accelerator.device)
    unread: dict[int, str] = {}
    with (choice or Choice()).reporting(limit, model).applied(model):
        results = detect(
            model,
            data,
            accelerator,
            categories=categories,
            batch_size=batch_size,
            workers=workers,
            progress=True,
            failed=unread,
        )
    # 2. Leave out the images that cannot be read.
    data, names = readable_part(data, unread)
    if accelerator.is_main_process:
        report_unread(names, len(data) + len(names), "images")
    if failed is not None:
        failed.update(names)
    # 3. Compute the metrics, and write the files on one rank.
    reports = coco_metrics(data, results, kinds_of(masks=model.has_masks), fast=fast, limit=limit)
    if out is not None and accelerator.is_main_process:
        written = [data.as_written(result) for result in results]
        for kind in reports:
            write_json(results_of(written, kind), out / f"results_{kind}.json")
        per_category = {kind: report.per_category for kind, report in reports.items()}
        write_json(
            {
                "metrics": all_metrics(reports),
                "per_category": per_category,
                "images": len(data),
                "failed": names,
            },
            out / "metrics.json",
        )
    return reports
