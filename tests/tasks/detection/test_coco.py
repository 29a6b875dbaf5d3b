"""COCO data: what is read, what is refused, what is handled and counted."""

import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from tasks.detection.coco import ImageFiles, decode_mask, load_coco, rle_counts
from tasks.detection.data import EvalSet, make_target
from tasks.errors import DataError
from tests.helpers.coco import RED, encoded, polygon
from tests.helpers.paths import shared
from zoo.errors import LONGEST


def declared(width, height):
    """A PNG that declares a size, with the pixels of none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(b"\0"), b"IEND")
    packed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


# -- reading ----------------------------------------------------------------------------------------


def test_categories_with_gaps_become_labels_from_one(builder):
    data = builder.load()
    assert (data.categories, data.names) == ((3, 7), ("red", "blue"))
    assert not data.report()
    target = make_target(data, data.images[0], masks=True)
    assert target["labels"].tolist() == [1, 2]
    assert target["boxes"].tolist() == [[5, 4, 25, 14], [30, 8, 42, 32]]
    assert target["masks"].shape == (2, 40, 60)
    assert target["masks"][0, 4:14, 5:25].all()
    assert int(target["masks"].sum()) == 200 + 288
    image, id = EvalSet(data)[0]
    assert id == 1
    assert image[:, 6, 8].tolist() == list(RED)


@pytest.mark.parametrize("top", ["", "images/"])
def test_zip_files(builder, top):
    """With or without a top folder; also after a trip to another process."""
    folder = builder.load()
    with zipfile.ZipFile(builder.root / "packed.zip", "w") as archive:
        for name in ("a.png", "b.jpg", "sub/c.png"):
            archive.write(builder.root / "images" / name, top + name)
    for images in ("packed", "packed.zip"):
        packed = builder.load(images=images)
        packed = pickle.loads(pickle.dumps(packed))
        for a, b in zip(folder.images, packed.images, strict=True):
            assert np.array_equal(np.asarray(folder.read(a)), np.asarray(packed.read(b)))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (8, b"\x01\x00", "encrypted"),
        (10, b"\x63\x00", "compression"),
        (24, b"\xff\xff\xff\x7f", "bytes, an image must have at most"),
    ],
)
def test_members_of_zip_files_that_cannot_be_read(builder, field, value, reason):
    path = builder.root / "packed.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.png", "b.jpg", "sub/c.png"):
            archive.write(builder.root / "images" / name, name)
    content = bytearray(path.read_bytes())
    place = content.find(b"PK\x01\x02") + field  # flags, method or size in the directory's first entry
    content[place : place + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"1 images that cannot be decoded: a.png .*{reason}"):
        builder.load(images="packed")


def test_a_reason_does_not_quote_a_whole_file(builder):
    """zipfile's message has the name in the header of a member, which is here 30,000 bytes long."""
    path = builder.root / "packed.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a.png", "b.jpg", "sub/c.png"):
            archive.write(builder.root / "images" / name, name)
        archive.writestr("rest", bytes(range(256)) * 120)
    content = bytearray(path.read_bytes())
    content[26:28] = (30_000).to_bytes(2, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match="images that cannot be decoded: a.png .*File name in directory") as error:
        builder.load(images="packed")
    assert len(str(error.value)) < 2 * LONGEST


def test_every_form_of_mask_is_the_same(builder):
    """Polygons, uncompressed RLE and compressed RLE of one rectangle."""
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[4:14, 5:25] = 1
    compressed = rle.encode(np.asfortranarray(mask))
    flat = mask.flatten(order="F")
    counts = [len(run) for run in np.split(flat, np.flatnonzero(np.diff(flat)) + 1)]
    forms = [
        [polygon(5, 4, 20, 10)],
        {"size": [40, 60], "counts": counts},
        {"size": [40, 60], "counts": compressed["counts"].decode()},
    ]
    for form in forms:
        assert np.array_equal(decode_mask({"segmentation": form}, 40, 60), mask)
    builder.content["annotations"][0]["segmentation"] = forms[1]
    builder.content["annotations"][2]["segmentation"] = forms[2]
    data = builder.load()
    assert int(make_target(data, data.images[0], masks=True)["masks"][0].sum()) == 200


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_run_lengths_of_compressed_rle(seed, height, width, share):
    """Ours give the mask that pycocotools encoded."""
    mask = (np.random.RandomState(seed).rand(height, width) < share).astype(np.uint8)
    counts = rle_counts(rle.encode(np.asfortranarray(mask))["counts"].decode())
    flat = np.repeat(np.arange(len(counts)) % 2, counts)
    assert np.array_equal(flat.reshape(width, height).T, mask)


