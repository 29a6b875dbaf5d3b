"""Joins of trunk and branch."""

import torch
from torch import nn

import zoo
from zoo import layers
from zoo.folding import Unscale
from zoo.joins import RescaledAdd


def test_rescaled_add_is_the_formula_and_trains_its_multiplier():
    join = layers.RescaledAdd(0.8, 0.25, True).double()
    layer = layers.BiasedConv2d(3, 3, 1, post_bias=True).double()
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


def test_identity_shortcuts_are_added_as_they_are():
    """In every net and at any c the trunk is held so that autograd multiplies no gradient by alpha."""
    held = 0
    for name in zoo.list_models():
        for c in (None, 1):
            with torch.device("meta"):
                names = {"c", "encoder_c", "decoder_c"} & zoo.model_info(name).scheme_options["rescale"].keys()
                model = zoo.create_model(name, **dict.fromkeys(names, c))
            for block in model.modules():
                if isinstance(getattr(block, "join", None), RescaledAdd) and getattr(block, "downsample", None) is None:
                    assert block.join.gain == 1.0, name
                    held += 1
            to_features = [m.scale for m in model.modules() if isinstance(m, Unscale)]
            assert all(scale == 1 for scale in to_features[1:]), name  # stages end at the nominal scale
    assert held > 500
