"""Results for people: lines for the terminal, a contact sheet of pictures."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from tasks.plots import contact_sheet
from tasks.printing import Format, Results, printable

SHEET_LIMIT = 60  # pictures on a contact sheet


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
        metrics: metrics by name.
        lines: lines that report it; a line break in one of them, as in a class's name, is escaped.
        per_class: row for each class.
    """

    metrics: Mapping[str, float]
    lines: list[str]
    per_class: Sequence[Mapping[str, Any]] = ()


class Classified(Protocol):
    """A file and its most likely classes with their scores, best first."""

    file: str
    classes: list[str]
    scores: list[float]


def duration(seconds: float) -> str:
    """Format a measured time with two digits or more: 38 ms, 1.8 s, 62 s, 4 min 7 s."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.2g} ms" if seconds < 0.00995 else f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if seconds >= 119.5 else f"{round(seconds)} s"


def class_lines(table: Sequence[Mapping[str, Any]], metrics: Mapping[str, float], unit: str) -> list[str]:
    """Format a line for each class, with its number of ``unit``, and one for the metrics.

    Args:
        table: rows of ``ClassCounts.table``.
        metrics: metrics by name.
        unit: plural noun of the samples.
    """
    lines = [f"{'class':<24}{unit:>8}{'recall':>9}{'precision':>11}  most often taken for"]
    for row in table:
        recall, precision = ("-" if row[k] is None else f"{row[k]:.1%}" for k in ("recall", "precision"))
        lines.append(f"{row['class']:<24}{row[unit]:>8}{recall:>9}{precision:>11}  {row['taken_for']}")
    return [*lines, "  ".join(f"{key} {value:.6g}" for key, value in metrics.items())]


def print_evaluation(found: Evaluation, weights: str, data: str, format: Format) -> None:
    """Print an evaluation on stdout: its lines, an object of JSON, or CSV with a row for each metric.

    Args:
        found: evaluation.
        weights: name of the weights.
        data: name of the set.
        format: format of the output.
    """
    results = Results(format, ("metric", "value"))
    content = {"weights": weights, "data": data, "metrics": found.metrics, "per_class": found.per_class}
    results.add("\n".join(map(printable, found.lines)), content, list(found.metrics.items()))


def print_each(results: Results, classified: Iterable[Classified]) -> int:
    """Print the classes of each file with their scores at once: a line, an object, or a row for each class.

    Returns:
        The number of files.
    """
    count = 0
    for found in classified:
        pairs = list(zip(found.classes, found.scores, strict=True))
        rows = [(found.file, rank, *pair) for rank, pair in enumerate(pairs, 1)]
        content: Mapping[str, Any] = {}
        if results.format == "json":  # a timeline is long
            content = asdict(found) if is_dataclass(found) and not isinstance(found, type) else vars(found)
        results.add(prediction_line(found), content, rows)
        count += 1
    return count


CLASS_COLUMNS = ("file", "rank", "class", "score")  # of ``print_each``


def prediction_line(found: Classified) -> str:
    """Format a file's classes with their scores in one line."""
    shown = ", ".join(f"{k} {s:.1%}" for k, s in zip(found.classes, found.scores, strict=True))
    return printable(f"{found.file}: {shown or 'nothing'}")


def best_classes(
    scores: Any,
    classes: Sequence[str],
    top: int,
    *,
    threshold: Mapping[str, float] | None = None,
    only: Container[str] | None = None,
) -> tuple[list[str], list[float]]:
    """Return the ``top`` classes of highest score, best first, and their scores.

    Args:
        scores: score of each class, (classes,).
        classes: names of the classes.
        top: number of classes to return.
        threshold: lowest score of each class; None: 0.
        only: classes to choose from; None: all.
    """
    values, order = scores.topk(len(classes) if only is not None else min(top, len(classes)))
    pairs = [(classes[i], value) for i, value in zip(order.tolist(), values.tolist(), strict=True)]
    lowest = {} if threshold is None else threshold
    best = [(k, v) for k, v in pairs if v >= lowest.get(k, 0.0) and (only is None or k in only)][:top]
    return [name for name, _ in best], [value for _, value in best]


class Sheet:
    """A contact sheet of the first ``SHEET_LIMIT`` pictures that are classified."""

    def __init__(self) -> None:
        self.pictures: list[Image.Image] = []
        self.captions: list[str] = []

    def add(self, picture: Image.Image, found: Classified) -> None:
        """Add a picture with its best class; the picture may be shrunk in place."""
        if len(self.pictures) < SHEET_LIMIT:
            picture.thumbnail((360, 360))
            self.pictures.append(picture)
            best = f"{printable(found.classes[0])} {found.scores[0]:.0%}" if found.classes else "nothing"
            self.captions.append(f"{best}\n{printable(Path(found.file).name)[:28]}")

    def write(self, path: Path) -> None:
        """Write the PNG file, unless there are no pictures."""
        if self.pictures:
            contact_sheet(self.pictures, self.captions, path)
