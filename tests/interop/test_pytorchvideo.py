"""Checkpoints of PyTorchVideo's own nets, read by us, and the nets that ``tests.helpers`` writes with their names."""

import pytest
import torch
from pytorchvideo.models import hub
from torch import nn

import zoo
from tests.helpers.batchnorm import relative_error, train_statistics_
from tests.helpers.foreign_clips import PyTorchVideo
from zoo.convert.batchnorm import convert_batchnorm
from zoo.errors import WeightsError

NETS = {"slow_r50": "slowonly", "i3d_r50": "i3d"}


def made(name):
    """A net of PyTorchVideo with an eighth of the channels, 5 classes, and statistics as published files have them."""
    torch.manual_seed(0)
    return train_statistics_(getattr(hub, name)(stem_dim_out=8, model_num_class=5), hostile=True)


def outputs(net, x):
    """Logits and the maps at the ends of the four stages."""
    maps = []
    stages = [block for block in net.blocks if hasattr(block, "res_blocks")]
    handles = [stage.register_forward_hook(lambda _m, _i, out: maps.append(out.clone())) for stage in stages]
    with torch.no_grad():
        logits = net(x)
    for handle in handles:
        handle.remove()
    assert len(maps) == 4
    return [logits, *maps]


@pytest.mark.parametrize("name", NETS)
def test_logits_and_features_are_those_of_pytorchvideo(name):
    """At 8 frames of 224 px, the size that its heads average over."""
    net = made(name).double()
    found = convert_batchnorm(net.state_dict())
    assert (found.layout, found.model.config.name) == ("PyTorchVideo", f"rescale_{NETS[name]}_r50")
    x = torch.randn(2, 3, 8, 224, 224, dtype=torch.float64)
    right = outputs(net, x)
    assert (right[0][0] - right[0][1]).abs().max() > 1e-3 * right[0].abs().max()  # the clip matters
    single = {key: value.float() if value.is_floating_point() else value for key, value in net.state_dict().items()}
    folded = zoo.convert.from_batchnorm(net.state_dict(), form="folded")
    for ours, tolerance in ((found.model, 1e-10), (folded, 1e-10), (zoo.convert.from_batchnorm(single), 3e-6)):
        with torch.no_grad():
            clips = x.to(next(ours.parameters()).dtype)
            logits, maps = ours.eval()(clips), ours.forward_levels(clips, (1, 2, 3, 4))
        for mine, theirs in zip([logits, *maps], right, strict=True):
            assert relative_error(mine.double(), theirs) < tolerance


@pytest.mark.parametrize("name", [*NETS, "c2d_r50"])
def test_our_helper_has_its_names_and_outputs(name):
    """The tests outside of this folder trust ``PyTorchVideo`` of ``tests.helpers.foreign_clips``."""
    net, helper = made(name), PyTorchVideo(NETS.get(name, "c2d")).eval()
    helper.load_state_dict(net.state_dict())
    x = torch.randn(1, 3, 8, 224, 224)
    right = outputs(net, x)
    with torch.no_grad():
        for mine, theirs in zip([helper(x), *helper.features(x)], right, strict=True):
            assert relative_error(mine, theirs) < 3e-6


def test_its_head_averages_over_windows_and_its_pool_drops_a_frame():
    """The limits that docs/convert.md states: equal maps and other logits on larger clips, a frame less in I3D's."""
    net = made("slow_r50").double()
    ours = zoo.convert.from_batchnorm(net.state_dict())
    x = torch.randn(1, 3, 8, 256, 256, dtype=torch.float64)
    logits, *maps = outputs(net, x)
    with torch.no_grad():
        assert relative_error(ours.forward_levels(x)[-1], maps[-1]) < 1e-10
        assert relative_error(ours(x), logits) > 1e-6
        pooled = nn.functional.avg_pool3d(maps[-1], (8, 7, 7), 1).mean((2, 3, 4))
        assert relative_error(ours.fc(pooled), logits) < 1e-10
    net = made("i3d_r50").double()
    ours, x = zoo.convert.from_batchnorm(net.state_dict()), torch.randn(1, 3, 9, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        assert (outputs(net, x)[-1].shape[2], ours.forward_levels(x)[-1].shape[2]) == (4, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("c2d_r50", r"kernels \(\(1, 1, 1\), .* and a pool in time, which no registered net is"),
        ("csn_r101", r"its stem blocks\.0\.conv\.weight spans 3 frames"),
        ("r2plus1d_r50", r"a 3x3 that is split into several convolutions"),
        ("slowfast_r50", r"two pathways with connections between them"),
        ("x3d_xs", r"the depthwise convolutions and squeeze-and-excitation of X3D"),
    ],
)
def test_its_other_nets_are_refused(name, message):
    with torch.device("meta"):
        state = getattr(hub, name)().state_dict()
    with pytest.raises(WeightsError, match=f"PyTorchVideo checkpoint: .*{message}"):
        zoo.convert.from_batchnorm(state)


def test_a_module_takes_its_own_size_alone():
    """So it cannot be run on our small clip, and the message asks for its state dict."""
    with pytest.raises(WeightsError, match=r"does not run on images of 65 px .*give its state_dict"):
        zoo.convert.from_batchnorm(made("slow_r50"))
