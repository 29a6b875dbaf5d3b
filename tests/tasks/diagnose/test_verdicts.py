"""Planted faults are named with their numbers, and healthy nets have none."""

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

import zoo
from tasks.diagnose.inputs import noise
from tasks.diagnose.measure import diagnose
from tasks.diagnose.signals import Layer, Signals, Sum
from tasks.diagnose.subjects import Settings, find_subject
from tasks.diagnose.verdicts import Verdict, verdicts
from tests.helpers import transformers
from tests.helpers.paths import ROOT
from zoo.schemes.base import Scheme

# On narrow nets the channels are few, and on small images the last maps are; these have enough of both.
NETS = {
    "rescalenet20_cifar": ({"width": 0.5}, 32),
    "rescalenet18": ({"width": 0.25}, 64),
    "rescalenet50": ({"width": 0.25}, 64),
    "rescalevgg16": ({"width": 0.25, "drop_rate": 0.0}, 64),
    "rescale_r3d_10": ({"width": 0.25}, 16),
}
HEALTHY = ("rescale", "bn", "gn", "nf", "skipinit", "fixup", "sum_rescaled")


def pink(size, count=16, frames=()):
    return noise((count, 3, *frames, size, size), "pink", torch.Generator().manual_seed(0))


def made(name="rescalenet20_cifar", *, calibrated=True, **options):
    """A narrow net and its images."""
    settings, size = NETS[name]
    x = pink(size, frames=(4,) if "r3d" in name else ())
    model = zoo.create_model(name, **{**settings, **options})
    if calibrated:
        zoo.calibrate(model, [x])
    return model, x


def faults(model, x, **settings):
    return verdicts(diagnose(model, [x], **settings))


def only(found: list[Verdict], fault: str) -> Verdict:
    """The one verdict of a net, which must be this fault, with a number and a remedy in its text."""
    assert [each.fault for each in found] == [fault], [str(each) for each in found]
    assert any(character.isdigit() for character in found[0].numbers)
    assert found[0].remedy.endswith(".")
    assert str(found[0]).startswith(f"{fault} ({found[0].where[0]}")
    return found[0]


def scale_(model, factor, names=lambda name: True):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and names(name):
                parameter.mul_(factor)


# -- healthy nets


@pytest.mark.parametrize("name", NETS)
def test_fresh_nets_are_healthy(name):
    for scheme in HEALTHY:
        if scheme in zoo.model_info(name).schemes:
            model, x = made(name, scheme=scheme)
            assert [str(each) for each in faults(model, x)] == [], scheme


class Block(nn.Module):
    """x + F(norm(x)), as in a Transformer with pre-norm."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


def test_a_small_embedding_is_no_fault_in_front_of_norms():
    """GPT's init: all weights have a standard deviation of 0.02, so that the trunk begins with E[x^2] = 4e-4."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 256), *(Block(256) for _ in range(12)), nn.LayerNorm(256))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05)
    nn.init.normal_(model[0].weight, std=0.002)
    signals = diagnose(model, [torch.randint(50, (4, 16))], expected_power=math.nan)
    assert signals.sums[-1].power > 1e3 * signals.sums[0].previous
    assert [str(each) for each in verdicts(signals)] == []


@pytest.mark.parametrize("scheme", transformers.SCHEMES)
def test_fresh_transformers_are_healthy(scheme):
    torch.manual_seed(0)
    model = transformers.make(scheme, calibrated=False)
    forward = lambda net, pair: net.decode(pair[1], net.encode(pair[0]))  # noqa: E731
    zoo.calibrate(model, [transformers.batch()], forward=forward)
    assert faults(model, transformers.batch(), forward=forward, expected_power=math.nan) == []


@pytest.mark.parametrize("depth", [20, 110])
def test_depth_alone_is_no_fault_of_a_rescaled_net(depth):
    model = zoo.create_model(f"rescalenet{depth}_cifar", width=0.25)
    zoo.calibrate(model, [pink(32)])
    assert faults(model, pink(32)) == []


def test_nets_of_torchvision_with_norms_are_healthy():
    for model in (models.resnet18(num_classes=5), models.mobilenet_v2(width_mult=0.25, num_classes=5)):
        assert faults(model, pink(64)) == []
    model = models.VisionTransformer(32, 8, 4, 2, 16, 32, num_classes=5)
    assert faults(model, pink(32)) == []


WEIGHTS = [f"{name}.{tag}" for name in zoo.list_models(pretrained=True) for tag in zoo.model_info(name).weights]


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_ship_are_healthy(name):
    """On noise, and those of pictures on the pictures of the package."""
    size = 128 if "rcnn" in name else 32 if "r3d" in name or "slowonly" in name else None
    settings = Settings(batches=1, batch_size=2 if size else 8, size=size)
    places: list[Path | None] = [None]
    if "cifar10" in name or "flowers" in name:
        places.append(ROOT / "pictures" / "photographs")
    if "nuclei" in name:
        places.append(ROOT / "pictures" / "nuclei")
    for data in places:
        changed = dataclasses.replace(settings, data=data, size=None if data else settings.size)
        subject = find_subject(name, [], changed)
        assert subject.measure is not None
        signals = subject.measure()
        assert [str(each) for each in verdicts(signals)] == [], data
        assert signals.trained
        assert signals.real_inputs == (data is not None)


