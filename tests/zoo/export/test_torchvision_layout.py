"""The way back: nets of the zoo as state dicts of torchvision's classes, loaded strictly, with equal outputs."""

import dataclasses
import json

import pytest
import torch
import torchvision
from torch import nn

import zoo
from tests.helpers.foreign import TORCHVISION, disturb, outputs, relative_error, torchvision_net
from tests.helpers.nets import narrow
from zoo.convert import from_batchnorm
from zoo.errors import ExportError
from zoo.export import TARGETS
from zoo.export.graphs import Deployment, Settings
from zoo.export.images import export_net, graph_of
from zoo.export.torchvision_layout import torchvision_state
from zoo.export.writing import check_graph, export

FAST = ("resnet18", "resnet50")


def there(net, name):
    """torchvision's net of this name with the state of ours."""
    theirs = torchvision_net(name).to(next(net.parameters()).dtype)
    theirs.load_state_dict(torchvision_state(net))
    return theirs.eval()


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in TORCHVISION]
)
def test_there_and_back(name):
    """From torchvision to a net without norms and back into the same class: the same outputs and features."""
    original = disturb(torchvision_net(name))
    x = torch.stack([torch.randn(3, 65, 97), 2 * torch.randn(3, 65, 97) + 1])
    expected = outputs(original, x)
    converted = from_batchnorm(original)
    plain = name.removesuffix("_bn")  # a folded VGG has no norms
    for net in (converted, zoo.fold(converted)):
        back = there(net, plain)
        for ours, theirs in zip(outputs(back, x), expected, strict=True):
            assert relative_error(ours, theirs) <= 3e-6
    for module in back.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert (module.running_var + module.eps - 1).abs().max() < 1e-7


def test_bn_nets_keep_their_norms():
    """A net of scheme bn goes back with every tensor that it came with."""
    original = disturb(torchvision_net("resnet18")).state_dict()
    layout_of = from_torchvision(original)
    state = torchvision_state(layout_of)
    assert state.keys() == original.keys()
    assert all(torch.equal(state[key], original[key]) for key in original)


def from_torchvision(state):
    """Our bn net with a state of torchvision's resnet18."""
    net = zoo.create_model("rescalenet18", scheme="bn", num_classes=10)
    names = dict(zip(net.state_dict(), state, strict=True))  # both have the order of the forward
    net.load_state_dict({ours: state[theirs] for ours, theirs in names.items()})
    return net


def test_another_eps_is_folded():
    net = from_torchvision(disturb(torchvision_net("resnet18")).state_dict()).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    x = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        assert relative_error(there(net, "resnet18")(x), net(x)) <= 3e-6


def test_biases_before_unpadded_products_go_back():
    """Trained biases before 1x1 convolutions and pooling are part of the biases after them."""
    net = zoo.create_model("rescalenet50", num_classes=10, shortcut="conv").double().eval()
    for name, parameter in net.named_parameters():
        if "pre_bias" in name and "conv2" not in name:
            nn.init.normal_(parameter, std=0.1)
    nn.init.normal_(net.head_bias.bias)
    x = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(there(net, "resnet50")(x), net(x)) <= 1e-10


@pytest.mark.parametrize("name", ["resnet18", "resnet50", pytest.param("vgg11_bn", marks=pytest.mark.slow)])
def test_a_trained_converted_net_goes_back(name):
    """Whatever the biases became: those of converted nets are on the zeros around the input too."""
    net = from_batchnorm(disturb(torchvision_net(name))).double().eval()
    for key, parameter in net.named_parameters():
        if "bias" in key:
            nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(there(net, name.removesuffix("_bn"))(x), net(x)) <= 1e-10


def cut_off(name, level):
    """A net without the stages after a level, with a head on that one."""
    net = zoo.create_model(name, scheme="bn", num_classes=10)
    net.truncate(level)
    net.reset_classifier(10, "avg")
    return net


