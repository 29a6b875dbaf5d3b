"""The trunk's scale: its numbers, and hooks on every module against nets written from the formulas."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from tests.helpers.nets import CLIPS, NARROW, VISION, narrow, samples
from zoo.folding import fold
from zoo.joins import RescaledJoin
from zoo.layers import FeatureBias
from zoo.method import coefficients
from zoo.products import pooled
from zoo.schemes.base import Place
from zoo.schemes.vision import VisionRescale
from zoo.text import EOS, PAD
from zoo.trunk import PlannedBlock, TrunkScales

RESIDUAL = [kind for kind in NARROW if kind != "vgg"]
TINY = {"dim": 32, "hidden": 48, "heads": 4, "encoder_layers": 2, "decoder_layers": 3, "drop_rate": 0.1}
TINY |= {"source_vocabulary": 40, "target_vocabulary": 40}

# -- the numbers ----------------------------------------------------------------------------------------


def plan(count, c, projected=()):
    return [PlannedBlock(f"b{k}", coefficients(k, c)[0], k in projected) for k in range(1, count + 1)]


@pytest.mark.parametrize("c", [1.0, 2.0, 7.5])
def test_scales_are_the_products_of_the_alphas(c):
    """prod alpha_j for j = k+1..L telescopes to sqrt((k + c) / (L + c))."""
    rows = TrunkScales.ending_at_one(plan(5, c)).rows
    assert [row.scale_in for row in rows] == pytest.approx([math.sqrt((k + c) / (5 + c)) for k in range(5)])
    rows = TrunkScales.beginning_at_one(plan(5, c)).rows
    assert [row.scale_out for row in rows] == pytest.approx([math.sqrt((k + c) / c) for k in range(1, 6)])
    for scales in (TrunkScales.ending_at_one(plan(5, c)), TrunkScales.beginning_at_one(plan(5, c))):
        assert all(row.alpha * row.scale_out == pytest.approx(row.scale_in, rel=1e-15) for row in scales.rows)


def test_a_projection_begins_at_one():
    rows = TrunkScales.ending_at_one(plan(3, 3.0, projected=(2,))).rows
    assert rows[1].scale_in == rows[0].scale_out == rows[2].scale_out == 1
    assert rows[0].scale_in == pytest.approx(math.sqrt(3 / 4))


def test_the_table_of_a_net():
    lines = str(narrow("basic").trunk_scales).split("\n")
    assert lines[0].split() == ["module", "alpha", "scale", "in", "scale", "out"]
    assert [line.split()[0] for line in lines[1:6]] == ["stem", "to_features.0", "pools.0", "layer1.0", "layer1.1"]
    assert lines[5].split()[1:] == ["0.9487", "0.9487", "1.0000"]  # k = 2, L = c = 8: sqrt(9/10)
    assert str(narrow("vgg").trunk_scales) == "module  alpha  scale in  scale out"


@pytest.mark.parametrize("name", VISION + zoo.list_models(input_kind="text"))
@pytest.mark.parametrize("c", [None, 1.0])
def test_identity_shortcuts_are_added_as_they_are(name, c):
    """In every net and at any c autograd multiplies no gradient by alpha, and stages end at the published scale."""
    with torch.device("meta"):
        options = {"c", "encoder_c", "decoder_c"} & zoo.model_info(name).scheme_options["rescale"].keys()
        model = zoo.create_model(name, **dict.fromkeys(options, c))
    joins = {n: m for n, m in model.named_modules() if isinstance(m, RescaledJoin)}
    assert bool(joins) is model.residual
    for path, join in joins.items():
        block = model.get_submodule(path.removesuffix(".join"))
        assert join.shortcut_weight == 1.0 or block.downsample is not None
    if isinstance(model, zoo.Backbone) and joins:
        assert all(level.scale == 1 for level in model.to_features[1:])


def test_a_weight_that_no_scale_takes_up_is_refused():
    """k = 0 and c = 1 give alpha = 0."""
    with pytest.raises(zoo.ZooError, match=r"layer1.0: the trunk's weight alpha=0.0 must be > 0; choose another c"):
        narrow("basic", c=1.0, first_index=0)


def test_layers_without_scales_are_refused():
    """A rescaled trunk in a net of plain layers would compute something else without a word."""

    class Mixed(VisionRescale):
        def _make_conv(self, *args):
            return zoo.schemes.VisionScheme()._make_conv(*args)

    with pytest.raises(
        zoo.ZooError, match=r"Conv2d has no input_scale; a trunk at scale 0.894 requires one in each layer"
    ):
        type(narrow("basic"))(narrow_layout(), Mixed(), 2, 3)


def narrow_layout():
    import dataclasses

    from zoo.registry import get_spec

    return dataclasses.replace(get_spec("rescalenet18").layout, width=0.1)


def test_scales_follow_a_copy_and_a_shorter_net():
    model = narrow("basic")
    assert copy.deepcopy(model).trunk_scales == model.trunk_scales
    model.truncate(2)
    assert {row.module.split(".")[0] for row in model.trunk_scales.rows} == {
        *("stem", "to_features", "pools", "layer1", "layer2")
    }
    bn = narrow("basic", scheme="bn").trunk_scales
    assert all(row.alpha == row.scale_in == row.scale_out == 1 for row in bn.rows)


def test_unscaled_gives_the_plain_formulas():
    model = moved(narrow("bottleneck"))
    x = samples("bottleneck", 1, 40, dtype=torch.float64)
    expected = model(x)
    for scales in (model.trunk_scales.unscaled(), model.trunk_scales):
        scales.apply(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


# -- hooks against the formulas -------------------------------------------------------------------------


def moved(model):
    """The net in float64 with random biases and multipliers, in eval mode."""
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.normal_()
    return model


def seen_by_hooks(model, *inputs):
    """name -> the value that ``nominal`` makes of the output of each module that is called."""
    seen: dict[str, torch.Tensor] = {}
    ambiguous = []

    def watch(name):
        def hook(module, args, output):
            if name.endswith(".drop") and "." in name and isinstance(model, zoo.Backbone):
                ambiguous.append(name)
            else:
                seen[name] = model.nominal(name, output.clone())  # activations and joins work in place

        return hook

    handles = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if n]
    with torch.no_grad():
        if isinstance(model, zoo.Backbone):
            model.forward_head(model.forward_levels(*inputs)[-1])
        else:
            model(*inputs)
    for handle in handles:
        handle.remove()
    return seen, ambiguous


def conv(layer, x):
    """W pad(x + b) + post bias, from the parameters alone."""
    x = pooled(x, getattr(layer, "pool", ()))
    if (repeated := getattr(layer, "repeated", 0)) > 0:
        x = F.pad(x, (0, 0, 0, 0, repeated, repeated), mode="replicate")
    if (b := getattr(layer, "pre_bias", None)) is not None:
        x = x + b.view(-1, *[1] * (x.ndim - 2))
    function = F.conv2d if x.ndim == 4 else F.conv3d
    return function(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def written_out(model, x, c, first_index):
    """The values of the paper's formulas for a vision net, by the names of the modules that compute them."""
    values = {}

    def row(prefix, stack, x, count):
        for i in range(1, count + 1):
            values[f"{prefix}.conv{i}"] = values[f"{prefix}.norm{i}"] = x = conv(getattr(stack, f"conv{i}"), x)
            values[f"{prefix}.act{i}"] = x = x.relu()
        return x

    values["stem"] = values["to_features.0"] = x = row("stem", model.stem, x, model.stem.depth)
    k = first_index
    for number, pool in enumerate(model.pools, 1):
        values[f"pools.{number - 1}"] = x = pool(x)
        for i, block in enumerate(getattr(model, f"layer{number}")):
            name = f"layer{number}.{i}"
            alpha, beta = math.sqrt((k - 1 + c) / (k + c)), math.sqrt(1 / (k + c))
            m = beta
            if block.join.multiplier is not None:  # a scalar, or one per channel
                m = block.join.multiplier.view(-1, *[1] * (x.ndim - 2)) / math.sqrt(c)
            y = row(name, block, x, block.depth - 1)
            last = f"{name}.conv{block.depth}"
            values[last] = values[last.replace("conv", "norm")] = y = m * conv(block.branch_layers()[-1], y)
            if block.branch_end is not None:
                for module, _ in block.branch_end.named_modules(prefix=f"{name}.branch_end"):
                    values[module] = y
            shortcut = alpha * x
            if block.downsample is not None:
                values[f"{name}.downsample.pool"] = x
                shortcut = alpha * conv(block.downsample.conv, x)
                for module in ("downsample", "downsample.conv", "downsample.norm"):
                    values[f"{name}.{module}"] = shortcut
            values[f"{name}.join"] = shortcut + y
            values[f"{name}.act"] = values[name] = x = (shortcut + y).relu()
            k += 1
        values[f"layer{number}"] = values[f"to_features.{number}"] = x
    values["final_act"] = x
    values["head_bias"] = values["drop"] = x = x.mean(tuple(range(2, x.ndim))) + model.head_bias.bias
    values["fc"] = F.linear(x, model.fc.weight, model.fc.bias)
    return values


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, {}) for kind in RESIDUAL]
    + [
        ("bottleneck", {"post_bias": True, "shortcut": "conv", "c": 3.0}),
        ("basic", {"c": 2.0, "stem": "deep", "first_index": 0}),
        ("cifar", {"multiplier": False}),
        ("cifar", {"multiplier": "channel", "branch_noise": 0.1}),
        ("r3d", {"multiplier": "channel", "post_bias": True, "drop_path_rate": 0.2}),
    ],
)
def test_hooks_see_the_formulas_of_vision_nets(kind, options):
    model = moved(narrow(kind, **options))
    x = samples(kind, 2, 48, 40, dtype=torch.float64)
    seen, ambiguous = seen_by_hooks(model, x)
    branches = len(zoo.branch_statistics(model))
    with torch.no_grad():
        expected = written_out(model, x, options.get("c", float(branches)), options.get("first_index", 1))
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(seen[name], value, rtol=1e-10, atol=1e-10 * value.abs().max().item(), msg=name)
    assert len(set(ambiguous)) == branches
    scale = model.trunk_scales.rows[3].scale_in
    assert scale != 1 or kind in ("bottleneck", "grouped", "i3d")  # or the test would prove nothing


