"""The method against the paper's formulas."""

import math

import pytest
import torch
from conftest import natural_images
from torch import nn

import zoo
from zoo import layers
from zoo.rescale import coefficients, init_factor


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
        n = len(block.branch_layers)
        alpha, beta = math.sqrt((k - 1 + c) / (k + c)), math.sqrt(1 / (k + c))
        assert block.join.alpha == alpha
        if options.get("multiplier", True):
            assert block.join.scale == 1 / math.sqrt(c)
            assert block.join.multiplier.item() == 1
            factor = ((k + c) / c) ** (-1 / (2 * n))
        else:
            assert block.join.scale == beta
            assert block.join.multiplier is None
            factor = 1.0
        for layer in block.branch_layers:
            weight = getattr(block, layer).weight
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


# -- calibration ------------------------------------------------------------------------------------


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = layers.BiasedConv2d(3, 4, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.second = layers.BiasedLinear(4, 2)

    def forward(self, x):
        return self.second(self.drop(self.first(x).relu()).mean((2, 3)))


def test_calibration_is_exact_over_batches_of_any_size():
    model = TwoLayers().double().train()
    batches = [torch.randn(n, 3, s, s, dtype=torch.float64) + 1 for n, s in [(2, 5), (3, 8), (1, 4)]]
    report = zoo.calibrate(model, batches)
    assert report.calibrated == ["first", "second"]
    assert model.training  # its mode is restored
    assert model.drop.training
    pixels = torch.cat([b.permute(0, 2, 3, 1).reshape(-1, 3) for b in batches])
    torch.testing.assert_close(model.first.pre_bias.data, -pixels.mean(0), rtol=0, atol=1e-14)
    with torch.no_grad():  # the second layer saw the first one calibrated, without dropout
        hidden = torch.cat([model.first(b).relu().mean((2, 3)) for b in batches])
    torch.testing.assert_close(model.second.pre_bias.data, -hidden.mean(0), rtol=0, atol=1e-14)


def test_calibration_does_not_depend_on_how_the_data_is_cut():
    torch.manual_seed(1)
    one, many = (zoo.create_model("rescalenet20_cifar", width=0.5).double() for _ in range(2))
    many.load_state_dict(one.state_dict())
    x = torch.randn(12, 3, 16, 16, dtype=torch.float64)
    zoo.calibrate(one, [x], force=True)
    zoo.calibrate(many, x.split(5), force=True)
    for (name, a), b in zip(one.state_dict().items(), many.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12, msg=name)


def test_calibrated_inputs_have_zero_mean_everywhere():
    model = zoo.create_model("rescalenet20_cifar", width=0.5).double()
    x = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    assert not zoo.calibrate(model, x.split(4)).unreached
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, layers.StemConv2d):

            def record_output(m, args, output, name=name):
                seen[name] = output.mean((0, 2, 3))

            module.register_forward_hook(record_output)
        elif isinstance(module, layers.Calibrated):

            def record(m, args, name=name):
                x = args[0]
                means = x.mean([d for d in range(x.ndim) if d != m.channel_dim % x.ndim])
                seen[name] = means / m.input_scale + m.data_bias

            module.register_forward_pre_hook(record)
    model.eval()(x)
    assert len(seen) == 22
    for name, mean in seen.items():
        assert mean.abs().max() < 1e-12, name


class Shared(nn.Module):
    """A head that is called on maps of several sizes, as an RPN's is, and a layer called again on its own output."""

    def __init__(self):
        super().__init__()
        self.stem = layers.BiasedConv2d(3, 4, 3, padding=1)
        self.head = layers.BiasedConv2d(4, 4, 3, padding=1)
        self.last = layers.BiasedConv2d(4, 2, 1)
        self.loop = layers.BiasedLinear(2, 2)
        self.end = layers.BiasedLinear(2, 2)
        self.heads, self.lasts, self.loops = [], [], []

    def forward(self, x):
        x = self.stem(x)
        sums = 0
        for size in (8, 4, 2):
            y = nn.functional.adaptive_max_pool2d(x, size)
            self.heads.append(y)
            z = self.head(y).relu()
            self.lasts.append(z)
            sums = sums + self.last(z).mean((2, 3))
        for _ in range(3):
            self.loops.append(sums)
            sums = self.loop(sums)
        return self.end(sums)


