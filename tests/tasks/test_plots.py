"""Pictures that are drawn pixel for pixel."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.detection.found import Packed
from tasks.plots import (
    as_written,
    brightened,
    confusion_matrix,
    contact_sheet,
    draw_instances,
    new_figure,
    outlined,
    side_by_side,
    timeline,
)


def test_outlines_are_the_pixels_of_the_mask_at_its_border():
    mask = np.zeros((600, 600), dtype=bool)
    mask[100:110, 200:220] = True
    mask[:5, :5] = True  # at the picture's border
    drawn = np.asarray(outlined(Image.new("RGB", (600, 600), "white"), [Packed.of(mask)], [(1, 2, 3)]))
    painted = (drawn == (1, 2, 3)).all(-1)
    expected = mask.copy()
    expected[101:109, 201:219] = False
    expected[1:4, 1:4] = False
    assert (painted == expected).all()
    assert (drawn[~painted] == 255).all()


def test_the_first_mask_is_on_top_and_small_pictures_are_enlarged():
    mask = np.ones((10, 20), dtype=bool)
    drawn = outlined(Image.new("RGB", (20, 10)), [Packed.of(mask)] * 2, [(255, 0, 0), (0, 255, 0)])
    assert drawn.size == (520, 260)
    assert drawn.getpixel((0, 0)) == drawn.getpixel((25, 25)) == (255, 0, 0)
    assert drawn.getpixel((26, 26)) == (0, 0, 0)


def test_only_dark_pictures_are_brightened():
    ramp = Image.fromarray(np.arange(0, 51, dtype=np.uint8)[None].repeat(40, 0))
    shown, factor = brightened(ramp)
    assert factor == pytest.approx(255 / 50)
    assert np.asarray(shown)[0, 50].tolist() == [255, 255, 255]
    bright = Image.new("RGB", (9, 9), (10, 20, 200))
    shown, factor = brightened(bright)
    assert factor == 1
    assert shown.getpixel((0, 0)) == (10, 20, 200)
    assert np.asarray(brightened(Image.new("L", (4, 4)))[0]).max() == 0  # black stays black


def test_pictures_in_a_row(tmp_path):
    side_by_side([Image.new("RGB", (30, 20), c) for c in ("red", "blue")], ["a\nb", "c"], tmp_path / "row.png")
    row = Image.open(tmp_path / "row.png")
    pixels = np.asarray(row)
    assert (pixels[-20:, :30] == (255, 0, 0)).all()
    assert (pixels[-20:, -30:] == (0, 0, 255)).all()
    assert row.width > 60


NAMES = ["$_$", "$a$", "caf\udce9", "a\nb", "\x1b[31m", "日本"]


@dataclass
class Window:
    begin: float
    end: float
    classes: list[str]
    scores: list[float]


@dataclass
class Instance:
    label: str
    score: float = 0.5
    box: tuple[float, float, float, float] = (0, 0, 90, 90)
    packed: Packed | None = None


@pytest.mark.filterwarnings("error")
def test_every_name_can_be_drawn(tmp_path):
    """Signs of formulas, bytes that are no text, control characters, a script that the font lacks."""
    image = Image.new("RGB", (96, 96))
    confusion_matrix(torch.eye(len(NAMES), dtype=torch.int64), NAMES, tmp_path / "matrix.png")
    contact_sheet([image] * len(NAMES), [f"{name}\n{name}" for name in NAMES], tmp_path / "sheet.png")
    timeline([Window(i, i + 1, NAMES, [0.5] * len(NAMES)) for i in range(2)], tmp_path / "timeline.png")
    draw_instances(image, [Instance(name) for name in NAMES], tmp_path / "objects.png")
    assert len(list(tmp_path.iterdir())) == 4


def test_names_are_drawn_as_they_are_and_powers_as_formulas():
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.set_yscale("log")
    axes.plot([0, 1], [1, 1000], label="$_$")
    axes.set_xticks([0, 1], ["$a$", "caf\udce9"])
    axes.set_title("$_$")
    legend = axes.legend()
    as_written(figure)
    figure.canvas.draw()
    ticks = axes.get_xticklabels()
    assert [label.get_text() for label in ticks] == ["$a$", "caf\\xe9"]
    assert not any(text.get_parse_math() for text in (axes.title, *legend.get_texts(), *ticks))
    assert all(label.get_parse_math() for label in axes.get_yticklabels())