def test_hooks_see_the_values_of_vgg():
    model = moved(narrow("vgg"))
    x = samples("vgg", 1, 64, dtype=torch.float64)
    seen, _ = seen_by_hooks(model, x)
    with torch.no_grad():
        value = x
        for number, stage in enumerate(model.stages(), 1):
            value = value if number == 1 else F.max_pool2d(value, 2)
            for i, (layer, _, _) in enumerate(stage.layers(), 1):
                value = conv(layer, value)
                torch.testing.assert_close(seen[f"stage{number}.conv{i}"], value, rtol=1e-10, atol=1e-10)
                value = value.relu()


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"multiplier": False, "encoder_c": 1.0, "decoder_c": 2.5, "post_bias": True},
        {"multiplier": "channel", "post_bias": True, "branch_noise": 0.1, "drop_path_rate": 0.1},
    ],
)
def test_hooks_see_the_formulas_of_transformers(activation, options):
    model = moved(zoo.create_model("rescale_transformer_tiny", activation=activation, **TINY, **options))
    source, target = torch.randint(4, 40, (3, 7)), torch.randint(4, 40, (3, 6))
    target[:, 0], source[1, 5:] = EOS, PAD
    seen, _ = seen_by_hooks(model, source, target)
    with torch.no_grad():
        expected = transformer_written_out(model, source, target, F.relu if activation == "relu" else F.gelu, options)
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(seen[name], value, rtol=1e-10, atol=1e-10, msg=name)


