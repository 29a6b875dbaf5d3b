"""Video nets: the layouts of torchvision and SlowFast, frames repeated at the ends."""

import pytest
import torch
import torchvision
from torch import nn

import zoo
from tests.helpers.nets import narrow, samples
from zoo.errors import ZooError

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
    found = [[block.conv1.kernel_size[0] for block in stage] for stage in model.stages()]
    assert found == pattern
    for block in (block for stage in model.stages() for block in stage):
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
