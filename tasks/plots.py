"""Pictures: training curves, confusion matrix, contact sheet, timeline, detected objects."""

from __future__ import annotations

import colorsys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tasks.engine.records import EpochRecord, StepRecord, read_records
from tasks.engine.records import read_log as read_log  # its place in 0.1.0
from tasks.printing import printable
from zoo.files import atomic_write


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of matplotlib that needs no display; width and height in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path, *, dpi: float = 120) -> None:
    """Write a figure as a PNG file, completely or not at all; its texts are drawn as they are, see ``as_written``."""
    as_written(figure)
    with warnings.catch_warnings():
        # a script that the font lacks is drawn as boxes, and would give a warning for each character
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        atomic_write(path, lambda temporary: figure.savefig(temporary, dpi=dpi, format="png"))


def as_written(figure: Any) -> None:
    """Have the names in a figure (titles, ticks, legends) drawn as they are: ``$`` begins no formula.

    What would not be drawn is escaped, see ``tasks.printing.printable``. The numbers at the axes stay matplotlib's,
    whose powers of ten are formulas.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter

    axes = [axis for part in figure.axes for axis in (part.xaxis, part.yaxis)]
    texts = figure.findobj(Text)  # makes the ticks too
    numbers = set()
    for axis in axes:
        formatter = axis.get_major_formatter()
        if isinstance(formatter, FuncFormatter):  # of the names that set_xticks and set_yticks got
            axis.set_major_formatter(lambda x, position, named=formatter: printable(named(x, position)))
        else:
            numbers |= {
                id(label) for tick in (*axis.majorTicks, *axis.minorTicks) for label in (tick.label1, tick.label2)
            }
    for text in texts:
        if id(text) not in numbers:
            text.set_parse_math(False)
            text.set_text(printable(text.get_text(), lines=True))


def curves(log: Path | dict[str, Path], path: Path, metric: str) -> None:
    """Draw the loss by step and a metric by epoch.

    Args:
        log: log of a run, or logs of several by the names that the legend gives them.
        path: PNG file to write.
        metric: metric of the epoch records.
    """
    runs = {"": log} if isinstance(log, Path) else log
    # Plot the loss on the left and the metric on the right.
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    for name, file in runs.items():
        records = read_records(file)
        steps = [(r.step, r.loss) for r in records if isinstance(r, StepRecord)]
        ends = [r for r in records if isinstance(r, EpochRecord)]
        epochs = [(r.epoch + 1, r.metrics[metric]) for r in ends if metric in r.metrics]
        if steps:
            left.plot(*zip(*steps, strict=True), label=name or None, linewidth=1)
        if epochs:
            right.plot(*zip(*epochs, strict=True), label=name or None, marker="o", markersize=3)
    # Label the axes.
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="epoch", ylabel=metric)
    right.xaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if len(runs) > 1:
            axes.legend()
    save_figure(figure, path)


def confusion_matrix(confusion: Tensor, classes: Sequence[str], path: Path) -> None:
    """Draw a row-normalised confusion matrix, with counts and class names where they are readable."""
    count = len(classes)
    side = min(max(4.0, 0.5 * count + 2), 16)
    figure = new_figure(side, side)
    axes = figure.subplots()
    shares = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    if count <= 20:
        for i in range(count):
            for j in range(count):
                if n := int(confusion[i, j]):
                    colour = "white" if shares[i, j] > 0.5 else "black"
                    axes.text(j, i, str(n), ha="center", va="center", fontsize=7, color=colour)
    if count <= 100:
        axes.set_xticks(range(count), classes, rotation=90, fontsize=8)
        axes.set_yticks(range(count), classes, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    save_figure(figure, path)


def contact_sheet(images: Sequence[Image.Image], captions: Sequence[str], path: Path) -> None:
    """Draw small pictures in a grid, each under its caption."""
    columns = min(5, len(images))
    rows = -(-len(images) // columns)
    figure = new_figure(2.4 * columns, 2.8 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax in axes:
        ax.axis("off")
    for ax, image, caption in zip(axes, images, captions, strict=False):
        small = image.copy()
        small.thumbnail((360, 360))
        ax.imshow(small)
        ax.set_title(caption, fontsize=8)
    save_figure(figure, path)


class Scored(Protocol):
    """A part of a video and its classes (``tasks.video.predict.Window``)."""

    begin: float
    end: float
    classes: list[str]
    scores: list[float]


def timeline(windows: Sequence[Scored], path: Path, *, limit: int = 6) -> None:
    """Draw the scores over time of the ``limit`` classes with the highest peaks."""
    peaks: dict[str, float] = {}
    for window in windows:
        for name, score in zip(window.classes, window.scores, strict=True):
            peaks[name] = max(score, peaks.get(name, 0.0))
    figure = new_figure(9, 3)
    axes = figure.subplots()
    middles = [(window.begin + window.end) / 2 for window in windows]
    for name in sorted(peaks, key=lambda name: -peaks[name])[:limit]:
        scores = [dict(zip(w.classes, w.scores, strict=True)).get(name, 0.0) for w in windows]
        axes.plot(middles, scores, label=name, marker="o", markersize=3)
    axes.set(xlabel="seconds", ylabel="score", ylim=(0, 1.02), xlim=(windows[0].begin, windows[-1].end))
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    save_figure(figure, path)


_ROWS = 256  # of a picture, drawn at once


class Drawable(Protocol):
    """An object found in a picture (``tasks.detection.predict.Instance``)."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: Any
    corner: tuple[int, int]