def test_layers_that_are_called_several_times_are_set_from_all_calls():
    """Over all maps and batches, the mean of what enters plus the bias is zero; what follows saw the result."""
    torch.manual_seed(0)
    net, batches = Shared(), [torch.rand(2, 3, 8, 8), torch.rand(3, 3, 8, 8)]
    report = zoo.calibrate(net, batches)
    assert report.calibrated == ["stem", "head", "last", "loop", "end"]
    for seen in (net.heads, net.lasts, net.loops):
        seen.clear()
    with torch.no_grad():
        for batch in batches:
            net(batch)
    for seen, layer in ((net.heads, net.head), (net.lasts, net.last)):
        pixels = torch.cat([x.movedim(1, -1).flatten(0, -2) for x in seen])
        assert torch.allclose(pixels.mean(0), -layer.pre_bias, atol=1e-6)
    # a loop's later inputs move with its bias: it was set from those that the bias of zero gave
    first = torch.cat(net.loops[::3])
    w, b = net.loop.weight, net.loop.bias
    inputs = [first, first @ w.T + b, (first @ w.T + b) @ w.T + b]
    assert torch.allclose(torch.cat(inputs).mean(0), -net.loop.pre_bias, atol=1e-6)


def test_calibration_keeps_what_a_checkpoint_supplied(tmp_path):
    model = zoo.create_model("rescalenet20_cifar", width=0.5)
    zoo.calibrate(model, [torch.randn(4, 3, 16, 16)])
    again = zoo.create_model("rescalenet20_cifar", width=0.5)
    again.load_state_dict(model.state_dict())
    report = zoo.calibrate(again, [torch.randn(4, 3, 16, 16) + 3])
    assert (len(report.calibrated), len(report.supplied)) == (0, 22)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    assert len(zoo.calibrate(again, [torch.randn(4, 3, 16, 16) + 3], force=True).calibrated) == 22


def test_calibration_reports_layers_that_the_forward_never_reaches():
    model = TwoLayers()
    model.unused = layers.BiasedLinear(3, 3)
    assert zoo.calibrate(model, [torch.randn(2, 3, 5, 5)]).unreached == ["unused"]


def test_calibration_ends_all_its_threads_on_an_error():
    import threading

    model = TwoLayers()
    before = threading.active_count()
    with pytest.raises(ValueError, match="an input has 4 channels, the layer 3"):
        zoo.calibrate(model, [torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5)])
    with pytest.raises(ValueError, match="first has a mean that is not finite"):
        zoo.calibrate(model, [torch.full((1, 3, 4, 4), torch.nan)])
    with pytest.raises(ValueError, match="at least one"):
        zoo.calibrate(model, [])
    assert threading.active_count() == before
    assert model.training
    assert not model.first._forward_pre_hooks


def test_calibration_refuses_batches_that_part_ways():
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = layers.BiasedLinear(2, 2), layers.BiasedLinear(2, 2)

        def forward(self, x):
            return self.a(x) if x.shape[0] == 1 else self.b(x)

    with pytest.raises(ValueError, match=r"different ways through the net \(a, b\)"):
        zoo.calibrate(Forked(), [torch.zeros(1, 2), torch.zeros(2, 2)])


# -- signal at init ---------------------------------------------------------------------------------


def block_ratios(model, x):
    """E[x^2] after a block over before it, for blocks without projection."""
    ratios = []

    def record(block, args, output):
        if block.downsample is None:
            held = (block.join.after / block.join.before) ** 2  # of the trunk, which is not in the nominal net
            ratios.append((output.square().mean() / args[0].square().mean() / held).item())

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
    """Calibrated on 8 images with a 1/f spectrum at SIZE px: within stages E[x^2] stays within `least`..1."""
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
