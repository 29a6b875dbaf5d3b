"""The zoo's nets inside timm: names, tags, weights, arguments, training tools. timm's own tests: tests/interop."""

import dataclasses
import json
import subprocess
import sys

import pytest
import timm
import timm.optim
import torch
import torchvision
from torch import nn

import zoo
import zoo.export.timm
from tests.helpers.nets import narrow
from zoo.errors import ZooError
from zoo.export.timm import DEFAULTS, TAGS
from zoo.nets.base import Backbone
from zoo.nets.resnet import ResNet
from zoo.sources import torchvision as torchvision_source
from zoo.sources.conversion import Original
from zoo.specs import MODELS, get_spec

NARROW = {"width": 0.125}


def close(a, b):
    """To rounding of float32."""
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_all_nets_for_images_are_registered():
    assert sorted(set(timm.list_models(module="rescalenet")) - {"mine"}) == zoo.list_models(input_kind="images")
    assert timm.is_model_pretrained("rescalenet50")
    assert not timm.is_model_pretrained("rescalenet32_cifar")
    with pytest.raises(ZooError, match="rescale_r3d_18 takes clips"):
        zoo.export.timm.register("rescale_r3d_18")


@pytest.mark.parametrize(
    ("name", "tag", "weights"),
    [
        ("rescalenet20_cifar", "cifar10", "rescalenet20_cifar.cifar10"),
        ("rescalenet18", "torchvision.IMAGENET1K_V1", "torchvision:resnet18:IMAGENET1K_V1"),
        ("rescalenet50", "torchvision.IMAGENET1K_V2", "torchvision:resnet50:IMAGENET1K_V2"),
        ("rescalevgg16", "torchvision.IMAGENET1K_V1", "torchvision:vgg16:IMAGENET1K_V1"),
    ],
)
def test_default_weights(name, tag, weights):
    assert DEFAULTS[name] == tag
    assert TAGS[name][tag].weights == timm.get_pretrained_cfg(name).file == weights
    assert f"{name}.{tag}" in timm.list_pretrained(f"{name}.*")


def test_tags_of_other_builders_and_of_timm():
    assert TAGS["rescalevgg16"]["torchvision.vgg16_bn.IMAGENET1K_V1"].weights == "torchvision:vgg16_bn:IMAGENET1K_V1"
    assert TAGS["rescalenet50"]["timm.resnet50d.ra2_in1k"].weights == "timm:resnet50d.ra2_in1k"
    ours, theirs = (timm.get_pretrained_cfg(name) for name in ("rescalenet50.timm.a1_in1k", "resnet50.a1_in1k"))
    assert ours.file == "timm:resnet50.a1_in1k"
    for key in (
        "input_size",
        "test_input_size",
        "mean",
        "std",
        "crop_pct",
        "test_crop_pct",
        "interpolation",
        "license",
    ):
        assert getattr(ours, key) == getattr(theirs, key)
    assert ours.first_conv == "stem.conv1"
    assert ours.hf_hub_id is None


def test_weights_that_ship():
    x = torch.randn(2, 3, 32, 32)
    ours = zoo.create_model("rescalenet20_cifar", "cifar10").eval()
    model = timm.create_model("rescalenet20_cifar", pretrained=True).eval()
    assert torch.equal(model(x), ours(x))
    assert model.pretrained_cfg["mean"] == ours.pretrained_cfg["mean"]
    bn = timm.create_model("rescalenet20_cifar.cifar10_bn", pretrained=True, num_classes=5, in_chans=1).eval()
    assert any(isinstance(m, nn.BatchNorm2d) for m in bn.modules())
    assert (bn.num_classes, bn.in_chans, bn(x[:, :1]).shape) == (5, 1, (2, 5))


@pytest.mark.parametrize("indices", [None, (1, 3), (-2, -1), 2])
def test_features_only(indices):
    given = {} if indices is None else {"out_indices": indices}
    ours = zoo.create_model("rescalenet20_cifar", "cifar10", features_only=True, **given).eval()
    model = timm.create_model("rescalenet20_cifar", pretrained=True, features_only=True, num_classes=5, **given).eval()
    x = torch.randn(2, 3, 37, 50)
    assert len(model(x)) == len(ours(x))
    for a, b in zip(model(x), ours(x), strict=True):
        assert torch.equal(a, b)
    assert model.feature_info.channels() == ours.feature_info.channels()
    assert model.feature_info.reduction() == ours.feature_info.reduction()
    model.train().set_grad_checkpointing()
    sum(m.mean() for m in model(x)).backward()
    assert model.model.grad_checkpointing
    assert all(p.grad is not None for p in model.parameters())


