"""Every registered net: shapes and counts on the meta device, one small forward; the full matrix on narrow nets."""

import copy

import pytest
import torch
import torchvision
from torch import nn

import zoo
from tests.helpers.nets import BASELINES, CLIPS, NARROW, VISION, narrow, pairs, samples, wake_
from zoo.nets.base import FeatureExtractor
from zoo.schemes.vision import SCHEMES

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
NORMS += (torchvision.ops.FrozenBatchNorm2d,)
# Parameters in millions with 1000 classes, as measured on the authors' code (two digits).
REFERENCE = {
    "rescalenet50": 25.53,
    "rescalenet101": 44.49,
    "rescalenet200": 64.58,
    "rescalenext50_32x4d": 24.99,
    "rescalenext101_32x8d": 88.69,
    "rescalevgg16": 138.36,
    "rescalevgg19": 143.67,
}


def untrained(name):
    """The schemes of a net that can be had without weights."""
    return [scheme for scheme in zoo.model_info(name).schemes if not SCHEMES[scheme].needs_weights]


def meta(name, **options):
    with torch.device("meta"):
        return zoo.create_model(name, **options)


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_all_names_are_there(expected):
    """With the schemes of each."""
    lines = [" ".join([name, *zoo.model_info(name).schemes]) for name in zoo.list_models()]
    expected("names.txt", "\n".join(lines) + "\n")


@pytest.mark.parametrize(("name", "millions"), REFERENCE.items())
def test_parameter_counts_of_the_reference(name, millions):
    assert round(count(meta(name)) / 1e6, 2) == millions


@pytest.mark.parametrize("name", VISION)
def test_every_scheme_on_the_meta_device(name):
    few = name in ("rescalenet50", "rescale_r2plus1d_18", "rescalevgg16")  # nets that all schemes are checked on
    for scheme in [scheme for scheme in untrained(name) if few or scheme not in BASELINES]:
        model = meta(name, scheme=scheme)
        assert all(p.ndim <= 1 for n, p in model.named_parameters() if n in model.no_weight_decay())
        assert all(p.ndim > 1 for n, p in model.named_parameters() if n not in model.no_weight_decay())
        assert any(isinstance(m, NORMS) for m in model.modules()) == (scheme in ("bn", "gn"))


def example(info, size, **settings):
    """One input of a net: an image, or a clip."""
    frames = () if info.frames is None else (3,)
    return torch.randn(1, 3, *frames, size, size, **settings)


@pytest.mark.parametrize("name", VISION)
def test_shapes_on_the_meta_device(name):
    model = meta(name)
    info = zoo.model_info(name)
    assert (info.frames is None) == (model.dims == 2)
    size = info.input_size + 1  # odd
    clip = () if info.frames is None else (info.frames + 1,)
    x = torch.empty(2, 3, *clip, size, size, device="meta")
    maps = model.forward_levels(x)
    assert model(x).shape == (2, info.num_classes)
    assert len(maps) == len(model.feature_info)
    for i, (level, made) in enumerate(zip(model.levels, maps, strict=True)):
        side, frames = size, clip
        for _ in range(level.reduction.bit_length() - 1):  # ResNets round up, VGG's max pools down
            side = side // 2 if info.family == "VGG" else -(-side // 2)
        for _ in range(level.frames.bit_length() - 1):
            frames = (-(-frames[0] // 2),)
        assert made.shape == (2, level.channels, *frames, side, side), i
    assert model.feature_info.frames() == [level.frames for level in model.levels]


@pytest.mark.parametrize("name", VISION)
def test_smallest_input(name):
    """One image or clip of the smallest size through a narrow copy of each net: finite outputs."""
    info = zoo.model_info(name)
    model = zoo.create_model(name, num_classes=3, width=0.0625).eval()
    with torch.no_grad():
        y = model(example(info, info.min_size))
    assert y.shape == (1, 3)
    assert y.isfinite().all()


TORCHVISION = {
    "rescalenet18": "resnet18",
    "rescalenet34": "resnet34",
    "rescalenet50": "resnet50",
    "rescalenet101": "resnet101",
    "rescalenet152": "resnet152",
    "rescale_wide_resnet50_2": "wide_resnet50_2",
    "rescale_wide_resnet101_2": "wide_resnet101_2",
    "rescalenext50_32x4d": "resnext50_32x4d",
    "rescalenext101_32x8d": "resnext101_32x8d",
    "rescalevgg16": "vgg16_bn",
    "rescalevgg19": "vgg19_bn",
}


@pytest.mark.parametrize(("ours", "theirs"), TORCHVISION.items())
def test_bn_has_the_tensors_of_torchvision(ours, theirs):
    with torch.device("meta"):
        rival = torchvision.models.get_model(theirs)
    extra = {"post_bias": True} if "vgg" in ours else {}
    mine = meta(ours, scheme="bn", **extra).state_dict()
    assert sorted(v.shape for v in mine.values()) == sorted(v.shape for v in rival.state_dict().values())


@pytest.mark.parametrize("theirs", ["resnet18", "resnext50_32x4d", pytest.param("vgg16_bn", marks=pytest.mark.slow)])
def test_bn_equals_torchvision(theirs):
    """Same outputs as torchvision's net with its own random weights and statistics."""
    ours = {v: k for k, v in TORCHVISION.items()}[theirs]
    rival = torchvision.models.get_model(theirs, num_classes=4).eval()
    options = {"post_bias": True} if "vgg" in ours else {}
    model = zoo.create_model(ours, scheme="bn", num_classes=4, **options).eval()
    # both register their tensors in the order of the forward, except that a block's shortcut comes last in both
    ordered = list(rival.state_dict().values())
    model.load_state_dict(dict(zip(model.state_dict(), ordered, strict=True)))
    for module in [*rival.modules(), *model.modules()]:
        if isinstance(module, nn.BatchNorm2d):
            torch.manual_seed(module.num_features)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), rival(x), rtol=1e-4, atol=1e-5)