def draw_instances(image: Image.Image, instances: Sequence[Drawable], path: Path) -> None:
    """Draw masks, boxes and labels into a copy of a picture; the best ones are drawn last, on top.

    Args:
        image: picture.
        instances: objects in the picture, best first.
        path: PNG file to write.
    """
    scale = max(1, round(512 / max(image.size)))  # in small pictures the labels would cover the objects
    pixels = np.array(image.convert("RGB"))
    colours = [
        tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(i * 0.618 % 1, 0.8, 1.0))
        for i in range(len(instances))
    ]
    worst_first = list(zip(instances, colours, strict=True))[::-1]
    # Blend the masks into the pixels (H, W, 3), some rows at a time: as floats a photograph takes 300 MB.
    for first in range(0, len(pixels), _ROWS):
        rows = pixels[first : first + _ROWS].astype(np.float32)
        for instance, colour in worst_first:
            if instance.mask is not None and instance.mask.size:
                x, y = instance.corner
                above = max(first - y, 0)  # rows of the mask
                mask = instance.mask[above : max(first + _ROWS - y, 0)]
                below = max(y - first, 0)
                part = rows[below : below + len(mask), x : x + mask.shape[1]]
                part[mask] = 0.55 * part[mask] + 0.45 * np.asarray(colour, dtype=np.float32)
        pixels[first : first + _ROWS] = rows.round().astype(np.uint8)
    # Draw boxes and labels into the enlarged copy.
    drawn = Image.fromarray(pixels).resize((image.width * scale, image.height * scale))
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(size=11)
    for instance, colour in worst_first:
        box = [scale * value for value in instance.box]
        pen.rectangle(box, outline=colour, width=1)
        text = f"{printable(instance.label)} {instance.score:.0%}"
        if pen.textlength(text, font=font) <= box[2] - box[0]:  # a longer text would cover the neighbours
            pen.text((box[0] + 2, box[1]), text, fill=colour, font=font)
    atomic_write(path, lambda temporary: drawn.save(temporary, format="PNG"))


def outlined(image: Image.Image, masks: Sequence[np.ndarray], colours: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Return a copy of a picture, enlarged if it is small, with the outlines of masks.

    Args:
        image: picture.
        masks: bool arrays (H, W) of the picture's size; the first are drawn last, on top.
        colours: RGB colour of each mask.
    """
    scale = max(1, -(-512 // max(image.size)))
    large = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    pixels = np.array(large)
    for mask, colour in list(zip(masks, colours, strict=True))[::-1]:
        # The outline is the pixels of the mask of which a neighbour is not in the mask.
        inner = np.pad(mask, 1)
        inner = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        edge = (mask & ~inner).repeat(scale, 0).repeat(scale, 1)
        pixels[edge] = colour
    return Image.fromarray(pixels)


def brightened(image: Image.Image) -> tuple[Image.Image, float]:
    """Return a dark picture with its brightest pixels at white, and the factor; another one as it is, and 1.

    A picture is dark if all but a thousandth of its values are below half of the range.
    """
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    peak = float(np.percentile(pixels, 99.9))
    factor = 255 / max(peak, 1.0) if peak < 128 else 1.0
    return Image.fromarray((pixels * factor).clip(0, 255).round().astype(np.uint8)), factor


def side_by_side(images: Sequence[Image.Image], captions: Sequence[str], path: Path) -> None:
    """Draw pictures of one size in a row, pixel for pixel, each under its caption.

    Args:
        images: pictures.
        captions: one or two lines for each picture.
        path: PNG file to write.
    """
    gap, header, font = 8, 44, ImageFont.load_default(size=15)
    width, height = images[0].size
    sheet = Image.new("RGB", (len(images) * (width + gap) - gap, height + header), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        pen.multiline_text((i * (width + gap) + 4, 2), caption, fill="black", font=font, spacing=3)
        sheet.paste(image, (i * (width + gap), header))
    atomic_write(path, lambda temporary: sheet.save(temporary, format="PNG"))
