"""A converted net has the outputs, features and trunk of the BatchNorm net, and trains as FrozenBatchNorm does."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo
from tests.helpers.batchnorm import FLAT, flatten_, relative_error, train_statistics_
from tests.helpers.nets import NARROW, narrow, samples
from zoo.calibration import HasDataBias
from zoo.convert import from_batchnorm, rescaled
from zoo.convert.centering import center_inputs_, untouched_biases
from zoo.convert.rescaled import LARGEST_SCALE, affine, transfer
from zoo.errors import ZooError
from zoo.layers import BiasedConv2d, StemConvNd

FORMS = ("gained", "folded", "balanced")
RESIDUAL = [kind for kind in NARROW if kind != "vgg"]
SIZE = 33  # odd, so that strides and pools end in incomplete windows
RESNET_D = {"stem": "deep", "shortcut": "avgpool"}
VARIANTS = [
    ("bottleneck", RESNET_D),
    ("bottleneck", {"stride_in_1x1": True}),
    ("basic", {"shortcut": "avgpool"}),
    ("i3d", {"temporal_padding": "replicate"}),
]


def batchnorm_net(kind, dtype=torch.float64, **options):
    torch.manual_seed(0)
    net = narrow(kind, scheme="bn", **options).to(dtype)
    return train_statistics_(net, hostile=True)


def inputs(kind, dtype=torch.float64):
    torch.manual_seed(1)
    size = 37 if kind == "vgg" else SIZE
    return samples(kind, 2, size, size + 6).to(dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "options"), [*((kind, {}) for kind in NARROW), *VARIANTS])
def test_outputs_and_features_are_those_of_the_batchnorm_net(kind, options, form):
    net, x = batchnorm_net(kind, **options), inputs(kind)
    new = rescaled(net, form)
    with torch.no_grad():
        assert relative_error(new(x), net(x)) < 1e-10
        assert relative_error(zoo.fold(new)(x), net(x)) < 1e-10
        theirs, ours = net.forward_levels(x), new.forward_levels(x)
        first = 0 if kind == "vgg" else 1  # level 0 of basic nets is the original's times the trunk's first scale
        for a, b in zip(ours[first:], theirs[first:], strict=True):
            assert relative_error(a, b) < 1e-10
        torch.testing.assert_close(ours[0] * theirs[0].max() / ours[0].max(), theirs[0], rtol=1e-10, atol=1e-10)
    assert not any(isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d) for module in new.modules())
    assert all(module.calibrated for module in new.modules() if hasattr(module, "calibrated"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", NARROW)
def test_single_precision(kind, form):
    net, x = batchnorm_net(kind, torch.float32), inputs(kind, torch.float32)
    with torch.no_grad():
        right = copy.deepcopy(net).double()(x.double())
        assert relative_error(rescaled(net, form)(x).double(), right) < 3e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["basic", "bottleneck", "r3d", "vgg"])
def test_denormal_variances_without_eps(kind, form):
    """Channels with a filter of zeros keep their constants through whole nets, and their factors are 0."""
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 3e-6)):
        net, x = flatten_(batchnorm_net(kind, dtype)), inputs(kind, dtype)
        new, exact = rescaled(net, form), copy.deepcopy(net).double()
        with torch.no_grad():
            right = exact(x.double())
            assert torch.isfinite(right).all()
            assert relative_error(new(x).double(), right) < tolerance
            first = 0 if kind == "vgg" else 1
            theirs, ours = exact.forward_levels(x.double()), new.forward_levels(x)
            for a, b in zip(ours[first:], theirs[first:], strict=True):
                assert relative_error(a.double(), b) < tolerance
        scales = [value for name, value in new.named_parameters() if name.endswith("weight_scale")]
        assert bool(scales) == (form == "gained")
        assert all(not scale[: len(FLAT)].any() and scale[len(FLAT) :].any() for scale in scales)


@pytest.mark.parametrize("kind", RESIDUAL)
def test_the_stored_trunk_is_the_originals(kind):
    """Hooks on every block of both nets see the same tensor: the stored scale times the formulas' s is 1."""
    net, x = batchnorm_net(kind), inputs(kind)
    new = rescaled(net)

    def trunk(model):
        found = {}
        blocks = {name: block for name, block in model.named_modules() if hasattr(block, "join")}
        handles = [
            block.register_forward_hook(lambda _, __, out, name=name: found.update({name: out.clone()}))
            for name, block in blocks.items()
        ]
        with torch.no_grad():
            model(x)
        for handle in handles:
            handle.remove()
        return found

    theirs, ours = trunk(net), trunk(new)
    assert theirs.keys() == ours.keys()
    for name, right in theirs.items():
        assert relative_error(ours[name], right) < 1e-12, name


