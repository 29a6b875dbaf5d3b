"""Fixup, SkipInit, NF-ResNets and the rescaled sum: the papers' values at init, signatures, and timm's NF-ResNet."""

import itertools
import math

import pytest
import timm
import torch
from torch import nn

import zoo
from tests.helpers.nets import BASELINES, narrow, samples, wake_
from zoo.baseline_layers import RELU_GAIN
from zoo.registry import build_model


def blocks(model):
    return [block for stage in model.stages() for block in stage]


def spread(weight):
    return weight.detach().std(correction=0).item()


def power(x):
    return x.square().mean().item()


def relative_spread(pairs):
    """Root of the mean of (std / expected std)^2 over weights, weighted by their sizes."""
    pairs = list(pairs)
    total = sum(weight.numel() for weight, _ in pairs)
    return math.sqrt(sum(weight.numel() * (spread(weight) / std) ** 2 for weight, std in pairs) / total)


def trunk(model, x):
    """The trunk before the first block and after every block of the first stage, without borders: maps are tori."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
    found = [model.pools[0](model.stem(x))]
    for block in model.layer1:
        found.append(block(found[-1]))
    return found


# -- Fixup and SkipInit ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "exponent", "count"),
    [("rescalenet34", -1 / 2, 16), ("rescalenet50", -1 / 4, 16), ("rescale_r2plus1d_18", -1 / 6, 8)],
)
def test_fixup_at_init(name, exponent, count):
    """Rules 1 to 3 of section 3 of the paper, for m = 2, 3 and 4 layers in a branch."""
    model = zoo.create_model(name, scheme="fixup", width=0.25, num_classes=5)
    assert len(blocks(model)) == count
    inner = []
    for block in blocks(model):
        *others, last = block.branch_layers()
        assert not last.weight.any()
        assert block.join.multiplier.item() == 1
        inner += others
    he = [math.sqrt(2 / (conv.weight.numel() // conv.weight.shape[1])) for conv in inner]  # of the fan-out
    ratio = relative_spread((conv.weight, std) for conv, std in zip(inner, he, strict=True))
    assert ratio == pytest.approx(count**exponent, rel=0.01)
    assert not model.fc.weight.any()
    assert not model.fc.bias.any()
    shortcut = blocks(model)[-1].downsample or model.stages()[-1][0].downsample
    assert spread(shortcut.conv.weight) == pytest.approx(math.sqrt(2 / shortcut.conv.out_channels), rel=0.1)
    assert shortcut.conv.stride[-1] == 2  # a strided 1x1, as in the authors' code
    # a bias before and one after each convolution of a branch and of the stem, but none on the image; one before each
    # projection and one before the last layer
    scalars = {name: p for name, p in model.named_parameters() if p.ndim == 0 and "multiplier" not in name}
    assert all(p.item() == 0 for p in scalars.values())
    convolutions = sum(len(block.branch_layers()) for block in blocks(model)) + model.stem.depth
    projections = sum(block.downsample is not None for block in blocks(model))
    assert len(scalars) == 2 * convolutions - 1 + projections + 1
    assert [n for n, p in model.named_parameters() if p.ndim == 1] == ["fc.bias"]


def test_fixup_computes_what_the_authors_code_does():
    """Stem, bottlenecks with and without a projection, and the last layer, with all scalars away from their init."""
    model = narrow("bottleneck", scheme="fixup").double().eval()
    wake_(model)

    def conv(layer, y):
        return nn.functional.conv2d(y, layer.weight, None, layer.stride, layer.padding)

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.normal_()
        image = samples("bottleneck", 2, 33, dtype=torch.float64)
        x = (conv(model.stem.conv1, image) + model.stem.conv1.bias).relu()
        torch.testing.assert_close(model.stem(image), x, rtol=1e-12, atol=1e-12)
        for block in blocks(model)[:5]:
            y = x
            for layer in block.branch_layers():
                y = conv(layer, y + layer.pre_bias)
                y = (y + layer.bias).relu() if layer is not block.conv3 else y * block.join.multiplier + layer.bias
            shortcut = x
            if block.downsample is not None:
                shortcut = conv(block.downsample.conv, x + block.downsample.conv.pre_bias)
            expected = (shortcut + y).relu()
            torch.testing.assert_close(block(x), expected, rtol=1e-11, atol=1e-11)
            x = expected
        features = torch.randn(2, model.num_features, dtype=torch.float64)
        expected = (features + model.fc.pre_bias) @ model.fc.weight.T + model.fc.bias
        torch.testing.assert_close(model.fc(features), expected, rtol=1e-12, atol=1e-12)


def test_fixup_has_its_own_rates():
    """The authors train multipliers and biases at a tenth of the rate, without decay."""
    model = narrow("bottleneck", scheme="fixup")
    groups = {g["group"]: g for g in zoo.param_groups(model, 0.1, multiplier_lr=0.1, bias_lr=0.2)}
    assert {k: (g["weight_decay"], g["lr_scale"]) for k, g in groups.items()} == {
        "weights": (0.1, 1.0),
        "others": (0.0, 1.0),
        "scalar_biases": (0.0, 0.2),
        "multipliers": (0.0, 0.1),
    }
    assert groups["others"]["names"] == ["fc.bias"]
    assert len(groups["multipliers"]["params"]) == 16
    assert {"layer1.0.conv1.pre_bias", "layer1.0.conv1.bias", "fc.pre_bias"} <= set(groups["scalar_biases"]["names"])
    with pytest.raises(zoo.ZooError, match="option post_bias=True: must be False with scheme 'fixup'"):
        narrow("bottleneck", scheme="fixup", post_bias=True)


@pytest.mark.parametrize("kind", ["cifar", "bottleneck", "r2plus1d"])
@pytest.mark.parametrize("scheme", ["fixup", "skipinit"])
def test_they_start_as_their_trunk(kind, scheme):
    """Every block is its shortcut, and the identity where that is the identity."""
    model = narrow(kind, scheme=scheme).double().eval()
    x = model.pools[0](model.stem(samples(kind, 2, 32, dtype=torch.float64)))
    with torch.no_grad():
        for block in blocks(model)[:3]:
            shortcut = x if block.downsample is None else block.downsample(x, block.join).relu()
            assert torch.equal(block(x), shortcut)
            x = shortcut


def test_skipinit_at_init():
    """Multipliers of 0, ordinary biases of 0 in every convolution, He's standard deviation in every layer."""
    model = zoo.create_model("rescalenet50", scheme="skipinit", width=0.25, num_classes=5)
    assert [row["m"] for row in zoo.branch_statistics(model)] == [0.0] * 16
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert not any(conv.bias.any() for conv in convs)
    ratio = relative_spread((conv.weight, math.sqrt(2 / conv.weight[0].numel())) for conv in convs)
    assert ratio == pytest.approx(1.0, rel=0.01)
    assert len(convs) == 1 + 16 * 3 + 4
    names = {g["group"]: g["names"] for g in zoo.param_groups(model, 0.1)}
    assert names["multipliers"] == [
        f"layer{s}.{i}.join.multiplier" for s, n in enumerate((3, 4, 6, 3), 1) for i in range(n)
    ]


