"""Pictures in all modes and orientations, and files that are none."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from tasks.errors import DataError
from tasks.images import PictureNotes, exposure, has_frames, read_image, read_picture, to_pixels, to_rgb
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


def on_white(path, pixels):
    """Whether the picture is read in RGB with these values (H, W, 3)."""
    return np.array_equal(np.asarray(read_image(path)), pixels)


DRAWN = np.zeros((6, 8), bool)
DRAWN[2:4, 3:6] = True
BLACK_ON_WHITE = np.where(DRAWN, 0, 255).astype(np.uint8)[..., None].repeat(3, 2)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pictures_are_on_white(tmp_path, mode):
    """A black drawing on a transparent ground, which is black too."""
    alpha = Image.fromarray(np.where(DRAWN, 255, 0).astype(np.uint8))
    image = Image.merge("LA", [Image.new("L", alpha.size, 0), alpha]).convert("RGBA")
    path = tmp_path / ("a.tif" if mode == "PA" else "a.png")
    (image if mode == "PA" else image.convert(mode)).save(path)
    assert on_white(path, BLACK_ON_WHITE)
    image.putalpha(alpha.point(lambda value: value // 5))  # 51 of 255: a fifth
    image.save(path)
    assert np.asarray(read_image(path))[2, 3].tolist() == [204, 204, 204]


@pytest.mark.parametrize(
    ("mode", "ending"), [("P", "png"), ("P", "gif"), ("L", "png"), ("1", "png"), ("RGB", "png"), ("I;16", "png")]
)
def test_a_transparent_colour_is_white(tmp_path, mode, ending):
    """Pictures without an alpha channel name one colour as transparent; here the ground's."""
    ground, drawn = (3, 0) if mode in ("P", "L", "I;16") else (1, 0)
    values = np.where(DRAWN, drawn, ground)
    if mode == "I;16":
        image, key = Image.fromarray(values.astype(np.uint16)), ground
    elif mode == "1":
        image, key = Image.fromarray(values.astype(bool)), 0
    else:
        image = Image.fromarray(values.astype(np.uint8))
        key = ground
        if mode == "P":
            image = Image.fromarray(values.astype(np.uint8), "P")
            image.putpalette([0, 0, 0] * 4)
        if mode == "RGB":
            image, key = image.convert("RGB"), (1, 1, 1)
    image.save(tmp_path / f"a.{ending}", transparency=key)
    read = np.asarray(read_image(tmp_path / f"a.{ending}"))
    if mode == "1":  # the drawing is transparent, on white
        assert (read == 255).all()
    else:
        assert (read[~DRAWN] == 255).all()
        assert (read[DRAWN] < 10).all()


def test_opaque_pictures_keep_their_values(tmp_path):
    pixels = picture(tmp_path / "a.png", mode="RGBA")
    assert on_white(tmp_path / "a.png", pixels)


