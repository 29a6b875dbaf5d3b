"""The deployment form: a plain graph with the same outputs."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import zoo
from tests.helpers.nets import NARROW, VISION, narrow, pairs, samples, wake_
from zoo import layers
from zoo.baseline_joins import ActivatedJoin
from zoo.errors import ZooError
from zoo.export.images import export_net
from zoo.folding import ChannelMax, ShiftedReLU, Unscale, separate_shifts
from zoo.joins import InPlaceJoin
from zoo.nets.residual import AvgPool3d, FramePool
from zoo.norms import FrozenBatchNorm3d, GroupNorm

PLAIN = (nn.Conv2d, nn.Linear, nn.ReLU, ChannelMax, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Identity)
PLAIN += (layers.Conv3d, nn.MaxPool3d, AvgPool3d, FramePool)


def trained(kind, scheme="rescale", **options):
    """A narrow net in float64 whose every bias, multiplier and statistic is far from its initial value."""
    model = narrow(kind, scheme="bn" if scheme == "frozen_bn" else scheme, **options)
    if scheme == "frozen_bn":
        model = frozen(model, narrow(kind, scheme="bn", **options))
    model.double()
    zoo.calibrate(model, [samples(kind, 4, 64, dtype=torch.float64)])
    wake_(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("multiplier"):
                parameter.normal_()  # of either sign
            elif parameter.ndim <= 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
        for name, statistic in model.named_buffers():
            if name.endswith("running_mean"):
                statistic.normal_(0, 0.3)
            elif name.endswith("running_var"):
                statistic.uniform_(0.5, 2)
    return model.eval()


def frozen(model, bn):
    """A frozen BatchNorm in place of each BatchNorm."""
    for name, module in bn.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, FrozenBatchNorm2d(module.num_features))
        elif isinstance(module, nn.BatchNorm3d):
            model.set_submodule(name, FrozenBatchNorm3d(module.num_features))
    return model


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


matrix = pytest.mark.parametrize(
    ("kind", "scheme"),
    [pair for kind, (name, _) in NARROW.items() for pair in pairs(kind, zoo.model_info(name).schemes)],
)


@matrix
def test_outputs_are_equal_at_every_size(kind, scheme):
    """float64 to 1e-9, float32 to 1e-5, logits and all feature maps, whose borders see the padding."""
    model = trained(kind, scheme)
    folded = zoo.fold(model)
    for size in [(64, 64), (33, 47), (65, 32)]:
        x = samples(kind, 2, *size, dtype=torch.float64)
        with torch.no_grad():
            assert relative(folded(x), model(x)) <= 1e-9
            for ours, theirs in zip(folded.forward_levels(x), model.forward_levels(x), strict=True):
                assert relative(ours, theirs) <= 1e-9
            features = model.forward_features(x)
            assert relative(folded.forward_features(x), features) <= 1e-9
            pre = [m.forward_head(features.clone(), pre_logits=True) for m in (folded, model)]
            assert relative(*pre) <= 1e-9
            single = copy.deepcopy(model).float()
            assert relative(zoo.fold(single)(x.float()), single(x.float())) <= 1e-5


@matrix
def test_the_graph_is_plain(kind, scheme):
    """Leaves are convolutions, ReLUs or maxima, pools and linear layers; scales and biases before products are gone."""
    model = trained(kind, scheme)
    folded = zoo.fold(model)
    leaves = [m for m in folded.modules() if not list(m.children())]
    allowed = (*PLAIN, InPlaceJoin, Unscale)
    if scheme == "gn":
        allowed += (GroupNorm,)
    if scheme in ("nf", "sum_rescaled"):  # the ReLU before a branch, the constant of the sum
        allowed += (ActivatedJoin,)
    rest = [m for m in leaves if type(m) not in allowed]
    assert [type(m) for m in rest] in ([], [layers.ChannelBias])  # a ResNet's head: one addition on (N, C)
    assert not any(p.requires_grad for p in folded.parameters())
    assert any(p.requires_grad for p in model.parameters())
    if scheme == "none":
        assert not any(isinstance(m, ChannelMax) for m in leaves)


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("kind", NARROW)
def test_separate_shifts_keep_the_outputs_at_every_size(kind, depthwise):
    model = zoo.fold(trained(kind))
    maxima = sum(isinstance(module, ChannelMax) for module in model.modules())
    separate = separate_shifts(model, depthwise=depthwise)
    assert not any(isinstance(module, ChannelMax) for module in separate.modules())
    assert sum(isinstance(module, ShiftedReLU) for module in separate.modules()) == maxima > 0
    for size in ((64, 64), (33, 49), (97, 81)):
        x = samples(kind, 2, *size, dtype=torch.float64)
        with torch.no_grad():
            expected = model(x)
            assert relative(separate(x), expected) < 1e-5
            assert torch.equal(model(x), expected)  # the folded net did not change


def test_separate_shifts_leave_plain_activations():
    model = zoo.fold(trained("basic", "bn"))
    assert str(separate_shifts(model)) == str(model)


@matrix
def test_folding_is_idempotent(kind, scheme):
    once = zoo.fold(trained(kind, scheme))
    twice = zoo.fold(once)
    assert twice is not once
    assert str(once) == str(twice)
    for (name, a), b in zip(once.state_dict().items(), twice.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


OPTIONS = [
    ("bottleneck", {"stride_in_1x1": True}),
    ("bottleneck", {"shortcut": "conv", "post_bias": True}),
    ("bottleneck", {"stem": "deep", "multiplier": False}),
    ("bottleneck", {"stem": "cifar", "first_index": 0}),
    ("basic", {"shortcut": "conv", "c": 1}),
    ("basic", {"stem": "deep", "post_bias": True, "drop_rate": 0.5, "branch_drop_rate": 0.5}),
    ("basic", {"multiplier": "channel", "post_bias": True, "drop_path_rate": 0.5, "branch_noise": 0.5}),
    ("r2plus1d", {"multiplier": "channel", "branch_noise": 0.5}),
    ("vgg", {"post_bias": True}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_options(kind, options):
    model = trained(kind, **options)
    folded = zoo.fold(model).train()  # no dropout is left
    x = samples(kind, 2, 61, 50, dtype=torch.float64)
    with torch.no_grad():
        assert relative(folded(x), model(x)) <= 1e-9


@pytest.mark.parametrize("kind", NARROW)
def test_features_and_nets_without_a_head(kind):
    name, options = NARROW[kind]
    full = trained(kind)
    x = samples(kind, 2, 67, 45, dtype=torch.float64)
    state = full.state_dict()
    for indices in [(0,), (1, 2), (len(full.levels) - 1,)]:
        body = zoo.create_model(name, features_only=True, out_indices=indices, **options).double().eval()
        body.body.load_state_dict({k: state[k] for k in body.body.state_dict()})
        with torch.no_grad():
            for ours, theirs in zip(zoo.fold(body)(x), body(x), strict=True):
                assert relative(ours, theirs) <= 1e-9
    full.reset_classifier(0)
    with torch.no_grad():
        assert relative(zoo.fold(full)(x), full(x)) <= 1e-9


def test_the_original_is_not_changed():
    model = trained("basic").train()
    before = copy.deepcopy(model.state_dict())
    zoo.fold(model)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("kind", ["bottleneck", "i3d"])
def test_channels_last_stays(kind):
    layout = torch.channels_last_3d if kind == "i3d" else torch.channels_last
    folded = zoo.fold(narrow(kind).to(memory_format=layout))
    convs = [m for m in folded.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    assert all(m.weight.is_contiguous(memory_format=layout) for m in convs)


def test_backbones_inside_other_modules():
    model = nn.Sequential(trained("cifar"), nn.Softmax(-1))
    folded = zoo.fold(model)
    x = samples("cifar", 2, 32, dtype=torch.float64)
    with torch.no_grad():
        assert relative(folded(x), model(x)) <= 1e-9
    assert folded[0].folded
    with pytest.raises(ZooError, match="this Linear contains no net of the zoo"):
        zoo.fold(nn.Linear(2, 2))


def test_group_norms_that_stay_are_counted(caplog):
    with caplog.at_level("INFO", "rescalenet"):
        zoo.fold(narrow("basic", scheme="gn"))
    assert "20 GroupNorm layers stay" in caplog.text


def test_a_folded_net_is_not_saved_as_weights(tmp_path):
    with pytest.raises(ZooError, match=r"w.safetensors: a folded net .* save the net before zoo.fold"):
        zoo.save_weights(
            zoo.fold(narrow("cifar")),
            tmp_path / "w.safetensors",
            transform=zoo.InputTransform(32, 32, (0.5,) * 3, (0.5,) * 3),
            classes=list("abcde"),
        )


@pytest.mark.parametrize("kind", NARROW)
def test_torch_export(kind):
    model = zoo.fold(trained(kind).float())
    x = samples(kind, 2, 64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    y = samples(kind, 3, 64)
    torch.testing.assert_close(program.module()(y), model(y), rtol=1e-5, atol=1e-6)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [t for t in targets if "mul" in t or "div" in t or "sub" in t], targets


@pytest.mark.parametrize("kind", ["basic", pytest.param("vgg", marks=pytest.mark.slow)])
def test_compiles_to_one_graph(kind):
    torch.compiler.reset()
    model = zoo.fold(trained(kind).float())
    x = samples(kind, 2, 64)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(
            torch.compile(model, fullgraph=True)(x), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item()
        )


@pytest.mark.parametrize(
    "kind",
    ["cifar", "r2plus1d", *(pytest.param(k, marks=pytest.mark.slow) for k in ("bottleneck", "i3d", "replicate"))],
)
def test_onnx(kind, tmp_path):
    model = trained(kind).float()
    made = export_net(zoo.fold(model), [samples(kind, count, 65) for count in (1, 3)], tmp_path / "net")
    assert made.worst <= 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "net/model.onnx")
    x = samples(kind, 3, 65)
    with torch.no_grad():
        expected = model(x).numpy()
    (got,) = session.run(None, {"clips" if model.dims == 3 else "images": x.numpy()})
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("kind", ["basic", "r3d", pytest.param("bottleneck", marks=pytest.mark.slow)])
def test_openvino(kind, tmp_path):
    import openvino

    model = trained(kind).float()
    export_net(zoo.fold(model), [samples(kind, count, 65) for count in (1, 3)], tmp_path / "net")
    core = openvino.Core()
    compiled = core.compile_model(tmp_path / "net/model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    x = samples(kind, 3, 65)
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(compiled([x.numpy()])[0], expected, rtol=0, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("name", [n for n in zoo.list_weights() if n.split(".")[0] in VISION])
def test_weights_that_ship(name):
    model = zoo.create_model(name.split(".")[0], name).eval()
    folded = zoo.fold(model)
    for size in (32, 45):
        x = torch.randn(4, 3, *([7] if model.dims == 3 else []), size, size)
        with torch.no_grad():
            assert relative(folded(x), model(x)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["rescale", "bn"])
@pytest.mark.parametrize("name", VISION)
def test_every_net_of_the_zoo(name, scheme):
    """A narrow copy of each, at the depth it has."""
    model = zoo.create_model(name, scheme=scheme, num_classes=3, width=0.0625).double()
    size = max(33, zoo.model_info(name).min_size)
    x = torch.randn(2, 3, *([5] if model.dims == 3 else []), size, size, dtype=torch.float64)
    zoo.calibrate(model, [x])
    model.eval()
    with torch.no_grad():
        assert relative(zoo.fold(model)(x), model(x)) <= 1e-9