def shifted():
    net = zoo.create_model("rescalenet18", num_classes=10, shortcut="conv")
    nn.init.constant_(net.layer2[0].conv2.pre_bias, -0.5)
    return net


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (shifted, r"1 of its padded convolutions have a bias before the padding \(up to 0.5, after layer2.0.act1\)"),
        (lambda: zoo.create_model("rescalenet18"), "shortcut='avgpool'"),
        (lambda: zoo.create_model("rescalenet18", scheme="bn", stem="deep"), "stem='deep'"),
        (lambda: zoo.create_model("rescalenet50", scheme="bn", stride_in_1x1=True), "stride_in_1x1=True"),
        (lambda: zoo.create_model("rescalenet18", scheme="bn", width=0.5), "width=0.5"),
        (lambda: zoo.create_model("rescalenet18", scheme="bn", in_chans=1), "1 input channels"),
        (lambda: zoo.create_model("rescalenet18", scheme="bn", num_classes=0), "no classifier"),
        (lambda: zoo.create_model("rescalenet18", scheme="bn", global_pool="max"), "global_pool='max'"),
        (lambda: cut_off("rescalenet18", 3), "cut off after a stage"),
        (lambda: cut_off("rescalevgg11", 5), "cut off after a stage"),
        (lambda: zoo.create_model("rescalenet18", scheme="gn"), "GroupNorm"),
        (lambda: zoo.create_model("rescalenet20_cifar", scheme="bn"), "stem='cifar'"),
        (lambda: narrow("r3d", scheme="bn"), "ResNets and VGGs for images only"),
    ],
)
def test_refusals(make, reason):
    with pytest.raises(ExportError, match=reason):
        torchvision_state(make())


def deployed(net, *, size=64, **options):
    x = torch.randn(3, net.config.in_chans, size, size, generator=torch.Generator().manual_seed(0))
    samples = [x[:1], x, x[..., :48]]
    return Deployment("images", (graph_of(net, samples, "noise", folded=False, **options),), {})


@pytest.mark.parametrize("name", ["resnet18", pytest.param("vgg11_bn", marks=pytest.mark.slow)])
def test_the_target_writes_a_verified_file(tmp_path, name):
    net = from_batchnorm(disturb(torchvision_net(name)))
    result = export(deployed(net), TARGETS["torchvision"], tmp_path / "out")
    assert 0 < result.differences["model"].relative <= 3e-6
    assert "torchvision" in result.runtime
    again = export_net(net.train(), [torch.randn(n, 3, 64, 64) for n in (1, 2)], tmp_path / "net", "torchvision")
    assert net.training
    assert 0 < again.worst <= 3e-6
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert torchvision.__version__.startswith(manifest["versions"]["torchvision"])
    x = torch.randn(1, 3, 64, 64)
    theirs = torchvision_net(name.removesuffix("_bn"))
    theirs.load_state_dict(torch.load(tmp_path / "out/model.pth", weights_only=True))
    with torch.no_grad():
        assert relative_error(theirs.eval()(x), net.eval()(x)) <= 3e-6


def test_outputs_that_differ_write_no_file(tmp_path, monkeypatch):
    wrong = torchvision_state(zoo.create_model("rescalenet18", scheme="bn", num_classes=10))
    monkeypatch.setattr("zoo.export.torchvision_layout.torchvision_state", lambda net: wrong)
    net = from_batchnorm(disturb(torchvision_net("resnet18")))
    with pytest.raises(ExportError, match="model: outputs differ by"):
        export(deployed(net), TARGETS["torchvision"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_file_that_changed_is_noticed(tmp_path):
    deployment = deployed(from_batchnorm(disturb(torchvision_net("resnet18"))))
    graph, target = deployment.graphs[0], TARGETS["torchvision"]
    export(deployment, target, tmp_path / "out")
    path = tmp_path / "out/model.pth"
    state = torch.load(path, weights_only=True)
    state["layer4.1.conv2.weight"] *= 1.01
    torch.save(state, path)
    with pytest.raises(ExportError, match="model: outputs differ by"):
        check_graph(graph, target, tmp_path / "out", Settings())


def test_a_refused_net_writes_no_file(tmp_path):
    net = from_batchnorm(disturb(torchvision_net("resnet18")))
    plain = deployed(net).graphs[0]
    for deployment, reason in (
        (deployed(shifted()), "before the padding"),
        (deployed(net, softmax=True), "export to torchvision: its classes have no softmax"),
        (deployed(net, standardise=((0.5,) * 3, (0.5,) * 3, False)), "no standardisation; export the net without"),
        (deployed(zoo.FeatureExtractor(net, (1, 2))), "FeatureExtractor is no net of the zoo for images"),
        (Deployment("images", (dataclasses.replace(plain, net=None),), {}), "model is no net whose weights"),
    ):
        with pytest.raises(ExportError, match=reason):
            export(deployment, TARGETS["torchvision"], tmp_path / "out")
        assert not list(tmp_path.iterdir())
