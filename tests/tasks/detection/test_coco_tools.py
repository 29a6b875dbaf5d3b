"""COCO files as annotation tools write them."""

import gzip
import io
import json
import unicodedata
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.detection.coco import ImageFiles, load_coco
from tasks.detection.data import make_target
from tasks.detection.evaluate import categories_of, coco_metrics
from tasks.detection.image_files import parts_of
from tasks.errors import DataError
from tests.helpers.coco import encoded
from tests.helpers.detection import KINDS, perfect
from tests.helpers.memory import more_memory

# -- ids and classes --------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("ids", [lambda i: i - 1, lambda i: f"img{i}", float, lambda i: str(10 * i), lambda i: i * 7])
def test_ids_of_any_form(builder, ids, fast):
    """pycocotools takes the annotation id 0 for an object that was not found."""
    for image in builder.content["images"]:
        image["id"] = ids(image["id"])
    for annotation in builder.content["annotations"]:
        annotation |= {"id": ids(annotation["id"]), "image_id": ids(annotation["image_id"])}
    data = builder.load()
    reports = coco_metrics(data, perfect(data), KINDS, fast=fast)
    assert [reports[kind].stats[0] for kind in KINDS] == pytest.approx([1, 1])
    assert not data.report()


def test_the_root_of_roboflow_is_no_class(builder):
    names = [{**category, "supercategory": "things"} for category in builder.content["categories"]]
    builder.content["categories"] = [{"id": 0, "name": "things", "supercategory": "none"}, *names]
    data = builder.load()
    assert data.names == ("red", "blue")
    assert (
        "1 categories that only name the project (no annotations, above all others), no classes: things (id 0)"
        in (data.report()[0])
    )
    # with annotations, or where others are beside it, it is a class
    builder.annotate(1, 0, (1, 1, 5, 5))
    assert builder.load().names == ("things", "red", "blue")
    builder.content["annotations"].pop()
    names[0]["supercategory"] = "person"
    assert "things" in builder.load().names


def test_unused_and_double_classes(builder):
    builder.content["categories"] += [{"id": 9, "name": "red"}, {"id": 12, "name": "Blue "}, {"id": 11, "name": "none"}]
    builder.annotate(2, 9, (1, 1, 5, 5))
    data = builder.load()
    assert (data.names, data.categories) == (("red", "blue", "none", "Blue "), (3, 7, 11, 12))
    assert data.counts() == {"red": 4, "blue": 3, "none": 0, "Blue ": 0}
    for line in (
        "1 categories with the name of another, one class with it: red (id 9)",
        "2 classes without annotations: none, Blue ",
        "1 classes whose names differ only in case, spaces or Unicode form: 'blue' and 'Blue '",
    ):
        assert any(line in said for said in data.report())
    assert coco_metrics(data, perfect(data), ("segm",))["segm"].per_category == {
        "red": 1,
        "blue": 1,
        "none": -1,
        "Blue ": -1,
    }
    assert categories_of(data, ("blue", "red"), "weights") == [7, 3]
    with pytest.raises(DataError, match="category 'red' is not one of weights"):
        categories_of(data, ("blue",), "weights")


def test_one_name_in_two_unicode_forms(builder):
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    for category, name in zip(builder.content["categories"], names, strict=True):
        category["name"] = name
    found = builder.load()
    assert any(f"Unicode form: {found.names[0]!r} and {found.names[1]!r}" in line for line in found.report())
    assert set(found.names) == set(names)


def test_equal_annotations_are_counted(builder):
    first, second = builder.content["annotations"][:2]
    for repeated in ({**first, "id": 501}, {**second, "id": 502}, {**first, "id": 503}):
        builder.content["annotations"].append(repeated)
    moved = {**first, "id": 504, "segmentation": [[v + 0.5 for v in part] for part in first["segmentation"]]}
    builder.content["annotations"].append(moved)
    line = "3 annotations equal to another of their image, kept (an evaluation counts each): id 501, id 502, id 503"
    assert any(line in said for said in builder.load().report())


