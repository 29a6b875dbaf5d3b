"""Heads of detectors."""

from tests.helpers.detection import norms, small
from zoo.calibration import HasDataBias
from zoo.layers import InputGain


def test_heads_of_4conv1fc_have_the_schemes_layers():
    """GroupNorm in pyramid, box and mask head for gn; as many biases before products for rescale."""
    gn, rescale, plain = small(scheme="gn", heads="4conv1fc"), small(heads="4conv1fc"), small()
    body = len(norms(gn.backbone.body))
    assert len(norms(gn)) - body == 8 + 2 + 2  # four laterals, four outputs, two convolutions in each head
    biased = [n for n, m in rescale.named_modules() if isinstance(m, HasDataBias) and not isinstance(m, InputGain)]
    assert len([n for n in biased if not n.startswith("backbone.body")]) == 8 + 2 + 1 + 2  # and the linear layer
    assert all(n.startswith("backbone.body") for n, m in plain.named_modules() if hasattr(m, "pre_bias"))