def test_crowds_are_evaluated_and_not_trained_on(builder):
    region = {"size": [40, 60], "counts": [0, 400, 2000]}
    builder.annotate(1, 3, (0, 0, 10, 40), iscrowd=1, segmentation=region)
    data = builder.load()
    assert len(data.objects(data.images[0], masks=True)) == 2
    assert sum(a["iscrowd"] for a in data.ground_truth()["annotations"]) == 1
    assert not data.report()


# -- pictures in the wild ---------------------------------------------------------------------------


def test_sixteen_bits(builder):
    """65535 is white: PIL alone would clip everything above 255."""
    values = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    builder.image(9, "deep.png", encoded(Image.fromarray(values)))
    data = builder.load()
    pixels = np.asarray(data.read(data.images[-1]))
    assert pixels.shape == (40, 60, 3)
    assert np.abs(pixels[..., 0].astype(float) - values / 257).max() <= 0.5
    assert "1 images of mode I;16, converted to RGB: deep.png" in data.report()[0]


def test_cmyk(builder):
    picture = Image.new("CMYK", (60, 40), (0, 255, 255, 0))  # red
    builder.image(9, "print.jpg", encoded(picture, "JPEG", quality=95))
    data = builder.load()
    assert np.abs(np.asarray(data.read(data.images[-1])).mean((0, 1)) - (254, 0, 0)).max() < 12
    assert "1 images of mode CMYK, converted to RGB: print.jpg" in data.report()[0]


@pytest.mark.parametrize("annotated", ["as shown", "as stored"])
def test_exif_orientation(builder, annotated):
    """Stored 40 x 60 with a turn: read in the frame whose size the annotations have."""
    shown = Image.new("RGB", (60, 40), (128, 128, 128))
    shown.paste(RED, (5, 4, 25, 14))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    stored = shown.transpose(Image.Transpose.ROTATE_90)
    size = (60, 40) if annotated == "as shown" else (40, 60)
    builder.image(9, "phone.jpg", encoded(stored, "JPEG", exif=exif, quality=95), size)
    data = builder.load()
    expected = shown if annotated == "as shown" else stored
    difference = np.asarray(data.read(data.images[-1])).astype(float) - np.asarray(expected)
    assert np.abs(difference).mean() < 2
    said = {
        "as shown": "1 images turned by their EXIF orientation: phone.jpg",
        "as stored": "1 images not turned by their EXIF orientation, as their annotations are of the stored size",
    }
    assert any(said[annotated] in line for line in data.report())


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("none.png", b"", "1 images that cannot be decoded: none.png"),
        ("text.png", b"not an image", "1 images that cannot be decoded: text.png"),
        (
            "cut.jpg",
            encoded(Image.effect_noise((60, 40), 90), "JPEG")[:-600],
            "1 images that cannot be decoded: cut.jpg",
        ),
        (
            "small.png",
            encoded(Image.new("RGB", (50, 40))),
            "size is not the annotations': small.png",
        ),
        ("bomb.png", declared(30_000, 30_000), "bomb.png .*set/images/bomb.png: cannot be decoded.*exceeds limit"),
        ("float.tif", encoded(Image.new("F", (60, 40)), "TIFF"), "float.tif.*pixels of mode 'F'"),
    ],
)
def test_bad_pictures_are_refused_before_training(builder, name, data, reason):
    builder.image(9, name, data)
    with pytest.raises(DataError, match=reason):
        builder.load()