# -- planted faults


def test_loud_weights():
    model, x = made(calibrated=False)
    scale_(model, 30, lambda name: name.startswith("stem"))
    zoo.calibrate(model, [x])
    verdict = only(faults(model, x), "exploding")
    assert verdict.where == ("stem.conv1",)
    gain = float(model.stem.conv1.weight.detach().square().mean().sqrt()) * math.sqrt(27 / 2)
    assert f"{gain:.3g} times as large as He's init" in verdict.numbers
    assert gain == pytest.approx(30, rel=0.1)


@pytest.mark.parametrize("scheme", ["bn", "nf"])
def test_loud_weights_that_a_net_undoes_are_no_fault(scheme):
    """A norm behind the layer, or the standardization of its weight."""
    model, x = made(scheme=scheme)
    scale_(model, 30)
    if scheme == "nf":  # whose classifier is a plain linear layer
        scale_(model, 1 / 30, lambda name: name.startswith("head") or "classifier" in name or "fc" in name)
    assert faults(model, x) == []


@pytest.mark.parametrize("name", ["rescalenet20_cifar", "rescalenet50", "rescalevgg16"])
def test_uncalibrated(name):
    model, x = made(name, calibrated=False)
    found = faults(model, x)
    assert found[0].fault == "uncalibrated"
    biased = [layer for layer in diagnose(model, [x]).layers if math.isfinite(layer.bias_offset)]
    assert f"of {len(biased)} biases before products are 0" in found[0].numbers
    assert "zoo.calibrate(model, batches)" in found[0].remedy
    if name == "rescalenet20_cifar":
        only(found, "uncalibrated")


def test_uncalibrated_text():
    model = transformers.make(calibrated=False)
    forward = lambda net, pair: net.decode(pair[1], net.encode(pair[0]))  # noqa: E731
    only(faults(model, transformers.batch(), forward=forward, expected_power=math.nan), "uncalibrated")


def test_plain_residuals_explode_with_depth():
    model = zoo.create_model("rescalenet110_cifar", scheme="none", width=0.25)
    signals = diagnose(model, [pink(32)])
    verdict = next(each for each in verdicts(signals) if each.fault == "exploding")
    chain = [each for each in signals.sums if each.chain == 0]
    assert f"from {chain[0].previous:.3g} before layer1.0 to {chain[-1].power:.3g} behind layer1.17" in verdict.numbers
    assert f"The theory of none has {2.0**18:.3g} in all" in verdict.numbers
    assert "scheme=rescale" in verdict.remedy
    # the same depth with the rescaled connection: test_depth_alone_is_no_fault_of_a_rescaled_net


@pytest.mark.parametrize("place", ["bias", "pre_bias"])
def test_a_dead_layer(place):
    """The inputs of one ReLU are all negative."""
    scheme = "none" if place == "bias" else "rescale"
    model, x = made(scheme=scheme, **({"post_bias": True} if place == "bias" else {}))
    conv = model.layer2[1].conv1
    with torch.no_grad():
        if place == "pre_bias":
            conv.weight.abs_()
        getattr(conv, place).fill_(-1000)
    verdict = only(faults(model, x), "dead layers")
    assert verdict.where == ("layer2.1.act1",)
    assert "16 of 16 channels are positive for no sample" in verdict.numbers


def test_dead_channels_all_over_a_net():
    """In each layer half of the channels have a bias that no input reaches."""
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    for _ in range(7):
        layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers)
    for module in model:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
            with torch.no_grad():
                module.bias[:8] = -1000
    verdict = only(faults(model, pink(32)), "dead layers")
    assert verdict.numbers.startswith("50% of the channels in the later half of the layers")
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Conv2d):
                module.bias[:8] = 0
    assert faults(model, pink(32, 64)) == []


@pytest.mark.parametrize("calibrated", [True, False])
def test_pixels_that_are_not_standardised(calibrated):
    """In 0..255, of a net that was calibrated on standardised ones, and of one calibrated on these."""
    model, x = made(calibrated=calibrated)
    pixels = (0.45 + 0.25 * x).clamp(0, 1) * 255
    if not calibrated:
        zoo.calibrate(model, [pixels])
    verdict = next(each for each in faults(model, pixels) if each.fault == "wrong input scale")
    assert f"mean {float(pixels.mean()):.3g} and standard deviation" in verdict.numbers
    assert "0..255" in verdict.remedy
    assert faults(*made()) == []
    # the reverse: pixels in 0..1 divided by 255 once more
    tiny = (0.45 + 0.25 * x).clamp(0, 1) / 255
    zoo.calibrate(model, [tiny], force=True)
    assert "wrong input scale" in {each.fault for each in faults(model, tiny)}