def transformer_written_out(model, source, target, act, options):
    """The values of the method's formulas for a Transformer, by the names of the modules that compute them."""
    values = {}
    heads = model.layout.heads

    def product(layer, x, sizes=None):
        """W_i (x + b_i) + post bias for each part i."""
        sizes = sizes or (layer.weight.shape[0],)
        biases = layer.pre_bias.view(len(sizes), -1)
        out = [F.linear(x + b, w) for b, w in zip(biases, layer.weight.split(sizes), strict=True)]
        return torch.cat(out, -1) + (0 if layer.bias is None else layer.bias)

    def attention(q, k, v, allowed):
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).masked_fill(~allowed, -math.inf)
        return (scores.softmax(3) @ v).transpose(1, 2).flatten(2)

    def joined(name, block, x, h, k, total):
        c = options.get(f"{name.split('.')[0]}_c", float(total))
        alpha, beta = math.sqrt((k - 1 + c) / (k + c)), math.sqrt(1 / (k + c))
        m = beta if block.join.multiplier is None else block.join.multiplier / math.sqrt(c)
        last = "shrink" if name.endswith("ffn") else "out"
        values[f"{name}.{last}"] = values[f"{name}.drop"] = branch = m * product(getattr(block, last), h)
        if block.branch_end is not None:
            for module in ("branch_end", "branch_end.noise", "branch_end.drop_path"):
                values[f"{name}.{module}"] = branch
        values[f"{name}.join"] = values[name] = x = alpha * x + branch
        return x

    def self_attention(name, block, x, allowed, k, total):
        d = x.shape[2]
        values[f"{name}.qkv"] = qkv = product(block.qkv, x, (d, 2 * d))
        return joined(name, block, x, attention(*qkv.chunk(3, 2), allowed), k, total)

    def feed_forward(name, block, x, k, total):
        values[f"{name}.hidden"] = h = product(block.hidden, x)
        values[f"{name}.activation"] = values[f"{name}.hidden_drop"] = h = act(h)
        return joined(name, block, x, h, k, total)

    def embedded(tokens):
        table = model.encoder_embedding
        positions = table.sinusoids[: tokens.shape[1]].double()
        return table.weight[tokens] * math.sqrt(table.embedding_dim) + positions

    is_token = (source != PAD)[:, None, None]
    x, total = embedded(source), 2 * len(model.encoder)
    for i, layer in enumerate(model.encoder):
        x = self_attention(f"encoder.{i}.self_attn", layer.self_attn, x, is_token, 2 * i + 1, total)
        values[f"encoder.{i}"] = x = feed_forward(f"encoder.{i}.ffn", layer.ffn, x, 2 * i + 2, total)
    values["encoder_end"] = memory = x
    values["encoder_embedding"] = values["encoder_embedding.drop"] = x = embedded(
        target
    )  # the last call of the shared modules
    past, total = torch.ones(x.shape[1], x.shape[1]).tril().bool(), 3 * len(model.decoder)
    for i, layer in enumerate(model.decoder):
        name, block = f"decoder.{i}.cross_attn", layer.cross_attn
        x = self_attention(f"decoder.{i}.self_attn", layer.self_attn, x, past, 3 * i + 1, total)
        values[f"{name}.query"], values[f"{name}.key_value"] = product(block.query, x), product(block.key_value, memory)
        h = attention(values[f"{name}.query"], *values[f"{name}.key_value"].chunk(2, 2), is_token)
        x = joined(name, block, x, h, 3 * i + 2, total)
        x = feed_forward(f"decoder.{i}.ffn", layer.ffn, x, 3 * i + 3, total)
    values["decoder_end"] = x + model.decoder_end.bias
    return values