def test_lvis(builder):
    """No file names but addresses, and lists of the categories that were looked for."""
    for image in builder.content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
        image |= {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
    data = builder.load()
    assert data.images[0].file_name == "train2017/a.png"
    said = "\n".join(data.report())
    assert "3 images whose leading folders are left out to find them: train2017/a.png" in said
    assert "3 images with LVIS's lists" in said
    assert len(data.read(data.images[2]).getcolors(9999)) > 1


def test_cvat(builder):
    """Masks of the brush are crowds with uncompressed run lengths."""
    for annotation in builder.content["annotations"]:
        annotation |= {"attributes": {"occluded": False}, "iscrowd": 1, "segmentation": {"size": [40, 60]}}
        annotation["segmentation"]["counts"] = [100, 300, 2000]
    data = builder.load()
    assert not data.objects(data.images[0], masks=True)
    assert any("6 annotations that are crowds (iscrowd=1), not trained on" in line for line in data.report())


@pytest.mark.parametrize("key", ["area", "iscrowd", "ignore"])
def test_null_is_as_missing(builder, key):
    for annotation in builder.content["annotations"]:
        annotation[key] = None
    data = builder.load()
    assert coco_metrics(data, perfect(data), KINDS)["bbox"].stats[0] == pytest.approx(1)
    assert not data.report()


# -- sizes of objects -------------------------------------------------------------------------------


@pytest.mark.parametrize("area", [None, 0, 1.0, 1e6])
def test_wrong_areas_are_those_of_the_masks(builder, area):
    """The area decides whether an object counts as small, medium or large."""
    for annotation in builder.content["annotations"]:
        annotation.pop("area")
        annotation |= {} if area is None else {"area": area}
    data = builder.load()
    assert {a["area"] for a in data.ground_truth()["annotations"]} == {200, 288}
    assert any("6 annotations whose area is not that of their mask" in line for line in data.report()) == (
        area is not None
    )
    boxes = builder.load(masks=False)
    assert {a["area"] for a in boxes.ground_truth()["annotations"]} == {200, 288}
    stats = coco_metrics(data, perfect(data), ("segm",))["segm"].metrics()
    assert (stats["mask_ap_small"], stats["mask_ap_large"]) == (pytest.approx(1), -1)


# -- boxes in other layouts -------------------------------------------------------------------------

LAYOUTS = {
    "x1, y1, x2, y2": lambda x, y, w, h: [x, y, x + w, y + h],
    "centre x, centre y, width, height": lambda x, y, w, h: [x + w / 2, y + h / 2, w, h],
    "y, x, height, width": lambda x, y, w, h: [y, x, h, w],
    "y1, x1, y2, x2": lambda x, y, w, h: [y, x, y + h, x + w],
    "x, y, width, height in percent of the image": lambda x, y, w, h: [x / 0.6, y / 0.4, w / 0.6, h / 0.4],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("masks", [True, False])
def test_boxes_are_compared_with_masks(builder, layout, masks):
    builder.content["annotations"] = []
    for box in ((5, 4, 20, 10), (30, 8, 12, 24), (2, 22, 14, 12)):
        builder.annotate(1, 3, box)
        builder.content["annotations"][-1]["bbox"] = LAYOUTS[layout](*box)
    with pytest.raises(DataError, match=f"3 annotations whose bbox is {layout} by their masks .*: id 1, id 2, id 3"):
        builder.load(masks=masks)


@pytest.mark.parametrize("masks", [True, False])
def test_normalised_boxes(builder, masks):
    for annotation in builder.content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x / 60, y / 40, w / 60, h / 40]
    with pytest.raises(DataError, match=r"6 annotations whose bbox is within 0..1 \(.*multiply by the image's size\)"):
        builder.load(masks=masks)


def test_a_pixel_at_the_corner_is_no_normalised_box(builder):
    builder.content["annotations"] = []
    for box in ((0, 0, 1, 1), (30, 20, 1, 1)):
        builder.annotate(1, 3, box, segmentation=None)
    assert sum(builder.load(masks=False).counts().values()) == 2
    builder.content["annotations"][1]["bbox"] = [0.5, 0.25, 0.5, 0.75]
    with pytest.raises(DataError, match=r"2 annotations whose bbox is within 0..1 .*: id 1, id 2"):
        builder.load(masks=False)


@pytest.mark.parametrize("area", [True, False])
def test_corners_without_masks(builder, area):
    for annotation in builder.content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]
        del annotation["segmentation"]
        if not area:
            del annotation["area"]
    with pytest.raises(DataError, match="6 annotations whose bbox looks like x1, y1, x2, y2 .*subtract"):
        builder.load(masks=False)
    builder.content["annotations"] = builder.content["annotations"][1:2]  # one may be an accident
    assert any("1 annotations whose bbox looks like x1" in line for line in builder.load(masks=False).report())


