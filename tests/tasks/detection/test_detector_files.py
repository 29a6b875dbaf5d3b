"""Weights files of detectors: equal after loading, compared with the net's tensors before memory is taken."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import zoo
from tests.helpers.weights import TRANSFORM

SMALL = {"fpn_channels": 8, "box_width": 8, "mask_convs": (8,), "mask_width": 8, "body": {"width": 0.25}}
NAME = "mask_rcnn_rescalenet20_cifar_fpn"


@pytest.fixture(params=["rescale", "bn", "gn"])
def saved(request, tmp_path):
    """A small detector without zeros and ones in its parameters, and its file."""
    heads = {"heads": "2fc" if request.param == "bn" else "4conv1fc", "box_convs": (8,)}
    model = zoo.create_model(NAME, scheme=request.param, num_classes=2, min_size=32, max_size=64, **SMALL, **heads)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    for name, buffer in model.named_buffers():
        if name.endswith(("gain", "running_var")):
            buffer.fill_(1.5)
    path = tmp_path / "w.safetensors"
    zoo.save_weights(model, path, transform=model.input, classes=["a", "b"])
    return model.eval(), path


def test_a_loaded_detector_equals_the_one_that_was_saved(saved):
    model, path = saved
    again = zoo.create_model(NAME, path).eval()
    image = [torch.rand(3, 40, 32)]
    with torch.no_grad():
        for key, value in model(image)[0].items():
            assert torch.equal(again(image)[0][key], value), key
    assert again.config == model.config
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    levels = zip(model.rpn.anchor_generator.cell_anchors, again.rpn.anchor_generator.cell_anchors, strict=True)
    assert all(torch.equal(a, b) for a, b in levels)


def test_a_detector_with_other_parts_is_refused(saved):
    model, path = saved
    model.roi_heads.mask_predictor = nn.Conv2d(8, 3, 1)
    with pytest.raises(zoo.ZooError, match="unexpected keys, the first 'roi_heads.mask_predictor.*were replaced"):
        zoo.save_weights(model, path, transform=model.input, classes=["a", "b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fpn_channels": 10**7}, "has shape|no net"),
        ({"box_width": 10**9}, "has shape|no net"),
        ({"mask_convs": [8] * 100_000}, "asks for more layers than"),
        ({"body": {"width": 1e4}}, "has shape"),
        ({"anchor_scale": 1e308}, r"anchor_scale=1e\+308: must be below 2\*\*31"),
        ({"body": {"widht": 1}}, "no option 'widht'"),
    ],
)
def test_options_of_a_stranger_take_no_memory(saved, options, message, monkeypatch):
    path = saved[1]
    monkeypatch.setattr("zoo.building.MOST_CALLS", 5000)  # reached sooner
    with safe_open(path, framework="pt") as file:
        entry = json.loads(file.metadata()["rescalenet"])
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    entry["config"]["options"].update(options)
    save_file(state, path, metadata={"rescalenet": json.dumps(entry)})

    def never(*args, **kwargs):
        raise AssertionError("the detector is built before its shapes were compared")

    monkeypatch.setattr("tasks.detection.detector._load", never)
    with pytest.raises(zoo.WeightsError, match=message) as caught:
        zoo.create_model(NAME, path)
    assert str(caught.value).startswith(str(path))
    assert torch.is_grad_enabled()  # the error leaves no_grad of an initialization


def test_the_transform_of_a_detector_is_of_images(saved):
    path = saved[1]
    transform = {"kind": "text", "source": "en", "target": "de", "source_model": "", "target_model": None}
    with safe_open(path, framework="pt") as file:
        entry = json.loads(file.metadata()["rescalenet"]) | {"transform": transform}
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(state, path, metadata={"rescalenet": json.dumps(entry)})
    with pytest.raises(zoo.WeightsError, match="has a text transform; must be of images"):
        zoo.create_model(NAME, path)


def test_a_path_object_names_a_backbone(tmp_path):
    body = zoo.create_model("rescalenet20_cifar", width=0.25, num_classes=2)
    zoo.save_weights(body, tmp_path / "w.safetensors", transform=TRANSFORM, classes=["a", "b"])
    options = {key: value for key, value in SMALL.items() if key != "body"}
    detector = zoo.create_model(NAME, weights_backbone=tmp_path / "w.safetensors", **options)
    assert torch.equal(detector.backbone.body.body.stem.conv1.weight, body.stem.conv1.weight)