def test_a_scheme_that_ends_the_encoder_with_a_bias_gives_the_formulas():
    """The memory's scale is then 1, not the trunk's."""
    model = moved(zoo.create_model("rescale_transformer_tiny", **TINY))
    other = copy.deepcopy(model)
    other.encoder_end = FeatureBias(TINY["dim"]).double()
    scales = other._plan_scales()
    scales.apply(other)
    source, target = torch.randint(4, 40, (3, 7)), torch.randint(4, 40, (3, 6))
    torch.testing.assert_close(other(source, target), model(source, target), rtol=1e-10, atol=1e-10)
    assert {row.memory for row in scales.rows} == {1.0}


# -- what nominal refuses -------------------------------------------------------------------------------


def test_unknown_names_folded_nets_and_modules_of_several_scales():
    model = narrow("basic")
    x = torch.randn(2)
    with pytest.raises(zoo.ZooError, match=r"nominal: unknown module 'layer1.0.conv9' .*layer1.0.conv"):
        model.nominal("layer1.0.conv9", x)
    with pytest.raises(zoo.ZooError, match=r"layer1.0.drop has no single scale; layer1.0 has conv1, norm1, act1,"):
        model.nominal("layer1.0.drop", x)
    with pytest.raises(zoo.ZooError, match="a folded net has its scales in its weights; call it on the net before"):
        fold(model).nominal("layer1.0", x)
    assert model.nominal("fc", x) is x
    assert not torch.equal(model.nominal("layer1.0", x), x)
    assert narrow("basic", scheme="bn").nominal("layer1.0", x) is x


def test_places_number_the_branches():
    with torch.device("meta"):
        block = narrow("basic").layer2[0]
    alpha, _ = coefficients(3, 8.0)
    assert block.join.alpha == alpha == VisionRescale().join(Place(3, 8, 2), 16).alpha


# -- Grad-CAM -------------------------------------------------------------------------------------------


def test_grad_cam_by_captum():
    """The last block is at scale 1. A map of an inner block is the same from the stored and the nominal values."""
    attr = pytest.importorskip("captum.attr", reason="needs captum, which is not installed")
    model = zoo.create_model("rescalenet20_cifar", "cifar10").eval()
    x = torch.randn(2, 3, 32, 32)
    classes = model(x).argmax(1)

    def normalised(cam):
        return cam / cam.amax((2, 3), keepdim=True)

    for name in ("layer3.2", "layer2.0"):
        block, kept = model.get_submodule(name), []
        cam = attr.LayerGradCam(model, block).attribute(x, target=classes, relu_attributions=True)
        # by hand, from the values of the formulas
        handle = block.register_forward_hook(lambda module, args, output, kept=kept: kept.append(output))
        scores = model(x).gather(1, classes[:, None]).sum()
        handle.remove()
        (stored,) = kept
        (grad,) = torch.autograd.grad(scores, stored)
        features = model.nominal(name, stored)
        by_hand = (grad.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu()
        assert torch.equal(features, stored) is (name == "layer3.2")
        torch.testing.assert_close(normalised(cam), normalised(by_hand), rtol=1e-4, atol=1e-5)


def test_kinds_cover_clips():
    assert CLIPS.keys() < set(RESIDUAL)
    assert isinstance(narrow("r3d").layer1[0].act, nn.ReLU)
