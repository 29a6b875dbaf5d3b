"""The protocol of joins: the joins of the zoo, and two schemes with joins of their own in a few lines each."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import zoo
from tests.helpers.nets import NARROW, narrow, samples
from zoo.baseline_joins import ActivatedJoin, MultiplierJoin
from zoo.folding import fold
from zoo.joins import FoldedJoin, InPlaceJoin, Join, PlainJoin, PostNormJoin, PreNormJoin, RescaledJoin
from zoo.layers import BiasedConv2d, BiasedLinear
from zoo.registry import build_model
from zoo.schemes import TextScheme, VisionScheme
from zoo.schemes.base import register_scheme

# -- the joins of the zoo -------------------------------------------------------------------------------


@pytest.mark.parametrize("multiplier", [True, False])
def test_rescaled_join_is_the_formula_at_every_scale(multiplier):
    """scale_out x_k = join(scale_in x_{k-1}), for images with a projection and for text without."""
    x, h = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    m = 1.7 if multiplier else 1.0
    for scale_in, scale_out in ((1.0, 1.0), (0.7, 1.3)):
        join = RescaledJoin(0.8, 0.25, multiplier).double()
        if multiplier:
            nn.init.constant_(join.multiplier, m)
        join.set_scales(scale_in, scale_out)
        last, shortcut = (BiasedConv2d(3, 3, 1, post_bias=True).double() for _ in range(2))
        for layer in (last, shortcut):
            nn.init.normal_(layer.pre_bias)
            nn.init.normal_(layer.bias)
        identity, projected = 0.8 * x + 0.25 * m * last(h), 0.8 * shortcut(x) + 0.25 * m * last(h)
        last.input_scale = shortcut.input_scale = scale_in
        y = join.product(last, scale_in * h)
        torch.testing.assert_close(join(scale_in * x, y.clone()) / scale_out, identity, rtol=1e-13, atol=1e-13)
        got = join(join.projection(shortcut, scale_in * x), y, projected=True) / scale_out
        torch.testing.assert_close(got, projected, rtol=1e-13, atol=1e-13)


def test_the_last_layer_may_read_another_scale_than_the_trunks():
    """As in a cross-attention, whose values come from the encoder."""
    join = RescaledJoin(0.8, 0.25, True)
    join.set_scales(0.7, 1.3)
    layer = BiasedLinear(3, 3).double()
    h = torch.randn(2, 3, dtype=torch.float64)
    expected = 0.25 * layer(h)
    layer.input_scale = 2.0
    torch.testing.assert_close(join.product(layer, 2.0 * h) / 1.3, expected, rtol=1e-6, atol=1e-6)


def test_joins_add_in_place_or_not_and_keep_the_wider_dtype():
    trunk, branch = torch.randn(3), torch.randn(3).bfloat16()
    expected, before = trunk + branch, branch.clone()
    for join in (PlainJoin(), InPlaceJoin(), RescaledJoin(1.0, 1.0, False), MultiplierJoin(1.0), ActivatedJoin()):
        summed = join(trunk, branch)
        assert summed.dtype == torch.float32
        assert torch.equal(summed, expected)
        assert torch.equal(branch, before)
        narrow = trunk.bfloat16()
        assert (join(narrow, branch) is branch) == (not isinstance(join, PlainJoin))
        assert torch.equal(branch, before if isinstance(join, PlainJoin) else narrow + before)
        branch.copy_(before)


def test_joins_with_a_norm():
    x, y, norm = torch.randn(2, 5), torch.randn(2, 5), nn.LayerNorm(5)
    assert torch.equal(PreNormJoin(norm).enter(x), norm(x))
    assert torch.equal(PreNormJoin(norm)(x, y), x + y)
    torch.testing.assert_close(PostNormJoin(norm, 3.0)(x, y), norm(3 * x + y))


@pytest.mark.parametrize("join", [PlainJoin(), InPlaceJoin(), PreNormJoin(nn.LayerNorm(2)), PostNormJoin(nn.ReLU())])
def test_joins_without_a_multiplier_or_a_scale(join):
    assert join.statistics() == {"m": None}
    assert join.multiplier_parameters() == {}
    assert join.fold(nn.Linear(2, 2)) == FoldedJoin(1.0, 1.0, join)
    join.set_scales(1.0, 1.0)
    with pytest.raises(zoo.ZooError, match=f"{type(join).__name__}: trunk scales 0.5, 1.0 must be 1"):
        join.set_scales(0.5, 1.0)


@pytest.mark.parametrize("folded", [PlainJoin, InPlaceJoin])
def test_fold_of_a_rescaled_join(folded):
    join = RescaledJoin(0.8, 0.25, True, folded=folded)
    layer = BiasedLinear(2, 2)
    layer.input_scale = 0.5
    join.set_scales(0.5, 2.0)
    parts = join.fold(layer)
    assert parts.product.item() == pytest.approx(0.25 * 2 / 0.5)
    assert parts.projection == pytest.approx(0.8 * 2 / 0.5)
    assert type(parts.join) is folded


# -- a scheme with a join of its own --------------------------------------------------------------------


class SkipInitJoin(Join):
    """x + m F(x), m = 0 at init (De and Smith 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplier = nn.Parameter(torch.zeros(()))

    def forward(self, trunk, branch, projected=False):
        return trunk + self.multiplier * branch

    def statistics(self):
        return {"m": float(self.multiplier.detach()), "sign": float(self.multiplier.detach().sign())}

    def multiplier_parameters(self):
        return {"multiplier": self.multiplier}

    def fold(self, last):
        return FoldedJoin(self.multiplier, 1.0, PlainJoin())


@dataclass(frozen=True)
class VisionSkipInit(VisionScheme):
    name: ClassVar[str] = "own_skipinit"
    post_bias: bool = True

    def join(self, place, channels):
        return SkipInitJoin()


@dataclass(frozen=True)
class TextSkipInit(TextScheme):
    name: ClassVar[str] = "own_skipinit"

    def join(self, place, channels):
        return SkipInitJoin()


class ScalarBiasConv2d(nn.Conv2d):
    """W pad(x + b) with one number b."""

    def __init__(self, *args, **settings) -> None:
        super().__init__(*args, bias=False, **settings)
        self.pre_bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return super().forward(x + self.pre_bias)


@dataclass(frozen=True)
class VisionFixup(VisionScheme):
    """Scalar biases before the products and a multiplier of 1 at init, as Zhang et al. 2019 have them."""

    name: ClassVar[str] = "own_fixup"

    def _make_conv(self, in_channels, out_channels, kernel, stride, groups):
        return ScalarBiasConv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups)

    def stem(self, in_channels, out_channels, kernel_size, *, stride=1):
        return VisionScheme(post_bias=True).stem(in_channels, out_channels, kernel_size, stride=stride)

    def branch_factor(self, place):
        return place.total ** (-1 / (2 * place.layers - 2))

    def join(self, place, channels):
        join = SkipInitJoin()
        nn.init.ones_(join.multiplier)
        return join


