"""Evaluation of video classifiers: metrics of the middle clip and of several views, and files of predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import zoo
from tasks.arrays import reading_arrays
from tasks.devices import describe_run, make_accelerator
from tasks.errors import DataError
from tasks.inputs import standardise
from tasks.metrics import ClassCounts, class_numbers
from tasks.outputs import try_to_draw
from tasks.plots import confusion_matrix
from tasks.progress import Progress, print_line
from tasks.shards import as_list, gather_in_order, own_batch_size, own_loader
from tasks.video.data import EvalSet, index_videos, print_notes
from tasks.video.index import Index
from tasks.video.sources import Video, Videos
from zoo.errors import one_line
from zoo.files import atomic_write, write_json
from zoo.modules import evaluating


@dataclass
class VideoResult:
    """Scores of the videos of an evaluation.

    Attributes:
        classes: class names in the order of the scores.
        names: names of the videos that were read.
        labels: numbers of their classes (videos,).
        single: softmax of the middle clip's centre crop (videos, classes).
        multi: mean softmax over all views (videos, classes); None if the middle clip is the only view.
        clips: number of clips of each video.
        crops: number of crops of each clip.
        failures: mapping from the name of each video that could not be read to the reason. No metric counts them.
        damaged: mapping from the name of each video of which clips could not be read to the reason. Its score is the
            mean over the other clips.
    """

    classes: tuple[str, ...]
    names: list[str]
    labels: Tensor
    single: Tensor
    multi: Tensor | None
    clips: int
    crops: int
    failures: dict[str, str]
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def scores(self) -> Tensor:
        """Scores over all views if there are several, of the single view otherwise: (videos, classes)."""
        return self.single if self.multi is None else self.multi

    def counts(self, scores: Tensor) -> ClassCounts:
        """Count confusions and top-5 hits of scores (videos, classes)."""
        counts = ClassCounts.zero(len(self.classes))
        counts.add(scores, self.labels)
        return counts

    def metrics(self) -> dict[str, float]:
        """Return top1, top5, mean_class (recall) and macro_f1 in percent, and the numbers of videos and failures.

        Metrics over several views have names with the numbers of clips and crops, such as ``top1_10x3``. If clips of
        some videos could not be read, the number of these videos is there as ``damaged``.
        """
        found = _percentages(self.counts(self.single))
        if self.multi is not None:
            views = _percentages(self.counts(self.multi))
            found |= {f"{key}_{self.clips}x{self.crops}": value for key, value in views.items()}
        damaged = {"damaged": len(self.damaged)} if self.damaged else {}
        return {**found, "videos": len(self.names), "failed": len(self.failures), **damaged}

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each class; see ``ClassCounts.table``."""
        return self.counts(self.scores).table(self.classes, "videos")


def _percentages(counts: ClassCounts) -> dict[str, float]:
    """Return the metrics in percent."""
    found = counts.metrics()
    return {key: found[key] for key in ("top1", "top5", "mean_class")} | {"macro_f1": counts.macro_f1()}


def save_predictions(result: VideoResult, path: Path) -> None:
    """Write a result in numpy's format, without pickles; ``read_predictions`` reads it."""
    arrays = {
        "classes": np.array(result.classes),
        "names": np.array(result.names, dtype=str),
        "labels": result.labels.numpy(),
        "single": result.single.numpy(),
        "views": np.array([result.clips, result.crops]),
        "failed": np.array([list(pair) for pair in result.failures.items()], dtype=str).reshape(-1, 2),
        "damaged": np.array([list(pair) for pair in result.damaged.items()], dtype=str).reshape(-1, 2),
    }
    if result.multi is not None:
        arrays["multi"] = result.multi.numpy()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    atomic_write(path, write)


def read_predictions(path: Path) -> VideoResult:
    """Read a file of ``save_predictions``.

    Raises:
        DataError: a missing file, or a file of another kind.
    """
    try:
        with reading_arrays(), np.load(path, allow_pickle=False) as content:
            arrays = {key: content[key] for key in content.files}
        _check_arrays(arrays)
        return VideoResult(
            tuple(arrays["classes"].tolist()),
            arrays["names"].tolist(),
            torch.from_numpy(arrays["labels"]),
            torch.from_numpy(arrays["single"]),
            torch.from_numpy(arrays["multi"]) if "multi" in arrays else None,
            int(arrays["views"][0]),
            int(arrays["views"][1]),
            dict(arrays["failed"].tolist()),
            dict(arrays["damaged"].tolist() if "damaged" in arrays else ()),  # version 0.1.0 had none
        )
    except (OSError, ValueError, KeyError, EOFError, TypeError, BadZipFile, SyntaxError) as error:
        raise DataError(f"{path}: must be the predictions.npz of an evaluation ({one_line(error)})") from None


