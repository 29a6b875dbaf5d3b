"""The method against the paper's formulas."""

import math

import pytest
import torch
from torch import nn

import zoo
from tests.helpers.nets import natural_images
from zoo.method import coefficients, init_factor


@pytest.mark.parametrize("c", [0.5, 1, 9, 16, 66])
def test_coefficients_are_the_papers(c):
    for k in range(1, 70):
        alpha, beta = coefficients(k, c)
        assert alpha == math.sqrt((k - 1 + c) / (k + c))
        assert beta == math.sqrt(1 / (k + c))
        assert alpha**2 + beta**2 == pytest.approx(1, abs=1e-15)
        assert 1 / coefficients(k + 1, c)[1] ** 2 - 1 / beta**2 == pytest.approx(1, abs=1e-12)


def test_coefficients_accept_the_index_of_the_reference():
    # its formula for the j-th block from 0: alpha = sqrt((L + j - 1) / (L + j))
    assert coefficients(0, 16) == (math.sqrt(15 / 16), math.sqrt(1 / 16))


@pytest.mark.parametrize(("k", "c"), [(-1, 4), (1, 0), (0, 0.5), (1, -2)])
def test_coefficients_refuse_what_has_no_square_root(k, c):
    with pytest.raises(ValueError, match=f"k={k}, c={c}"):
        coefficients(k, c)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("count", [3, 16, 50])
def test_every_branch_reaches_the_output_with_the_same_weight(first, count):
    pairs = [coefficients(k, count) for k in range(first, first + count)]
    weights = [beta * math.prod(a for a, _ in pairs[i + 1 :]) for i, (_, beta) in enumerate(pairs)]
    assert weights == pytest.approx([weights[0]] * count, rel=1e-12)
    trunk = math.prod(a for a, _ in pairs)
    assert trunk**2 + sum(w**2 for w in weights) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("layers_", [2, 3, 4])
def test_init_factor_and_multiplier_equal_beta(layers_):
    for k, c in [(1, 16), (16, 16), (7, 3.5)]:
        assert init_factor(k, c, layers_) == ((k + c) / c) ** (-1 / (2 * layers_))
        assert init_factor(k, c, layers_) ** layers_ / math.sqrt(c) == pytest.approx(coefficients(k, c)[1], rel=1e-14)


@pytest.mark.parametrize(
    "options", [{}, {"first_index": 0}, {"c": 5.0}, {"multiplier": False}, {"multiplier": False, "c": 2.0}]
)
@pytest.mark.parametrize(
    "name", ["rescalenet50", "rescalenet34", "rescalenext50_32x4d", "rescale_r2plus1d_18", "rescale_i3d_r50"]
)
def test_nets_hold_the_formulas(name, options):
    """alpha, the branch's weight and the standard deviations of every block, literally."""
    model = zoo.create_model(name, num_classes=7, **options)
    blocks = [m for m in model.modules() if hasattr(m, "branch_layers")]
    c = options.get("c", len(blocks))
    for i, block in enumerate(blocks):
        k = i + options.get("first_index", 1)
        branch = block.branch_layers()
        alpha, beta = math.sqrt((k - 1 + c) / (k + c)), math.sqrt(1 / (k + c))
        assert block.join.alpha == alpha
        if options.get("multiplier", True):
            assert block.join.scale == 1 / math.sqrt(c)
            assert block.join.multiplier.item() == 1
            factor = ((k + c) / c) ** (-1 / (2 * len(branch)))
        else:
            assert block.join.scale == beta
            assert block.join.multiplier is None
            factor = 1.0
        for layer in branch:
            weight = layer.weight
            expected = factor * math.sqrt(2 / weight[0].numel())
            # the standard error of a standard deviation from n samples is sigma / sqrt(2 n); 5 of them
            assert weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * weight.numel()))
        if block.downsample is not None:
            weight = block.downsample.conv.weight
            assert weight.std().item() == pytest.approx(
                math.sqrt(1 / weight[0].numel()), rel=5 / math.sqrt(2 * weight.numel())
            )


