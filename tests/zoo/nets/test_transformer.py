"""Transformers: the method's formulas, what must never happen, and what they save."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from benchmarks.translation import Sizes, made_batch, saved_bytes
from tests.helpers.transformers import SCHEMES, SMALL, VOCABULARY, batch, make
from zoo.errors import ZooError
from zoo.layers import BiasedLinear, BiasedProjections
from zoo.nets.parameters import parameters_by_level
from zoo.nets.transformer import Branch, Cache, FeedForward, Transformer, TransformerLayout
from zoo.schemes.text import TEXT_SCHEMES, DynamicErf, DynamicTanh
from zoo.text import PAD

NETS = zoo.list_models(input_kind="text")
matrix = pytest.mark.parametrize(("scheme", "activation"), [(s, a) for s in SCHEMES for a in ("relu", "gelu")])

# -- the nets of the registry ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_shapes_and_counts(name, scheme):
    info = zoo.model_info(name)
    assert (info.input_kind, info.num_classes, info.frames) == ("text", 0, None)
    with torch.device("meta"):
        model = zoo.create_model(name, scheme=scheme, source_vocabulary=1000, target_vocabulary=1000)
        source, target = torch.empty(2, 7, dtype=torch.long), torch.empty(2, 5, dtype=torch.long)
        features = model.decode(target, zoo.nets.transformer.Memory(model_memory(model, source), None))
    assert features.shape == (2, 5, info.options["dim"])
    d, h = info.options["dim"], info.options["hidden"]
    n, m = info.options["encoder_layers"], info.options["decoder_layers"]
    weights = 1000 * d + n * (4 * d * d + 2 * d * h) + m * (8 * d * d + 2 * d * h)
    biases = n * (4 * d + d + h) + m * (8 * d + d + h)  # after the product
    norms = {"post_ln": 2 * n + 3 * m, "pre_ln": 2 * n + 3 * m + 2, "deepnorm": 2 * n + 3 * m}.get(scheme, 0)
    if scheme == "rescale":  # q, kv, o, hidden, shrink; the same and q, kv, o of the cross-attention; the end; m_k
        biases = n * (4 * d + h) + m * (7 * d + h) + d + 2 * n + 3 * m
    if scheme in ("dyt", "derf"):  # with alpha, and a shift
        biases += (2 * n + 3 * m + 2) * (2 * d + (1 if scheme == "dyt" else 2))
    assert sum(p.numel() for p in model.parameters()) == weights + biases + 2 * d * norms
    assert model.no_weight_decay() == {key for key, p in model.named_parameters() if p.ndim <= 1}


def model_memory(model, source):
    """Keys and values without a mask, which needs values."""
    x = model.encoder_embedding(source)
    for layer in model.encoder:
        x = layer(x, None)
    return [layer.cross_attn.remember(model.encoder_end(x)) for layer in model.decoder]


@pytest.mark.parametrize("name", NETS)
def test_a_forward(name):
    model = zoo.create_model(name, source_vocabulary=VOCABULARY, target_vocabulary=VOCABULARY).eval()
    source, target = batch(2)
    with torch.no_grad():
        logits = model(source, target)
    assert logits.shape == (2, 8, VOCABULARY)
    assert torch.isfinite(logits).all()
    assert 0.3 < logits.std() < 6  # with tied embeddings the logit of the last token itself is sqrt(d)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 30}, "options dim=30 and heads=4: dim must be a multiple of heads"),
        ({"encoder_layers": 0}, "option encoder_layers=0: must be >= 1"),
        ({"drop_rate": 1.0}, r"option drop_rate=1.0: must be in \[0, 1\)"),
        ({"target_vocabulary": 50}, "source_vocabulary=40 and target_vocabulary=50; use share='decoder'"),
        ({"source_vocabulary": 3, "target_vocabulary": 3}, "source_vocabulary=3, target_vocabulary=3: must be > 3"),
        ({"activation": "tanh"}, "option activation='tanh'"),
        ({"num_classes": 5}, "takes text: not num_classes, but source_vocabulary and target_vocabulary"),
        ({"features_only": True}, "features_only: rescale_transformer_tiny takes text and has no feature maps"),
        ({"scheme": "bn"}, r"unknown scheme 'bn'"),
        ({"decoder_c": 0.0}, "option decoder_c=0.0: must be > 0"),
        ({"dyt_alpha": 0.3}, "with scheme 'rescale' has no option 'dyt_alpha'"),
    ],
)
def test_wrong_options(options, message):
    sizes = {"source_vocabulary": VOCABULARY, "target_vocabulary": VOCABULARY}
    with pytest.raises(zoo.ZooError, match=message):
        zoo.create_model("rescale_transformer_tiny", **{**SMALL, **sizes, **options})


@pytest.mark.parametrize("share", ["all", "decoder", "none"])
def test_embeddings_that_are_shared(share):
    model = make(share=share, calibrated=False, **({} if share == "all" else {"source_vocabulary": 30}))
    keys = [k for k in model.state_dict() if "embedding" in k or "projection" in k]
    expected = ["encoder_embedding.weight", "decoder_embedding.weight", "projection.weight"]
    assert keys == expected[: 1 + ["all", "decoder", "none"].index(share)]
    assert model.output_weight.shape == (VOCABULARY, 32)


# -- the method -----------------------------------------------------------------------------------------


def test_a_rescale_net_has_no_normalization():
    names = {type(module).__name__ for module in make().modules()}
    assert not {name for name in names if "norm" in name.lower()}
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
    kinds += (DynamicTanh, DynamicErf)
    for scheme in ("rescale", "none", "t_fixup", "pre_ln", "dyt", "derf"):
        found = any(isinstance(module, kinds) for module in make(scheme).modules())
        assert found is (scheme in ("pre_ln", "dyt", "derf"))


@pytest.mark.parametrize(("encoders", "decoders", "constants"), [(6, 6, {}), (18, 3, {}), (4, 2, {"decoder_c": 1})])
def test_alpha_beta_and_init_are_the_formulas(encoders, decoders, constants):
    sizes = {"dim": 256, "hidden": 512, "encoder_layers": encoders, "decoder_layers": decoders}
    model = make(calibrated=False, **sizes, **constants)
    for stack, count in (("encoder", 2 * encoders), ("decoder", 3 * decoders)):
        branches = [module for module in getattr(model, stack).modules() if isinstance(module, Branch)]
        assert len(branches) == count
        c = constants.get(f"{stack}_c", count)
        for k, branch in enumerate(branches, 1):
            alpha, beta = math.sqrt((k - 1 + c) / (k + c)), math.sqrt(1 / (k + c))
            assert zoo.coefficients(k, c) == pytest.approx((alpha, beta))
            shrink = ((k + c) / c) ** -0.25
            d, h = 256, 512
            if isinstance(branch, FeedForward):
                wanted = {"hidden": math.sqrt(2 / d) * shrink, "shrink": h**-0.5 * shrink}
                found = {name: getattr(branch, name).weight.std().item() for name in wanted}
            else:
                last = "qkv" if hasattr(branch, "qkv") else "key_value"
                parts = getattr(branch, last).weight.split(d)
                wanted = {"value": d**-0.5 * shrink, "out": d**-0.5 * shrink, "key": math.sqrt(2 / (2 * d))}
                found = {
                    "value": parts[-1].std().item(),
                    "out": branch.out.weight.std().item(),
                    "key": parts[-2].std().item(),
                }
                query = parts[0] if last == "qkv" else branch.query.weight
                assert query.std().item() == pytest.approx(math.sqrt(1 / d), rel=0.02)
                assert query.abs().max() <= math.sqrt(3 / d)  # uniform, as Xavier's
            for name, value in wanted.items():
                assert found[name] == pytest.approx(value, rel=0.02), (k, name)
    assert model.encoder_embedding.weight.std().item() == pytest.approx(256**-0.5, rel=0.02)


def by_the_book(model, source, target, encoder_c, decoder_c):
    """The Transformer of docs/method.md, word for word: an unscaled trunk, each bias added to a product's input."""
    p = dict(model.named_parameters())
    layout = model.layout
    d, heads = layout.dim, layout.heads
    act = F.relu if layout.activation == "relu" else F.gelu

    def embedded(tokens):
        x = p["encoder_embedding.weight"][tokens] * math.sqrt(d)
        position = torch.arange(tokens.shape[1], dtype=torch.float64)[:, None] + 2
        frequency = torch.exp(-math.log(10000) * torch.arange(d // 2, dtype=torch.float64) / (d // 2 - 1))
        return x + torch.cat([torch.sin(position * frequency), torch.cos(position * frequency)], 1).float().double()

    def attention(q, k, v, allowed):
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.transpose(2, 3) / math.sqrt(d // heads)).masked_fill(~allowed, -math.inf)
        return (scores.softmax(3) @ v).transpose(1, 2).flatten(2)

    def product(x, name, rows=slice(None), part=0):
        bias = p[f"{name}.pre_bias"].view(-1, x.shape[2])[part]
        return (x + bias) @ p[f"{name}.weight"][rows].t()

    def join(x, branch, name, k, c):
        alpha = math.sqrt((k - 1 + c) / (k + c))
        return alpha * x + p[f"{name}.join.multiplier"] / math.sqrt(c) * branch

    def self_attention(x, name, allowed):
        q = product(x, f"{name}.qkv", slice(0, d), 0)
        k, v = product(x, f"{name}.qkv", slice(d, 3 * d), 1).chunk(2, 2)
        return product(attention(q, k, v, allowed), f"{name}.out")

    def ffn(x, name):
        return product(act(product(x, f"{name}.hidden")), f"{name}.shrink")

    there = (source != PAD)[:, None, None]
    x, c = embedded(source), encoder_c or 2 * layout.encoder_layers
    for i in range(layout.encoder_layers):
        x = join(x, self_attention(x, f"encoder.{i}.self_attn", there), f"encoder.{i}.self_attn", 2 * i + 1, c)
        x = join(x, ffn(x, f"encoder.{i}.ffn"), f"encoder.{i}.ffn", 2 * i + 2, c)
    memory = x
    length = target.shape[1]
    past = torch.ones(length, length, dtype=torch.bool).tril()
    x, c = embedded(target), decoder_c or 3 * layout.decoder_layers
    for i in range(layout.decoder_layers):
        name = f"decoder.{i}"
        x = join(x, self_attention(x, f"{name}.self_attn", past), f"{name}.self_attn", 3 * i + 1, c)
        q = product(x, f"{name}.cross_attn.query")
        k, v = product(memory, f"{name}.cross_attn.key_value").chunk(2, 2)
        mixed = product(attention(q, k, v, there), f"{name}.cross_attn.out")
        x = join(x, mixed, f"{name}.cross_attn", 3 * i + 2, c)
        x = join(x, ffn(x, f"{name}.ffn"), f"{name}.ffn", 3 * i + 3, c)
    return (x + p["decoder_end.bias"]) @ p["encoder_embedding.weight"].t()


@pytest.mark.parametrize("constants", [(None, None), (None, 1.0), (3.0, 0.5)])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_net_is_the_method_word_for_word(activation, constants):
    model = make(activation=activation, encoder_c=constants[0], decoder_c=constants[1])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("multiplier"):
                parameter.uniform_(0.3, 2)
    source, target = batch()
    ours, theirs = model(source, target), by_the_book(model, source, target, *constants)
    there = target != PAD
    torch.testing.assert_close(ours[there], theirs[there], rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(ours) * there[..., None]
    names, parameters = zip(*model.named_parameters(), strict=True)
    for name, a, b in zip(
        names,
        torch.autograd.grad((ours * weight).sum(), parameters),
        torch.autograd.grad((theirs * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")


def second_moments(model, batches):
    """E[x^2] of the trunk of the formulas after each branch, padding left out: (encoder, decoder)."""
    found = {"encoder": {}, "decoder": {}}

    def record(name):
        def hook(module, args, out):
            keep = zoo.calibration._POSITIONS.get()
            value = model.nominal(name, out)[keep].square().mean().item()
            found[name.split(".")[0]].setdefault(name, []).append(value)

        return hook

    handles = [m.register_forward_hook(record(n)) for n, m in model.named_modules() if isinstance(m, Branch)]
    with torch.no_grad():
        for pair in batches:
            model(*pair)
    for handle in handles:
        handle.remove()
    return tuple([sum(v) / len(v) for v in found[side].values()] for side in ("encoder", "decoder"))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_second_moments_at_init_do_not_depend_on_depth(activation):
    batches = [batch(12, 20, 18, seed=s) for s in range(4)]
    merged = zoo.calibration.merge_batches(batches)  # one batch takes two forwards
    assert len(merged) == 1
    ends = []
    for layers in (6, 18, 36):
        model = make(
            calibrated=False,
            dim=128,
            hidden=256,
            encoder_layers=layers,
            decoder_layers=layers,
            activation=activation,
        ).float()
        report = zoo.calibrate(model, merged, forward=lambda net, pair: net(*pair))
        assert len(report.calibrated) == 4 * layers + 7 * layers + 1
        for moments in second_moments(model, batches):
            assert min(moments) >= 0.5
            assert max(moments) <= 1.6
            ends.append(moments[-1])
    assert max(ends) <= 1.15 * min(ends)
    unnormalised = second_moments(make("none", calibrated=False, dim=128, hidden=256, decoder_layers=6), batches)[1]
    assert unnormalised[-1] > 10  # what the method is for


# -- what must never happen -----------------------------------------------------------------------------


@matrix
def test_later_tokens_never_change_earlier_logits(scheme, activation):
    model, (source, target) = make(scheme, activation=activation), batch()
    before = model(source, target)
    target[:, 5] = (target[:, 5] + 7) % 30 + 4
    after = model(source, target)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


@matrix
def test_padding_never_changes_anything(scheme, activation):
    model, (source, target) = make(scheme, activation=activation), batch()
    together = model(source, target)
    for row in range(len(source)):
        lengths = [(tokens[row] != PAD).sum() for tokens in (source, target)]
        alone = model(source[row : row + 1, : lengths[0]], target[row : row + 1, : lengths[1]])
        torch.testing.assert_close(together[row, : lengths[1]], alone[0], rtol=1e-10, atol=1e-10)
    labels = torch.where(target == PAD, PAD, torch.randint(4, VOCABULARY, target.shape))
    more = [F.pad(tokens, (0, 3), value=PAD) for tokens in (source, target, labels)]
    assert model(*more)[0].item() == pytest.approx(model(source, target, labels)[0].item(), rel=1e-12)


@matrix
@pytest.mark.parametrize("folded", [False, True])
def test_cached_decoding_is_uncached_decoding(scheme, activation, folded):
    model, (source, target) = make(scheme, activation=activation), batch()
    whole = model(source, target)
    stepping = zoo.fold(model) if folded else model
    with torch.no_grad():
        memory, cache = stepping.encode(source), Cache()
        first = stepping.step(target[:, :3], memory, cache)  # several tokens at once, then one by one
        logits = [first, *(stepping.step(target[:, t : t + 1], memory, cache) for t in range(3, 8))]
    torch.testing.assert_close(torch.stack(logits, 1), whole[:, 2:], rtol=1e-9, atol=1e-9)
    single = model.float()
    memory, cache = single.encode(source), Cache()
    logits = [single.step(target[:, t : t + 1], memory, cache) for t in range(8)]
    assert (torch.stack(logits, 1).double() - whole).abs().max() < 1e-5 * whole.abs().max()


@matrix
def test_beams_share_the_memory_of_their_sentence(scheme, activation):
    model, (source, target) = make(scheme, activation=activation), batch()
    beams = torch.stack([target, target.flip(0)], 1).flatten(0, 1)
    with torch.no_grad():
        apart = model(source.repeat_interleave(2, 0), beams)
        memory, cache = model.encode(source), Cache()
        together = torch.stack([model.step(beams[:, t : t + 1], memory, cache) for t in range(8)], 1)
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)


@matrix
def test_folding_keeps_the_logits(scheme, activation, caplog):
    model, (source, target) = make(scheme, activation=activation, drop_rate=0.2, hidden_drop_rate=0.1), batch()
    with caplog.at_level("INFO", logger="rescalenet"):
        folded = zoo.fold(model)
    torch.testing.assert_close(folded(source, target), model(source, target), rtol=1e-10, atol=1e-10)
    norms = sum(isinstance(module, nn.LayerNorm) for module in model.modules())
    assert (f"{norms} LayerNorm layers stay" in caplog.text) == bool(norms)
    assert not any(isinstance(module, nn.Dropout) for module in folded.modules())
    assert not any(isinstance(module, BiasedLinear | BiasedProjections) for module in folded.modules())
    assert not any(p.requires_grad for p in folded.parameters())
    torch.testing.assert_close(folded.train()(source, target), model(source, target), rtol=1e-10, atol=1e-10)
    with pytest.raises(zoo.ZooError, match="folded"):
        zoo.convert.to_fairseq(folded)


def test_a_sentence_longer_than_the_net():
    model = make(max_length=6, calibrated=False)
    with pytest.raises(zoo.ZooError, match="a sentence of 9 tokens: must be <= 6 tokens"):
        model(*batch())


@matrix
def test_dropout_kinds(scheme, activation):
    """Each kind changes the output in training and nothing in evaluation."""
    source, target = batch()
    still = make(scheme, activation=activation)
    for kind in ("drop_rate", "attention_drop_rate", "hidden_drop_rate"):
        model = make(scheme, activation=activation, **{kind: 0.4})
        model.load_state_dict(still.state_dict())
        torch.testing.assert_close(model(source, target), still(source, target), rtol=1e-12, atol=1e-12)
        model.train()
        assert not torch.allclose(model(source, target), still(source, target))


# -- training -----------------------------------------------------------------------------------------


def test_training_in_half_precision_is_near_full_precision():
    model = make().float().train()
    source, target = batch()
    labels = target.roll(-1, 1)
    full = model(source, target, labels, 0.1)[0]
    expected = torch.autograd.grad(full, list(model.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        half = model(source, target, labels, 0.1)[0]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.02)
    found = torch.autograd.grad(half, list(model.parameters()))
    cosine = F.cosine_similarity(*(torch.cat([g.flatten() for g in grads]) for grads in (found, expected)), dim=0)
    assert cosine > 0.99


@pytest.mark.slow
def test_compiled_is_eager():
    torch.compiler.reset()
    model, (source, target) = make().float(), batch()
    labels = target.roll(-1, 1)
    losses = [net(source, target, labels)[0] for net in (torch.compile(model), model)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    for (name, _), found, expected in zip(model.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item(), msg=name)


# -- around the net -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("share", ["all", "none"])
def test_weights_round_trip(tmp_path, scheme, share, transform):
    model = make(scheme, share=share).float()
    zoo.save_weights(model, tmp_path / "w.safetensors", transform=transform, classes=(), meta={"metrics": {"bleu": 1}})
    entry = zoo.get_weights(str(tmp_path / "w.safetensors"))
    again = zoo.create_model("rescale_transformer_tiny", entry.name, max_length=50, drop_rate=0.3).eval()
    source, target = batch()
    assert torch.equal(model(source, target), again(source, target))
    assert again.layout.max_length == 50
    coder = entry.transforms()
    assert coder(["a b", "b"]).tolist() == transform.build()(["a b", "b"]).tolist()
    assert coder(["a b", "b"])[1, -1] == PAD
    assert coder.decode(coder.target.encode(["a b a"])[0]) == "a b a"
    assert entry.transform == transform
    with pytest.raises(zoo.ZooError, match="option source_vocabulary=40, not 41; leave it out"):
        zoo.create_model("rescale_transformer_tiny", entry.name, source_vocabulary=41)


@pytest.fixture(scope="module")
def transform():
    from tasks.translation.vocabulary import train_vocabulary

    vocabulary = train_vocabulary(["a b c d", "b a", "d c b a e f g h"] * 20, 21, "bpe")
    return zoo.TextTransform.from_vocabularies(("en", "de"), vocabulary, vocabulary)


def test_branch_statistics_and_groups():
    model = make()
    rows = zoo.branch_statistics(model)
    assert len(rows) == 2 * 2 + 3 * 3
    assert all(row["m"] is not None and len(row["weight_norms"]) == 2 for row in rows)
    groups = {group["group"]: group for group in zoo.param_groups(model, 0.1, multiplier_lr=2.0)}
    assert len(groups["multipliers"]["params"]) == 13
    assert groups["multipliers"]["lr_scale"] == 2.0
    assert len(groups["data_biases"]["params"]) == 4 * 2 + 7 * 3 + 1
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))


@pytest.mark.parametrize(("rates", "limit"), [((0.0, 0.0, 0.0), 0.85), ((0.1, 0.1, 0.1), 0.93)])
def test_saved_memory_against_pre_ln(rates, limit):
    sizes = Sizes(dim=256, hidden=1024, heads=4, layers=2, vocabulary=500)
    pair = made_batch(sizes, 16, 30)
    saved = {}
    for scheme in ("rescale", "pre_ln"):
        drops = dict(zip(("drop_rate", "attention_drop_rate", "hidden_drop_rate"), rates, strict=True))
        saved[scheme] = saved_bytes(sizes.net(scheme, **drops).train(), pair)
    assert saved["rescale"] <= limit * saved["pre_ln"]


def test_layout_is_checked_when_made_by_hand():
    with pytest.raises(zoo.ZooError, match="dim must be a multiple"):
        Transformer(TransformerLayout(10, 20, 3), TEXT_SCHEMES["none"]())


@pytest.mark.parametrize(("share", "embeddings"), [("all", 1), ("none", 2)])
def test_levels_are_embeddings_and_layers(share, embeddings):
    net = zoo.create_model(
        "rescale_transformer_tiny",
        scheme="pre_ln",
        share=share,
        encoder_layers=2,
        decoder_layers=1,
        source_vocabulary=20,
        target_vocabulary=20,
        drop_rate=0.1,
    )
    levels = parameters_by_level(net)
    assert list(levels) == ["embeddings", "encoder.0", "encoder.1", "decoder.0", "head"]
    assert len(levels["embeddings"]) == embeddings
    head = {"decoder_end", "projection"} if share == "none" else {"decoder_end"}
    assert {name.split(".")[0] for name in levels["head"]} == head
    assert sum(map(len, levels.values())) == len(list(net.parameters()))
    net.freeze(3)
    net.train()
    assert [n for n, p in net.named_parameters() if p.requires_grad] == levels["decoder.0"] + levels["head"]
    assert not any(module.training for module in net.encoder.modules() if module is not net.encoder)
    assert all(module.training for module in net.decoder.modules())
    source = torch.tensor([[5, 6, 7, 2]])
    (first,), (second,) = (net.encode(source).keys_values for _ in range(2))  # of the one decoder layer
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(ZooError, match="freeze=5: must be 0 to 4"):
        net.freeze(5)
