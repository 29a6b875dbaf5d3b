"""Video nets of torchvision, SlowFast and PyTorchVideo, read into our nets and converted."""

import re

import pytest
import torch

import zoo
from tests.helpers.batchnorm import relative_error, train_statistics_
from tests.helpers.foreign_clips import PyTorchVideo, SlowFast, slowfast_blobs, torchvision_video
from tests.helpers.pickles import python2
from zoo.convert.batchnorm import convert_batchnorm, load_imported
from zoo.convert.checkpoints import read_checkpoint
from zoo.convert.layouts import LAYOUTS
from zoo.nets.base import ModelConfig

TORCHVISION = {name: f"rescale_{name}" for name in ("r3d_18", "mc3_18", "r2plus1d_18")}
FORMS = ("gained", "folded")
OF_FACEBOOK = {"i3d": "rescale_i3d_r50", "slowonly": "rescale_slowonly_r50"}


def disturbed(net):
    """The net with statistics as published files have them: dead channels, negative and denormal scales."""
    return train_statistics_(net, hostile=True)


def read(state, name=None, **options):
    layout = next(layout for layout in LAYOUTS if layout.matches(state.keys()))
    return layout, layout.read(state, name, options)


def clips(frames, height, width, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(2, 3, frames, height, width, dtype=dtype)


def torchvision_outputs(net, x):
    with torch.no_grad():
        maps = [net.stem(x)]
        for i in range(1, 5):
            maps.append(getattr(net, f"layer{i}")(maps[-1]))
        return [net(x), *maps[1:]]


def facebook_outputs(net, x):
    with torch.no_grad():
        return [net(x), *net.features(x)]


def our_outputs(net, x):
    with torch.no_grad():
        return [net(x), *net.forward_levels(x, (1, 2, 3, 4))]


def assert_equal(ours, theirs, tolerance):
    for mine, original in zip(ours, theirs, strict=True):
        assert relative_error(mine, original) <= tolerance


# -- torchvision -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "ours"), TORCHVISION.items(), ids=TORCHVISION)
def test_torchvision(name, ours):
    net = disturbed(torchvision_video(name).double())
    layout, imported = read(net.state_dict())
    assert layout.name == "torchvision video ResNet"
    assert imported.config == ModelConfig(ours, "bn", 7, 3, {"shortcut": "conv", "width": 1 / 8})
    assert imported.eps == 1e-5
    nets = [(load_imported(imported, imported.eps, "test"), 1e-12)]
    nets += [(zoo.convert.from_batchnorm(net.state_dict(), form=form), 1e-10) for form in FORMS]
    for size in ((5, 37, 41), (1, 32, 32)):
        x = clips(*size)
        theirs = torchvision_outputs(net, x)
        for converted, tolerance in nets:
            assert_equal(our_outputs(converted, x), theirs, tolerance)
    single = zoo.convert.from_batchnorm(net.float().state_dict())
    assert_equal(our_outputs(single, x.float()), torchvision_outputs(net, x.float()), 3e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ours"), TORCHVISION.items(), ids=TORCHVISION)
def test_torchvision_in_full(name, ours):
    net = disturbed(torchvision_video(name, full=True).double())
    converted = convert_batchnorm(net, ours)
    assert converted.model.config.num_classes == 400
    assert (converted.transform.frames, converted.transform.size, converted.transform.fps) == (16, 112, 15)
    x = clips(7, 65, 49)
    assert_equal(our_outputs(converted.model, x), torchvision_outputs(net, x), 1e-10)


def test_torchvision_without_a_last_layer():
    net = disturbed(torchvision_video("r3d_18").double())
    state = {key: value for key, value in net.state_dict().items() if not key.startswith("fc.")}
    _, imported = read(state)
    assert imported.config.num_classes == 0
    x = clips(4, 32, 32)
    ours = load_imported(imported, 1e-5, "test")
    with torch.no_grad():
        assert (
            relative_error(
                ours(x)[:, :, None, None, None],
                net.layer4(net.layer3(net.layer2(net.layer1(net.stem(x))))).mean((2, 3, 4), keepdim=True),
            )
            <= 1e-12
        )


# -- SlowFast and PyTorchVideo -----------------------------------------------------------------------


@pytest.mark.parametrize("make", [SlowFast, PyTorchVideo])
@pytest.mark.parametrize(("arch", "ours"), OF_FACEBOOK.items(), ids=OF_FACEBOOK)
def test_facebook(make, arch, ours):
    net = disturbed(make(arch).double())
    layout, imported = read(net.state_dict())
    assert layout.name == make.__name__
    assert imported.config == ModelConfig(ours, "bn", 5, 3, {"shortcut": "conv", "width": 1 / 8})
    assert (imported.eps, imported.transform.frames, imported.transform.mean) == (1e-5, 8, (0.45,) * 3)
    nets = [(load_imported(imported, imported.eps, "test"), 1e-12)]
    nets += [(zoo.convert.from_batchnorm(net.state_dict(), ours, form=form), 1e-10) for form in FORMS]
    for size in ((4, 49, 33), (2, 32, 32)):
        x = clips(*size)
        theirs = facebook_outputs(net, x)
        for converted, tolerance in nets:
            assert_equal(our_outputs(converted, x), theirs, tolerance)
    single = zoo.convert.from_batchnorm(net.float().state_dict())
    assert_equal(our_outputs(single, x.float()), facebook_outputs(net, x.float()), 3e-6)


@pytest.mark.parametrize(("arch", "ours"), OF_FACEBOOK.items(), ids=OF_FACEBOOK)
def test_slowfast_of_caffe2(tmp_path, arch, ours):
    """The raw pickle of Python 2, with momentum and the solver's numbers."""
    net = disturbed(SlowFast(arch))
    (tmp_path / "net.pkl").write_bytes(python2(slowfast_blobs(net), "blobs"))
    state = read_checkpoint(tmp_path / "net.pkl")
    layout, imported = read(state)
    assert layout.name == "Caffe2"
    assert imported.config == ModelConfig(ours, "bn", 5, 3, {"shortcut": "conv", "width": 1 / 8})
    expected = read(net.state_dict())[1]
    assert list(imported.state) == list(expected.state)
    for key, value in imported.state.items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, expected.state[key])
    assert imported.transform == expected.transform


@pytest.mark.slow
@pytest.mark.parametrize("make", [SlowFast, PyTorchVideo])
@pytest.mark.parametrize(("arch", "ours"), OF_FACEBOOK.items(), ids=OF_FACEBOOK)
def test_facebook_in_full(make, arch, ours):
    net = disturbed(make(arch, 64, 400).double())
    converted = zoo.convert.from_batchnorm(net.state_dict(), ours)
    x = clips(8, 64, 49)
    assert_equal(our_outputs(converted, x), facebook_outputs(net, x), 1e-10)


def with_key(make, arch, key):
    return {**make(arch).state_dict(), key: torch.ones(1)}


def changed(arch, key, *shape):
    return {**SlowFast(arch).state_dict(), key: torch.ones(shape)}


def without(arch, part):
    return {key: value for key, value in SlowFast(arch).state_dict().items() if part not in key}


def blobs(key):
    state = {name: torch.as_tensor(value) for name, value in slowfast_blobs(SlowFast("i3d")).items()}
    state = {name: value for name, value in state.items() if not name.endswith("_momentum")}
    return {**state, key: torch.ones(2)}


REFUSED = {
    "two pathways .* (s1.pathway1_stem.conv.weight)": lambda: with_key(
        SlowFast, "slowonly", "s1.pathway1_stem.conv.weight"
    ),
    "two pathways .* (s1_fuse.conv_f2s.weight)": lambda: with_key(SlowFast, "slowonly", "s1_fuse.conv_f2s.weight"),
    "non-local blocks": lambda: with_key(SlowFast, "i3d", "s3.pathway0_nonlocal1.conv_theta.weight"),
    "X3D (s1.pathway0_stem.conv_xy.weight)": lambda: with_key(SlowFast, "i3d", "s1.pathway0_stem.conv_xy.weight"),
    "two pathways .* (blocks.0.multipathway_blocks.0.conv.weight)": lambda: with_key(
        PyTorchVideo, "i3d", "blocks.0.multipathway_blocks.0.conv.weight"
    ),
    "split into several": lambda: with_key(PyTorchVideo, "i3d", "blocks.1.res_blocks.0.branch2.conv_b.conv_t.weight"),
    "X3D (blocks.0.conv.conv_t.weight)": lambda: with_key(PyTorchVideo, "i3d", "blocks.0.conv.conv_t.weight"),
    "no registered net": lambda: SlowFast("c2d").state_dict(),
    "and a pool in time, which no registered net": lambda: PyTorchVideo("c2d").state_dict(),
    "it has stages [1, 2, 3, 4, 9]": lambda: with_key(PyTorchVideo, "slowonly", "blocks.9.res_blocks.0.x"),
    "unexpected key 's2.pathway0_res0.extra.weight'": lambda: with_key(
        SlowFast, "i3d", "s2.pathway0_res0.extra.weight"
    ),
    "s1.pathway0_stem.conv.weight spans 3 frames": lambda: changed(
        "i3d", "s1.pathway0_stem.conv.weight", 8, 3, 3, 7, 7
    ),
    "s1.pathway0_stem.conv.weight has shape (2,); must be": lambda: changed("i3d", "s1.pathway0_stem.conv.weight", 2),
    "s4.pathway0_res2.branch2.b.weight has shape (1, 1, 1)": lambda: changed(
        "i3d", "s4.pathway0_res2.branch2.b.weight", 1, 1, 1
    ),
    "s5.pathway0_res0.branch2.c.weight is missing": lambda: without("i3d", "s5.pathway0_res0.branch2.c.weight"),
    "a stage is missing": lambda: without("i3d", "s4."),
    "missing key 's2.pathway0_res0.branch1_bn.running_var'": lambda: without("i3d", "branch1_bn.running_var"),
    "no registered net ": lambda: without("i3d", "s3.pathway0_res3"),
    "SlowFast (Caffe2) checkpoint: it has two pathways": lambda: blobs("t_conv1_w"),
    "SlowFast (Caffe2) checkpoint: it has non-local blocks": lambda: blobs("nonlocal_conv4_1_theta_w"),
    "SlowFast (Caffe2) checkpoint: unknown blob 'lin_5_w'": lambda: blobs("lin_5_w"),
}


@pytest.mark.parametrize(("reason", "state"), REFUSED.items(), ids=REFUSED)
def test_what_does_not_fit(reason, state):
    pattern = re.escape(reason.rstrip()).replace(r"\.\*", ".*")
    with pytest.raises(zoo.WeightsError, match=pattern) as caught:
        read(state())
    assert "\n" not in str(caught.value)


def test_torchvision_that_does_not_fit():
    state = torchvision_video("r3d_18").state_dict()
    with pytest.raises(zoo.WeightsError, match="has bottlenecks"):
        read({**state, "layer1.0.conv3.0.weight": torch.ones(1)})
    with pytest.raises(zoo.WeightsError, match="a stage is missing"):
        read({key: value for key, value in state.items() if not key.startswith("layer2.")})
    with pytest.raises(zoo.WeightsError, match=r"stem.0.weight has shape \(2,\)"):
        read({**state, "stem.0.weight": torch.ones(2)})
    with pytest.raises(zoo.WeightsError, match="which rescale_mc3_18 is not; leave the name out"):
        read(state, "rescale_mc3_18")
    with pytest.raises(zoo.WeightsError, match="option width=0.5: it has 0.125; leave it out"):
        read(state, width=0.5)