def train_only_weights_(net):
    """Fix all but the weights of convolutions and the last layer, as FrozenBatchNorm nets do."""
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(parameter.ndim > 1 or name == "fc.bias")
    return net


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in ("basic", "bottleneck", "r2plus1d", "vgg")),
        ("grouped", {"width": 0.125}),
        ("bottleneck", RESNET_D),
    ],
)
def test_sgd_on_the_gained_form_takes_the_steps_of_frozen_batchnorm(kind, options):
    """Losses of the first 20 steps with momentum and weight decay, to 1e-9; the folded form's differ."""
    original = batchnorm_net(kind, **options)
    x, labels = inputs(kind), torch.tensor([1, 3])

    def losses(net):
        trained = [p for p in train_only_weights_(net).parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9, weight_decay=1e-3)
        found = []
        for _ in range(20):
            loss = F.cross_entropy(net(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return torch.tensor(found, dtype=torch.float64)

    gained, folded = losses(rescaled(original)), losses(rescaled(original, "folded"))
    frozen = losses(original)  # in eval mode BatchNorm uses the running statistics and does not change them
    assert frozen[0] - frozen[-1] > 1e-3  # the steps do something
    torch.testing.assert_close(gained, frozen, rtol=1e-9, atol=1e-9)
    assert (folded - frozen).abs().max() > 1e-4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", NARROW)
def test_every_parameter_that_trains_gets_a_gradient(kind, form):
    new = rescaled(batchnorm_net(kind), form)
    new(inputs(kind)).square().sum().backward()
    for name, parameter in new.named_parameters():
        if name.endswith("weight_scale"):
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


@pytest.mark.parametrize("kind", ["basic", "bottleneck", "vgg"])
def test_the_forms_differ_where_they_should(kind):
    """Gained keeps every W, balanced gives every weight of a branch its norm at init."""
    net = batchnorm_net(kind)
    state = net.state_dict()
    for name, value in rescaled(net).state_dict().items():
        if value.ndim > 1:
            torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    balanced = rescaled(net, "balanced")
    assert not any(name.endswith("weight_scale") for name, _ in balanced.named_parameters())
    for block in balanced.modules():
        if hasattr(block, "init_factor"):
            for layer in block.branch_layers():
                squares = layer.weight.square().mean() * layer.weight[0].numel()  # 2 by He et al.
                torch.testing.assert_close(squares.item(), 2 * block.init_factor**2)


@pytest.mark.parametrize("form", FORMS)
def test_a_saved_net_loads_again(tmp_path, form):
    net = batchnorm_net("bottleneck", torch.float32)
    new = rescaled(net, form)
    path = tmp_path / "net.safetensors"
    zoo.save_weights(new, path, transform=zoo.InputTransform.imagenet(32, 36), classes=list("abcde"))
    again = zoo.create_model("rescalenet50", str(path)).eval()
    x = inputs("bottleneck", torch.float32)
    torch.testing.assert_close(again(x), new(x), rtol=0, atol=0)
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in new.parameters()]


def test_a_denormal_variance_without_eps_gives_a_constant():
    """The norm's output at its own mean, beta; in half precision nothing overflows."""
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.0).eval()
    with torch.no_grad():
        norm.running_var.copy_(torch.tensor([1e-42, 0.0, 1e-12, 1.0]))
        norm.weight.copy_(torch.tensor([0.5, 0.5, 1.0, 1.0]))
        norm.running_mean.uniform_(-1, 1)
        norm.bias.uniform_(-1, 1)
        layer = BiasedConv2d(3, 4, 3, post_bias=True, weight_scale=True)
        transfer(conv, norm, layer)
        x = torch.randn(2, 3, 8, 8)
        found, right = layer.double()(x.double()), norm.double()(conv.double()(x.double()))
    assert layer.weight_scale[:2].tolist() == [0.0, 0.0]
    torch.testing.assert_close(found[:, :2], norm.bias[:2].view(1, 2, 1, 1).expand(2, 2, 6, 6))
    assert relative_error(found[:, 2:], right[:, 2:]) < 1e-6
    assert layer.weight_scale.abs().max() <= LARGEST_SCALE
    assert LARGEST_SCALE < 1e6  # gamma / sigma of the third channel