def test_the_header_of_a_cut_png_is_read_without_its_pixels(builder):
    """An evaluation skips and counts it; PIL looks for EXIF data behind the pixels of each PNG."""
    content = encoded(Image.effect_noise((60, 40), 90).convert("RGB"))
    builder.image(9, "cut.png", content[: len(content) // 2])
    data = builder.load(check="header")
    with pytest.raises(DataError, match=r"cut.png: cannot be decoded as an image \("):
        data.read(data.images[-1])


def test_exif_data_behind_the_pixels_of_a_png(builder):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.new("RGB", (40, 60), RED))
    data = exif.tobytes()[6:]
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    builder.image(9, "late.png", content[:-12] + chunk + content[-12:], (60, 40))
    found = builder.load(check="header")
    assert found.read(found.images[-1]).size == (60, 40)
    assert any("images turned by their EXIF orientation: late.png" in line for line in found.report())


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_is_none(builder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    builder.image(9, "odd.jpg", encoded(Image.new("RGB", (60, 40), RED), "JPEG", exif=exif))
    assert not any("EXIF" in line for line in builder.load().report())


def test_all_problems_in_one_error(builder):
    for i in range(5):
        builder.image(20 + i, f"gone{i}.png")
        (builder.root / "images" / f"gone{i}.png").unlink()
    builder.image(30, "text.png", b"not an image")
    with pytest.raises(DataError) as error:
        builder.load()
    assert "5 images that are missing: gone0.png, gone1.png, gone2.png, ..." in str(error.value)
    assert "1 images that cannot be decoded: text.png" in str(error.value)
    with pytest.raises(DataError, match="images that are missing"):
        builder.load(check="header")


# -- annotations in the wild ------------------------------------------------------------------------


def test_boxes_beyond_the_image_are_clipped(builder):
    builder.content["annotations"][0] |= {"bbox": [-5, -5, 30, 20]}
    data = builder.load()
    assert make_target(data, data.images[0], masks=False)["boxes"][0].tolist() == [0, 0, 25, 15]
    assert data.ground_truth()["annotations"][0]["bbox"] == [0, 0, 25, 15]  # what a detector can find
    assert any("1 annotations whose bbox reaches beyond the image, cut off: id 1" in line for line in data.report())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"category_id": 5}, "1 annotations of a category that is not listed: id 1"),
        ({"bbox": [1, 2, 3]}, "bbox is not four finite numbers"),
        ({"bbox": [1, 2, float("nan"), 4]}, "bbox is not four finite numbers"),
        ({"id": 2}, "annotations with an id that another has: id 2"),
        ({"segmentation": None}, "without a segmentation, which Mask R-CNN requires"),
        ({"segmentation": "x"}, "neither polygons nor RLE"),
        ({"segmentation": {"size": [60, 40], "counts": [2400]}}, "RLE size does not match the image"),
        ({"segmentation": {"size": [40, 60], "counts": [5, 5]}}, "RLE counts do not fill the image"),
        ({"segmentation": {"size": [40, 60], "counts": "xyz!"}}, "RLE counts do not fill the image"),
        ({"segmentation": {"size": [40, 60], "counts": "00000"}}, "RLE counts do not fill the image"),
    ],
)
def test_annotations_that_are_refused(builder, change, reason):
    builder.content["annotations"][0] |= change
    with pytest.raises(DataError, match=reason):
        builder.load()


def test_boxes_alone_need_no_segmentation(builder):
    for annotation in builder.content["annotations"]:
        del annotation["segmentation"], annotation["area"]
    data = builder.load(masks=False)
    assert "masks" not in make_target(data, data.images[0], masks=False)
    assert data.ground_truth()["annotations"][0]["area"] == 200


def test_files_that_are_not_coco(builder, tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match="a.json: no such file"):
        load_coco(path, tmp_path, masks=True, check="none")
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "must be a COCO 'instances' file, an object; found list"),
        ("{}", "has no list 'images'"),
        ('{"images": [1]}', "has no list 'categories'"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            load_coco(path, tmp_path, masks=True, check="none")
    builder.content["images"].append(1)
    with pytest.raises(DataError, match="1 entries of 'images' without 'id': number 3"):
        builder.load()
    del builder.content["images"][-1], builder.content["images"][1]["width"]
    with pytest.raises(DataError, match="1 entries of 'images' without 'width': number 1"):
        builder.load()
    builder.content["images"][1]["width"] = "60"
    with pytest.raises(DataError, match="1 images whose width and height are not whole numbers above 0: b.jpg"):
        builder.load()
    with pytest.raises(DataError, match="no such folder, and no zip file nothing.zip beside it"):
        ImageFiles(tmp_path / "nothing")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match="broken.zip: not a complete zip file"):
        ImageFiles(tmp_path / "broken")


def test_two_entries_of_one_file(builder):
    builder.content["images"].append({**builder.content["images"][0], "id": 50})
    with pytest.raises(DataError, match="1 images that share a file: a.png"):
        builder.load()


# -- real sets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotations", "images", "counts"),
    [
        ("coco_permissive/annotations/instances_train2017.json", "coco_permissive/train2017", (82, 781, 9)),
        ("coco_permissive/annotations/instances_val2017.json", "coco_permissive/val2017.zip", (57, 517, 7)),
        ("nuclei/instances_val.json", "nuclei/val", (105, 3174, 0)),
    ],
)
def test_counts_of_real_sets(annotations, images, counts):
    root = shared("data", "coco_permissive").parent
    data = load_coco(root / annotations, root / images, masks=True, check="decode")
    found = [annotation for image in data.images for annotation in image.annotations]
    assert (len(data), len(found), sum(a["iscrowd"] for a in found)) == counts
    for image in data.images[:20]:  # areas of the file are those of the masks, up to rasterisation
        for annotation in image.annotations:
            area = float(decode_mask(annotation, image.height, image.width).sum())
            assert abs(area - annotation["area"]) <= 0.15 * annotation["area"] + 30