@pytest.fixture
def resnet18(monkeypatch, tmp_path):
    """A torchvision ResNet-18 that torchvision's source gives in place of a download."""
    monkeypatch.setenv("RESCALENET_HOME", str(tmp_path / "home"))
    net = torchvision.models.resnet18().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 2)
    about = torchvision_source.describe("torchvision:resnet18:IMAGENET1K_V1")
    original = Original(net.state_dict(), "0" * 64, "rescalenet18", about["transform"], about["classes"])
    monkeypatch.setattr(torchvision_source, "fetch", lambda name: original)
    return net


def test_weights_of_torchvision(resnet18, tmp_path):
    """By the default, the tag and the name of the weights: the original's outputs and features, without a norm."""
    x = torch.randn(2, 3, 64, 96)
    for arguments in (
        {},
        {"pretrained_cfg": "torchvision.IMAGENET1K_V1"},
        {"pretrained_cfg": "torchvision:IMAGENET1K_V1"},
    ):
        model = timm.create_model("rescalenet18", pretrained=True, **arguments).eval()
        close(model(x), resnet18(x))
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        assert timm.data.resolve_model_data_config(model)["crop_pct"] == 0.875
    features = timm.create_model("rescalenet18", pretrained=True, features_only=True, num_classes=5).eval()
    stem = resnet18.relu(resnet18.bn1(resnet18.conv1(x)))
    expected = resnet18.layer2(resnet18.layer1(resnet18.maxpool(stem)))
    close(features(x)[2], expected)
    # what timm stores of a model builds it again: a checkpoint's arguments, and a folder for its hub
    model._model_args["num_classes"] = 1000
    torch.save({"state_dict": model.state_dict()}, tmp_path / "checkpoint.pth.tar")
    again = timm.create_model("rescalenet18", checkpoint_path=str(tmp_path / "checkpoint.pth.tar"), **model._model_args)
    assert torch.equal(again.eval()(x), model(x))
    timm.models.save_for_hf(model, tmp_path / "folder")
    stored = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert (stored["architecture"], stored["model_args"]["weight_scale"]) == ("rescalenet18", True)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    assert torch.equal(loaded(x), model(x))


def test_files_as_weights(tmp_path):
    """A weights file of the zoo by its path, a plain state dict by timm's overlay; channels are adapted alike."""
    model = narrow("basic")
    path = tmp_path / "net.safetensors"
    transform = zoo.InputTransform(64, 72, (0.3, 0.4, 0.5), (0.2, 0.2, 0.2), "bicubic")
    zoo.save_weights(model, path, transform=transform, classes=list("abcde"))
    ours = timm.create_model("rescalenet18", pretrained=True, pretrained_cfg=str(path), in_chans=4).eval()
    assert ours.pretrained_cfg["input_size"] == (3, 64, 64)
    assert ours.pretrained_cfg["mean"] == transform.mean
    torch.save(model.state_dict(), tmp_path / "state.pth")
    overlay = {"file": str(tmp_path / "state.pth"), "num_classes": 5}
    theirs = timm.create_model(
        "rescalenet18", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, in_chans=4, **NARROW
    ).eval()
    x = torch.randn(2, 4, 64, 64)
    close(ours(x), theirs(x))


