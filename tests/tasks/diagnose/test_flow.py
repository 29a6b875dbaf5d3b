"""Residual connections are found in the nets of the zoo, of torchvision, and in modules of a user's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

import zoo
from tasks.diagnose.measure import diagnose
from tests.helpers import transformers
from tests.helpers.nets import NARROW, VISION, narrow, samples
from zoo.trunk import TrunkBlock

CASES = [
    (kind, scheme)
    for kind, (name, _) in NARROW.items()
    for scheme in zoo.model_info(name).schemes
    if scheme != "frozen_bn"  # which needs weights; its joins are those of bn
]


def sums_of(model, *batches, **settings):
    return diagnose(model, batches, units=False, **settings).sums


@pytest.mark.parametrize(("kind", "scheme"), CASES)
def test_blocks_of_every_family_and_scheme(kind, scheme):
    model = narrow(kind, scheme=scheme)
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, TrunkBlock)}
    found = sums_of(model, samples(kind, 2, 32))
    assert [each.name for each in found] == list(blocks)
    for each, block in zip(found, blocks.values(), strict=True):
        assert each.identity == (block.downsample is None), each.name


@pytest.mark.parametrize("scheme", transformers.SCHEMES)
def test_branches_of_transformers(scheme):
    model = transformers.make(scheme)
    batch = transformers.batch()
    found = sums_of(model, batch, forward=lambda net, pair: net.decode(pair[1], net.encode(pair[0])))
    blocks = [name for name, module in model.named_modules() if isinstance(module, TrunkBlock)]
    assert [each.name for each in found] == blocks
    assert all(each.identity for each in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", VISION)
def test_blocks_of_every_net(name):
    info = zoo.model_info(name)
    frames = (info.frames or 4,) if info.input_kind == "clips" else ()
    model = zoo.create_model(name, num_classes=5, width=0.25)
    found = sums_of(model, torch.randn(1, 3, *frames, info.min_size, info.min_size))
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, TrunkBlock)}
    assert [each.name for each in found] == list(blocks)
    assert [each.identity for each in found] == [block.downsample is None for block in blocks.values()]


def test_a_trunk_is_one_chain_between_projections():
    """``rescalenet20_cifar``: three stages of three blocks, of which two begin with a projection."""
    found = sums_of(narrow("cifar"), samples("cifar", 2, 32))
    assert [each.chain for each in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for number, each in enumerate(found):
        if each.identity and number:
            assert each.previous == pytest.approx(found[number - 1].power, rel=1e-5)


# -- torchvision


def projections(model):
    return {name.rpartition(".")[0] for name, module in model.named_modules() if name.endswith(".downsample")}


def test_torchvision_resnet():
    model = models.resnet18(num_classes=5)
    found = sums_of(model, torch.randn(2, 3, 64, 64))
    assert [each.name for each in found] == [f"layer{i}.{k}" for i in (1, 2, 3, 4) for k in (0, 1)]
    assert (
        {each.name for each in found if not each.identity} == projections(model) == {f"layer{i}.0" for i in (2, 3, 4)}
    )


def test_torchvision_mobilenet():
    model = models.mobilenet_v2(width_mult=0.25, num_classes=5)
    found = sums_of(model, torch.randn(2, 3, 32, 32))
    expected = [name for name, module in model.named_modules() if getattr(module, "use_res_connect", False)]
    assert [each.name for each in found] == expected
    assert len(found) > 10
    assert all(each.identity for each in found)


def test_torchvision_transformer():
    """The embeddings of positions are added to the patches, which is no residual connection."""
    model = models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=5)
    found = sums_of(model, torch.randn(2, 3, 32, 32))
    layers = [f"encoder.layers.encoder_layer_{i}" for i in (0, 1)]
    assert [each.name for each in found] == [layer + end for layer in layers for end in ("", ":2")]
    assert all(each.identity for each in found)
    assert {each.chain for each in found} == {0}


def test_torchvision_convnext_and_swin():
    setting = models.convnext.CNBlockConfig
    model = models.ConvNeXt([setting(8, 16, 2), setting(16, None, 1)], num_classes=5)
    found = sums_of(model, torch.randn(2, 3, 32, 32))
    assert [each.name for each in found] == ["features.1.0", "features.1.1", "features.3.0"]
    assert all(each.identity for each in found)
    model = models.SwinTransformer([4, 4], 8, [2, 2], [1, 2], [2, 2], num_classes=5)  # stochastic depth in training
    found = sums_of(model, torch.randn(2, 3, 32, 32))
    blocks = ["features.1.0", "features.1.1", "features.3.0", "features.3.1"]
    assert [each.name for each in found] == [block + end for block in blocks for end in ("", ":2")]
    assert all(each.identity for each in found)


def test_nets_without_residual_connections():
    dense = models.DenseNet(8, (2, 2), 8, num_classes=5)
    for model in (dense, models.vgg11(num_classes=5, init_weights=False).features, models.squeezenet1_1(num_classes=5)):
        assert not sums_of(model, torch.randn(2, 3, 32, 32))


def test_torch_transformer_encoder():
    for first in (False, True):
        layer = nn.TransformerEncoderLayer(16, 2, 32, norm_first=first, batch_first=True)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        found = sums_of(model, torch.randn(3, 5, 16))
        assert [each.name for each in found] == ["layers.0", "layers.0:2", "layers.1", "layers.1:2"]
        assert all(each.identity for each in found)


def test_timm():
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=5)
    found = sums_of(model, torch.randn(2, 3, 64, 64))
    assert [each.name for each in found] == [f"layer{i}.0" for i in (1, 2, 3, 4)]


# -- modules of a user


class Own(nn.Module):
    """A stem, and residual connections written in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.project = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        for conv in self.convs:
            f = conv(F.relu(x)) if self.way == "pre-activation" else F.relu(conv(x))
            if self.way in ("functional", "pre-activation"):
                x = x + f
            elif self.way == "reversed":
                x = f + x
            elif self.way == "in place":
                x += f
            elif self.way == "into the branch":
                x = f.add_(x)
            elif self.way == "weighted":
                x = torch.add(0.5 * x, f, alpha=2)
            elif self.way == "projected":
                x = self.project(x) + self.project(f)
            elif self.way == "relu behind":
                x = F.relu(x + f)
            elif self.way == "dropped":
                x = x + F.dropout(f, 0.5, self.training)
        return x


