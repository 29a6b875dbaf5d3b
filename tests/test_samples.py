"""Every set of weights that ships gives the stored outputs on the samples of ``tests/data/samples``.

Classes, numbers of objects and translations are compared as they are, scores to 0.02: another processor rounds
otherwise, by about 1e-5 in a score.
"""

import json

import pytest
import torch
from PIL import Image, ImageDraw

import zoo
from tasks.detection.predict import detect_image
from tasks.spec import load_model, task_of
from tasks.translation.predict import Translator
from tasks.translation.search import Beam
from tasks.video.predict import classify_videos
from tests.helpers.paths import ROOT
from tests.helpers.tasks import predict_all

SAMPLES = ROOT / "tests" / "data" / "samples"
EXPECTED = SAMPLES / "expected.json"
SCORE = 0.02
AREA = 0.005  # of the sum of the masks over the area of the picture
SENTENCES = {
    "en": ["A black dog is running across the grass.", "Two women are sitting on a bench.", "A boy rides a red bike."],
    "de": ["Ein schwarzer Hund rennt über das Gras.", "Zwei Frauen sitzen auf einer Bank.", "Ein Junge fährt Rad."],
}


def drawing(kind):
    """A picture of 96 x 96 pixels: a plane in the sky, a ship on the sea, or a yellow flower on green."""
    image = Image.new("RGB", (96, 96), (150, 190, 230) if kind != "flower" else (40, 110, 40))
    draw = ImageDraw.Draw(image)
    if kind == "plane":
        draw.polygon([(8, 50), (86, 44), (92, 48), (86, 54), (8, 54)], fill=(235, 235, 240))
        draw.polygon([(40, 50), (28, 80), (36, 80), (60, 50)], fill=(205, 205, 215))
        draw.polygon([(8, 50), (4, 32), (12, 32), (20, 50)], fill=(200, 60, 60))
    elif kind == "ship":
        draw.rectangle((0, 60, 96, 96), fill=(20, 60, 110))
        draw.polygon([(12, 56), (84, 56), (74, 70), (22, 70)], fill=(60, 40, 40))
        draw.rectangle((34, 36, 62, 56), fill=(240, 240, 240))
    else:
        for x, y in ((48, 22), (68, 34), (68, 60), (48, 74), (28, 60), (28, 34)):
            draw.ellipse((x - 14, y - 14, x + 14, y + 14), fill=(250, 210, 20))
        draw.ellipse((34, 34, 62, 62), fill=(120, 70, 10))
    return image


def outputs(name):
    """The outputs of weights on the samples of their task, as JSON has them."""
    entry = zoo.get_weights(name)
    model, task = load_model(entry).eval(), task_of(entry)
    if task == "classification":
        batch = torch.stack([entry.transforms()(drawing(kind)) for kind in ("plane", "ship", "flower")])
        with torch.no_grad():
            scores, classes = model(batch).softmax(1).max(1)
        found = zip(classes.tolist(), scores.tolist(), strict=True)
        return [{"class": entry.classes[index], "score": score} for index, score in found]
    if task == "video":
        videos = sorted((SAMPLES / "shapes").glob("*.mp4"))
        predictions, failed = predict_all(classify_videos, model, entry, videos, clips=2)
        assert not failed
        return [{"class": found.classes[0], "score": found.scores[0]} for found in predictions]
    if task == "detection":
        found = []
        for path in sorted((SAMPLES / "nuclei").glob("*.png")):
            image = Image.open(path)
            instances = detect_image(model, image, entry.classes, threshold=0.5)
            covered = sum(float(torch.as_tensor(i.mask).sum()) for i in instances) / (image.width * image.height)
            found.append({"count": len(instances), "score": instances[0].score, "covered": covered})
        return found
    source = entry.transform.source
    translate = Translator(zoo.fold(model), entry.transforms(), Beam(beam=5))
    return [{"text": result.texts[0]} for result in translate(SENTENCES[source])]


@pytest.mark.parametrize("name", zoo.list_weights())
def test_weights_give_the_stored_outputs(name, request):
    found = outputs(name)
    stored = json.loads(EXPECTED.read_text()) if EXPECTED.is_file() else {}
    if request.config.getoption("write_expected"):
        rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in each.items()} for each in found]
        stored[name] = rounded
        text = json.dumps(dict(sorted(stored.items())), indent=1, ensure_ascii=False)
        EXPECTED.write_text(f"{text}\n", encoding="utf-8")
    assert len(found) == len(stored[name]) > 0
    for got, expected in zip(found, stored[name], strict=True):
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, float):
                assert got[key] == pytest.approx(value, abs=AREA if key == "covered" else SCORE), key
            else:
                assert got[key] == value, key


def test_what_is_known_of_the_samples():
    """The stored outputs against the truth: the motion of each clip, and the number of nuclei in each picture."""
    stored = json.loads(EXPECTED.read_text())
    motions = [each["class"] for each in stored["rescale_r3d_10.shapes"]]
    assert motions == [path.stem for path in sorted((SAMPLES / "shapes").glob("*.mp4"))]
    few, many = stored["mask_rcnn_rescalenet18_fpn.nuclei"]
    assert abs(few["count"] - 8) <= 2
    assert 0.6 * 36 <= many["count"] <= 1.1 * 36  # small ones that touch are found as one
    assert stored.keys() == set(zoo.list_weights())


def test_the_samples_are_small_and_have_licences():
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < 100_000
    for path in SAMPLES.iterdir():
        assert path.name in (SAMPLES / "README.md").read_text() or path.name == "README.md"
