"""Thousands of mixed pictures: memory stays where it is, and each file has a result or a reason."""

import json
import sys

import pytest

import zoo
from tests.helpers.detection import calibrated, sharpened, small
from tests.soak.kit import PICTURES, assert_accounted, left_out_line, make_files, watch

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.fixture
def detector(tmp_path):
    """Weights of a small detector that finds a dozen objects in each picture."""
    model = small(min_size=48, max_size=96, detections=12, proposals_test=40)
    calibrated(model)
    sharpened(model).eval()
    path = tmp_path / "detector.safetensors"
    zoo.save_weights(model, path, transform=model.input, classes=["a", "b", "c"])
    return path


@pytest.mark.parametrize("task", ["detection", "classification"])
def test_predict_over_many_mixed_pictures(task, detector, tmp_path, count):
    fates = make_files(tmp_path / "in", count, PICTURES)
    weights = detector if task == "detection" else "rescalenet20_cifar.cifar10_v2"
    options = ["--threshold", "0.05"] if task == "detection" else []
    out = tmp_path / "out"
    found = watch(
        "predict", weights, tmp_path / "in", "--format", "json", "--out", out, *options, errors=tmp_path / "errors.txt"
    )
    assert found.code == 0, found.errors[-2000:]
    assert "Traceback" not in found.errors
    content = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    assert_accounted(fates, found.lines, content["failed"], found.errors)
    assert len(content["predictions"]) == len(found.lines)
    if task == "detection":
        assert len(list(out.glob("*.objects.png"))) == len(found.lines)
    print(f"{task}: {len(found.lines)} results, {len(content['failed'])} reasons, {left_out_line(fates)}")
    print(f"growth {found.growth():.1f} MB, peak {found.peak:.0f} MB")
    assert found.peak < 1200  # no picture is decoded whose header states more pixels than the limit
    assert found.growth() < 25, found.memory[:: max(len(found.memory) // 20, 1)]