def _check_arrays(arrays: dict[str, np.ndarray]) -> None:
    """Check that arrays are those of ``save_predictions``.

    Raises:
        ValueError: an array of another shape or type, or with values out of range.
        KeyError: an array is missing.
    """
    videos, classes = len(arrays["names"]), len(arrays["classes"])
    scores = {key: arrays[key] for key in ("single", "multi") if key in arrays or key == "single"}
    for key, array in scores.items():
        if array.shape != (videos, classes) or array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError(f"{key} must have finite numbers ({videos} videos, {classes} classes)")
    labels = arrays["labels"]
    if (
        labels.shape != (videos,)
        or labels.dtype != np.int64
        or (videos and not 0 <= labels.min() <= labels.max() < classes)
    ):
        raise ValueError(f"labels must be {videos} numbers of the {classes} classes")
    if any(arrays[key].dtype.kind != "U" or arrays[key].ndim != 1 for key in ("names", "classes")):
        raise ValueError("names and classes must be lists of text")
    pairs = [arrays[key] for key in ("failed", "damaged") if key in arrays or key == "failed"]
    wrong = any(each.shape[1:] != (2,) for each in pairs)
    if arrays["views"].shape != (2,) or arrays["views"].dtype.kind != "i" or wrong:
        raise ValueError("views must be two numbers, failed pairs of text")


class _Row(NamedTuple):
    """The scores of a video, which the ranks exchange: arrays, which need a fifth of the memory of lists.

    Attributes:
        failure: reason why the video could not be read; empty if it was read.
        single: scores of the middle clip (classes,); none if the video could not be read.
        multi: mean scores of all views that were read (classes,); none if the middle clip is the only view.
        damage: number of the clips that could not be read, and the reason; empty if all were.
    """

    failure: str
    single: np.ndarray
    multi: np.ndarray
    damage: str = ""


_NONE = np.zeros(0)  # scores of a view that there is not


def evaluate(
    model: nn.Module,
    data: EvalSet,
    accelerator: Accelerator,
    *,
    classes: Sequence[str],
    inputs: Callable[[Tensor], Tensor],
    batch_size: int = 8,
    workers: int = 0,
    progress: bool = False,
) -> VideoResult:
    """Evaluate a model on a set; every video counts once, on any number of ranks.

    Args:
        model: classifier of clips, on the device.
        data: views of the videos.
        accelerator: processes of the run.
        classes: class names in the order of the model's outputs.
        inputs: function from uint8 clips (N, T, 3, H, W) on the device to the model's input.
        batch_size: number of videos of a batch on all ranks together.
        workers: number of data loading processes.
        progress: whether progress is shown.
    """
    # 1. Divide the videos among the ranks.
    share = own_batch_size(batch_size, accelerator)
    loader = own_loader(data, accelerator, share, workers=workers, collate=as_list)  # lists of Views
    found: dict[int, _Row] = {}  # row of each video of this rank, by its number
    # 2. Score the views; the first view of a video is its middle clip.
    with (
        evaluating(model),
        Progress(len(loader), 0, share, unit="videos", enabled=progress and accelerator.is_main_process) as bar,
        torch.no_grad(),
        accelerator.autocast(),
    ):
        for done, batch in enumerate(loader, 1):
            read = [views for views in batch if not views.failure]
            found |= {views.number: _Row(views.failure, _NONE, _NONE) for views in batch if views.failure}
            scores = _scores(model, [views.clips for views in read], inputs, share, accelerator.device)
            for views, each in zip(read, scores, strict=True):  # each: (views, classes)
                multi = each[1:][torch.tensor(views.good[1:])].mean(0).numpy() if len(each) > 1 else _NONE
                found[views.number] = _Row("", each[0].numpy().copy(), multi, views.damage)  # a view keeps the batch
            bar.step(done)
    # 3. Collect the results of all ranks.
    return _result(data, classes, gather_in_order(found))