# -- the full matrix on narrow nets -----------------------------------------------------------------


matrix = pytest.mark.parametrize(
    ("kind", "scheme"), [pair for kind, (name, _) in NARROW.items() for pair in pairs(kind, untrained(name))]
)


@matrix
def test_forward_and_a_gradient_in_every_parameter(kind, scheme):
    model = narrow(kind, scheme=scheme).train()
    x = samples(kind, 4, 64)
    zoo.calibrate(model, [x])
    wake_(model)
    model.train()
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@matrix
def test_odd_sizes_and_single_images(kind, scheme):
    model = narrow(kind, scheme=scheme).eval()
    with torch.no_grad():
        for height, width in [(33, 47), (65, 32), (101, 99)]:
            assert model(samples(kind, 1, height, width)).isfinite().all()


@matrix
def test_features(kind, scheme):
    name, options = NARROW[kind]
    levels = len(narrow(kind).feature_info)
    full = narrow(kind, scheme=scheme).eval()
    x = samples(kind, 2, 67, 45)
    with torch.no_grad():
        expected = full.forward_levels(x)
        for indices in [tuple(range(levels)), (1, levels - 1), (0,), (levels - 2,)]:
            model = zoo.create_model(
                name, scheme=scheme, features_only=True, out_indices=indices, num_classes=5, **options
            ).eval()
            assert isinstance(model, FeatureExtractor)
            own = full.state_dict()
            model.body.load_state_dict({k: own[k] for k in model.body.state_dict()})
            maps = model(x)
            assert [m.shape[1] for m in maps] == model.feature_info.channels()
            assert all(torch.equal(m, expected[i]) for m, i in zip(maps, indices, strict=True))
            # nothing is left that the maps do not need
            for parameter in model.parameters():
                parameter.grad = None
            with torch.enable_grad():
                sum(m.square().sum() for m in model(x)).backward()
            assert all(p.grad is not None for p in model.parameters())


@matrix
def test_save_and_load(kind, scheme, tmp_path):
    model = narrow(kind, scheme=scheme).eval()
    grey = (0.5,) * 3
    clips = zoo.VideoTransform(5, 1.0, None, 64, 72, grey, grey)
    transform = clips if kind in CLIPS else zoo.InputTransform(64, 72, grey, grey)
    path = tmp_path / "w.safetensors"
    zoo.save_weights(model, path, transform=transform, classes=list("abcde"), meta={"licence": "none"})
    name, _ = NARROW[kind]
    again = zoo.create_model(name, str(path)).eval()
    x = samples(kind, 2, 64)
    assert torch.equal(model(x), again(x))
    entry = zoo.get_weights(str(path))
    assert entry.classes == tuple("abcde")
    assert entry.meta == {"licence": "none"}
    assert entry.transform == transform


@matrix
def test_classifier_reset(kind, scheme):
    model = narrow(kind, scheme=scheme).eval()
    x = samples(kind, 2, 64)
    model.reset_classifier(11)
    assert model(x).shape == (2, 11)
    assert model.num_classes == 11
    pre = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(0)
    assert torch.equal(model(x), pre)
    assert pre.shape == (2, model.head_hidden_size)
    model.double().reset_classifier(3)
    assert model(x.double()).dtype == torch.float64


# an export takes long: every family, and every scheme of one
exported = pytest.mark.parametrize(
    ("kind", "scheme"),
    [
        pair if "rescale" in pair or "cifar" in pair else pytest.param(*pair, marks=pytest.mark.slow)
        for kind, (name, _) in NARROW.items()
        for pair in pairs(kind, untrained(name))
    ],
)