# -- NF-ResNets -----------------------------------------------------------------------------------------


def from_timm(theirs):
    """The state of our net from a state of timm's.

    timm multiplies the gain of ReLU, a rounded number, into all convolutions, the stem's too.
    """
    timm_gain = timm.models.nfnet._nonlin_gamma["relu"]
    state = {}
    for key, value in theirs.items():
        for old, new in (("stem.conv.", "stem.conv1."), ("head.fc.", "fc."), ("skipinit_gain", "join.multiplier")):
            key = key.replace(old, new)
        if key.startswith("stages."):
            _, stage, rest = key.split(".", 2)
            key = f"layer{int(stage) + 1}.{rest}"
        if key.endswith(".gain"):
            value = value.flatten() * (timm_gain if key.startswith("stem") else timm_gain / RELU_GAIN)
        state[key] = value
    return state


@pytest.mark.parametrize(
    ("name", "width", "options"),
    [
        pytest.param("nf_resnet50", 1.0, {}, marks=pytest.mark.slow),
        ("nf_resnet50", 0.25, {}),
        ("nf_resnet26", 0.25, {"skipinit": True}),
        ("nf_resnet26", 0.25, {"alpha": 0.7}),
    ],
)
def test_nf_is_timms(name, width, options):
    """Logits, feature maps, gradients of the input and of the weights, in float64, from copied weights."""
    theirs = timm.create_model(name, num_classes=7, width_factor=width, **options).double().eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if key.endswith(("gain", "bias")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    own = {"shortcut": "avgpool", "skipinit": False}  # timm's
    own |= {"nf_" + k if k == "alpha" else k: v for k, v in options.items()}
    ours = zoo.create_model(name.replace("nf_resnet", "rescalenet"), scheme="nf", num_classes=7, width=width, **own)
    ours.double().eval().load_state_dict(from_timm(theirs.state_dict()))
    x = torch.randn(1, 3, 49, 49, dtype=torch.float64, requires_grad=True)
    # logits and gradients
    logits = [net(x) for net in (ours, theirs)]
    torch.testing.assert_close(*logits, rtol=1e-10, atol=1e-10 * logits[1].abs().max().item())
    weights = [
        (ours.layer2[1].conv2.weight, theirs.stages[1][1].conv2.weight),
        (ours.layer3[0].downsample.conv.weight, theirs.stages[2][0].downsample.conv.weight),
        (ours.layer1[0].conv1.bias, theirs.stages[0][0].conv1.bias),
        (ours.fc.weight, theirs.head.fc.weight),
    ]
    gradients = [
        torch.autograd.grad(y.square().sum(), [x, *w]) for y, w in zip(logits, zip(*weights, strict=True), strict=True)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * b.abs().max().item())
    # maps of the trunk, and the last one activated
    with torch.no_grad():
        final, maps = theirs.forward_intermediates(x)
        for a, b in zip(ours.forward_levels(x), maps, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * b.abs().max().item())
        pooled = ours.forward_head(ours.forward_features(x), pre_logits=True)
        torch.testing.assert_close(pooled, theirs.forward_head(theirs.forward_features(x), pre_logits=True))
        assert (final.mean((2, 3)) - pooled).abs().max() < 1e-9 * pooled.abs().max()
        folded = zoo.fold(ours)(x)
        torch.testing.assert_close(folded, logits[1], rtol=1e-9, atol=1e-9 * folded.abs().max().item())


def test_nf_at_init():
    """Gains of 1, biases of 0, beta from the expected variance: 1 + n alpha^2 for n branches since a projection."""
    model = zoo.create_model("rescalenet50", scheme="nf", width=0.25, num_classes=5, nf_alpha=0.5, skipinit=False)
    added = [0, 1, 2, 3, 1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 1, 2]  # 3, 4, 6 and 3 blocks, a projection in the first of each
    found = [1 / block.join.factor**2 for block in blocks(model)]
    assert found == pytest.approx([1 + n * 0.25 for n in added])
    cifar = narrow("cifar", scheme="nf")  # its first stage has no projection
    found = [1 / block.join.factor**2 for block in blocks(cifar)]
    assert found == pytest.approx([1 + n * 0.04 for n in (0, 1, 2, 3, 1, 2, 3, 1, 2)])
    for name, parameter in model.named_parameters():
        if name.endswith(".gain"):
            assert parameter.ndim == 1
            assert (parameter == 1).all()
        elif name.endswith(".bias"):
            assert not parameter.any()
    assert spread(model.fc.weight) == pytest.approx(0.01, rel=0.1)
    assert [row["m"] for row in zoo.branch_statistics(model)] == [None] * 16
    assert [row["m"] for row in zoo.branch_statistics(narrow("cifar", scheme="nf"))] == [0.0] * 9
    assert model.no_weight_decay() == {n for n, p in model.named_parameters() if p.ndim == 1}
    # the stem reads the image, all other convolutions what a ReLU made
    deep = zoo.create_model("rescalenet50", scheme="nf", width=0.25, stem="deep")
    factors = [m.factor for m in deep.modules() if hasattr(m, "factor") and isinstance(m, nn.Conv2d)]
    assert factors == [1.0] + [RELU_GAIN] * (len(factors) - 1)
    with pytest.raises(zoo.ZooError, match="option nf_alpha=0.0: must be > 0"):
        narrow("cifar", scheme="nf", nf_alpha=0.0)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_variance_of_nf_grows_as_expected(alpha):
    """Variance over images and positions, mean over channels, in a stage of 9 blocks of 96 channels."""
    model = zoo.create_model("rescalenet56_cifar", scheme="nf", width=6.0, nf_alpha=alpha, skipinit=False)
    with torch.no_grad():
        found = [x.var((0, 2, 3)).mean().item() for x in trunk(model, torch.randn(4, 3, 32, 32))]
    expected = [1 + n * alpha**2 for n in range(10)]
    assert [v / found[0] for v in found] == pytest.approx(expected, rel=0.12)


def test_the_variance_of_nf_begins_again_at_each_transition():
    """Over the whole net: at the end of each stage 1 + 3 alpha^2. An average before the projection would take it."""
    variances = {}
    for shortcut in (None, "avgpool"):
        options = {} if shortcut is None else {"shortcut": shortcut}
        model = zoo.create_model("rescalenet20_cifar", scheme="nf", width=4.0, skipinit=False, **options).eval()
        with torch.no_grad():
            maps = model.forward_levels(torch.randn(8, 3, 32, 32))
        variances[shortcut] = [x.var((0, 2, 3)).mean().item() for x in maps[1:]]
    assert variances[None] == pytest.approx([1.12] * 3, rel=0.25)
    assert variances["avgpool"][2] < 0.2


# -- the rescaled sum -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shortcut", ["identity", "scalar", "conv"])
def test_the_rescaled_sum_keeps_the_norm(shortcut):
    """Of activations and of gradients; a plain sum multiplies both by 2 in each block.

    The mean over the 9 blocks of a stage and six inits: in one of them a block moves the power by up to a third, as
    channel means are not removed.
    """
    forward, backward, means = [], [], []
    for _ in range(6):
        model = zoo.create_model("rescalenet56_cifar", scheme="sum_rescaled", width=4.0, sum_shortcut=shortcut)
        maps = trunk(model, torch.randn(4, 3, 16, 16))
        for before, after in itertools.pairwise(maps):
            (gradient,) = torch.autograd.grad(after, before, seed := torch.randn_like(after), retain_graph=True)
            forward.append(power(after) / power(before))
            backward.append(power(gradient) / power(seed))
        means.append(maps[-1].mean().item() / maps[-1].std().item())
    for found in (forward, backward):
        assert sum(found) / len(found) == pytest.approx(1.0, rel=0.1)
    assert abs(sum(means) / len(means)) < 0.2  # mean 0: the ReLU is in the branch


def test_the_rescaled_sum_at_init():
    counts = {}
    for shortcut in ("identity", "scalar", "conv"):
        model = zoo.create_model(
            "rescalenet50", scheme="sum_rescaled", width=0.25, sum_shortcut=shortcut, num_classes=5
        )
        assert {block.join.weight for block in blocks(model)} == {math.sqrt(0.5)}
        convs = [conv for block in blocks(model) for conv in block.branch_layers()]
        convs += [block.downsample.conv for block in blocks(model) if block.downsample is not None]
        ratio = relative_spread((conv.weight, math.sqrt(2 / conv.weight[0].numel())) for conv in convs)
        assert ratio == pytest.approx(1.0, rel=0.01)
        counts[shortcut] = sum(block.downsample is not None for block in blocks(model))
        assert [row["m"] for row in zoo.branch_statistics(model)] == [1.0 if shortcut == "scalar" else None] * 16
    assert counts == {"identity": 4, "scalar": 4, "conv": 16}
    # the numbers of parameters in the paper: 23.47 M with identity shortcuts, 38.02 M with convolutions, 10 classes
    for shortcut, millions in (("identity", 23.47), ("conv", 38.02)):
        with torch.device("meta"):
            model = zoo.create_model("rescalenet50", scheme="sum_rescaled", sum_shortcut=shortcut, num_classes=10)
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)
    with pytest.raises(zoo.ZooError, match="option sum_shortcut='none'"):
        zoo.create_model("rescalenet50", scheme="sum_rescaled", sum_shortcut="none")


