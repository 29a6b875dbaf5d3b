"""Schemes of Transformers: torch's own layers, and the constants of the papers."""

import math

import pytest
import torch
from torch import nn

import zoo
from tests.helpers.transformers import batch, make
from zoo.schemes.text import TRANSFORMER_SCHEMES, DynamicErf, DynamicTanh, Place
from zoo.text import PAD


@pytest.mark.parametrize("scheme", ["post_ln", "pre_ln"])
def test_the_normalized_nets_are_torchs(scheme):
    model = make(scheme)
    layout = model.layout
    before = scheme == "pre_ln"
    theirs = nn.Transformer(
        32, 4, 2, 3, 64, 0.0, batch_first=True, norm_first=before, dtype=torch.float64,
    ).eval()  # fmt: skip
    if not before:
        theirs.encoder.norm = theirs.decoder.norm = None
    state = {}
    ours = model.state_dict()
    for side, count in (("encoder", 2), ("decoder", 3)):
        for i in range(count):
            branches = ["self_attn", *(["cross_attn"] if side == "decoder" else []), "ffn"]
            for number, branch in enumerate(branches, 1):
                mine, their = f"{side}.{i}.{branch}", f"{side}.layers.{i}"
                for leaf in ("weight", "bias"):
                    state[f"{their}.norm{number}.{leaf}"] = ours[f"{mine}.join.norm.{leaf}"]
                    if branch == "ffn":
                        state[f"{their}.linear1.{leaf}"] = ours[f"{mine}.hidden.{leaf}"]
                        state[f"{their}.linear2.{leaf}"] = ours[f"{mine}.shrink.{leaf}"]
                        continue
                    attention = f"{their}.{'self_attn' if branch == 'self_attn' else 'multihead_attn'}"
                    packed = ["qkv"] if branch == "self_attn" else ["query", "key_value"]
                    state[f"{attention}.in_proj_{leaf}"] = torch.cat([ours[f"{mine}.{p}.{leaf}"] for p in packed])
                    state[f"{attention}.out_proj.{leaf}"] = ours[f"{mine}.out.{leaf}"]
        if before:
            for leaf in ("weight", "bias"):
                state[f"{side}.norm.{leaf}"] = ours[f"{side}_end.{leaf}"]
    theirs.load_state_dict(state)
    source, target = batch()
    features = theirs(
        model.encoder_embedding(source),
        model.target_embedding(target),
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(8, dtype=torch.float64),
        src_key_padding_mask=source == PAD,
        memory_key_padding_mask=source == PAD,
        tgt_is_causal=True,
    )
    there = target != PAD
    torch.testing.assert_close(model(source, target)[there], model.project(features)[there], rtol=1e-9, atol=1e-9)
    assert layout.share == "all"


def test_constants_of_the_published_schemes():
    def place(stack, n, m):
        return Place(1, 2 * n, 2, stack, n, m)

    scheme = TRANSFORMER_SCHEMES["deepnorm"]()
    for n, m in ((6, 6), (18, 18), (100, 12)):
        encoder, decoder = (scheme._constants(place(s, n, m)) for s in ("encoder", "decoder"))
        assert encoder == pytest.approx((0.81 * (n**4 * m) ** (1 / 16), 0.87 * (n**4 * m) ** (-1 / 16)))
        assert decoder == pytest.approx(((3 * m) ** 0.25, (12 * m) ** -0.25))
    # T-Fixup, page 4: 0.67 N^(-1/4) for the encoder, (9 N)^(-1/4) for the decoder, on v, o and the feed-forward layers
    model = make("t_fixup", calibrated=False, dim=256, hidden=256, encoder_layers=8, decoder_layers=8)
    xavier = math.sqrt(2 / 512)
    ffn, cross = model.encoder[3].ffn, model.decoder[3].cross_attn
    assert ffn.hidden.weight.std().item() == pytest.approx(0.67 * 8**-0.25 * xavier, rel=0.02)
    assert cross.out.weight.std().item() == pytest.approx(72**-0.25 * xavier, rel=0.02)
    assert cross.query.weight.std().item() == pytest.approx(xavier, rel=0.02)
    assert model.encoder_embedding.weight.std().item() == pytest.approx(0.67 * 8**-0.25 / 16, rel=0.02)
    tanh = DynamicTanh(3, 0.5).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(tanh(x), torch.tanh(0.5 * x))


def test_derf():
    """alpha 0.5, shift 0, weight 1, bias 0 at init; the formula; DyT's limits: 2 / sqrt(pi) times as steep at 0."""
    layer = DynamicErf(3, 0.5).double()
    assert {name: (p.ndim, p.flatten()[0].item()) for name, p in layer.named_parameters()} == {
        "alpha": (0, 0.5),
        "shift": (0, 0.0),
        "weight": (1, 1.0),
        "bias": (1, 0.0),
    }
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.special.erf(0.5 * x))
    tanh = DynamicTanh(3, 0.5).double()
    torch.testing.assert_close(layer(1e-5 * x), 2 / math.sqrt(math.pi) * tanh(1e-5 * x), rtol=1e-9, atol=0)
    torch.testing.assert_close(layer(1e5 * x), x.sign())  # both end at -1 and 1
    torch.testing.assert_close(tanh(1e5 * x), x.sign())
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    expected = layer.weight * torch.special.erf(layer.alpha * x + layer.shift) + layer.bias
    torch.testing.assert_close(layer(x), expected)


def test_derf_stands_where_dyt_does():
    ours, theirs = make("derf", calibrated=False, derf_alpha=0.3), make("dyt", calibrated=False)
    found = {name for name, module in ours.named_modules() if isinstance(module, DynamicErf)}
    assert found == {name for name, module in theirs.named_modules() if isinstance(module, DynamicTanh)}
    assert {round(p.item(), 6) for name, p in ours.named_parameters() if name.endswith("alpha")} == {0.3}
    groups = {name: g["group"] for g in zoo.param_groups(ours, 0.1) for name in g["names"]}
    assert {groups[f"{name}.{leaf}"] for name in found for leaf in ("alpha", "shift", "weight", "bias")} == {"others"}
    ours(*batch()).square().mean().backward()
    assert all(p.grad.abs().max() > 0 for name, p in ours.named_parameters() if name.rsplit(".", 1)[0] in found)
