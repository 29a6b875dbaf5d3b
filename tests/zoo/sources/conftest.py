"""Caches in folders of the test, servers of this machine, and small nets with BatchNorm."""

import hashlib
import logging

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save
from torch import nn

import zoo
from tests.helpers.server import Hub, Server, running, set_endpoint


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The caches of this zoo, of torch.hub and of huggingface_hub; downloads allowed."""
    monkeypatch.setenv("RESCALENET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "of the tests")
    for name in ("RESCALENET_OFFLINE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def server():
    with running(Server()) as found:
        yield found


@pytest.fixture
def hub(monkeypatch):
    with running(Hub()) as found:
        set_endpoint(monkeypatch, found.address)
        yield found


@pytest.fixture
def lines(caplog):
    """What was logged."""
    caplog.set_level(logging.INFO, logger="rescalenet")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "rescalenet"]


def trained(net):
    """The net with statistics and scales as after training."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_(1, 0.3)
                module.bias.normal_(std=0.3)
    return net.eval()


@pytest.fixture(scope="session")
def own_net():
    torch.manual_seed(0)
    return trained(zoo.create_model("rescalenet20_cifar", scheme="bn", num_classes=3, width=0.25))


@pytest.fixture(scope="session")
def own_file(tmp_path_factory, own_net):
    """A weights file of this zoo without norms, and its sha256."""
    path = tmp_path_factory.mktemp("own") / "own.safetensors"
    net = zoo.create_model("rescalenet20_cifar", num_classes=3, width=0.25)
    transform = zoo.InputTransform(16, 16, (0.5,) * 3, (0.3,) * 3)
    meta = {"licence": "cc-by-nc-4.0", "metrics": {"top1": 61.5}}
    return path, zoo.save_weights(net, path, transform=transform, classes=["ant", "bee", "cat"], meta=meta)


@pytest.fixture(scope="session")
def small_resnet():
    """torchvision's ResNet-18 with a quarter of the channels, and its state dict as a safetensors file's bytes."""
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=5)
    narrow(net)
    content = save(trained(net).state_dict())
    return net, content, hashlib.sha256(content).hexdigest()


def narrow(net):
    """Give a ResNet a quarter of its channels, in place."""
    for owner in list(net.modules()):
        for name, module in list(owner.named_children()):
            if isinstance(module, nn.Conv2d):
                inputs = 3 if module.in_channels == 3 else module.in_channels // 4
                new = nn.Conv2d(
                    inputs, module.out_channels // 4, module.kernel_size, module.stride, module.padding, bias=False
                )
                setattr(owner, name, new)
            elif isinstance(module, nn.BatchNorm2d):
                setattr(owner, name, nn.BatchNorm2d(module.num_features // 4))
            elif isinstance(module, nn.Linear):
                setattr(owner, name, nn.Linear(module.in_features // 4, module.out_features))


def far(a, b):
    """The largest difference over the largest value."""
    return float(((a - b).abs().max() / b.abs().max()).detach())
