"""Video nets: the layouts of torchvision and SlowFast, frames repeated at the ends, inflation of image nets."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import narrow, samples
from torch import nn

import zoo
from zoo import layers
from zoo.errors import WeightsError, ZooError

TORCHVISION = {"rescale_r3d_18": "r3d_18", "rescale_mc3_18": "mc3_18", "rescale_r2plus1d_18": "r2plus1d_18"}


@pytest.mark.parametrize(("ours", "theirs"), TORCHVISION.items())
def test_bn_equals_torchvision(ours, theirs):
    """Same outputs as torchvision's net with its own random weights, and with statistics far from the initial ones."""
    rival = torchvision.models.get_model(theirs, num_classes=4).eval()
    model = zoo.create_model(ours, scheme="bn", num_classes=4).eval()
    # both register their tensors in the order of the forward, a block's shortcut last
    model.load_state_dict(dict(zip(model.state_dict(), rival.state_dict().values(), strict=True)))
    for module in [*rival.modules(), *model.modules()]:
        if isinstance(module, nn.BatchNorm3d):
            torch.manual_seed(module.num_features)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.randn(1, 3, 5, 33, 46)
    with torch.no_grad():
        torch.testing.assert_close(model(x), rival(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "millions"), [("rescale_i3d_r50", 28.04), ("rescale_slowonly_r50", 32.45)])
def test_bn_has_the_parameters_of_slowfasts_nets(name, millions):
    """PyTorchVideo's model zoo: I3D R50 28.04 M, Slow R50 32.45 M, with Kinetics' 400 classes."""
    with torch.device("meta"):
        model = zoo.create_model(name, scheme="bn")
    assert model.num_classes == 400
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "stem", "pattern"),
    [
        ("rescale_i3d_r50", 5, [[3, 3, 3], [3, 1, 3, 1], [3, 1, 3, 1, 3, 1], [1, 3, 1]]),
        ("rescale_slowonly_r50", 1, [[1] * 3, [1] * 4, [3] * 6, [3] * 3]),
    ],
)
def test_kernels_in_time_are_slowfasts(name, stem, pattern):
    with torch.device("meta"):
        model = zoo.create_model(name)
    assert model.stem.conv1.kernel_size == (stem, 7, 7)
    found = [[block.conv1.kernel_size[0] for block in getattr(model, stage)] for stage in model.stage_names]
    assert found == pattern
    for block in (block for stage in model.stage_names for block in getattr(model, stage)):
        assert block.conv1.kernel_size[1:] == (1, 1)
        assert block.conv2.kernel_size == (1, 3, 3)
        assert {conv.stride[0] for conv in (block.conv1, block.conv2, block.conv3)} == {1}