def test_projection_gain_scales_the_projections_alone():
    torch.manual_seed(3)
    plain = zoo.create_model("rescalenet20_cifar").state_dict()
    torch.manual_seed(3)
    gained = zoo.create_model("rescalenet20_cifar", projection_gain=2.0).state_dict()
    for key, value in plain.items():
        factor = 2.0 if key.endswith("downsample.conv.weight") else 1.0
        torch.testing.assert_close(gained[key], factor * value)


# -- signal at init ---------------------------------------------------------------------------------


def block_ratios(model, x):
    """E[x^2] after a block over before it, for blocks without projection."""
    ratios = []

    def record(block, args, output):
        if block.downsample is None:
            scale = (block.join.scale_out / block.join.scale_in) ** 2  # of the trunk, which the formulas do not have
            ratios.append((output.square().mean() / args[0].square().mean() / scale).item())

    for module in model.modules():
        if hasattr(module, "branch_layers"):
            module.register_forward_hook(record)
    with torch.no_grad():
        model.eval()(x)
    return ratios


def dead_channels(model, x):
    """Share of channels whose ReLU passes the same sign for every image and position, in the worst ReLU."""
    shares = []

    def record(relu, args):
        z = args[0]
        positive = (z > 0).flatten(2) if z.ndim == 4 else (z > 0)[:, :, None]
        same = positive.all((0, 2)) | (~positive).all((0, 2))
        shares.append(same.double().mean().item())

    for name, module in model.named_modules():
        # the ReLU after an add follows a trunk that is positive already; a classifier's has no channels to lose
        if isinstance(module, nn.ReLU) and not name.startswith("hidden"):
            module.register_forward_pre_hook(record)
    with torch.no_grad():
        model.eval()(x)
    return max(shares)


SIZE = {"rescalenet18": 224, "rescalenet50": 224, "rescalenet101": 160, "rescalenet200": 128}


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("rescalenet18", 0.90),
        pytest.param("rescalenet50", 0.95, marks=pytest.mark.slow),
        pytest.param("rescalenet101", 0.95, marks=pytest.mark.slow),
        pytest.param("rescalenet200", 0.95, marks=pytest.mark.slow),
    ],
)
def test_blocks_keep_the_power_of_the_signal(name, least):
    """HasDataBias on 8 images with a 1/f spectrum at SIZE px: within stages E[x^2] stays within `least`..1."""
    x = natural_images(8, SIZE[name])
    model = zoo.create_model(name)
    zoo.calibrate(model, x.split(4))
    ratios = block_ratios(model, x)
    assert len(ratios) == sum(1 for m in model.modules() if getattr(m, "downsample", 0) is None)
    assert least <= min(ratios)
    assert max(ratios) <= 1.0


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("rescalenet18", 96),
        pytest.param("rescalenet50", 96, marks=pytest.mark.slow),
        pytest.param("rescalevgg19", 64, marks=pytest.mark.slow),
    ],
)
def test_no_channel_is_dead_at_init(name, size):
    """8 images with a 1/f spectrum. Uncalibrated, and without the method, some channels are constant in sign."""
    x = natural_images(8, size)
    model = zoo.create_model(name)
    uncalibrated = dead_channels(model, x)
    zoo.calibrate(model, x.split(4))
    assert dead_channels(model, x) == 0
    assert uncalibrated > 0.05
    assert dead_channels(zoo.create_model(name, scheme="none"), x) > 0.05


@pytest.mark.parametrize("name", ["rescalenet18", pytest.param("rescalenet50", marks=pytest.mark.slow)])
def test_without_the_method_the_power_explodes(name):
    x = natural_images(8, 128)
    ratios = block_ratios(zoo.create_model(name, scheme="none"), x)
    assert min(ratios) > 1.3
    assert math.prod(ratios) ** (1 / len(ratios)) > 1.7  # it doubles, give or take the draw of the weights
