"""Our backbones inside detectron2's own Mask R-CNN (``make test-interop``)."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import zoo
from tests.helpers.adapter import CONFIGS, config, objects, sample
from tests.helpers.batchnorm import relative_error, train_statistics_
from tests.helpers.nets import narrow
from zoo.export.detectron2 import ZooBackbone, pixel_settings

NARROW = {"width": 0.125}


@pytest.fixture
def weights(tmp_path):
    """A file of weights with an unusual input transform."""
    torch.manual_seed(0)
    net = zoo.create_model("rescalenet18", num_classes=2, **NARROW)
    zoo.calibrate(net, [torch.randn(2, 3, 64, 64)])
    transform = zoo.InputTransform(64, 64, (0.3, 0.4, 0.5), (0.2, 0.25, 0.3))
    path = tmp_path / "net.safetensors"
    zoo.save_weights(net, path, transform=transform, classes=["a", "b"])
    return str(path)


@pytest.mark.parametrize("format", ["BGR", "RGB"])
@pytest.mark.parametrize("unit_std", [True, False])
def test_same_features_as_ours(image, weights, format, unit_std):
    """What detectron2 feeds becomes what the weights expect, whatever the channel order and the pixel std."""
    entry = zoo.get_weights(weights)
    settings = pixel_settings(entry.transform, format)
    if unit_std:
        settings["PIXEL_STD"] = [1.0, 1.0, 1.0]
    cfg = config(MODEL__ZOO__WEIGHTS=weights, INPUT__FORMAT=format)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = settings["PIXEL_MEAN"], settings["PIXEL_STD"]
    model = build_model(cfg).eval()
    pixels = image if format == "RGB" else image[..., ::-1]
    batch = model.preprocess_image([{"image": torch.from_numpy(pixels.copy()).permute(2, 0, 1).float()}])
    ours = zoo.create_model("rescalenet18", weights, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    mean, std = torch.tensor(entry.transform.mean), torch.tensor(entry.transform.std)
    x = ((torch.from_numpy(image.copy()) / 255 - mean) / std).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        theirs = model.backbone.bottom_up(batch.tensor)
        expected = ours(x)
    assert list(theirs) == ["res2", "res3", "res4", "res5"]
    for a, b in zip(theirs.values(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))  # means are rounded to 1e-4/255


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("form", ["gained", "folded", "balanced"])
def test_converted_nets_have_the_features_of_the_net_with_batchnorm(tmp_path, kind, form):
    """In detectron2's settings of ImageNet nets (BGR, std 1), with biases that data moved."""
    torch.manual_seed(0)
    source = train_statistics_(narrow(kind, scheme="bn"), hostile=True)
    net = zoo.convert.from_batchnorm(source, form=form)
    assert zoo.convert.center_inputs_(net, [torch.randn(2, 3, 64, 64)])
    path, transform = tmp_path / "net.safetensors", zoo.InputTransform.imagenet(64, 64)
    zoo.save_weights(net, path, transform=transform, classes=list("abcde"))
    backbone = ZooBackbone(net.config.name, weights=str(path), freeze_at=2).eval()
    assert ("weight_scale" in dict(backbone.body.named_modules())["body.layer2.0.conv1"].state_dict()) == (
        form == "gained"
    )
    x = torch.randn(1, 3, 97, 65)  # standardised RGB
    pixels = (x * 255 * torch.tensor(transform.std).view(3, 1, 1)).flip(1)
    with torch.no_grad():
        found, right = backbone(pixels), source.double().forward_levels(x.double(), (1, 2, 3, 4))
    assert list(found) == ["res2", "res3", "res4", "res5"]
    for a, b in zip(found.values(), right, strict=True):
        assert relative_error(a.double(), b) < 1e-5  # the std is rounded to 1e-4


def test_shapes_are_declared():
    backbone = ZooBackbone("rescalenet18", options=NARROW, out_features=["stem", "res3", "res5"])
    shapes = backbone.output_shape()
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert list(maps) == list(shapes) == ["stem", "res3", "res5"]
    for name, shape in shapes.items():
        assert maps[name].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)


