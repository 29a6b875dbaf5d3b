"""Files from strangers: nothing outside of the output folder is written, and no process ends by a signal."""

import json
import math
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import zoo
from tasks.detection.coco import load_coco
from tasks.errors import DataError
from tasks.translation.vocabulary import train_vocabulary

# -- a language in a weights header, which names files of the fairseq export ---------------------------


@pytest.fixture(scope="module")
def translation_weights(tmp_path_factory):
    vocabulary = train_vocabulary(["a b c d", "b a", "d c b a e f g h"] * 20, 21, "bpe")
    sizes = {"source_vocabulary": len(vocabulary), "target_vocabulary": len(vocabulary), "max_length": 20}
    torch.manual_seed(0)
    model = zoo.create_model(
        "rescale_transformer_tiny", dim=8, hidden=8, heads=2, encoder_layers=1, decoder_layers=1, **sizes
    )
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    zoo.save_weights(
        model, path, transform=zoo.TextTransform.from_vocabularies(("en", "de"), vocabulary, vocabulary), classes=()
    )
    return path


def with_language(weights, path, key, language):
    """A copy of the weights file whose header names another language."""
    with safe_open(weights, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        entry = json.loads(file.metadata()["rescalenet"])
    entry["transform"][key] = language
    save_file(tensors, path, metadata={"rescalenet": json.dumps(entry), "format": "pt"})
    return path


@pytest.mark.parametrize("key", ["source", "target"])
@pytest.mark.parametrize("language", ["/tmp/outside", "../../outside", "..", "a/b", "a\\b", "", "x" * 21, "en\n"])
def test_a_language_cannot_become_a_path(translation_weights, tmp_path, key, language):
    hostile = with_language(translation_weights, tmp_path / "w.safetensors", key, language)
    with pytest.raises(zoo.WeightsError, match=rf"language {key}=.*1 to 20 letters, digits, - or _"):
        zoo.get_weights(str(hostile))


def test_the_export_writes_nothing_outside_of_its_folder(translation_weights, tmp_path):
    hostile = with_language(translation_weights, tmp_path / "w.safetensors", "source", f"{tmp_path}/outside")
    command = [sys.executable, "-m", "tasks.cli", "export", hostile, "--to", "fairseq", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("language", ["en", "de-DE", "zh_Hans", "x2"])
def test_languages_in_use_are_taken(translation_weights, tmp_path, language):
    path = with_language(translation_weights, tmp_path / "w.safetensors", "source", language)
    assert zoo.get_weights(str(path)).transform.source == language


# -- polygons, which pycocotools rasterises without a check --------------------------------------------


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1, 1, 9, 1, math.nan, 9]], "points that are not finite or far outside of the image"),
        ([[1, 1, 9, 1, math.inf, 9]], "points that are not finite or far outside of the image"),
        ([[-164.1, -221.8, 2.08e8, 3.52e8, 225.9, 236.6]], "points that are not finite or far outside of the image"),
        ([[1, 1, 9, 1, 9, 2100]], "points that are not finite or far outside of the image"),
        ([[1, 1, 9, 1, None, 9]], "polygons are not lists of numbers"),
        ([["1", 1, 9, 1, 9, 9]], "polygons are not lists of numbers"),
        ([[[1, 1], [9, 1], [9, 9]]], "polygons are not lists of numbers"),
        ([[[1, 1], 9, 1, 9, 9]], "polygons are not lists of numbers"),
        ([[10**30, 1, 9, 1, 9, 9]], "points that are not finite or far outside of the image"),
        ([1, 1, 9, 1, 9, 9], "polygons are not lists of numbers"),
    ],
)
@pytest.mark.parametrize("masks", [True, False])
def test_polygons_that_pycocotools_cannot_rasterise(tmp_path, segmentation, reason, masks):
    with pytest.raises(DataError, match=f"1 annotations whose .*{reason}: id 7"):
        load_coco(coco_file(tmp_path, segmentation), tmp_path, masks=masks, check="header")


def test_polygons_beyond_the_image_are_kept(tmp_path):
    data = load_coco(coco_file(tmp_path, [[-500, -3, 900, 1, 9, 900], []]), tmp_path, masks=True, check="header")
    assert len(data.objects(data.images[0], masks=True)) == 1


def coco_file(folder, segmentation):
    """A COCO file of one image and one object."""
    Image.new("RGB", (12, 10)).save(folder / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 12, "height": 10}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8], "segmentation": segmentation}],
    }
    path = folder / "coco.json"
    path.write_text(json.dumps(content))
    return path
