"""What version 0.1.0 wrote is still read, and gives what it gave: weights, runs, corpora, indexes of videos."""

import hashlib
import importlib.util
import json
import math
import shutil
from pathlib import Path

import pytest

import zoo
from tasks.spec import load_model, task_of
from tasks.translation.config import CorpusSection
from tasks.translation.corpus import Corpus, prepare
from tasks.video import index
from tasks.video.data import index_videos
from tasks.video.sources import folder_videos
from tests.helpers.paths import ROOT
from tests.helpers.weights import TOLERANCE, far
from zoo.fingerprint import fingerprint

FOLDER = ROOT / "tests/data/v0.1.0"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
_spec = importlib.util.spec_from_file_location("make_old_artefacts", FOLDER / "make.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory with all artefacts and the data that they were made of."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    make.write_data(tmp_path)
    make.restore_times(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_artefacts_are_expected():
    files = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.safetensors")}
    assert files == EXPECTED["logits"].keys()
    assert {path.name for path in (FOLDER / "runs").iterdir()} == EXPECTED["runs"].keys() == make.RUNS.keys()
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if "__pycache__" not in path.parts) < 650_000
    kinds = {task_of(zoo.get_weights(str(FOLDER / file))) for file in files if file.startswith("weights/")}
    assert kinds == make.RUNS.keys()


@pytest.mark.parametrize("file", EXPECTED["logits"])
def test_weights_give_what_they_gave(file):
    entry = zoo.get_weights(str(FOLDER / file))
    model = load_model(entry)
    assert far(fingerprint(model, entry.transform), EXPECTED["logits"][file]) <= TOLERANCE
    assert len(entry.classes) == model.num_classes
    entry.transforms()


def test_the_entry_of_a_weights_file():
    entry = zoo.get_weights(str(FOLDER / "weights/image.safetensors"))
    options = {"width": 0.125, "projection_gain": 2.0, "shortcut": "conv", "c": 3.0}
    assert entry.config == zoo.ModelConfig("rescalenet20_cifar", "rescale", 3, 3, options)
    assert entry.transform == zoo.InputTransform(32, 36, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), "bicubic", "BGR")
    assert entry.classes == ("a", "b", "ç")
    assert entry.meta == {"data": "none"}
    trained = zoo.get_weights(str(FOLDER / "runs/classification/checkpoints/last.safetensors"))
    assert trained.meta["epochs"] == 1
    assert trained.meta["config"]["train"]["batch_size"] == 8


@pytest.mark.parametrize("task", make.RUNS)
def test_a_run_resumes(task, place):
    """To the bit where torch and the processor are those of the first resume, else up to rounding, grown by training.

    Most metrics are shares of a few samples, which may fall otherwise on another processor. Later versions report more
    of them. They also correct boxes of COCO files by the masks, so that a detector's losses have changed (``changed``).
    """
    expected, found = EXPECTED["runs"][task], make.resume(task)
    assert all(math.isfinite(value) for value in found["metrics"].values())
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-3)
    assert expected["metrics"].keys() <= found["metrics"].keys()
    if make.environment() == EXPECTED["environment"]:
        exact = {**expected, **EXPECTED["changed"].get(task, {})}
        assert found["losses"] == exact["losses"]
        assert {key: found["metrics"][key] for key in exact["metrics"]} == exact["metrics"]
        assert found["sha256"] == exact["sha256"]


def test_the_corpus_opens(place):
    corpus = Corpus(Path("corpus"))
    section = CorpusSection.model_validate(make.RUNS["translation"]["data"]["corpus"])
    corpus.expect(section)
    source, target = corpus.sentences("train")
    assert len(source) == len(target) == 36
    texts = Path("data/text/train.de").read_text().splitlines()
    assert [corpus.vocabularies[1].decode(target[i]) for i in range(36)] == texts
    assert [pair.source for pair in corpus.text("val")] == Path("data/text/val.en").read_text().splitlines()
    before = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in Path("corpus").iterdir()}
    prepare(section, Path("corpus"))
    assert before == {path.name: hashlib.sha256(path.read_bytes()).digest() for path in Path("corpus").iterdir()}


def test_the_index_opens_without_a_look_into_the_videos(place, monkeypatch):
    monkeypatch.setattr(index, "probe", lambda path: pytest.fail(f"looked into {path}"))
    known = index.Index(Path("video_index.json"), Path("videos"))
    indexed = index_videos(folder_videos(Path("videos/train")), known)
    assert [info.frames for info in indexed.infos] == [8] * 6
    assert {(info.width, info.height) for info in indexed.infos} == {(24, 24)}
    assert not indexed.failures
