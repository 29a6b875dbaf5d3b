"""Residual connections are found in the nets of the zoo, of torchvision, and in modules of a user's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import models, ops

import zoo
from tasks.diagnose.flow import Flow
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


# -- channels


class SqueezeExcitation(nn.Module):
    """A gate for each channel by linear layers, as most code of these nets has it."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.down, self.up = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x):
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class GatedBlock(nn.Module):
    """A residual block whose branch ends in a gate."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.gate = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), SqueezeExcitation(16, 4)
        self.last = nn.BatchNorm2d(16)

    def forward(self, x):
        return self.last(F.relu(x + self.gate(self.norm(self.conv(x)))))


def correlation(x, y):
    """Correlation around the means of the channels, which dimension 1 has."""
    x, y = (z.double() - z.double().mean((0, 2, 3), keepdim=True) for z in (x, y))
    return float((x * y).sum() / (x.norm() * y.norm()))


def test_channels_behind_a_gate_of_linear_layers():
    """The last product before the sum is linear, but its channels are those of the convolution."""
    model, x = nn.Sequential(nn.Conv2d(3, 16, 3), GatedBlock()).double(), torch.randn(4, 3, 14, 10, dtype=torch.float64)
    found = diagnose(model, [x, torch.randn(4, 3, 8, 8, dtype=torch.float64)])
    assert [(unit.name, unit.channels) for unit in found.activations] == [("1.gate", 4), ("1", 16)]
    assert {layer.name: layer.channels for layer in found.layers} == {
        "0": 16,
        "1.conv": 16,
        "1.norm": 16,
        "1.gate.down": 4,
        "1.gate.up": 16,
        "1.last": 16,
    }
    found = diagnose(model, [x])
    with torch.no_grad():
        model.train()
        trunk = model[0](x)
        branch = model[1].gate(model[1].norm(model[1].conv(trunk)))
    assert found.sums[0].correlation == pytest.approx(correlation(trunk, branch), rel=1e-9)
    before = (trunk + branch).movedim(1, 0).flatten(1)
    unit = found.activations[1]
    assert (unit.positive, unit.negative) == (int((before > 0).all(1).sum()), int((before <= 0).all(1).sum()))


def test_channels_of_a_net_that_permutes_them():
    """ConvNeXt: linear layers on (N, H, W, C), in a trunk (N, C, H, W), where its LayerNorm is too."""
    setting = models.convnext.CNBlockConfig
    model = models.ConvNeXt([setting(16, 32, 1), setting(32, None, 1)], layer_scale=1.0, num_classes=5).double().eval()
    x, seen = torch.randn(2, 3, 96, 64, dtype=torch.float64), {}
    block = model.features[1][0]
    handle = block.register_forward_hook(lambda module, arguments, output: seen.update(x=arguments[0], y=output))
    with torch.no_grad():
        model(x)
    handle.remove()
    found = diagnose(model, [x, torch.randn(2, 3, 64, 64, dtype=torch.float64)])
    channels = {layer.name: layer.channels for layer in found.layers}
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert channels[name] == module.normalized_shape[0], name
        elif isinstance(module, nn.Linear):
            assert channels[name] == module.out_features, name
    assert [unit.channels for unit in found.activations] == [64, 128]
    found = diagnose(model, [x])
    assert found.sums[0].correlation == pytest.approx(correlation(seen["x"], seen["y"] - seen["x"]), rel=1e-9)


class Deformable(nn.Module):
    """A convolution of another library, a norm and a ReLU."""

    def __init__(self):
        super().__init__()
        self.offsets, self.conv = nn.Conv2d(3, 18, 3, padding=1), ops.DeformConv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x, self.offsets(x))))


def test_channels_of_a_convolution_of_another_library():
    found = diagnose(Deformable(), [torch.randn(4, 3, 16, 12)])
    assert [(layer.name, layer.channels) for layer in found.layers] == [("offsets", 18), ("conv", 8), ("norm", 8)]
    assert [unit.channels for unit in found.activations] == [8]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [5, 1])
def test_the_dimension_of_channels_is_followed_through_views_and_copies(layout, channels):
    x, weight = torch.randn(2, 3, 4, 6).to(memory_format=layout), torch.randn(channels, 3, 1, 1)
    flow = Flow([weight])

    class Follow(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            flow.record(func.overloadpacket, (args, kwargs or {}), result)
            return result

    with Follow():
        y = F.conv2d(x, weight)
        last = y.permute(0, 2, 3, 1)
        cases = [(y, 1), (last, 3), (last.contiguous() * 2, 3), (y.flatten(2), 1), (y.mean((2, 3), keepdim=True), 1)]
        cases += [(F.max_pool2d(y, 2), 1), (torch.cat([y, y], 1), 1), (y.roll(1, 2).tanh(), 1)]
        cases += [(y.flatten(2).transpose(1, 2), 2), (last.reshape(2, 24, channels), 2), (last[:, 1:, ::2], 3)]
        cases += [(F.layer_norm(last, (channels,)).permute(0, 3, 1, 2).relu(), 1)]
        for number, (result, dim) in enumerate(cases):
            assert flow.dimension(result) == dim, number
        assert flow.dimension(x) is None
        # where it cannot be told, and where no samples are
        assert flow.dimension(y.movedim(1, 0)) is None
        assert flow.dimension(y.reshape(2, -1, 2)) is None
        assert flow.dimension(y[:0]) is None


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
