"""Pictures that are drawn pixel for pixel."""

import numpy as np
import pytest
from PIL import Image

from tasks.plots import brightened, outlined, side_by_side


def test_outlines_are_the_pixels_of_the_mask_at_its_border():
    mask = np.zeros((600, 600), dtype=bool)
    mask[100:110, 200:220] = True
    mask[:5, :5] = True  # at the picture's border
    drawn = np.asarray(outlined(Image.new("RGB", (600, 600), "white"), [mask], [(1, 2, 3)]))
    painted = (drawn == (1, 2, 3)).all(-1)
    expected = mask.copy()
    expected[101:109, 201:219] = False
    expected[1:4, 1:4] = False
    assert (painted == expected).all()
    assert (drawn[~painted] == 255).all()


def test_the_first_mask_is_on_top_and_small_pictures_are_enlarged():
    mask = np.ones((10, 20), dtype=bool)
    drawn = outlined(Image.new("RGB", (20, 10)), [mask, mask], [(255, 0, 0), (0, 255, 0)])
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