def _result(data: EvalSet, classes: Sequence[str], rows: Sequence[_Row]) -> VideoResult:
    """Return the result of all videos.

    Args:
        data: views of the videos.
        classes: class names.
        rows: row of each video.
    """
    pairs = list(zip(data.videos.items, rows, strict=True))
    good = [(video, row) for video, row in pairs if not row.failure]

    def joined(scores: list[np.ndarray]) -> Tensor:
        """Return the scores of all videos: (videos, classes)."""
        return torch.from_numpy(np.array(scores, np.float64).reshape(len(good), len(classes)))

    return VideoResult(
        tuple(classes),
        [video.name for video, _ in good],
        torch.tensor([video.label for video, _ in good], dtype=torch.int64),
        joined([row.single for _, row in good]),
        joined([row.multi for _, row in good]) if data.count > 1 else None,
        data.clips,
        data.crop_count,
        data.videos.failures | {video.name: row.failure for video, row in pairs if row.failure},
        {video.name: row.damage for video, row in pairs if row.damage},
    )


def _scores(
    model: nn.Module,
    videos: Sequence[Tensor],
    inputs: Callable[[Tensor], Tensor],
    share: int,
    device: torch.device,
) -> list[Tensor]:
    """Return the softmax (views, classes) of each video.

    Args:
        model: classifier in eval mode.
        videos: views of each video, uint8 (views, T, 3, H, W).
        inputs: function from uint8 clips on the device to the model's input.
        share: number of clips of a forward.
        device: device of the model.
    """
    if not videos:
        return []
    clips = torch.cat(list(videos))  # (all views, T, 3, H, W)
    parts = [model(inputs(part.to(device))).cpu().double().softmax(1) for part in clips.split(share)]
    return list(torch.cat(parts).split([len(views) for views in videos]))


def standardised(clips: Tensor, transform: zoo.VideoTransform, dtype: torch.dtype) -> Tensor:
    """Standardise clips and put channels last in memory: uint8 (N, T, 3, H, W) -> (N, 3, T, H, W)."""
    x = standardise(clips.transpose(1, 2), transform, dtype)
    return x.contiguous(memory_format=torch.channels_last_3d)


def evaluate_weights(
    model: zoo.Backbone,
    weights: zoo.Weights,
    videos: Videos,
    index: Index,
    *,
    clips: int = 1,
    crops: int = 1,
    out: Path | None = None,
    batch_size: int = 8,
    workers: int = 0,
) -> VideoResult:
    """Evaluate weights on the clips that their metadata describes.

    Args:
        model: net of the weights.
        weights: transform and class names.
        videos: set of videos whose class names are all among the weights'.
        index: index of the videos.
        clips: number of clips of each video; the middle clip alone is always evaluated too.
        crops: number of crops of each clip, 1 or 3.
        out: folder for ``metrics.json`` (with the per-class table), ``predictions.npz`` and ``confusion.png``.
        batch_size: number of videos of a batch on all ranks together.
        workers: number of data loading processes.

    Raises:
        DataError: a class that the weights do not have, or no video that can be read.
    """
    assert isinstance(weights.transform, zoo.VideoTransform)
    transform = weights.transform
    # 1. Number the classes of the set as those of the weights.
    numbers = class_numbers(videos.classes, weights)
    relabelled = tuple(Video(v.name, v.path, numbers[v.label], v.segment) for v in videos.items)
    indexed = index_videos(Videos(weights.classes, relabelled), index, workers=workers)
    print_notes(indexed.odd, indexed.total)
    # 2. Evaluate, and write the files on one rank.
    accelerator = make_accelerator()
    if accelerator.is_main_process:
        print_line(describe_run(accelerator, "fp32"))
    model.to(accelerator.device).to(memory_format=torch.channels_last_3d)
    result = evaluate(
        model,
        EvalSet(indexed, transform, clips, crops),
        accelerator,
        classes=weights.classes,
        inputs=lambda part: standardised(part, transform, torch.float32),
        batch_size=batch_size,
        workers=workers,
        progress=True,
    )
    if out is not None and accelerator.is_main_process:
        write_report(result, out)
    return result


def write_report(result: VideoResult, out: Path) -> None:
    """Write ``metrics.json``, ``predictions.npz`` and ``confusion.png`` into the folder ``out``."""
    content = {"metrics": result.metrics(), "per_class": result.table(), "failed": result.failures}
    content |= {"damaged": result.damaged} if result.damaged else {}
    write_json(content, out / "metrics.json")
    save_predictions(result, out / "predictions.npz")
    picture = out / "confusion.png"
    try_to_draw(lambda: confusion_matrix(result.counts(result.scores).confusion, result.classes, picture), picture)