def test_multipliers_at_zero():
    model, x = made()
    with torch.no_grad():
        for name in ("layer1.1", "layer3.0"):
            model.get_submodule(name).join.multiplier.fill_(0.001)
    verdict = only(faults(model, x), "multiplier at zero")
    assert verdict.where == ("layer1.1", "layer3.0")
    assert verdict.numbers.startswith("2 of 9 multipliers m_k are below 0.01")
    # of a multiplier for each channel the largest decides, not their mean
    model, x = made(multiplier="channel")
    with torch.no_grad():
        for block in (model.layer1[0], model.layer2[0]):
            block.join.multiplier.copy_(torch.tensor([1.0, -1.0]).repeat(len(block.join.multiplier) // 2))
        model.layer3[0].join.multiplier.fill_(0.001)
    assert only(faults(model, x), "multiplier at zero").where == ("layer3.0",)
    # a scheme whose multipliers begin at 0, before and after its training
    model, x = made(scheme="skipinit")
    assert faults(model, x) == []
    only(faults(model, x, trained=True), "multiplier at zero")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite(value):
    """The first place is named, and nothing else: all that follows is not finite either."""
    model, x = made()
    with torch.no_grad():
        model.layer2[0].conv1.weight[0] = value
    verdict = only(faults(model, x), "not finite")
    assert verdict.where[0] == "layer2.0.conv1"
    assert "the first of" in verdict.numbers
    broken = x.clone()
    broken[0] = value
    assert only(faults(made()[0], broken), "not finite").where[0] == "stem.conv1"


@pytest.mark.parametrize(("name", "factor"), [("rescalenet18", 0.1), ("rescalevgg16", 0.3)])
def test_vanishing(name, factor):
    model, x = made(name, calibrated=False)
    scale_(model, factor)
    zoo.calibrate(model, [x])
    verdict = only(faults(model, x), "vanishing")
    rows = diagnose(model, [x])
    first, last = (rows.sums[0], rows.sums[-1]) if rows.sums else (rows.products[0], rows.products[-2])
    assert f"E[x^2] is {first.power:.3g} at {first.name} and {last.power:.3g} at {last.name}" in verdict.numbers


# -- limits, on rows written by hand


def signals_of(*powers, **changes):
    sums = [
        Sum(name=f"b{k}", identity=True, chain=0, trunk_power=a, branch_power=1.0, power=b, previous=a)
        for k, (a, b) in enumerate(itertools.pairwise(powers))
    ]
    rows = {"layers": (), "sums": tuple(sums), "activations": ()}
    return Signals(label="", model="", scheme="", source="", samples=1, input=None, **{**rows, **changes})


def test_limits_of_a_chain():
    assert verdicts(signals_of(1, 30, 999)) == []
    assert [each.fault for each in verdicts(signals_of(1, 30, 1001))] == ["exploding"]
    assert verdicts(signals_of(1, 0.5, 0.0011)) == []
    assert [each.fault for each in verdicts(signals_of(1, 0.5, 0.0009))] == ["vanishing"]
    assert verdicts(signals_of(0, 5)) == []  # a ratio to 0 is unknown
    assert "1e+03 times in each of 1 blocks" in verdicts(signals_of(1, 1001))[0].numbers


def test_the_places_of_a_verdict_are_cut_to_three():
    text = str(Verdict("dead layers", ("a", "b", "c", "d", "e"), "N.", "R."))
    assert text == "dead layers (a, b, c and 2 more): N. R."


def test_dead_channels_of_noise_are_no_fault_of_trained_weights():
    """They have never seen noise."""
    model, x = made(scheme="none", post_bias=True)
    with torch.no_grad():
        model.layer2[1].conv1.bias.fill_(-1000)
    assert faults(model, x, trained=True, real_inputs=False) == []
    assert faults(model, x, trained=True, real_inputs=True)
    assert faults(model, x, trained=False, real_inputs=False)


def test_an_unnormalized_layer_is_a_layer_without_norm():
    layer = Layer(name="a", kind="product", channels=2, power=1, mean_power=0, variance=1, weight_gain=15.0)
    assert [each.fault for each in verdicts(signals_of(1, 1, layers=(layer,)))] == ["exploding"]
    norm = Layer(name="b", kind="norm", channels=2, power=1, mean_power=0, variance=1)
    assert verdicts(signals_of(1, 1, layers=(layer, norm))) == []


def test_schemes_state_how_their_trunk_grows():
    assert Scheme.trunk_growth == "doubles"
    for name in ("rescale", "skipinit", "fixup", "sum_rescaled"):
        assert diagnose(*_pair(name)).multiplier_init == (0.0 if name == "skipinit" else 1.0)


def _pair(scheme):
    model, x = made(scheme=scheme, calibrated=False)
    return model, [x[:2]]
