"""Schemes of Transformers: torch's own layers, and the constants of the papers."""

import math

import pytest
import torch
from torch import nn

from tests.helpers.transformers import batch, make
from zoo.schemes.text import TRANSFORMER_SCHEMES, DynamicTanh, Place
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