@exported
def test_torch_export(kind, scheme):
    model = narrow(kind, scheme=scheme).eval()
    x = samples(kind, 2, 64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    y = samples(kind, 3, 64)
    torch.testing.assert_close(program.module()(y), model(y), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bottleneck", "vgg"])
def test_compiles_to_one_graph(kind):
    torch.compiler.reset()  # dynamo compiles one function only so often
    model = narrow(kind)
    compiled = torch.compile(model, fullgraph=True)
    x = samples(kind, 2, 64)
    model.train()
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    model.eval()
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", NARROW)
def test_images_do_not_depend_on_their_batch_mates(kind):
    """Also in training mode. float64: what is left is the rounding of different blockings of the products."""
    model = narrow(kind).double().train()
    x = samples(kind, 6, 48, dtype=torch.float64)
    zoo.calibrate(model, [x])
    model.train()
    together = model(x)
    alone = torch.cat([model(image[None]) for image in x])
    mixed = model(torch.cat([x[:1], 100 * torch.randn_like(x)]))[:1]
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(together[:1], mixed, rtol=1e-11, atol=1e-12)
    bn = narrow(kind, scheme="bn").double().train()
    assert (bn(x) - torch.cat([bn(x[:3]), bn(x[3:])])).abs().max() > 1e-3  # the check can fail


@pytest.mark.parametrize("kind", NARROW)
def test_autocast_and_half_precision(kind):
    model = narrow(kind).eval()
    x = samples(kind, 2, 64)
    zoo.calibrate(model, [x])
    with torch.no_grad():
        exact = model.forward_features(x)
        with torch.autocast("cpu", torch.bfloat16):
            maps = model.forward_levels(x)
        assert all(m.dtype == torch.bfloat16 for m in maps)
        # bf16 keeps 8 bits: 0.4 % a product, over up to 50 products in a row
        assert (maps[-1].float() - exact).norm() <= 0.1 * exact.norm()
        assert model.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", NARROW)
def test_deepcopy_keeps_what_calibration_knows(kind):
    model = narrow(kind)
    zoo.calibrate(model, [samples(kind, 2, 32)])
    assert not zoo.calibrate(copy.deepcopy(model), [samples(kind, 2, 32)]).calibrated


@pytest.mark.parametrize(
    "options",
    [
        {"post_bias": True},
        {"shortcut": "conv"},
        {"shortcut": "avgpool", "scheme": "bn"},
        {"stem": "deep"},
        {"stem": "cifar"},
        {"stride_in_1x1": True},
        {"multiplier": False},
        {"c": 4},
        {"first_index": 0},
        {"drop_rate": 0.3, "branch_drop_rate": 0.03},
        {"in_chans": 1},
    ],
)
def test_options(options):
    model = narrow("bottleneck", **options)
    chans = options.get("in_chans", 3)
    x = torch.randn(2, chans, 45, 45)
    assert not zoo.calibrate(model, [x]).unreached
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    plain = narrow("bottleneck")
    if not options.keys() <= {"multiplier", "c", "first_index", "drop_rate", "branch_drop_rate"}:
        first = [tuple(m.weight.shape) + tuple(m.stride) + (m.bias is None,) for m in _convs(plain)]
        second = [tuple(m.weight.shape) + tuple(m.stride) + (m.bias is None,) for m in _convs(model)]
        assert first != second


def _convs(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


def test_stride_in_1x1_moves_the_stride():
    model = narrow("bottleneck", stride_in_1x1=True)
    assert model.layer2[0].conv1.stride == (2, 2)
    assert model.layer2[0].conv2.stride == (1, 1)


def test_param_groups():
    model = narrow("bottleneck")
    groups = zoo.param_groups(model, 0.1, multiplier_lr=0.2, bias_lr=0.5)
    assert [(g["group"], g["weight_decay"], g["lr_scale"]) for g in groups] == [
        ("weights", 0.1, 1.0),
        ("others", 0.0, 1.0),
        ("data_biases", 0.0, 0.5),
        ("multipliers", 0.0, 0.2),
    ]
    names = [n for g in groups for n in g["names"]]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())
    assert groups[1]["names"] == ["fc.bias"]
    assert len(groups[2]["params"]) == 1 + 16 * 3 + 4 + 1  # stem, branches, projections, head
    assert len(groups[3]["params"]) == 16
    assert {p.ndim for p in groups[0]["params"]} == {2, 4}
    assert len(zoo.param_groups(narrow("bottleneck", scheme="bn"), 0.1)) == 2
    for parameter in model.stem.parameters():
        parameter.requires_grad_(False)
    assert not [n for g in zoo.param_groups(model, 0.1) for n in g["names"] if n.startswith("stem")]
