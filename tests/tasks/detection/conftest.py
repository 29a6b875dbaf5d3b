"""COCO sets, weights of a detector and a training run's config."""

import pytest

import zoo
from tests.helpers.coco import Builder
from tests.helpers.detection import calibrated, config, real, sharpened, small
from tests.helpers.paths import shared


@pytest.fixture
def builder(tmp_path):
    return Builder(tmp_path / "set")


@pytest.fixture
def weights(tmp_path):
    """A file of a small random detector for coco's classes that finds a lot."""
    data = real("sample")
    model = small(num_classes=len(data.names), proposals_test=200, score_thresh=0.0, min_size=128, max_size=200)
    calibrated(model)
    sharpened(model).eval()
    path = tmp_path / "detector.safetensors"
    zoo.save_weights(model, path, transform=model.input, classes=data.names)
    return path


@pytest.fixture
def sample_config(tmp_path):
    root = shared("data", "coco_permissive", "sample")
    return lambda **changes: config(tmp_path / "run", root / "val2017", root / "instances_val2017.json", **changes)
