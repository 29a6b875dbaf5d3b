"""Inflation of image nets to video nets."""

import copy

import pytest
import torch

import zoo
from tests.helpers.batchnorm import relative_error, train_statistics_
from zoo.convert.centering import untouched_biases
from zoo.errors import WeightsError, ZooError


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


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("form", ["gained", "folded", "balanced"])
def test_converted_nets(form, centred):
    """Static clips have the outputs of the net with BatchNorm, also after biases were moved; its factors stay fixed."""
    torch.manual_seed(0)
    original = zoo.create_model("rescalenet50", scheme="bn", width=0.125, num_classes=5).double()
    image_net = zoo.convert.from_batchnorm(train_statistics_(original, hostile=True), form=form)
    x = torch.randn(2, 3, 49, 64, dtype=torch.float64)
    if centred:
        assert zoo.convert.center_inputs_(image_net, [x])
    clips, mean = (
        zoo.convert.inflate(image_net, kernel=kernel, temporal_padding=padding).eval()
        for kernel, padding in (("centre", "zeros"), ("mean", "replicate"))
    )
    with torch.no_grad():
        right = original(x)
        for net in (clips, mean, zoo.fold(clips)):
            assert relative_error(net(x.unsqueeze(2).expand(-1, -1, 6, -1, -1)), right) <= 1e-10
    options = clips.config.options
    assert (options["biased_padding"], options.get("weight_scale", False)) == (True, form == "gained")
    trained = {name: parameter.requires_grad for name, parameter in image_net.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in clips.named_parameters()} == trained
    # neither a bias from data nor what is known of it is lost
    assert bool(untouched_biases(clips)) != centred
    assert not zoo.calibrate(clips, [torch.randn(1, 3, 2, 32, 32, dtype=torch.float64)]).calibrated


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
        (lambda: zoo.create_model("rescalenet20_cifar", width=0.25), None, "rescalenet20_cifar has no I3D"),
        (lambda: zoo.create_model("rescalenet18", width=0.125), "rescalenet50", "rescalenet50 takes images"),
        (lambda: zoo.create_model("rescale_r3d_10"), None, "rescale_r3d_10 takes clips already"),
        (
            lambda: zoo.create_model("rescalenet50", width=0.125, stem="deep"),
            None,
            "does not have the options stem='deep' of this rescalenet50",
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
    with pytest.raises(ZooError, match="kernel='middle': must be 'centre' or 'mean'"):
        zoo.convert.inflate(copy.deepcopy(model), kernel="middle")
