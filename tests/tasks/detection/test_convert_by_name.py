"""torchvision's COCO_V1 of a detector by name, with files of random weights in torch.hub's folder."""

import copy
import hashlib
import os

import pytest
import torch
from torchvision.models import detection

import zoo
from tasks.detection.class_names import CATEGORIES
from tests.helpers.torchvision_detectors import picture, settle

WEIGHTS = {
    "maskrcnn_resnet50_fpn": detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
    "fasterrcnn_resnet50_fpn_v2": detection.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
}


@pytest.mark.slow
@pytest.mark.parametrize("builder", list(WEIGHTS))
def test_a_detector_by_name(builder, tmp_path, monkeypatch):
    """It has 80 named classes, and finds what torchvision's own does with the same file."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("RESCALENET_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    theirs = getattr(detection, builder)(weights=None, weights_backbone=None)
    settle(theirs, (480, 640))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(theirs.state_dict(), folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    os.rename(folder / "new.pth", folder / f"detector-{digest[:8]}.pth")
    url = f"https://download.pytorch.org/models/detector-{digest[:8]}.pth"
    monkeypatch.setattr(WEIGHTS[builder].value, "url", url)
    # torchvision's own, which sets eps; the ids without a name cannot be found
    theirs = getattr(detection, builder)(weights=WEIGHTS[builder]).eval()
    unused = [i for i, name in enumerate(CATEGORIES) if name == "N/A"]
    masked = copy.deepcopy(theirs)
    name = builder.replace("_v2", "").replace("rcnn_resnet50", "_rcnn_rescalenet50")
    tag = "torchvision:COCO_V1" if "_v2" not in builder else f"torchvision:{builder}:COCO_V1"
    ours = zoo.create_model(name, weights=tag).eval()
    classes = zoo.get_weights(tag, model=name).classes
    with torch.no_grad():
        masked.roi_heads.box_predictor.cls_score.bias[unused] = -torch.inf
        found, expected = ours([picture(480, 640)])[0], masked([picture(480, 640)])[0]
    assert len(expected["scores"]) > 20
    assert [classes[i - 1] for i in found["labels"]] == [CATEGORIES[i] for i in expected["labels"]]
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=0, atol=1e-3)
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=1e-5)
    assert found.keys() == expected.keys()
    assert ("masks" in found) == builder.startswith("mask")
    if "masks" in found:
        assert found["masks"].shape == (len(found["scores"]), 1, 480, 640)
        assert (expected["masks"] > 0.5).flatten(1).any(1).sum() > 10  # there is something to compare
        torch.testing.assert_close(found["masks"], expected["masks"], rtol=0, atol=1e-3)
