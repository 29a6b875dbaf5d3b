"""Nets in channels_last, the format that convolutions are fastest in."""

import pytest
import torch

from tests.helpers.exports import photographs
from tests.helpers.nets import narrow, wake_
from zoo.errors import ExportError
from zoo.export import TARGETS
from zoo.export.images import export_net

SLOW = ("aoti",)  # whose compiler takes half a minute


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name, target in TARGETS.items()
        if target.form == "graphs"
    ],
)
def test_weights_and_inputs_in_channels_last(name, tmp_path):
    try:
        TARGETS[name].functions()
    except ExportError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    net = narrow("cifar").eval()
    wake_(net)
    net = net.to(memory_format=torch.channels_last)
    inputs = [x.to(memory_format=torch.channels_last) for x in torch.stack(photographs(32)).split([1, 3, 2])]
    made = export_net(net, [*inputs, inputs[1][:, :, :21, :26]], tmp_path / "out", name)
    assert made.worst < 1e-4
    kernels = [x for x in net.parameters() if x.ndim == 4 and x.shape[-1] > 1]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in kernels)  # the net is unchanged
