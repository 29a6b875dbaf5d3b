"""The diagnosis of timm's nets: their residual connections are found, and the nets stay as they are."""

import pytest
import timm
import torch

from tasks.diagnose import diagnose, verdicts

# side of the images; residual connections by the nets' papers, and those of them with an identity shortcut
NETS = {
    "resnet18": (64, 8, 5),
    "resnet50d": (64, 16, 12),
    "nf_resnet26": (64, 8, 4),
    "vit_tiny_patch16_224": (224, 24, 24),
    "swin_tiny_patch4_window7_224": (224, 24, 24),
    "mixer_s32_224": (224, 16, 16),
    "convnext_atto": (64, 12, 12),
    "efficientnet_b0": (64, 9, 9),
    "densenet121": (64, 0, 0),
}


@pytest.mark.parametrize("name", NETS)
def test_residual_connections(name):
    side, sums, identities = NETS[name]
    torch.manual_seed(0)
    net, images = timm.create_model(name).eval(), torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = net(images)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    signals = diagnose(net, [images])
    assert (len(signals.sums), sum(row.identity for row in signals.sums)) == (sums, identities)
    assert signals.unreached == ()
    assert verdicts(signals) == []
    with torch.no_grad():
        assert torch.equal(net(images), expected)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