def test_a_box_beside_its_mask(builder):
    """The mask's box is used, where there are masks: torchvision refuses a box without a positive side."""
    builder.content["annotations"][0]["bbox"] = [35.0, 25.0, 20.0, 12.0]
    data = builder.load()
    assert any(
        "1 annotations whose bbox is not that of their mask, the mask's box is used: id 1" in line
        for line in data.report()
    )
    assert make_target(data, data.images[0], masks=True)["boxes"][0].tolist() == [5, 4, 25, 14]
    boxes = builder.load(masks=False)
    assert any("the box is used: id 1" in line for line in boxes.report())
    assert make_target(boxes, boxes.images[0], masks=False)["boxes"][0].tolist() == [35, 25, 55, 37]
    for annotation in builder.content["annotations"]:
        annotation["bbox"] = [0.0, 33.0, 5.0, 6.0]
    with pytest.raises(DataError, match="6 annotations whose bbox is not that of their mask, more than half of all"):
        builder.load()


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 6), st.booleans())
def test_true_boxes_are_never_refused(tmp_path_factory, data, count, masks):
    """COCO's own layout, with objects anywhere, is taken as it is."""
    width, height = data.draw(st.integers(20, 300)), data.draw(st.integers(20, 300))
    annotations = []
    for number in range(count):
        w, h = data.draw(st.integers(2, width)), data.draw(st.integers(2, height))
        x, y = data.draw(st.integers(0, width - w)), data.draw(st.integers(0, height - h))
        entry = {"id": number, "image_id": 0, "category_id": 1, "bbox": [x, y, w, h]}
        if masks:
            entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        annotations.append(entry)
    content = {"images": [{"id": 0, "file_name": "a.png", "width": width, "height": height}]}
    content |= {"annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    folder = tmp_path_factory.getbasetemp()
    (folder / "c.json").write_text(json.dumps(content))
    found = load_coco(folder / "c.json", folder, masks=masks, check="none")
    assert not [line for line in found.report() if "equal to another" not in line]
    assert [a["bbox"] for a in found.images[0].annotations] == [a["bbox"] for a in annotations]


def test_boxes_without_masks(builder):
    """A file of boxes is refused for Mask R-CNN, with what can be done."""
    for annotation in builder.content["annotations"]:
        annotation["segmentation"] = []
    with pytest.raises(DataError, match="6 annotations with an empty segmentation, all of the file .a Faster R-CNN"):
        builder.load()
    assert len(builder.load(masks=False).objects(builder.load(masks=False).images[0], masks=False)) == 2


# -- encodings of the file --------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gzip"])
def test_encodings(builder, encoding):
    builder.content["categories"][0]["name"] = "blau für 細胞"
    text = json.dumps(builder.content, ensure_ascii=False)
    path = builder.root / "c.json"
    path.write_bytes(gzip.compress(text.encode()) if encoding == "gzip" else text.encode(encoding))
    data = load_coco(path, builder.root / "images", masks=True, check="header")
    assert data.names == ("red", "blau für 細胞")


@pytest.mark.parametrize(
    "content", [gzip.compress(b"{}", mtime=0)[:-9], gzip.compress(b"{", mtime=0)[:12] + b"xxxx", b"\xff\xfe{", b"\xe4{"]
)
def test_damaged_files(builder, content):
    path = builder.root / "c.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="c.json: not valid JSON"):
        load_coco(path, builder.root / "images", masks=True, check="header")


def test_keys_that_stand_twice(builder):
    path = builder.root / "c.json"
    path.write_text(json.dumps(builder.content)[:-1] + ', "images": []}')
    with pytest.raises(DataError, match="c.json: not valid JSON .key 'images' occurs twice"):
        load_coco(path, builder.root / "images", masks=True, check="header")


# -- names of files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda name, root: name.replace("/", "\\"),
        lambda name, root: f"images\\{name}",
        lambda name, root: f"upload/3/{name}",
        lambda name, root: f"C:\\Users\\me\\images\\{name}",
        lambda name, root: f"/home/me/photos/{name}",
        lambda name, root: f"./{name}",
        lambda name, root: f"{root}/images/{name}",
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_names_of_other_systems(builder, change, packed):
    if packed:
        with zipfile.ZipFile(builder.root / "packed.zip", "w") as archive:
            for image in builder.content["images"]:
                archive.write(builder.root / "images" / image["file_name"], image["file_name"])
    for image in builder.content["images"]:
        image["file_name"] = change(image["file_name"], builder.root)
    data = builder.load(images="packed" if packed else "images")
    assert np.asarray(data.read(data.images[2])).shape == (40, 60, 3)
    shortened = [line for line in data.report() if "leading folders are left out" in line]
    direct = change("a", "R") in ("a", "./a") or (change("a", "R") == "R/images/a" and not packed)
    assert len(shortened) == (not direct)


def test_two_names_of_one_file(builder):
    builder.image(8, "x/a.png")
    (builder.root / "images/x/a.png").unlink()
    with pytest.raises(DataError, match="1 images that share a file: x/a.png"):
        builder.load()
    for name in ("./a.png", ".//a.png"):
        builder.content["images"][-1]["file_name"] = name
        with pytest.raises(DataError, match=f"1 images that share a file: {name}"):
            builder.load()


def test_missing_images_are_named_with_the_folder(builder):
    with pytest.raises(DataError, match=r"3 images that are missing: .*\(searched in .*/set; .*images/a.png is there"):
        builder.load(images="")


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab./\\:~ C\0é"), max_size=14))
def test_no_name_leaves_the_folder(tmp_path_factory, name):
    """Whatever a name is, what is found is inside of the folder."""
    root = tmp_path_factory.getbasetemp() / "names"
    (root / "in/a").mkdir(parents=True, exist_ok=True)
    for path in ("b", "a/b", "in/b", "in/a/b"):
        if not (root / path).exists():
            (root / path).parent.mkdir(exist_ok=True)
            (root / path).write_text("x")
    place = ImageFiles(root / "in").locate(name)
    if place is not None:
        assert (root / "in" / place.path).resolve().is_relative_to((root / "in").resolve())
        assert ".." not in parts_of(place.path)


# -- zip files of other systems ---------------------------------------------------------------------


def packed(names):
    """A zip file of pictures with these names as bytes, of which nothing tells the encoding."""
    buffer = io.BytesIO()
    places = [(b"abcd"[number : number + 1] * len(name)) for number, name in enumerate(names)]
    with zipfile.ZipFile(buffer, "w") as archive:
        for place in places:
            archive.writestr(place.decode(), PICTURE)
    content = buffer.getvalue()
    for place, name in zip(places, names, strict=True):
        assert content.count(place) == 2  # before the content, and in the directory
        content = content.replace(place, name)
    return content


PICTURE = encoded(Image.new("RGB", (60, 40), "gray"))


@pytest.mark.parametrize(
    "names",
    [
        [b"Zelle_\xc3\xa4.png", b"__MACOSX/._Zelle_\xc3\xa4.png", b"sub\\b.png"],
        [b"Zelle_\xe4.png", b"sub/b.png"],  # Windows, western
        [b"Zelle_\x84.png", b"sub/b.png"],  # DOS
        [unicodedata.normalize("NFD", "Zelle_ä.png").encode(), b"sub/b.png"],  # a Mac
        [b"top/images/Zelle_\xc3\xa4.png", b"top/images/sub/b.png", b"__MACOSX/top/._images", b"top/.DS_Store"],
        [b"top\\Zelle_\xc3\xa4.png", b"top\\sub\\b.png"],
        [b"train/Zelle_\xc3\xa4.png", b"train/sub/b.png", b"README.roboflow.txt", b"labels/a.json"],
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_zip_files_of_other_systems(tmp_path, names, form):
    (tmp_path / "i.zip").write_bytes(packed(names))
    files = ImageFiles(tmp_path / "i.zip")
    assert files.read(unicodedata.normalize(form, "Zelle_ä.png")) == PICTURE
    assert files.read("sub/b.png") == PICTURE
    assert "._Zelle_ä.png" not in files


def test_an_encrypted_zip_file_is_to_be_unpacked(tmp_path):
    content = bytearray(packed([b"a.png"]))
    content[content.find(b"PK\x01\x02") + 8] = 1
    (tmp_path / "i.zip").write_bytes(content)
    with pytest.raises(DataError, match="i.zip/a.png: is encrypted; unpack the zip file, and give the folder"):
        ImageFiles(tmp_path / "i").read("a.png")


def test_a_member_that_needs_a_dictionary_of_four_gigabytes(tmp_path):
    """LZMA's header states how much memory unpacking takes."""
    with zipfile.ZipFile(tmp_path / "i.zip", "w", zipfile.ZIP_LZMA) as file:
        file.writestr("a.png", PICTURE)
    content = bytearray((tmp_path / "i.zip").read_bytes())
    place = 30 + len("a.png") + 4 + 1  # behind the member's header, LZMA's version and the first property
    assert content[place : place + 4] == (1 << 23).to_bytes(4, "little")
    content[place : place + 4] = b"\xff" * 4
    (tmp_path / "i.zip").write_bytes(content)
    files = ImageFiles(tmp_path / "i.zip")
    with more_memory(1 << 30), pytest.raises(DataError, match="i.zip/a.png: needs more memory than there is; unpack"):
        files.read("a.png")


def test_other_files_are_no_folders_of_images(tmp_path):
    (tmp_path / "i.tar").write_bytes(b"x")
    with pytest.raises(DataError, match="i.tar: is a file; must be the folder or the zip file of the images"):
        ImageFiles(tmp_path / "i.tar")


# -- pictures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", ["decode", "header"])
def test_twelve_bits_are_reported(builder, check):
    values = np.linspace(0, 4095, 40 * 60).reshape(40, 60).astype(np.uint16)
    builder.image(9, "deep.tif", encoded(Image.fromarray(values), "TIFF"))
    said = (
        "1 images that are nearly black as they are read (16-bit pictures are read on the scale 0..65535, so multiply"
    )
    assert any(f"{said} 12-bit values (0..4095) by 16): deep.tif" in line for line in builder.load(check).report())


@pytest.mark.parametrize("check", ["decode", "header"])
def test_several_frames_are_reported(builder, check):
    frames = [Image.effect_noise((60, 40), 90).convert("RGB") for _ in range(3)]
    builder.image(9, "stack.tif", encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    data = builder.load(check)
    noted = "1 images with several frames, of which the first is read: stack.tif"
    assert any(noted in line for line in data.report())
    assert np.array_equal(np.asarray(data.read(data.images[-1])), np.asarray(frames[0]))
