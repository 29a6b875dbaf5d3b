"""The weights that ship: sizes, cards, and the metric again where the data is present."""

import tarfile

import pytest
from conftest import ROOT, shared

import zoo
from tasks.classification.data import folder_images
from tasks.classification.evaluate import evaluate_weights
from tasks.plots import read_log

WEIGHTS = zoo.list_weights()
FACTS = ("data", "licence", "command", "commit", "protocol", "seed", "epochs", "config", "metrics", "versions")


def test_sizes():
    sizes = [zoo.get_weights(name).path.stat().st_size for name in WEIGHTS]
    assert sizes, "no weights ship"
    assert max(sizes) <= 12e6
    assert sum(sizes) <= 35e6


@pytest.mark.parametrize("name", WEIGHTS)
def test_card_log_and_metadata(name):
    entry = zoo.get_weights(name)
    assert set(FACTS) <= entry.meta.keys()
    card = (ROOT / "weights" / f"{name}.md").read_text()
    assert f"{entry.meta['metrics']['top1']:.2f}" in card
    for fact in ("command", "commit", "licence"):
        assert entry.meta[fact] in card
    epochs = [r for r in read_log(ROOT / "weights" / f"{name}.log.jsonl") if r["event"] == "epoch"]
    assert len(epochs) == entry.meta["epochs"] == entry.meta["config"]["train"]["epochs"]
    # half precision moves the metric by next to nothing
    assert epochs[-1]["top1"] == pytest.approx(entry.meta["metrics"]["top1"], abs=0.3)
    model = zoo.create_model(entry.config.name, name.partition(".")[2])
    assert sum(p.numel() for p in model.parameters()) == entry.meta["parameters"]
    assert not [n for n in [str(ROOT), "/tmp", "/root"] if n in str(entry.meta)]


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory):
    archive = shared("data", "cifar10", "test.tar.xz")
    folder = tmp_path_factory.mktemp("cifar10")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder_images(folder / "test")


@pytest.mark.parametrize("name", [n for n in WEIGHTS if ".cifar10" in n])
def test_the_metric_of_the_card(name, cifar10):
    """Two images in 10 000 may fall otherwise on another processor."""
    entry = zoo.get_weights(name)
    result = evaluate_weights(zoo.create_model(entry.config.name, name.partition(".")[2]), entry, cifar10)
    for key in ("top1", "top5", "mean_class"):
        assert result.metrics()[key] == pytest.approx(entry.meta["metrics"][key], abs=0.021)
    assert result.metrics()["images"] == 10_000
