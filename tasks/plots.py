"""Pictures: training curves, confusion matrix, contact sheet, timeline, detected objects."""

from __future__ import annotations

import colorsys
import functools
import math
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
    """Write a figure as a PNG or SVG file, completely or not at all; its texts are drawn as they are (``as_written``).

    The ending of the path gives the format. Equal figures make equal files.
    """
    import matplotlib

    as_written(figure)
    kind = path.suffix.removeprefix(".")
    metadata = {"Date": None, "Creator": None} if kind == "svg" else None
    with warnings.catch_warnings():
        # a script that the font lacks is drawn as boxes, and would give a warning for each character
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        with matplotlib.rc_context({"svg.hashsalt": path.name}):
            atomic_write(path, lambda temporary: figure.savefig(temporary, dpi=dpi, format=kind, metadata=metadata))


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


_ROWS = 256  # of a mask, blended at once
_SMALLEST = 11  # size of a label's font in pixels


class Placed(Protocol):
    """The mask of an object (``tasks.detection.found.Packed``): its part of the picture, with its corner x, y."""

    @property
    def corner(self) -> tuple[int, int]:
        """Upper left corner (x, y) of the part of the picture."""

    def array(self) -> np.ndarray:
        """Return the part of the mask, bool (h, w)."""


class Drawable(Protocol):
    """An object found in a picture (``tasks.detection.predict.Instance``)."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    packed: Any


def draw_instances(image: Image.Image, instances: Sequence[Drawable], path: Path, *, factor: float = 1.0) -> None:
    """Draw masks, boxes and labels into a copy of a picture; the best ones are drawn last, on top.

    Lines and labels grow with the picture, so that they are legible where it is shown as a whole.

    Args:
        image: picture.
        instances: objects in the picture, best first.
        path: PNG file to write.
        factor: pixels of ``image`` to a pixel of the objects' coordinates; below 1 for a reduced copy.
    """
    scale = max(1, round(512 / max(image.size)))  # in small pictures the labels would cover the objects
    pixels = np.array(image.convert("RGB"))
    colours = [
        tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(i * 0.618 % 1, 0.8, 1.0))
        for i in range(len(instances))
    ]
    worst_first = list(zip(instances, colours, strict=True))[::-1]
    for instance, colour in worst_first:
        if instance.packed is not None:
            _blend(pixels, *_reduced(instance.packed, factor), colour)
    # Draw boxes and labels into the enlarged copy.
    drawn = Image.fromarray(pixels).resize((image.width * scale, image.height * scale))
    pen, width = ImageDraw.Draw(drawn), max(1, round(max(drawn.size) / 800))
    for instance, colour in worst_first:
        box = [scale * factor * value for value in instance.box]
        pen.rectangle(box, outline=colour, width=width)
        text = f"{printable(instance.label)} {instance.score:.0%}"
        # A text that is longer than the box would cover the neighbours: it is written smaller, or not at all.
        full = max(_SMALLEST, round(max(drawn.size) / 80))
        size = min(full, int(full * (box[2] - box[0]) / max(pen.textlength(text, font=_font(full)), 1)))
        if size >= _SMALLEST:
            pen.text((box[0] + width + 1, box[1] + width - 1), text, fill=colour, font=_font(size))
    atomic_write(path, lambda temporary: drawn.save(temporary, format="PNG"))


@functools.lru_cache(64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _reduced(mask: Placed, factor: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the part of a mask, bool (h, w), and its corner in a picture that is reduced by a factor."""
    part, (x, y) = mask.array(), mask.corner
    if factor == 1 or not part.size:
        return part, (x, y)
    size = max(1, round(part.shape[1] * factor)), max(1, round(part.shape[0] * factor))
    return np.asarray(Image.fromarray(part).resize(size)), (round(x * factor), round(y * factor))


def _blend(pixels: np.ndarray, mask: np.ndarray, corner: tuple[int, int], colour: Sequence[int]) -> None:
    """Blend a colour into the pixels (H, W, 3) of a mask (h, w), some rows at a time: floats take 300 MB.

    Args:
        pixels: uint8 values, changed in place.
        mask: bool array; what lies outside of the picture is left out.
        corner: x and y of the mask in the picture.
        colour: red, green and blue.
    """
    x, y = corner
    for first in range(0, len(mask), _ROWS):
        part = pixels[y + first : y + min(first + _ROWS, len(mask)), x : x + mask.shape[1]]
        inside = mask[first : first + len(part), : part.shape[1]]
        blended = 0.55 * part[inside].astype(np.float32) + 0.45 * np.asarray(colour, dtype=np.float32)
        part[inside] = blended.round().astype(np.uint8)


def outlined(image: Image.Image, masks: Sequence[Placed], colours: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Return a copy of a picture, enlarged if it is small, with the outlines of masks.

    Args:
        image: picture.
        masks: masks of objects in the picture; the first are drawn last, on top.
        colours: RGB colour of each mask.
    """
    scale = max(1, -(-512 // max(image.size)))
    large = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    pixels = np.array(large)
    for mask, colour in list(zip(masks, colours, strict=True))[::-1]:
        # The outline is the pixels of the mask of which a neighbour is not in the mask.
        part, (x, y) = mask.array(), mask.corner
        inner = np.pad(part, 1)
        inner = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        edge = (part & ~inner).repeat(scale, 0).repeat(scale, 1)
        pixels[scale * y : scale * y + len(edge), scale * x : scale * x + edge.shape[1]][edge] = colour
    return Image.fromarray(pixels)


def brightened(image: Image.Image) -> tuple[Image.Image, float]:
    """Return a dark picture with its brightest pixels at white, and the factor; another one as it is, and 1.

    A picture is dark if all but a thousandth of its values are below half of the range.
    """
    shown = image.convert("RGB")
    counts = np.asarray(shown.histogram()).reshape(3, 256).sum(0).cumsum()  # of the values up to 0, 1, ..., 255
    rank = 0.999 * (counts[-1] - 1)  # the percentile lies between two of the sorted values
    low, high = (int(np.searchsorted(counts, place, side="right")) for place in (math.floor(rank), math.ceil(rank)))
    peak = low + (high - low) * (rank - math.floor(rank))
    if peak >= 128:
        return shown, 1.0
    factor = 255 / max(peak, 1.0)
    return shown.point([min(round(value * factor), 255) for value in range(256)] * 3), factor


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