# -- all of them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "options"),
    [*((s, {}) for s in BASELINES), ("nf", {"skipinit": False}), ("sum_rescaled", {"sum_shortcut": "scalar"})],
)
def test_a_few_steps_train_every_parameter(scheme, options):
    """What is 0 at init stops the gradients of what is behind it for a step or two; then the loss falls."""
    model = narrow("cifar", scheme=scheme, **options).train()
    groups = zoo.param_groups(model, 1e-4)
    optimizer = torch.optim.SGD(groups, lr=0.3, momentum=0.9)
    x, classes = samples("cifar", 16, 16), torch.arange(16) % 5
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(x), classes)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad.abs().max() > 0 for p in model.parameters())
    assert losses[-1] < losses[0] - 0.02


@pytest.mark.parametrize("scheme", BASELINES)
def test_checkpointing_changes_nothing(scheme):
    model = narrow("bottleneck", scheme=scheme).double().train()
    wake_(model)
    x = samples("bottleneck", 2, 32, dtype=torch.float64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("scheme", BASELINES)
def test_other_options_fold(scheme):
    """The deep stem, the other shortcut, dropout, biases after the products; the fold of a net without a head."""
    more = {} if scheme == "fixup" else {"post_bias": True}
    model = narrow(
        "bottleneck", scheme=scheme, stem="deep", shortcut="avgpool", drop_rate=0.3, branch_drop_rate=0.3, **more
    )
    model.double().eval()
    wake_(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter) * 0.3)
        x = samples("bottleneck", 2, 37, 50, dtype=torch.float64)
        for _ in range(2):
            expected = model(x)
            torch.testing.assert_close(
                zoo.fold(model)(x), expected, rtol=1e-10, atol=1e-10 * expected.abs().max().item()
            )
            model.reset_classifier(0, "")


def test_a_truncated_net_of_pre_activation_gives_the_trunk_and_its_new_head_an_activation():
    model = narrow("bottleneck", scheme="nf").eval()
    x = samples("bottleneck", 2, 32)
    with torch.no_grad():
        level = model.forward_levels(x)[2]
        model.truncate(2)
        assert torch.equal(model(x), level)
        assert level.min() < 0
        model.reset_classifier(3, "avg")
        torch.testing.assert_close(model(x), model.fc(level.relu().mean((2, 3))))


@pytest.mark.parametrize("scheme", ["fixup", "skipinit", "sum_rescaled"])
def test_nets_without_branches_do_not_have_them(scheme):
    assert scheme not in zoo.model_info("rescalevgg16").schemes
    with pytest.raises(zoo.ZooError, match=f"rescalevgg16 does not support scheme {scheme!r}; it does: rescale, "):
        build_model(zoo.ModelConfig("rescalevgg16", scheme, 5, 3, {}))
    assert zoo.model_info("rescalevgg16").scheme_options["nf"] == {"post_bias": True}