def test_images_of_another_order_are_refused(tmp_path):
    model = narrow("basic")
    path = tmp_path / "bgr.safetensors"
    transform = zoo.InputTransform(64, 72, (0.3, 0.4, 0.5), (0.2, 0.2, 0.2), channel_order="BGR")
    zoo.save_weights(model, path, transform=transform, classes=list("abcde"))
    with pytest.raises(ZooError, match="expect BGR images and timm gives RGB"):
        timm.create_model("rescalenet18", pretrained=True, pretrained_cfg=str(path))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"drop_block_rate": 0.1}, TypeError, "rescalenet18 takes no argument 'drop_block_rate'.*drop_path_rate"),
        ({"output_stride": 16}, ZooError, "output_stride=16: must be 32; stages are not dilated"),
        ({"features_only": True, "feature_cls": "hook"}, ZooError, "feature_cls='hook': must be 'getter'"),
        (
            {"pretrained": True, "pretrained_cfg": "torchvision.IMAGENET1K_V7"},
            ZooError,
            "mean torchvision.IMAGENET1K_V1",
        ),
        ({"pretrained": True, "pretrained_cfg": "nosuch"}, ZooError, "rescalenet18 has no weights 'nosuch' .*timm.a1"),
        ({"global_pool": "catavgmax"}, ZooError, "global_pool='catavgmax'"),
        ({"global_pool": ""}, ZooError, "requires 0 classes"),
        ({"pretrained": True, "pretrained_cfg": "torchvision:IMAGENET1K_V7"}, ZooError, "no weights 'IMAGENET1K_V7'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        timm.create_model("rescalenet18", **NARROW, **arguments)


def test_stochastic_depth_by_timms_name():
    model = timm.create_model("rescalenet18", drop_path_rate=0.4, **NARROW)
    assert model.layer1[0].branch_end.drop_path.p == pytest.approx(0.4 / 8)  # timm's first block has 0
    assert model.layer4[1].branch_end.drop_path.p == pytest.approx(0.4)
    with pytest.raises(TypeError, match="rescalevgg16 takes no argument 'drop_path_rate'"):
        timm.create_model("rescalevgg16", drop_path_rate=0.4, **NARROW)


def test_a_net_without_weights():
    with pytest.raises(RuntimeError, match="No pretrained weights exist for rescalenet32_cifar"):
        timm.create_model("rescalenet32_cifar", pretrained=True, **NARROW)


def test_other_arguments():
    model = timm.create_model(
        "rescalenet18",
        drop_rate=0.3,
        global_pool="max",
        output_stride=32,
        scheme="bn",
        scriptable=False,
        exportable=True,
        no_jit=True,
        dtype=torch.float64,
        **NARROW,
    )
    assert (model.drop.p, model.global_pool, next(model.parameters()).dtype) == (0.3, "max", torch.float64)
    assert timm.create_model("rescalenet50", device="meta").fc.weight.is_meta


def test_optimizers_and_averages_of_timm():
    """No decay for biases and multipliers, rates that fall towards the stem, and an average of the weights."""
    model = timm.create_model("rescalenet18", num_classes=3, **NARROW)
    zoo.calibrate(model, [torch.randn(4, 3, 64, 64)])
    optimizer = timm.optim.create_optimizer_v2(model, opt="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4)
    for group in optimizer.param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
    average = timm.utils.ModelEmaV3(model, decay=0.5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
        average.update(model)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {name for name, _ in model.named_parameters()}
    assert all(not torch.equal(average.module.state_dict()[key], before[key]) for key in changed)
    layered = timm.optim.create_optimizer_v2(model, opt="sgd", lr=0.01, weight_decay=1e-4, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in layered.param_groups for p in group["params"]}
    assert scales[id(model.fc.weight)] == 1
    assert scales[id(model.layer4[1].conv1.pre_bias)] == 0.5
    assert scales[id(model.stem.conv1.weight)] == 0.5**9


@pytest.mark.slow
def test_scripts_of_timm_find_the_nets(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys, timm\nprint(timm.list_models('rescalenet18'), sys.argv[1:], sys.path[0])\n")
    command = [sys.executable, "-m", "zoo.export.timm"]
    done = subprocess.run([*command, str(script), "--model", "x"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["['rescalenet18']", "['--model',", "'x']", str(tmp_path)]
    failed = subprocess.run([*command, "train.py"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert failed.returncode == 1
    assert "SCRIPT must be a file" in failed.stderr


def test_a_net_of_ones_own(monkeypatch):
    """One that is registered after the import, with the groups of layers that every net has."""
    spec = get_spec("rescalenet18")
    monkeypatch.setitem(MODELS, "mine", dataclasses.replace(spec, name="mine", family=Own))
    zoo.export.timm.register("mine")
    model = timm.create_model("mine", num_classes=3, **NARROW)
    assert (model.pretrained_cfg["architecture"], model.fc.out_features) == ("mine", 3)
    optimizer = timm.optim.create_optimizer_v2(model, opt="sgd", lr=0.01, layer_decay=0.5)
    assert {group["lr_scale"] for group in optimizer.param_groups} == {0.5**i for i in range(6)}


class Own(ResNet):
    """A net without an own group_matcher."""

    group_matcher = Backbone.group_matcher