@pytest.fixture
def registered():
    schemes = (VisionSkipInit, TextSkipInit, VisionFixup)
    for cls in schemes:
        register_scheme(cls)
    yield
    for cls in schemes:
        del cls.registered[cls.name]


def train(model, forward):
    """A step of SGD on all parameters, then values away from special ones."""
    groups = zoo.param_groups(model, 0.1, multiplier_lr=0.5)
    optimizer = torch.optim.SGD(groups, lr=0.01)
    optimizer.zero_grad()
    forward(model).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return {group["group"]: group["names"] for group in groups}


@pytest.mark.parametrize("kind", [kind for kind in NARROW if kind != "vgg"])
@pytest.mark.parametrize("scheme", ["own_skipinit", "own_fixup"])
def test_a_vision_scheme_with_its_own_join_is_one_class(registered, kind, scheme):
    if scheme == "own_fixup" and kind not in ("basic", "bottleneck", "grouped", "cifar"):
        pytest.skip("this Fixup has convolutions of images only")
    model = narrow(kind, scheme=scheme).double()
    names = [f"{row['block']}.join.multiplier" for row in zoo.branch_statistics(model)]
    x = samples(kind, 2, 48, dtype=torch.float64)
    at_init = dict(model.named_parameters())[names[0]].item()
    assert at_init == (0.0 if scheme == "own_skipinit" else 1.0)
    groups = train(model, lambda net: net(x))
    assert groups["multipliers"] == names
    parameters = dict(model.named_parameters())
    assert [row["m"] for row in zoo.branch_statistics(model)] == [parameters[name].item() for name in names]
    assert all(row["sign"] in (-1, 1) for row in zoo.branch_statistics(model))
    if scheme == "own_fixup":
        assert "layer1.0.conv1.pre_bias" in groups["others"]
    model.eval()
    with torch.no_grad():
        expected, folded = model(x), fold(model)
        assert not [name for name, _ in folded.named_parameters() if "multiplier" in name or "pre_bias" in name]
        torch.testing.assert_close(folded(x), expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item())
        for ours, theirs in zip(folded.forward_levels(x), model.forward_levels(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12 * theirs.abs().max().item())


def test_a_bias_that_no_layer_can_take_is_refused_by_fold(registered):
    """The image that enters a padded stem is shifted by nobody."""
    model = narrow("cifar", scheme="own_fixup")
    model.stem.conv1 = ScalarBiasConv2d(3, 8, 3, padding=1)
    with pytest.raises(zoo.ZooError, match="fold: the input of a padded convolution must be shifted by its bias"):
        fold(model)


def test_a_text_scheme_with_its_own_join_is_one_class(registered):
    sizes = {"dim": 16, "hidden": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 2}
    sizes |= {"source_vocabulary": 20, "target_vocabulary": 20}
    config = zoo.ModelConfig("rescale_transformer_tiny", "own_skipinit", 0, 0, sizes)
    model = build_model(config).double().eval()
    source, target = torch.randint(4, 20, (3, 7)), torch.randint(4, 20, (3, 5))
    groups = train(model, lambda net: net(source, target))
    assert groups["multipliers"] == [f"{row['block']}.join.multiplier" for row in zoo.branch_statistics(model)]
    assert len(groups["multipliers"]) == 2 + 3 * 2
    with torch.no_grad():
        expected = model(source, target)
        torch.testing.assert_close(fold(model)(source, target), expected, rtol=1e-12, atol=1e-12)


def test_the_multiplier_acts_as_the_formula_says(registered):
    """At init a SkipInit net is its shortcuts alone; each m adds its branch."""
    model = narrow("cifar", scheme="own_skipinit").double().eval()
    block = model.layer1[0]
    x = torch.randn(2, block.conv1.in_channels, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(block(x), x.relu())
        branch = block.conv2(block.conv1(x).relu())
        block.join.multiplier.fill_(0.5)
        torch.testing.assert_close(block(x), (x + 0.5 * branch).relu(), rtol=1e-13, atol=1e-13)


# -- blocks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["basic", "bottleneck", "r3d"])
def test_a_layer_that_is_replaced_takes_effect(kind):
    """In the forward, in the statistics and in the folded net: a block keeps no second list of its layers."""
    model = narrow(kind).double().eval()
    x = samples(kind, 2, 48, dtype=torch.float64)
    before = model(x)
    block = model.layer1[0]
    other = copy.deepcopy(block.conv1)
    with torch.no_grad():
        other.weight.mul_(2)
    block.conv1 = other
    after = model(x)
    assert not torch.equal(before, after)
    assert block.branch_layers()[0] is other
    norms = zoo.branch_statistics(model)[0]["weight_norms"]
    assert norms[0] == pytest.approx(float(other.weight.detach().norm()))
    with torch.no_grad():
        torch.testing.assert_close(fold(model)(x), after, rtol=1e-10, atol=1e-11)


def test_branch_layers_are_those_that_the_values_pass():
    model = zoo.create_model("rescale_transformer_tiny", dim=16, hidden=32, heads=2, encoder_layers=1, decoder_layers=1)
    layer = model.decoder[0]
    assert layer.self_attn.branch_layers() == [layer.self_attn.qkv, layer.self_attn.out]
    assert layer.cross_attn.branch_layers() == [layer.cross_attn.key_value, layer.cross_attn.out]
    assert layer.ffn.branch_layers() == [layer.ffn.hidden, layer.ffn.shrink]
    block = narrow("bottleneck").layer1[0]
    assert block.branch_layers() == [block.conv1, block.conv2, block.conv3]


def test_rescaled_join_trains_its_multiplier():
    join = RescaledJoin(0.8, 0.25, True).double()
    layer = BiasedConv2d(3, 3, 1, post_bias=True).double()
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
