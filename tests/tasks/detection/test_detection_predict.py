"""Prediction with tiles, drawn results."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle
from scipy import ndimage

import zoo
from tasks.detection.coco import decode_mask
from tasks.detection.detector import create_detector
from tasks.detection.predict import FILES, detect_image, draw_results, merge_tiles, tile_corners, to_instances
from tasks.detection.predict import detect_objects as predict
from tasks.errors import UserError
from tasks.outputs import OutputFolder
from tests.helpers.detection import found_of, perfect, real


@given(st.integers(1, 3000), st.integers(2, 700), st.floats(0, 0.9))
def test_tiles_cover_the_picture(length, tile, share):
    overlap = int(share * tile)
    corners = tile_corners(length, tile, overlap)
    assert corners[0] == 0
    assert corners[-1] == max(0, length - tile)
    assert all(0 < b - a <= tile - overlap for a, b in pairwise(corners))


class Blobs(torch.nn.Module):
    """A detector that is right: connected white regions, scored by their area."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.input = zoo.DetectionTransform(100, 100, (0.0,) * 3, (1.0,) * 3)

    def forward(self, images):
        outputs = []
        for image in images:
            labelled, count = ndimage.label((image[0] > 0.5).cpu().numpy())
            masks = [labelled == i for i in range(1, count + 1)]
            boxes = [(s[1].start, s[0].start, s[1].stop, s[0].stop) for s in ndimage.find_objects(labelled)]
            outputs.append(
                {
                    "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                    "labels": torch.ones(count, dtype=torch.int64),
                    "scores": torch.tensor([float(m.sum()) / 1000 for m in masks]),
                    "masks": torch.from_numpy(np.array(masks).reshape(-1, *image.shape[1:])).float()[:, None],
                }
            )
        return outputs

    def detect(self, images, threshold):
        return [found_of(output, threshold) for output in self(images)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(60, 110))
def test_tiles_find_what_the_whole_picture_shows(seed, tile):
    """Objects smaller than the overlap: found once each, with the mask they have, wherever tiles cut."""
    random = np.random.RandomState(seed)
    pixels = np.zeros((190, 260), dtype=np.uint8)
    for _ in range(30):
        y, x, h, w = *random.randint(0, 170, 2), *random.randint(3, 14, 2)
        if not pixels[max(0, y - 1) : y + h + 1, max(0, x - 1) : x + w + 1].any():
            pixels[y : y + h, x : x + w] = 255
    image, model = Image.fromarray(pixels).convert("RGB"), Blobs()

    def found(**options):
        result = detect_image(model, image, ["blob"], threshold=0.0, **options)
        return {(i.box, json.dumps(i.to_json(260, 190)["segmentation"])) for i in result}, len(result)

    whole, tiled = found(), found(tile=tile, overlap=20)
    assert tiled == whole


def test_objects_larger_than_the_overlap_stay():
    """Cut by every tile, a long object is still reported; the parts that overlap are merged."""
    pixels = np.zeros((40, 300), dtype=np.uint8)
    pixels[10:20, 5:295] = 255
    result = detect_image(
        Blobs(), Image.fromarray(pixels).convert("RGB"), ["blob"], threshold=0.0, tile=100, overlap=20
    )
    assert result
    assert min(i.box[0] for i in result) == 5
    assert max(i.box[2] for i in result) == 295


def test_classes_do_not_suppress_each_other():
    output = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 9]]),
        "labels": torch.tensor([1, 2, 1]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
    }
    parts = [(instance, False) for instance in to_instances(found_of(output, 0.5), ["a", "b"])]
    assert [(i.label, round(i.score, 3)) for i in merge_tiles(parts)] == [("a", 0.9), ("b", 0.8)]
    assert len(to_instances(found_of(output, 0.85), ["a", "b"])) == 1


def test_drawn_results(tmp_path):
    """True masks of COCO pictures: drawn copies differ from the pictures inside the objects and their boxes only."""
    data = real("sample")
    draw_results(data, perfect(data), tmp_path, count=2)
    names = sorted(path.stem for path in tmp_path.iterdir())
    assert len(names) == 2
    for record in (image for image in data.images if image.file_name[:-4] in names):
        drawn, plain = np.asarray(Image.open(tmp_path / f"{record.file_name[:-4]}.png")), np.asarray(data.read(record))
        changed = (drawn != plain).any(2)
        covered = np.zeros_like(changed)
        for annotation in data.objects(record, masks=True):
            x, y, w, h = annotation["bbox"]
            covered[int(y) : int(y + h) + 13, int(x) : int(x + w) + 2] = True
            inside = decode_mask(annotation, record.height, record.width).astype(bool)
            assert changed[inside].mean() > 0.9
        assert not changed[~covered].any()


def test_a_wrong_overlap_is_refused():
    with pytest.raises(UserError, match="overlap=50: must be >= 0 and < tile=50"):
        detect_image(Blobs(), Image.new("RGB", (200, 200)), ["blob"], tile=50, overlap=50)


def test_odd_pictures_are_reported(weights, tmp_path, capsys):
    entry = zoo.get_weights(str(weights))
    values = np.random.default_rng(0).integers(0, 4096, (100, 150), np.uint16)  # of a camera of 12 bits
    Image.fromarray(values).save(tmp_path / "deep.png")
    noise = [Image.effect_noise((150, 100), 90) for _ in range(2)]
    noise[0].save(tmp_path / "plain.gif", save_all=True, append_images=noise[1:])
    predict(create_detector(entry.config.name, str(weights)), entry, [tmp_path / "deep.png", tmp_path / "plain.gif"])
    lines = capsys.readouterr().err
    assert f"pictures that are nearly black as they are read: 1 of 2, e.g. {tmp_path}/deep.png" in lines
    assert f"pictures with several frames, of which the first is read: 1 of 2, e.g. {tmp_path}/plain.gif" in lines


def test_predict_writes_pictures_and_json(weights, tmp_path, capsys):
    entry = zoo.get_weights(str(weights))
    model = create_detector(entry.config.name, str(weights))
    for name in ("one/a.png", "two/a.png"):
        path = tmp_path / name
        path.parent.mkdir()
        Image.effect_noise((150, 100), 90).convert("RGB").save(path)
    (tmp_path / "two/b.png").write_bytes(b"nothing")
    files = [tmp_path / "one/a.png", tmp_path / "two/a.png", tmp_path / "two/b.png"]
    predictions, failed = predict(model, entry, files, threshold=0.1, out=OutputFolder(tmp_path / "out", FILES, files))
    assert [p.file for p in predictions] == [str(f) for f in files[:2]]
    assert list(failed) == [str(files[2])]
    assert "1 of 3 files could not be read" in capsys.readouterr().err
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"predictions.json", "a.objects.png", "a_2.objects.png"}
    written = json.loads((tmp_path / "out/predictions.json").read_text())
    for prediction, content in zip(predictions, written["predictions"], strict=True):
        assert len(prediction.instances) == len(content["instances"]) > 0
        for instance, stored in zip(prediction.instances, content["instances"], strict=True):
            assert stored["score"] >= 0.1
            assert stored["label"] in entry.classes
            mask = rle.decode(stored["segmentation"])
            assert mask.shape == (100, 150)
            assert mask.sum() == instance.mask.sum()
    drawn = np.asarray(Image.open(tmp_path / "out/a.objects.png"))
    assert drawn.shape == (300, 450, 3)  # small pictures are enlarged
    plain = np.asarray(Image.open(files[0]).resize((450, 300)))
    assert (drawn != plain).any()
