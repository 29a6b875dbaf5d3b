"""Configs of video nets that cannot work."""

import pytest
import torch

from tasks.detection.detector import create_detector
from tasks.errors import ConfigError
from tasks.spec import make_task
from tests.helpers.training import config as image_config
from tests.helpers.video import config, section
from zoo.errors import ZooError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "bf16"}, "train.precision=bf16: 3D convolutions give wrong gradients on the CPU"),
        ({"model": {"name": "rescalenet18"}}, "model.name=rescalenet18: takes images, not clips"),
        (
            {"data": {"size": 8, "resize": 8, "augment": {"short_side": [8, 8]}}},
            "data.size=8: must be >= 16 for rescale_r3d_10",
        ),
    ],
)
def test_configs_that_cannot_work(moving, tmp_path, settings, message, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    task = make_task(config(moving, tmp_path / "run", **settings))
    with pytest.raises(ConfigError, match=message):
        task.build_model()


def test_image_tasks_refuse_video_nets(images, tmp_path):
    task = make_task(image_config(images, tmp_path / "run", model={"name": "rescale_r3d_10"}))
    with pytest.raises(
        ConfigError, match="model.name=rescale_r3d_10: takes clips, not images; others: rescalenet list"
    ):
        task.build_model()
    with pytest.raises(ZooError, match="mask_rcnn_rescale_i3d_r50_fpn: rescale_i3d_r50 takes clips, not images"):
        create_detector("mask_rcnn_rescale_i3d_r50_fpn")


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"size=32 must be at most resize=16"):
        section(size=32)
