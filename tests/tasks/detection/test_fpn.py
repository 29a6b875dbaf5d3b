"""The feature pyramid."""

import pytest
import torch

from tasks.detection.detector import IMAGENET
from tests.helpers.detection import calibrated, small
from tests.helpers.nets import IMAGES as NARROW
from zoo.layers import InputGain


@pytest.mark.parametrize("kind", list(NARROW))
def test_levels_enter_the_pyramid_with_power_one(kind):
    model = small(kind)
    report, pairs = calibrated(model)
    assert not report.unreached
    batch = torch.cat([torch.stack(images) for images, _ in pairs])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    with torch.no_grad():
        maps = model.backbone.body((batch - mean) / std)
    for x, lateral in zip(maps, model.backbone.fpn.laterals, strict=True):
        assert float((lateral.gain.gain * x).square().mean()) == pytest.approx(1, rel=1e-3)
    assert not [m for m in small(kind, "bn").modules() if isinstance(m, InputGain)]
