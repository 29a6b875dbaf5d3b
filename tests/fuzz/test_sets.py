"""Descriptions of data: COCO files, indexes of videos, prepared corpora, zip files of images."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
import zlib

import pytest
from hypothesis import strategies as st

from tests.fuzz.artefacts import FOLDER, make
from tests.fuzz.harness import FAST
from tests.fuzz.structures import NAMES, VALUES, Raw, damaged, dumps, json_files

POINTS = (1.5, -3, 1e9, 4e8, 1e300, Raw("NaN"), Raw("1e999"), "1", None, [1, 2], True)
SEGMENTS = (
    *(
        [],
        [[]],
        [[1, 1]],
        [[1, 1, 9, 1, 9, 9]],
        [[1, 1, 9, 1, 9]],
        [[1, 1, 1, 1, 1, 1]],
        [1, 1, 9, 1, 9, 9],
        [[[1, 1, 9, 1]]],
    ),
    *([[1, 1, 9, 1, point, 9]] for point in POINTS),
    [[4, 4, 20, 4, 20, 20], [0, 0, 1, 0]],
    *(
        {"size": [48, 64], "counts": counts}
        for counts in ("", "0", "PP3", "\x00", "ü", "o" * 5000, [3072], [0, 3072], [1.5], [-1])
    ),
    *(
        {"size": size, "counts": [3072]}
        for size in ([64, 48], [0, 0], [2**31, 2**31], 48, None, [48, "64"], [48, 64, 1])
    ),
    {"size": [48, 64], "counts": [1e3, 2072]},
    {"size": [48, 64], "counts": {"a": 1}},
    {"size": [48, 64], "counts": [[3072]]},
    {"counts": [1]},
    {"size": [48, 64], "counts": ["3072"]},
    {"size": [48, 64], "counts": [10**30]},
    {"size": [48, 64], "counts": None},
)


@pytest.fixture(scope="module")
def objects(harness):
    """The valid COCO file of the fixed artefacts."""
    return json.loads((harness.fixed / "data/objects/instances.json").read_text())


IDS = (str, float, lambda i: i - 1, lambda i: f"img{i}", lambda i: 0, lambda i: 1e300 * i, lambda i: f"{i:05}")
FILES = (
    *(lambda name: f"images/{name}", lambda name: f"..\\{name}", lambda name: f"C:\\x\\{name}"),
    *(lambda name: f"/data/upload/1/{name}", lambda name: f"http://[x/{name}", lambda name: "a/" * 200 + name),
    *(lambda name: f"{{box}}/neighbour/{name}", lambda name: "0.png", lambda name: name.upper()),
)
BOXES = (
    *(lambda x, y, w, h: [x / 64, y / 48, w / 64, h / 48], lambda x, y, w, h: [x, y, x + w, y + h]),
    *(lambda x, y, w, h: [x + w / 2, y + h / 2, w, h], lambda x, y, w, h: [-w, -h, 3 * w, 3 * h]),
    *(lambda x, y, w, h: [x, y, 0, 0], lambda x, y, w, h: [1e8, y, w, h], lambda x, y, w, h: [x, y, 1e-300, h]),
)
PARENTS = ("none", "things", None, "", 3, [])


@st.composite
def files_of_tools(draw, valid):
    """A COCO file of which all entries are changed in one way, as a tool would write it."""
    value = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(("ids", "images", "files", "addresses", "boxes", "parents", "crowds", "empty")))
        if kind == "ids":
            change = draw(st.sampled_from(IDS))
            for entry in value["annotations"]:
                entry["id"] = change(number_of(entry["id"]))
        elif kind == "images":
            change = draw(st.sampled_from(IDS))
            for key, entries in (("id", value["images"]), ("image_id", value["annotations"])):
                for entry in entries:
                    entry[key] = change(number_of(entry[key]))
        elif kind == "files":
            change = draw(st.sampled_from(FILES))
            for entry in value["images"]:
                entry["file_name"] = change(entry.get("file_name", "0.png"))
        elif kind == "addresses":
            for entry in value["images"]:
                entry["coco_url"] = draw(
                    st.sampled_from(("http://x/train/0.png", "http://[x", "", "/", "http://x/../a"))
                )
                entry.pop("file_name", None)
        elif kind == "boxes":
            change = draw(st.sampled_from(BOXES))
            for entry in value["annotations"]:
                entry["bbox"] = change(*entry["bbox"])
        elif kind == "parents":
            parent = draw(st.sampled_from(PARENTS))
            for entry in value["categories"]:
                entry["supercategory"] = parent
            root = {"id": 0, "name": draw(st.sampled_from(("things", "a"))), "supercategory": "none"}
            value["categories"].append(root)
        else:
            changes = {"crowds": {"iscrowd": 1}, "empty": {"segmentation": draw(st.sampled_from(([], [[]], None)))}}
            for entry in value["annotations"]:
                entry |= changes[kind]
    text = dumps(value)
    return (
        draw(st.sampled_from((text.encode(), text.encode(), text.encode("utf-16"), text.encode("utf-8-sig"))))
        if draw(st.booleans())
        else gzip.compress(text.encode(), mtime=0)
    )


def number_of(id):
    """The number in an id that may have been changed already."""
    return int(re.sub("[^0-9]", "", str(id))[:6] or 0)


@st.composite
def coco_files(draw, valid):
    """A COCO file whose structure, or one of whose segmentations is changed."""
    choice = draw(st.integers(0, 3))
    if choice < 2:
        return draw(json_files(valid) if choice else files_of_tools(valid))
    annotations = [dict(annotation) for annotation in valid["annotations"]]
    chosen = draw(st.sampled_from(annotations))
    key = draw(st.sampled_from(("segmentation", "segmentation", "bbox", "iscrowd", "area")))
    boxes = st.lists(st.sampled_from((*POINTS, 0, 5, 20)), min_size=3, max_size=5)
    chosen[key] = draw({"segmentation": st.sampled_from(SEGMENTS), "bbox": boxes}.get(key, st.sampled_from(VALUES)))
    return dumps({**valid, "annotations": annotations}).encode()


def test_coco_loader(harness, fuzz, objects):
    def run(case):
        content, masks = case
        images = f"{harness.fixed}/data/objects/images"
        harness.check({"c.json": content}, ["@coco", "c.json", images, masks])

    fuzz(st.tuples(coco_files(objects), st.sampled_from(("masks", "boxes"))), run, FAST)


def test_coco_evaluation(harness, fuzz, objects):
    weights, images = (f"{harness.fixed}/{name}" for name in ("weights/detection.safetensors", "data/objects/images"))
    valid = {**objects, "images": objects["images"][:2], "annotations": objects["annotations"][:4]}
    valid["categories"] = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]

    def run(content):
        command = ["eval", weights, "c.json", "--images", images, "--out", "out/e"]
        harness.check({"c.json": content}, command)

    fuzz(coco_files(valid), run, FAST // 20)


def test_check_of_coco_files(harness, fuzz, objects):
    images = f"{harness.fixed}/data/objects/images"
    valid = {**objects, "images": objects["images"][:2], "annotations": objects["annotations"][:4]}

    def run(content):
        harness.check({"c.json": content}, ["check", "c.json", "--images", images, "--out", "out/c"])

    fuzz(coco_files(valid), run, FAST // 4)


@st.composite
def zip_files(draw, images):
    """A zip file with images whose names, compression, encryption or bytes are odd, or whose bytes are damaged."""
    buffer = io.BytesIO()
    method = draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    with zipfile.ZipFile(buffer, "w", method) as file:
        prefix = draw(st.sampled_from(("", "", "images/", "../", "/", "{box}/neighbour/")))
        for name, content in images.items():
            file.writestr(prefix + name, content)
        for name in draw(st.lists(st.sampled_from((*NAMES, "__MACOSX/._0.png", "0.png", "b/")), max_size=3)):
            if name:
                file.writestr(name.encode("utf-8", "replace").decode(), b"x" * draw(st.sampled_from((0, 10, 10**6))))
    content = buffer.getvalue()
    if draw(st.booleans()):
        content = draw(damaged(content))
    if draw(st.integers(0, 4)) == 0:  # other flags, sizes and methods in the directory
        place = content.rfind(b"PK\x01\x02")
        if place >= 0:
            field = place + draw(st.sampled_from((6, 8, 10, 20, 24, 28, 42)))
            content = content[:field] + draw(st.binary(min_size=2, max_size=4)) + content[field + 4 :]
    return content


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_files(harness, fuzz, objects):
    folder = harness.fixed / "data/objects/images"
    images = {path.name: path.read_bytes() for path in folder.iterdir()}
    annotations = json.dumps(objects).encode()

    def run(content):
        harness.check({"c.json": annotations, "i.zip": content}, ["@coco", "c.json", "i.zip", "masks"])

    fuzz(zip_files(images), run, FAST)


def test_a_member_of_a_gigabyte(harness, objects):
    """A zip file of one MB that would fill the memory."""
    packer = zlib.compressobj(1)
    block = bytes(2**24)
    size, packed = 64 * len(block), b"".join([*(packer.compress(block) for _ in range(64)), packer.flush()])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("0.png", b"x")
    content = buffer.getvalue()
    # the same member with the large content in place of its own
    start, directory = content.find(b"PK\x01\x02"), content[content.find(b"PK\x01\x02") :]
    sizes = len(packed[2:-4]).to_bytes(4, "little") + size.to_bytes(4, "little")
    local = content[:18] + sizes + content[26 : 30 + len("0.png")] + packed[2:-4]
    directory = directory[:20] + sizes + directory[28:]
    content = local + directory.replace(start.to_bytes(4, "little"), len(local).to_bytes(4, "little"))
    inputs = {"c.json": json.dumps({**objects, "images": objects["images"][:1]}).encode(), "i.zip": content}
    assert harness.check(inputs, ["@coco", "c.json", "i.zip", "masks"]) == [1]
    assert "bytes, an image must have at most" in (harness.root / "capture/0.err").read_text()


def test_indexes_of_videos(harness, fuzz):
    valid = json.loads((FOLDER / "video_index.json").read_text())

    def run(content):
        harness.check({"i.json": content}, ["@index", "i.json", f"{harness.fixed}/videos"])

    fuzz(json_files(valid), run, FAST // 2)


CORPUS = {path.name: path.read_bytes() for path in (FOLDER / "corpus").iterdir()}


@st.composite
def corpora(draw):
    """A prepared corpus of which a file is changed."""
    name = draw(st.sampled_from(("corpus.json", "corpus.json", *CORPUS)))
    strategy = json_files(json.loads(CORPUS[name])) if name == "corpus.json" else damaged(CORPUS[name])
    return {**CORPUS, name: draw(strategy)}


def test_corpora(harness, fuzz):
    def run(files):
        harness.check({f"c/{name}": content for name, content in files.items()}, ["@corpus", "c"])

    fuzz(corpora(), run, FAST // 2)


def test_corpora_in_training(harness, fuzz):
    config = dumps({**make.RUNS["translation"], "task": "translation", "output": "out/run"}).encode()
    weights = (FOLDER / "weights/text.safetensors").read_bytes()

    def run(files):
        inputs = {f"corpus/{name}": content for name, content in files.items()}
        changes = ["train.epochs=1", "train.sinks=[]"]
        inputs |= {"c.yaml": config, "weights/text.safetensors": weights}
        harness.check(inputs, ["train", "c.yaml", *changes], seconds=30)

    fuzz(corpora(), run, FAST // 40)