def test_channels_that_lose_their_function_are_reported(caplog):
    """A filter of zeros has the original's output without a word; any other one is a warning with its layer."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=0.0)
    norm.running_var[:2] = 5.6e-45
    with torch.no_grad():
        conv.weight[:2] = 0.0
    affine(conv, norm, "layer1.0.norm1")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    with torch.no_grad():
        conv.weight[0] = 1e-22
    affine(conv, norm, "layer1.0.norm1")
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.getMessage().startswith("layer1.0.norm1: 1 of the channels with a variance below")


def test_filters_of_zeros_give_the_originals_constant():
    conv, norm = nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2, eps=0.0).eval()
    with torch.no_grad():
        conv.weight.zero_()
        norm.running_var.fill_(1e-39)
        norm.weight.fill_(1e-20)
        norm.running_mean.copy_(torch.tensor([0.0, 1e-3]))
        norm.bias.fill_(0.25)
        right = norm.double()(conv.double()(torch.randn(1, 3, 2, 2).double()))[0, :, 0, 0]
    assert right[1] != 0.25
    torch.testing.assert_close(affine(conv, norm).bias, right)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_half_precision_has_no_nan(tmp_path, kind):
    """FrozenBatchNorm with eps 0 and dead channels, saved in float16, loaded, and run in float16 and under autocast."""
    net = batchnorm_net(kind, torch.float32)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 0.0
            norm.running_var[:2] = 1e-41
    path = tmp_path / "net.safetensors"
    transform = zoo.InputTransform.imagenet(32, 36)
    zoo.save_weights(rescaled(net), path, transform=transform, classes=list("abcde"), dtype=torch.float16)
    again = zoo.create_model(NARROW[kind][0], str(path)).eval()
    x = inputs(kind, torch.float32)
    with torch.no_grad():
        right = again(x)
        assert torch.isfinite(right).all()
        with torch.autocast("cpu", torch.float16):
            assert torch.isfinite(again(x)).all()
        assert relative_error(again.half()(x.half()).float(), right) < 0.05


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["basic", "bottleneck", "r2plus1d", "vgg"])
def test_centred_inputs_leave_the_outputs(kind, form):
    net, x = rescaled(batchnorm_net(kind), form), inputs(kind)
    untouched = untouched_biases(net)
    with torch.no_grad():
        right = net(x)
        names = center_inputs_(net, [x])
        assert set(names) == set(untouched)
        assert not untouched_biases(net)
        assert relative_error(zoo.fold(net)(x), right) < 1e-10
        assert relative_error(net(x), right) < 1e-10
    means = {}
    for name in names:
        layer = net.get_submodule(name)
        layer.register_forward_pre_hook(
            lambda module, args, name=name: means.update({name: module.calibration_sums(args[0])})
        )
    with torch.no_grad():
        net(x)
    for name in names:
        mean = means[name][:-1] / means[name][-1]
        torch.testing.assert_close(net.get_submodule(name).data_bias, -mean, rtol=1e-8, atol=1e-8)
    # every bias before a product; those of the stem are after it, VGG's head_bias is before several positions
    biased = {name: layer for name, layer in net.named_modules() if isinstance(layer, HasDataBias)}
    left = {name for name, layer in biased.items() if isinstance(layer, StemConvNd)}
    assert set(biased) - set(names) == left | ({"head_bias"} if kind == "vgg" else set())


def test_no_bias_moves_without_data():
    net, x = rescaled(batchnorm_net("basic")), inputs("basic")
    with pytest.raises(ZooError, match="no batch; give at least one"):
        center_inputs_(net, [])
    with pytest.raises(ZooError, match="stem.conv1 has no bias that can be moved without a change"):
        center_inputs_(net, [x], names=["stem.conv1"])
    with pytest.raises(ZooError, match="has a mean that is not finite"):
        center_inputs_(net, [x * float("inf")])
    before = copy.deepcopy(net.state_dict())
    assert center_inputs_(net, [x[:0]]) == []  # no input reached a layer
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert center_inputs_(net, [x], names=["layer1.0.conv2"]) == ["layer1.0.conv2"]


@pytest.mark.parametrize(
    "kind", ["basic", *(pytest.param(k, marks=pytest.mark.slow) for k in ("bottleneck", "r2plus1d"))]
)
def test_centred_nets_compile_and_export(kind):
    net, x = rescaled(batchnorm_net(kind)), inputs(kind)
    center_inputs_(net, [x])
    right = net(x)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    gradients = [torch.autograd.grad(y.square().sum(), net.layer1[0].conv1.weight)[0] for y in (compiled(x), right)]
    assert relative_error(*gradients) < 1e-10
    with torch.no_grad():
        program = torch.export.export(net.eval(), (x,))
        assert relative_error(program.module()(x), right) < 1e-10


def test_options_and_refusals():
    net = batchnorm_net("basic")
    x = inputs("basic")
    for options in ({"c": 2.0}, {"first_index": 0}, {"multiplier": False}):
        with torch.no_grad():
            assert relative_error(from_batchnorm(net, **options)(x), net(x)) < 1e-10
    with pytest.raises(ZooError, match=r"form='exact': must be one of gained, folded, balanced"):
        from_batchnorm(net, form="exact")
    with pytest.raises(ZooError, match=r"option 'shortcut': the checkpoint decides it"):
        from_batchnorm(net, shortcut="avgpool")
    with pytest.raises(ZooError, match=r"a net of scheme 'gn' has no BatchNorm to convert"):
        from_batchnorm(narrow("basic", scheme="gn"))
    with pytest.raises(ZooError, match=r"a net of scheme 'rescale' has no BatchNorm"):
        from_batchnorm(from_batchnorm(net))
    with pytest.raises(ZooError, match=r"name='rescalenet34': the net given is rescalenet18"):
        from_batchnorm(net, "rescalenet34")
    net.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(ZooError, match=r"rescalenet18: fc.weight has values that are not finite"):
        from_batchnorm(net)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["basic", "vgg"])
def test_nets_without_their_last_stages_or_head(kind, form):
    """As features alone, and with a new head on the last map that is left."""
    net, x = batchnorm_net(kind), inputs(kind)
    net.truncate(2)
    new = rescaled(net, form)
    assert not new.num_classes
    torch.testing.assert_close(new(x), net(x), rtol=1e-10, atol=1e-10)
    net.reset_classifier(7, "avg")
    new = rescaled(net, form)
    assert new(x).shape == (2, 7)
    torch.testing.assert_close(new(x), net(x), rtol=1e-10, atol=1e-10)
