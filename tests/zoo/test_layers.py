"""Layers against the naive formula conv(pad(x + b)) in float64, and their behaviour in real use."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.helpers.products import naive
from zoo import layers, method
from zoo.layers import BiasedLinear, BiasedProjections

CASES_2D = [(k, s, p, g, d) for k, s, p, g, d in itertools.product([1, 3, 7], [1, 2], [0, 1, 3], [1, 2], [1, 2])] + [
    ((1, 3), (2, 1), (0, 1), 1, 1)
]
CASES_3D = [
    (k, s, p, g, 1)
    for k, s, p, g in itertools.product([1, 3, (3, 1, 1), (1, 3, 3)], [1, 2, (1, 2, 2)], [0, 1, (1, 0, 0)], [1, 2])
]


@pytest.mark.parametrize("post_bias", [False, True])
@pytest.mark.parametrize(
    ("cls", "case"), [(layers.BiasedConv2d, c) for c in CASES_2D] + [(layers.BiasedConv3d, c) for c in CASES_3D]
)
def test_conv_equals_the_naive_formula(cls, case, post_bias):
    """Outputs and all gradients to 1e-10 relative: float64 rounding over at most 4*7*7 products is below 1e-13."""
    kernel, stride, padding, groups, dilation = case
    layer = cls(4, 6, kernel, stride, padding, dilation, groups, post_bias=post_bias).double()
    dims = 2 if cls is layers.BiasedConv2d else 3
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 4, *[13, 14, 15][:dims], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    inputs = [x, scale, *layer.parameters()]
    ours, theirs = layer(x, scale), naive(layer, x, scale)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(theirs, inputs, direction), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_folding_the_bias_would_be_wrong_at_borders():
    """The shortcut conv(x, W, bias = W b) of unpadded products differs at the border of padded ones."""
    layer = layers.BiasedConv2d(2, 3, 3, padding=1).double()
    nn.init.constant_(layer.pre_bias, 1.0)
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    folded = F.conv2d(x, layer.weight, (layer.weight.sum((2, 3)) @ layer.pre_bias), padding=1)
    difference = (layer(x) - folded).abs().amax((0, 1))
    assert difference[1:-1, 1:-1].max() < 1e-12
    assert difference[0].min() > 1e-3


@pytest.mark.parametrize("post_bias", [False, True])
@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 3, 4)])
def test_linear_equals_the_naive_formula(shape, post_bias):
    layer = layers.BiasedLinear(4, 5, post_bias=post_bias).double()
    nn.init.normal_(layer.pre_bias)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(
        layer(x, 0.3), 0.3 * F.linear(x + layer.pre_bias, layer.weight, layer.bias), rtol=1e-12, atol=1e-12
    )


def test_parameters_are_one_dimensional_and_there_is_no_state():
    for layer in (
        layers.BiasedConv2d(4, 6, 3, padding=1),
        layers.BiasedConv3d(4, 6, 3, padding=1),
        layers.BiasedLinear(4, 6),
        layers.StemConv2d(4, 6, 3),
        layers.ChannelBias(4),
    ):
        assert layer.data_bias.ndim == 1
        assert not list(layer.buffers())


@pytest.mark.parametrize("padding", [0, 1])
def test_autocast_keeps_bf16(padding):
    layer = layers.BiasedConv2d(4, 6, 3, padding=padding)
    x = torch.randn(2, 4, 8, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert layers.ChannelBias(4)(x).dtype == torch.bfloat16
    layer.bfloat16()
    assert layer(x).dtype == torch.bfloat16


def test_activation_checkpointing_changes_nothing():
    layer = nn.Sequential(layers.BiasedConv2d(4, 6, 3, padding=1), nn.ReLU(), layers.BiasedConv2d(6, 2, 1)).double()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    grads = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        layer.zero_grad()
        run(x).square().sum().backward()
        grads.append([p.grad.clone() for p in layer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_the_forward_is_pure():
    """Same output in train and eval mode, however often it was called (the reference counts its calls)."""
    layer = layers.BiasedConv2d(4, 6, 3, padding=1)
    nn.init.normal_(layer.pre_bias)
    x = torch.randn(2, 4, 8, 8)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    outputs = [layer.train(mode)(x) for mode in (True, False, True, False)]
    assert all(torch.equal(outputs[0], o) for o in outputs)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


def test_string_padding_is_refused():
    with pytest.raises(ValueError, match="padding='same'"):
        layers.BiasedConv2d(2, 2, 3, padding="same")


def test_he_normal_fans():
    weight = torch.empty(256, 64, 3, 3)
    for mode, fan in (("fan_in", 64 * 9), ("fan_out", 256 * 9)):
        std = method.he_normal_(weight, gain=1.0, mode=mode, factor=3.0).std().item()
        assert std == pytest.approx(3 / fan**0.5, rel=0.02)
    with pytest.raises(ValueError, match="fan_avg"):
        method.he_normal_(weight, mode="fan_avg")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kernel", [1, 3])
def test_traces_for_every_size(kernel):
    """torch.jit.trace, which the TorchScript ONNX exporter uses: one way for all sizes, whichever was traced."""
    layer = layers.BiasedConv2d(8, 4, kernel, padding=kernel // 2)
    nn.init.normal_(layer.pre_bias)
    traced = torch.jit.trace(layer, torch.randn(1, 8, 2, 2))
    for size in (1, 3, 20):
        x = torch.randn(2, 8, size, size)
        torch.testing.assert_close(traced(x), layer(x), rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("post_bias", [False, True])
@pytest.mark.parametrize("scale", [None, 0.7, "tensor"])
def test_packed_projections_are_layers_side_by_side(post_bias, scale):
    packed = BiasedProjections(6, (4, 8), post_bias=post_bias).double()
    packed.input_scale = 1.3
    with torch.no_grad():
        for parameter in packed.parameters():
            parameter.normal_()
    parts = [BiasedLinear(6, size, post_bias=post_bias).double() for size in (4, 8)]
    for layer, weight, bias in zip(parts, packed.weight.split((4, 8)), packed.pre_bias.view(2, 6), strict=True):
        layer.weight.data, layer.pre_bias.data, layer.input_scale = weight.data, bias.data, 1.3
    if post_bias:
        for layer, bias in zip(parts, packed.bias.split((4, 8)), strict=True):
            layer.bias.data = bias.data
    factor = torch.tensor(0.7, dtype=torch.float64, requires_grad=True) if scale == "tensor" else scale
    x = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(packed(x, factor), torch.cat([layer(x, factor) for layer in parts], -1))
    inputs = [x, *packed.parameters(), *([factor] if scale == "tensor" else [])]

    def call(x, *parameters):
        factor_ = parameters[-1] if scale == "tensor" else factor
        names = [name for name, _ in packed.named_parameters()]
        values = dict(zip(names, parameters, strict=False))
        return torch.func.functional_call(packed, values, (x, factor_))

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)
