"""The input of video runs that start from weights, of video or image nets."""

import dataclasses
import logging

import pytest
import torch

import zoo
from tasks.errors import ConfigError
from tasks.spec import make_task
from tasks.video.inputs import DEFAULT
from tests.helpers.video import config

STORED = zoo.VideoTransform(4, 2, 15, 16, 20, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "squash")
NOTHING = {"clip": None, "size": None, "resize": None, "augment": {}}


def video_weights(folder):
    model = zoo.create_model("rescale_r3d_10", num_classes=2, width=0.25)
    path = folder / "clips.safetensors"
    zoo.save_weights(model, path, transform=STORED, classes=["a", "b"])
    return str(path)


def image_weights(folder, transform):
    model = zoo.create_model("rescalenet20_cifar", num_classes=2, width=0.25)
    zoo.calibrate(model, [torch.randn(2, 3, 16, 16)])
    path = folder / "images.safetensors"
    zoo.save_weights(model, path, transform=transform, classes=["a", "b"])
    return str(path)


def test_video_weights_give_clips_and_frames(moving, tmp_path, caplog):
    model = {"weights": video_weights(tmp_path)}
    task = make_task(config(moving, tmp_path / "run", model=model, data=NOTHING))
    assert task.transform == STORED
    assert task.config.data.clip.model_dump() == {"frames": 4, "interval": 2, "fps": 15}
    assert task.config.data.augment.short_side == (20, 25)
    longer = {**NOTHING, "clip": {"frames": 8, "interval": None, "fps": None}}
    with caplog.at_level(logging.INFO, logger="rescalenet"):
        task = make_task(config(moving, tmp_path / "run", model=model, data=longer))
    assert caplog.messages[0] == f"data.clip.frames=8: the weights {model['weights']} have 4"
    assert task.transform == dataclasses.replace(STORED, frames=8, interval=None, fps=None)
    with pytest.raises(
        ConfigError, match=r"data.std=\[0.5, 0.5, 0.5\]: weights .* were trained with \[0.4, 0.5, 0.6\]"
    ):
        make_task(config(moving, tmp_path / "run", model=model, data={**NOTHING, "std": [0.5] * 3}))


def test_a_tag_alone_is_of_the_video_net(moving, tmp_path):
    model = {"weights": "shapes", "options": {}}
    task = make_task(config(moving, tmp_path / "run", model=model, data=NOTHING))
    assert task.transform == zoo.get_weights("rescale_r3d_10.shapes").transform
    assert task.build_model().config.options == {"projection_gain": 2.0}


def test_image_weights_give_the_look_of_frames(moving, tmp_path):
    transform = zoo.InputTransform(16, 18, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    model = {
        "name": "rescale_slowonly_r20_cifar",
        "weights": image_weights(tmp_path, transform),
        "options": {},
        "freeze": 2,
    }
    task = make_task(config(moving, tmp_path / "run", model=model, data=NOTHING))
    assert task.transform == dataclasses.replace(DEFAULT, size=16, resize=18, mean=transform.mean, std=transform.std)
    net = task.build_model()
    fixed = {name.split(".")[0] for name, p in net.named_parameters() if not p.requires_grad}
    assert fixed == {"stem", "layer1"}


def test_image_weights_of_other_channels_are_refused(moving, tmp_path):
    transform = zoo.InputTransform(16, 18, (0.1,) * 3, (0.4,) * 3, channel_order="BGR")
    model = {"name": "rescale_slowonly_r20_cifar", "weights": image_weights(tmp_path, transform), "options": {}}
    with pytest.raises(ConfigError, match=r"model.weights=.*: expects InputTransform.*BGR.*, not RGB frames"):
        make_task(config(moving, tmp_path / "run", model=model, data=NOTHING))


def test_without_weights_as_published(moving, tmp_path):
    task = make_task(config(moving, tmp_path / "run", data=NOTHING))
    assert task.transform == DEFAULT
    assert task.config.data.augment.short_side == (256, 320)


def test_a_short_side_below_the_size_of_the_weights_is_refused(moving, tmp_path):
    data = {**NOTHING, "augment": {"short_side": [12, 20]}}
    model = {"weights": video_weights(tmp_path)}
    with pytest.raises(
        ConfigError, match=r"^data: size=16 must be at most resize=20 and augment.short_side=\[12, 20\]"
    ):
        make_task(config(moving, tmp_path / "run", model=model, data=data))
