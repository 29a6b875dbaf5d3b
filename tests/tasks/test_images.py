"""Pictures in all modes and orientations, and files that are none."""

import numpy as np
import pytest
from PIL import Image

from tasks.errors import DataError
from tasks.images import read_image
from tests.helpers.classification import picture


@pytest.mark.parametrize(
    ("mode", "ending"), [("CMYK", "jpg"), ("L", "png"), ("RGBA", "png"), ("P", "gif"), ("1", "png")]
)
def test_all_modes_become_rgb(tmp_path, mode, ending):
    picture(tmp_path / f"a.{ending}", mode=mode)
    assert read_image(tmp_path / f"a.{ending}").mode == "RGB"


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    pixels = picture(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), np.rot90(pixels, -1))


def test_files_that_cannot_be_read_are_named(tmp_path):
    picture(tmp_path / "whole.jpg", size=(64, 64))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:700])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    for name in ("cut.jpg", "text.png", "empty.png"):
        with pytest.raises(DataError, match=rf"{name}: cannot be decoded as an image .*; remove or replace it"):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")
