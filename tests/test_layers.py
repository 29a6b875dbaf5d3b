"""Layers against the naive formula conv(pad(x + b)) in float64, and their behaviour in real use."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from zoo import functional, layers


def naive(layer, x, scale=None):
    """scale * (W pad(x + s b) + s post), written out: mean, bias on the activations, zeros, product."""
    dims = x.ndim - 2
    scale = 1.0 if scale is None else scale
    if layer.pool:
        pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
        x = pool(x, layer.pool, ceil_mode=True, count_include_pad=False)
    shifted = x + layer.pre_bias.view(-1, *[1] * dims) * layer.input_scale
    post = None if layer.bias is None else layer.bias * layer.input_scale
    pad = [p for side in reversed(layer.padding) for p in (side, side)]
    conv = F.conv2d if dims == 2 else F.conv3d
    return scale * conv(F.pad(shifted, pad), layer.weight, post, layer.stride, 0, layer.dilation, layer.groups)


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


@st.composite
def products(draw):
    """A random layer in float64 with an input and a scale."""
    dims = draw(st.sampled_from([2, 3]))
    groups = draw(st.sampled_from([1, 2]))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    cls = layers.BiasedConv2d if dims == 2 else layers.BiasedConv3d
    kernel = draw(st.sampled_from([(1,) * dims, (3,) * dims, each(1, 4)]))
    channels = [groups * draw(st.integers(1, 5)) for _ in range(2)]
    stride, padding, dilation = each(1, 3), draw(st.sampled_from([(0,) * dims, each(0, 3)])), each(1, 2)
    layer = cls(*channels, kernel, stride, padding, dilation, groups, post_bias=draw(st.booleans())).double()
    layer.input_scale = draw(st.sampled_from([1.0, 0.6]))
    layer.pool = draw(st.sampled_from([(), (2,) * dims, (1, *[2] * (dims - 1))]))
    torch.manual_seed(draw(st.integers(0, 99)))
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    shape = [
        draw(st.integers(2 * (d * (k - 1) + 1), 2 * (d * (k - 1) + 1) + 5))
        for k, d in zip(kernel, dilation, strict=True)
    ]
    x = torch.randn(draw(st.integers(1, 3)), channels[0], *shape, dtype=torch.float64, requires_grad=True)
    if dims == 2 and draw(st.booleans()):
        layer, x = (thing.to(memory_format=torch.channels_last) for thing in (layer, x))
        x = x.detach().requires_grad_()
    scale = draw(st.sampled_from([None, 0.7, torch.tensor(-1.3, dtype=torch.float64, requires_grad=True)]))
    return layer, x, scale


@settings(max_examples=150, deadline=None, derandomize=True)
@given(products(), st.sampled_from(["own", "shift", "fold", "compile", "plain"]))
def test_every_way_equals_the_naive_formula(product, way):
    """Outputs and all gradients, whichever way an unpadded product takes; rounding of some hundred products."""
    layer, x, scale = product
    inputs = [x, *layer.parameters(), *([scale] if isinstance(scale, torch.Tensor) else [])]
    with pytest.MonkeyPatch.context() as patch:
        if way in ("shift", "fold"):
            chosen = way == "shift"
            patch.setattr(functional, "_shift_in_forward", lambda x, w, s, g: chosen or any(g.padding))
            patch.setattr(functional, "_shift_in_backward", lambda x, w, g: chosen or any(g.padding))
        elif way != "own":
            formula = functional._product_to_compile if way == "compile" else functional._product
            patch.setattr(functional, "_dispatch", formula)
        ours = layer(x, scale)
        theirs = naive(layer, x, scale)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        direction = torch.randn_like(ours)
        grads = [torch.autograd.grad(y, inputs, direction) for y in (ours, theirs)]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("padding", [0, 1])
def test_frozen_parameters_get_no_gradient(padding):
    """Every choice of what takes part in training gives the gradients of the rest."""
    layer = layers.BiasedConv2d(3, 2, 3, padding=padding, post_bias=True).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    scale = torch.tensor(0.7, dtype=torch.float64)
    everything = [x, scale, *layer.parameters()]
    for size in (30, 3):  # large and small maps take different ways
        x.data = torch.randn(2, 3, size, size, dtype=torch.float64)
        for chosen in itertools.product([False, True], repeat=len(everything)):
            if not any(chosen):
                continue
            for tensor, wanted in zip(everything, chosen, strict=True):
                tensor.requires_grad_(wanted)
            wanted = [t for t in everything if t.requires_grad]
            for a, b in zip(
                torch.autograd.grad(layer(x, scale).square().sum(), wanted),
                torch.autograd.grad(naive(layer, x, scale).square().sum(), wanted),
                strict=True,
            ):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("size", [3, 9])
def test_second_derivatives_and_per_sample_gradients(padding, size):
    layer = layers.BiasedConv2d(2, 2, 3, 1, padding, groups=2).double()
    x = torch.randn(2, 2, size, size, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, s, *_: layer(x, s), (x, scale, *layer.parameters()))
    parameters = dict(layer.named_parameters())

    def loss(parameters, image):
        return torch.func.functional_call(layer, parameters, (image[None], 0.5)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, image in enumerate(x):
        alone = torch.autograd.grad(loss(parameters, image), list(parameters.values()))
        for name, grad in zip(parameters, alone, strict=True):
            torch.testing.assert_close(each[name][i], grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [None, 0.5, torch.tensor(0.5, requires_grad=True)])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.BiasedConv2d(4, 6, 3, padding=1, post_bias=True), (2, 4, 9, 9)),
        (layers.BiasedConv2d(4, 6, 1, groups=2), (2, 4, 9, 9)),
        (layers.BiasedConv2d(64, 64, 1), (1, 64, 2, 2)),
        (layers.BiasedConv3d(4, 6, (3, 1, 1), padding=(1, 0, 0)), (2, 4, 3, 5, 5)),
        (layers.BiasedLinear(4, 6), (2, 5, 4)),
    ],
)
def test_backward_keeps_the_input_and_the_parameters_only(layer, shape, scale):
    x = torch.randn(shape, requires_grad=True)
    known = {t.data_ptr() for t in (x, scale, *layer.parameters()) if isinstance(t, torch.Tensor)}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x, scale)
    assert kept
    assert all(t.data_ptr() in known for t in kept)


@pytest.mark.parametrize("pool", [(), (2, 2)])
def test_one_image_without_a_batch(pool):
    layer = layers.BiasedConv2d(3, 4, 3, padding=1)
    layer.pool = pool
    x = torch.randn(3, 6, 8)
    torch.testing.assert_close(layer(x), layer(x[None])[0])


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("size", [2, 16])
def test_gradients_under_autocast(padding, size):
    """bf16 products, float32 gradients of float32 parameters, within bf16's rounding (2^-8) of the exact ones."""
    layer = layers.BiasedConv2d(16, 16, 3, padding=padding) if padding else layers.BiasedConv2d(16, 16, 1)
    nn.init.normal_(layer.pre_bias)
    x = torch.randn(4, 16, size, size)
    scale = torch.tensor(0.8, requires_grad=True)
    wanted = [scale, *layer.parameters()]
    direction = torch.randn_like(layer(x))
    exact = torch.autograd.grad(layer(x, scale), wanted, direction)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, scale)
    assert y.dtype == torch.bfloat16
    for a, b in zip(torch.autograd.grad(y, wanted, direction.bfloat16()), exact, strict=True):
        assert a.dtype == torch.float32
        size = b.norm() if b.ndim else direction.norm() * y.float().norm()  # the terms of a scalar's sum may cancel
        assert (a - b).norm() <= 0.02 * size


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


@pytest.mark.parametrize("padding", [0, 1])
def test_gradients_by_finite_differences(padding):
    layer = layers.BiasedConv2d(2, 2, 3, 2, padding, groups=2).double()
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, s, *_: layer(x, s), (x, scale, *layer.parameters()))


def test_rescaled_add_is_the_formula_and_trains_its_multiplier():
    join = layers.RescaledAdd(0.8, 0.25, True).double()
    layer = layers.BiasedConv2d(3, 3, 1, post_bias=True).double()
    nn.init.normal_(layer.pre_bias)
    with torch.no_grad():
        join.multiplier.fill_(1.7)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    ours = join(x, join.product(layer, y))
    theirs = 0.8 * x + join.multiplier * 0.25 * layer(y)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    for a, b in zip(
        *(torch.autograd.grad(z.square().sum(), [join.multiplier, x, y]) for z in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


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
        std = layers.he_normal_(weight, gain=1.0, mode=mode, factor=3.0).std().item()
        assert std == pytest.approx(3 / fan**0.5, rel=0.02)
    with pytest.raises(ValueError, match="fan_avg"):
        layers.he_normal_(weight, mode="fan_avg")


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