def test_lab_cmyk_and_animated_pictures(tmp_path):
    red = Image.new("RGB", (8, 8), (200, 30, 40))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.applyTransform(red, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    lab.save(tmp_path / "lab.tif")
    assert np.abs(np.asarray(read_image(tmp_path / "lab.tif")).astype(int) - (200, 30, 40)).max() <= 4
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(np.asarray(read_image(tmp_path / "cmyk.jpg")).astype(int) - (200, 30, 40)).max() <= 12
    red.save(tmp_path / "two.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
    assert np.abs(np.asarray(read_image(tmp_path / "two.gif")).astype(int) - (200, 30, 40)).max() <= 4
    red.save(tmp_path / "two.mpo", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")], quality=95)
    assert np.abs(np.asarray(read_image(tmp_path / "two.mpo")).astype(int) - (200, 30, 40)).max() <= 12


def test_16_bit_floats_and_bombs(tmp_path, monkeypatch):
    Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(read_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 1, 255]
    Image.fromarray(np.array([[0.5, 0.1]], np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(
        DataError, match=r"f\.tif: pixels of mode 'F' \(floats\) have no fixed scale; save it with 8 or"
    ):
        read_image(tmp_path / "f.tif")
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(DataError, match=r"i\.tif: pixels of mode 'I' outside 0..65535"):
        read_image(tmp_path / "i.tif")
    picture(tmp_path / "large.png", size=(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match=r"large\.png: cannot be decoded as an image \(Image size .* exceeds limit"):
        read_image(tmp_path / "large.png")


def test_any_error_of_a_decoder_is_one_line(tmp_path, monkeypatch):
    picture(tmp_path / "a.png")

    def fail(self):
        raise IndexError("bad\nindex")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded as an image \(bad index\)"):
        read_image(tmp_path / "a.png")


def test_grey_and_more_channels(tmp_path):
    pixels = picture(tmp_path / "a.png")
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    assert np.array_equal(to_pixels(read_picture(tmp_path / "a.png", 1))[0], grey)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(to_pixels(read_picture(tmp_path / "grey.png", 1))[0], grey)
    four = np.random.RandomState(1).randint(0, 256, (16, 20, 4)).astype(np.uint8)
    for mode, name in (("RGBA", "rgba.png"), ("CMYK", "cmyk.tif")):
        Image.fromarray(four, mode).save(tmp_path / name)
        assert np.array_equal(to_pixels(read_picture(tmp_path / name, 4)).permute(1, 2, 0), four)
    with pytest.raises(DataError, match=r"a\.png: has 3 channels \(RGB\), the net takes 4; .*\.npy files any number"):
        read_picture(tmp_path / "a.png", 4)
    with pytest.raises(DataError, match=r"grey\.png: has 1 channels \(L\), the net takes 4"):
        read_picture(tmp_path / "grey.png", 4)


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_arrays(tmp_path, channels):
    pixels = np.random.RandomState(1).randint(0, 256, (5, 7, channels)).astype(np.uint8)
    for kind, values in (("uint8", pixels), ("uint16", pixels.astype(np.uint16) * 257)):
        np.save(tmp_path / f"{kind}.npy", values)
        read = read_picture(tmp_path / f"{kind}.npy", channels)
        assert np.array_equal(to_pixels(read).permute(1, 2, 0), pixels)
        assert to_rgb(read).size == (7, 5)
    with pytest.raises(DataError, match=rf"\(5, 7, {channels}\) of uint8; must be \(H, W, 5\) of uint8 or uint16"):
        read_picture(tmp_path / "uint8.npy", 5)
    np.save(tmp_path / "f.npy", pixels / 255)
    (tmp_path / "no.npy").write_text("none")
    np.save(tmp_path / "o.npy", np.array([{}]))
    for name in ("f", "no", "o"):
        with pytest.raises(DataError, match=rf"{name}\.npy: "):
            read_picture(tmp_path / f"{name}.npy", channels)


@pytest.mark.parametrize(
    ("name", "several"), [("a.gif", True), ("a.webp", True), ("a.png", True), ("a.tif", True), ("a.mpo", False)]
)
def test_pictures_with_several_frames_are_counted(tmp_path, name, several):
    """The first frame is read; a camera's second picture (.mpo) is a preview or the other eye's."""
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    first.save(tmp_path / name, save_all=True, append_images=[second])
    first.save(tmp_path / f"one-{name}")
    found = PictureNotes()
    for each in (f"one-{name}", name):
        found.add(each, read_image(tmp_path / each))
    expected = f"pictures with several frames, of which the first is read: 1 of 2, e.g. {name}"
    assert found.lines() == ([expected] if several else [])
    assert np.abs(np.asarray(read_image(tmp_path / name)).astype(int) - (255, 0, 0)).max() <= 3
    assert has_frames(read_picture(tmp_path / name, 1)) == several


def test_a_damaged_second_frame_does_not_keep_the_first_from_being_read(tmp_path):
    random = np.random.RandomState(0)
    first, second = (Image.fromarray(random.randint(0, 256, (24, 32, 3), dtype=np.uint8)) for _ in range(2))
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=[second], duration=80)
    content = buffer.getvalue()
    expected = np.asarray(read_image(buffer))
    descriptor = b"\x2c\0\0\0\0\x20\0\x18\0"  # of a frame of the whole picture
    assert content.count(descriptor) == 2
    begin = content.rfind(descriptor)
    for cut in range(begin - 8, begin + 20):  # an extension of eight bytes is in front
        buffer = io.BytesIO(content[:cut])
        np.testing.assert_array_equal(np.asarray(read_image(buffer)), expected)


def test_a_smaller_or_damaged_page_is_no_frame(tmp_path):
    first = Image.new("RGB", (8, 8), "red")
    first.save(tmp_path / "a.tif", save_all=True, append_images=[first.resize((4, 4))])
    assert not has_frames(read_image(tmp_path / "a.tif"))
    first.save(tmp_path / "b.tif", save_all=True, append_images=[first])
    content = (tmp_path / "b.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(content[:-60])
    assert read_image(tmp_path / "b.tif").getpixel((0, 0)) == (255, 0, 0)


def test_pictures_that_are_nearly_black_or_white(tmp_path):
    found = PictureNotes()
    twelve_bits = np.random.RandomState(0).randint(0, 4096, (40, 40)).astype(np.uint16)
    Image.fromarray(twelve_bits).save(tmp_path / "dark.png")
    Image.new("RGB", (40, 40), "white").save(tmp_path / "light.png")
    picture(tmp_path / "right.png", size=(40, 40))
    ink = Image.new("RGB", (40, 40), "white")
    ink.paste("black", (0, 0, 4, 4))  # a hundredth of the picture
    ink.save(tmp_path / "page.png")
    for name in ("dark.png", "light.png", "right.png", "page.png"):
        found.add(name, read_image(tmp_path / name))
    black, white = found.lines()
    assert black.startswith(
        "pictures that are nearly black as they are read: 1 of 4, e.g. dark.png; look at them: 16-bit"
    )
    assert white.startswith("pictures that are nearly white as they are read: 1 of 4, e.g. light.png; ")
    assert exposure(torch.full((5, 4, 4), 10, dtype=torch.uint8)) == "black"
