"""Cross-attention of each layer, head and token."""

import torch

from tasks.translation.attention import cross_attention
from tests.helpers.transformers import batch, make


def test_attention_is_what_the_net_pays():
    model, (source, target) = make(), batch()
    values = {}
    for i, layer in enumerate(model.decoder):
        layer.cross_attn.out.register_forward_pre_hook(lambda m, args, i=i: values.__setitem__(i, args[0]))
    weights = cross_attention(model, source, target)
    assert weights.shape == (3, 5, 4, 8, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 5, 4, 8, dtype=torch.float64))
    memory = model.encode(source)
    for i in range(3):
        mixed = (weights[i] @ memory.keys_values[i][1]).transpose(1, 2).flatten(2)
        torch.testing.assert_close(mixed, values[i], rtol=1e-9, atol=1e-9)
    assert (weights[:, 4, :, :, 5:] == 0).all()  # its padding