@pytest.mark.parametrize(
    ("way", "identity"),
    [
        ("functional", True),
        ("pre-activation", True),
        ("reversed", True),
        ("in place", True),
        ("into the branch", True),
        ("projected", False),
        ("relu behind", True),
        ("dropped", True),
    ],
)
def test_ways_of_writing_a_residual_connection(way, identity):
    torch.manual_seed(0)
    model, x = Own(way).double(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    found = sums_of(model, x)
    assert [each.name for each in found] == ["", ":2", ":3"]
    assert [each.identity for each in found] == [identity] * 3
    assert {each.chain for each in found} == ({0} if identity else {0, 1, 2})
    # the numbers, by the definition of the net
    with torch.no_grad():
        trunk = model.stem(x)
        for each, conv in zip(found, model.convs, strict=True):
            branch = conv(trunk.relu()) if way == "pre-activation" else conv(trunk).relu()
            if not identity:
                trunk, branch = model.project(trunk), model.project(branch)
            assert each.trunk_power == pytest.approx(float(trunk.square().mean()), rel=1e-12)
            assert each.branch_power == pytest.approx(float(branch.square().mean()), rel=1e-12)
            trunk = (trunk + branch).relu() if way == "relu behind" else trunk + branch
            assert each.power == pytest.approx(float(trunk.square().mean()), rel=1e-12)


def test_the_weight_of_an_addition_counts():
    """``torch.add(0.5 x, f, alpha=2)``: the factor of the addition is the branch's, that before it another map."""
    model, x = Own("weighted").double(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    found = sums_of(model, x)
    with torch.no_grad():
        trunk = model.stem(x)
        branch = 2 * model.convs[0](trunk).relu()
    assert found[0].trunk_power == pytest.approx(float((0.5 * trunk).square().mean()), rel=1e-12)
    assert found[0].branch_power == pytest.approx(float(branch.square().mean()), rel=1e-12)
    assert found[0].power == pytest.approx(float((0.5 * trunk + branch).square().mean()), rel=1e-12)


@pytest.mark.parametrize("scheme", ["none", "nf"])
def test_the_sum_before_a_projection_is_read_as_its_block_returns_it(scheme):
    """``rescale_r3d_10`` has a projection in each block but one: ``none`` has a ReLU in it, ``nf`` one in the next."""
    model = narrow("replicate", scheme=scheme).double()
    if scheme == "nf":
        for name, parameter in model.named_parameters():
            if name.endswith("multiplier"):
                parameter.data.fill_(1.0)
    x = samples("replicate", 2, 32, dtype=torch.float64)
    outputs = {}
    for name, module in model.named_modules():
        if isinstance(module, TrunkBlock):
            module.register_forward_hook(lambda m, args, out, name=name: outputs.update({name: out.square().mean()}))
    with torch.no_grad():
        model.eval()(x)
    expected = {name: float(power) for name, power in outputs.items()}
    found = sums_of(model, x)
    assert [each.identity for each in found] == [True, False, False, False]
    assert {each.name: each.power for each in found} == pytest.approx(expected, rel=1e-12)


class NotResidual(nn.Module):
    """Additions that join no trunk and branch."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.position = nn.Parameter(torch.randn(6))

    def forward(self, x):
        if self.kind == "parallel":  # two branches of one depth
            return self.first(x) + self.second(x)
        if self.kind == "parallel behind a stem":
            x = self.first(x).relu()
            return self.first(x) + self.second(x)
        if self.kind == "embedding":
            return self.first(x) + self.position.expand(len(x), -1)
        if self.kind == "number":
            return self.second(self.first(x) + 1.0)
        if self.kind == "random":
            return self.first(x) + torch.randn_like(x)
        return self.first(x) + torch.zeros(len(x), 6)


@pytest.mark.parametrize("kind", ["parallel", "parallel behind a stem", "embedding", "number", "random", "zeros"])
def test_additions_that_are_no_residual_connections(kind):
    assert not sums_of(NotResidual(kind), torch.randn(3, 6))


class Nested(nn.Module):
    """A block in a block: both shortcuts are found, with the names of their own modules."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.outer = nn.Linear(6, 6)
        self.stem = nn.Linear(6, 6)

    def forward(self, x):
        x = self.stem(x)
        h = self.outer(x)
        h = h + self.inner(h.relu())
        return x + h


def test_a_block_in_a_block():
    model, x = Nested().double(), torch.randn(9, 6, dtype=torch.float64)
    inner, outer = sums_of(model, x)
    with torch.no_grad():
        trunk = model.stem(x)
        h = model.outer(trunk)
        branch = model.inner(h.relu())
    assert inner.identity
    assert outer.identity
    assert inner.trunk_power == pytest.approx(float(h.square().mean()), rel=1e-12)
    assert outer.trunk_power == pytest.approx(float(trunk.square().mean()), rel=1e-12)
    assert outer.branch_power == pytest.approx(float((h + branch).square().mean()), rel=1e-12)


def test_compiled_nets():
    """A compiled net is looked into: the forward that is recorded is that of the module inside."""
    model = narrow("cifar", width=0.25)
    x = samples("cifar", 2, 32)
    found = sums_of(torch.compile(model), x)
    assert [(each.name, each.power) for each in found] == [(each.name, each.power) for each in sums_of(model, x)]
    parallel = sums_of(nn.DataParallel(model, device_ids=[]), x)
    assert [each.name for each in parallel] == [each.name for each in found]