@pytest.mark.parametrize("frames", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", ["r3d", "r2plus1d", "i3d", "replicate"])
def test_any_length(kind, frames):
    model = narrow(kind).train()
    x = torch.randn(2, 3, frames, 33, 40)
    zoo.calibrate(model, [x])
    model.train()(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_bias_is_over_time_too():
    model = narrow("r2plus1d").double()
    x = samples("r2plus1d", 2, 32, dtype=torch.float64)
    zoo.calibrate(model, [x[:1], x[1:]])
    seen = []
    conv = model.layer2[0].conv2
    conv.register_forward_pre_hook(
        lambda layer, args: seen.append(args[0] / layer.input_scale + layer.pre_bias.view(-1, 1, 1, 1))
    )
    model.eval()(x)
    (shifted,) = seen
    assert shifted.ndim == 5
    assert shifted.mean((0, 2, 3, 4)).abs().max() < 1e-12
    assert shifted.mean((0, 3, 4)).abs().max() > 1e-3  # of single frames it is not


@pytest.mark.parametrize("make", [layers.Conv3d, layers.BiasedConv3d, layers.StemConv3d])
def test_repeated_frames_are_replicate_padding(make):
    """Against torch's padding by hand, with gradients."""
    layer = make(3, 4, (5, 3, 3), (2, 1, 2), (2, 1, 1)).double()
    layer.repeat_frames()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 3, 4, 6, 7, dtype=torch.float64, requires_grad=True)
    padded = F.pad(x, (0, 0, 0, 0, 2, 2), mode="replicate")
    assert torch.equal(padded[:, :, 1], x[:, :, 0])
    assert torch.equal(padded[:, :, -1], x[:, :, -1])
    if make is layers.BiasedConv3d:
        padded = padded + layer.pre_bias.view(-1, 1, 1, 1)
    expected = F.conv3d(F.pad(padded, (1, 1, 1, 1)), layer.weight, layer.bias, layer.stride)
    ours = layer(x)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    inputs = [x, *layer.parameters()]
    direction = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad(y, inputs, direction) for y in (ours, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_frozen_batch_norm_of_clips(tmp_path):
    """frozen_bn of bn weights gives the bn net's outputs in eval mode, and no statistic or affine trains."""
    model = narrow("r3d", scheme="bn")
    model.train()(samples("r3d", 4, 32))
    path = tmp_path / "w.safetensors"
    transform = zoo.VideoTransform(5, None, None, 32, 36, (0.5,) * 3, (0.5,) * 3)
    zoo.save_weights(model.eval(), path, transform=transform, classes=list("abcde"))
    frozen = zoo.create_model("rescale_r3d_18", str(path), scheme="frozen_bn").train()
    x = samples("r3d", 2, 32)
    torch.testing.assert_close(frozen(x), model(x), rtol=1e-4, atol=1e-5)
    assert not [n for n, _ in frozen.named_parameters() if "norm" in n]
    assert zoo.get_weights(str(path)).transform == transform


def test_input_channels_are_adapted(tmp_path):
    model = narrow("i3d").eval()
    path = tmp_path / "w.safetensors"
    transform = zoo.VideoTransform(5, 8, 30.0, 32, 36, (0.5,) * 3, (0.5,) * 3)
    zoo.save_weights(model, path, transform=transform, classes=list("abcde"))
    grey = zoo.create_model("rescale_i3d_r50", str(path), in_chans=1).eval()
    x = torch.randn(2, 1, 4, 40, 40)
    torch.testing.assert_close(grey(x), model(x.expand(-1, 3, -1, -1, -1)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zoo.create_model("rescale_i3d_r50", temporal_padding="reflect"), "option temporal_padding='reflect'"),
        (lambda: zoo.create_model("rescale_i3d_r50", width=-1), "option width=-1"),
        (lambda: zoo.create_model("rescale_r3d_18", branch_drop_rate=1.0), "option branch_drop_rate=1.0"),
        (lambda: zoo.create_model("rescale_r3d_18", stem="deep"), "no option 'stem'"),
        (lambda: zoo.VideoTransform(8, 0, None, 32, 32, (0.5,), (0.5,)), "interval=0"),
        (lambda: zoo.VideoTransform(8, 1, None, 64, 32, (0.5,), (0.5,)), "size=64, resize=32"),
    ],
)
def test_clear_errors(call, message):
    with pytest.raises(ZooError, match=message):
        call()


def test_branch_dropout_drops_whole_channels_of_clips():
    model = narrow("r3d", branch_drop_rate=0.5).train()
    y = model.layer4[0].drop(torch.ones(2, 8, 3, 4, 4))
    dropped = (y == 0).flatten(2)
    assert torch.equal(dropped.all(2), dropped.any(2))
    assert 0 < dropped.float().mean() < 1


# -- inflation --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["rescale", "bn", "gn", "none"])
def image_net(request):
    """A narrow ResNet-50 in float64 whose every parameter and statistic is far from its initial value."""
    torch.manual_seed(0)
    options = {"projection_gain": 2.0} if request.param == "rescale" else {}
    model = zoo.create_model("rescalenet50", scheme=request.param, width=0.125, num_classes=5, **options).double()
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    zoo.calibrate(model, [x])
    model.train()(x)  # statistics
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def deviation(image_net, name, **options):
    clips = zoo.convert.inflate(image_net, name, **options).eval()
    x = torch.randn(2, 3, 49, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = image_net(x)
        made = clips(x.unsqueeze(2).expand(-1, -1, 8, -1, -1))
    return ((made - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", [None, "rescale_slowonly_r50"])
def test_static_clips_have_the_image_nets_logits(image_net, name):
    assert deviation(image_net, name) <= 1e-10
    assert deviation(image_net, name, temporal_padding="replicate") <= 1e-10
    assert deviation(image_net, name, kernel="mean", temporal_padding="replicate") <= 1e-10
    assert deviation(image_net, name, kernel="mean") > 1e-3  # zeros in time are seen


def test_inflation_in_float32():
    torch.manual_seed(1)
    model = zoo.create_model("rescalenet50", num_classes=7, width=0.25)
    zoo.calibrate(model, [torch.randn(4, 3, 64, 64)])
    x = torch.randn(2, 3, 64, 64)
    clips = zoo.convert.inflate(model.eval(), kernel="mean", temporal_padding="replicate").eval()
    with torch.no_grad():
        expected = model(x)
        got = clips(x.unsqueeze(2).expand(-1, -1, 4, -1, -1))
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_inflation_keeps_what_calibration_and_training_knew(image_net):
    clips = zoo.convert.inflate(image_net)
    assert clips.config.scheme == image_net.config.scheme
    assert not zoo.calibrate(clips, [torch.randn(1, 3, 2, 32, 32, dtype=torch.float64)]).calibrated
    state = image_net.state_dict()
    for key, value in clips.state_dict().items():
        if value.ndim == 5:
            torch.testing.assert_close(value.sum(2), state[key])
        else:
            assert torch.equal(value, state[key]), key


def test_frozen_statistics_become_statistics(tmp_path):
    model = zoo.create_model("rescalenet50", scheme="bn", width=0.125, num_classes=3)
    model.train()(torch.randn(4, 3, 32, 32))
    path = tmp_path / "w.safetensors"
    transform = zoo.InputTransform(32, 32, (0.5,) * 3, (0.5,) * 3)
    zoo.save_weights(model, path, transform=transform, classes=list("abc"))
    frozen = zoo.create_model("rescalenet50", str(path), scheme="frozen_bn").eval()
    x = torch.randn(1, 3, 40, 40)
    torch.testing.assert_close(
        zoo.convert.inflate(frozen).eval()(x.unsqueeze(2).expand(-1, -1, 3, -1, -1)), frozen(x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda: zoo.create_model("rescalenet20_cifar", width=0.25), None, "there is no I3D of rescalenet20_cifar"),
        (lambda: zoo.create_model("rescalenet18", width=0.125), "rescalenet50", "rescalenet50 takes images"),
        (lambda: zoo.create_model("rescale_r3d_10"), None, "rescale_r3d_10 takes clips already"),
        (
            lambda: zoo.create_model("rescalenet50", width=0.125, stem="deep"),
            None,
            "has nothing like stem='deep' of this rescalenet50",
        ),
    ],
)
def test_what_cannot_be_inflated(make, name, message):
    with pytest.raises(ZooError, match=message):
        zoo.convert.inflate(make(), name)


def test_nets_of_other_shapes_are_refused():
    model = zoo.create_model("rescalenet18", width=0.125)
    with pytest.raises(WeightsError, match="rescalenet18 inflated to rescale_i3d_r50: .* keys? (is|are) missing"):
        zoo.convert.inflate(model, "rescale_i3d_r50")
    with pytest.raises(ZooError, match="kernel='middle': 'centre' or 'mean'"):
        zoo.convert.inflate(copy.deepcopy(model), kernel="middle")