@pytest.mark.parametrize("scheme", ["rescale", "bn", "gn"])
def test_training_steps_and_inference(image, scheme):
    torch.manual_seed(0)
    model = build_model(config(MODEL__ZOO__SCHEME=scheme))
    batch = [sample(image, objects((64, 96)))] * 2
    model.eval()
    report = zoo.calibrate(model.backbone, [model.preprocess_image(batch).tensor])
    assert bool(report.calibrated) == (scheme == "rescale")
    assert not report.unreached
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    totals = []
    for _ in range(8):
        with EventStorage():
            losses = model(batch)
        assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.8 * totals[0]
    assert all(p.grad is not None for p in model.backbone.parameters())
    model.eval()
    with torch.no_grad():
        (output,) = model([sample(image)])
    instances = output["instances"]
    assert instances.pred_masks.shape[1:] == (64, 96)
    assert torch.isfinite(instances.scores).all()


def test_levels_enter_the_pyramid_with_power_one(image):
    """At init the levels of a rescale net differ in power by orders of magnitude; the gains see to that."""
    torch.manual_seed(0)
    model = build_model(config()).eval()
    x = model.preprocess_image([sample(image)]).tensor
    zoo.calibrate(model.backbone, [x])
    with torch.no_grad():
        maps = model.backbone.bottom_up(x)
    for i, level in enumerate(maps.values(), 2):
        gain = model.backbone.get_submodule(f"fpn_lateral{i}").gain.gain
        assert float((gain * level).square().mean()) == pytest.approx(1, rel=1e-4)


def test_freeze():
    counts = []
    for freeze_at in range(6):
        model = build_model(config(MODEL__BACKBONE__FREEZE_AT=freeze_at))
        counts.append(sum(p.numel() for p in model.backbone.bottom_up.parameters() if p.requires_grad))
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 6
    assert counts[5] == 0


def test_bad_settings_are_one_clear_error(weights):
    with pytest.raises(zoo.ZooError, match="PIXEL_MEAN.*must be \\[127.5, 102.0, 76.5\\]"):
        ZooBackbone("rescalenet18", weights=weights)
    for key, values in (("pixel_mean", [103.53]), ("pixel_mean", [0, 0, 300]), ("pixel_std", [1, 1, 0])):
        with pytest.raises(zoo.ZooError, match=rf"MODEL.{key.upper()}=\[.*: must be 3 values"):
            ZooBackbone("rescalenet18", **{key: values})
    with pytest.raises(zoo.ZooError, match="no feature 'res6' .did you mean res5"):
        ZooBackbone("rescalenet18", out_features=["res6"], options=NARROW)
    with pytest.raises(zoo.ZooError, match="freeze=6"):
        ZooBackbone("rescalenet18", freeze_at=6, options=NARROW)


def test_the_page_on_detection_runs(monkeypatch):
    monkeypatch.chdir(CONFIGS.parents[2])
    _, code = re.findall(r"```python\n(.*?)```", Path("docs/detection.md").read_text(), re.DOTALL)
    scope = {}
    exec(compile(code, "detection.md", "exec"), scope)
    assert scope["cfg"].MODEL.BACKBONE.NAME == "build_zoo_fpn_backbone"
    assert Path(scope["cfg"].MODEL.ZOO.WEIGHTS).suffix == ".safetensors"


def test_lazy_config(image):
    content = LazyConfig.load(str(CONFIGS / "mask_rcnn_rescalenet50_fpn.py")).model
    content.backbone.bottom_up.options = {"width": 0.125}
    model = instantiate(content)
    by_yaml = build_model(config(MODEL__ZOO__NAME="rescalenet50", MODEL__FPN__OUT_CHANNELS=256))
    ours = {k: v.shape for k, v in model.backbone.state_dict().items()}
    assert ours == {k: v.shape for k, v in by_yaml.backbone.state_dict().items()}
    model.eval()
    with torch.no_grad():
        (output,) = model([sample(image)])
    assert output["instances"].pred_boxes.tensor.shape[1] == 4
