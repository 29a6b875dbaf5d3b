"""The trunks of detectron2 and of Caffe2's Detectron, read into our nets and converted."""

import logging
import re

import pytest
import torch

import zoo
from tests.helpers.batchnorm import relative_error, train_statistics_
from tests.helpers.foreign_detectron2 import (
    CAFFE2,
    HEADS,
    PYRAMID,
    Trunk,
    blobs,
    caffe2_heads,
    detector,
    make_affine,
    torchvision_names,
)
from tests.helpers.pickles import python2
from zoo.convert.batchnorm import convert_batchnorm, load_imported
from zoo.convert.checkpoints import read_checkpoint
from zoo.convert.layouts import LAYOUTS
from zoo.convert.layouts.detectron2 import split

BGR = {"mean": (103.53 / 255, 116.28 / 255, 123.675 / 255), "channel_order": "BGR"}
UNIT, IMAGENET_BGR = (1 / 255,) * 3, (57.375 / 255, 57.12 / 255, 58.395 / 255)
R101 = {"depths": (3, 4, 23, 3)}
RESNEXT = {"depths": (3, 4, 6, 3), "base": 32, "inner": 64, "groups": 32}  # half of X-50 32x4d


def disturbed(net):
    """The net with statistics as published files have them: dead channels, negative and denormal scales."""
    return train_statistics_(net, hostile=True)


def read(state, name=None, **options):
    layout = next(layout for layout in LAYOUTS if layout.matches(state.keys()))
    return layout.read(state, name, options)


def assert_equal(state, trunk, *, expected=(), single=True, **options):
    """Our net with BatchNorm and the converted ones give what the trunk gives; return what was read."""
    imported = read(state, **options)
    assert imported.config.options == {"shortcut": "conv", **dict(expected)}
    x = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        theirs = trunk.double()(x)
    state = {key: value.double() if value.is_floating_point() else value for key, value in state.items()}

    def outputs(net, x=x):
        with torch.no_grad():
            maps = net.forward_levels(x, (1, 2, 3, 4))
            return maps if trunk.linear is None else [*maps, net(x)]

    nets = [(load_imported(read(state, **options), imported.eps, "test"), 1e-12)]
    nets += [(zoo.convert.from_batchnorm(state, **options), 1e-10)]
    for net, tolerance in nets:
        for a, b in zip(outputs(net), theirs, strict=True):
            assert relative_error(a, b) <= tolerance
    if single:
        halves = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
        with torch.no_grad():
            theirs = trunk.float()(x.float())
        for a, b in zip(outputs(zoo.convert.from_batchnorm(halves, **options), x.float()), theirs, strict=True):
            assert relative_error(a, b) <= 3e-6
    return imported


# -- names and strides -------------------------------------------------------------------------------


@pytest.mark.parametrize(("depths", "name"), [((3, 4, 6, 3), "rescalenet50"), ((3, 4, 23, 3), "rescalenet101")])
def test_msra(depths, name):
    """Caffe2's names with affine layers alone: the stride is in the 1x1, the input BGR with std 1."""
    trunk = make_affine(disturbed(Trunk(depths, classes=10).double()))
    imported = assert_equal(
        blobs(trunk, statistics=False), trunk, expected={"width": 1 / 8, "stride_in_1x1": True}, single=depths[2] == 6
    )
    assert (imported.config.name, imported.config.num_classes, imported.eps) == (name, 10, 1e-5)
    assert imported.transform == zoo.InputTransform(224, 256, std=UNIT, **BGR)


def test_msra_with_statistics():
    """The files that detectron2 converted again have the statistics too."""
    trunk = disturbed(Trunk())
    imported = assert_equal(
        blobs(trunk, statistics=True), trunk, expected={"width": 1 / 8, "stride_in_1x1": True}, single=False
    )
    assert imported.config.num_classes == 0
    assert imported.transform == zoo.InputTransform(224, 256, std=UNIT, **BGR)


@pytest.mark.parametrize("statistics", [True, False])
def test_resnext_of_caffe2(statistics):
    """The stride is in the 3x3; the std of the input is 1 in the files without statistics alone."""
    trunk = disturbed(Trunk(**RESNEXT, first=False).double())
    trunk = trunk if statistics else make_affine(trunk)
    imported = assert_equal(blobs(trunk, statistics=statistics), trunk, expected={"width": 1 / 2}, single=False)
    assert imported.config.name == "rescalenext50_32x4d"
    assert imported.transform == zoo.InputTransform(224, 256, std=IMAGENET_BGR if statistics else UNIT, **BGR)


def test_torchvision_in_detectron2_names():
    trunk = disturbed(Trunk(first=False, classes=10))
    imported = assert_equal(torchvision_names(trunk), trunk, expected={"width": 1 / 8}, single=False)
    assert imported.config.num_classes == 10
    assert imported.transform == zoo.InputTransform.imagenet()


def test_basic_blocks():
    trunk = disturbed(Trunk((2, 2, 2, 2), inner=0))
    imported = assert_equal(trunk.state_dict(), trunk, expected={"width": 1 / 8}, single=False)
    assert imported.config.name == "rescalenet18"
    assert imported.transform is None


@pytest.mark.parametrize("prefix", ["backbone.bottom_up.", "backbone.", "bottom_up.", ""])
def test_the_option_decides(prefix):
    first = prefix != "backbone."
    trunk = disturbed(Trunk(first=first))
    state = {prefix + key: value for key, value in trunk.state_dict().items()}
    expected = {"width": 1 / 8, "stride_in_1x1": first}
    assert_equal(state, trunk, expected=expected, single=False, stride_in_1x1=first)
    with pytest.raises(zoo.WeightsError, match="give stride_in_1x1=True .* or False"):
        read(state)


# -- detectors ---------------------------------------------------------------------------------------

DETECTORS = {
    "MSRA": ({}, (1.0, 1.0, 1.0), {"stride_in_1x1": True}),
    "MSRA R-101": (R101, (1.0, 1.0, 1.0), {"stride_in_1x1": True}),
    "ResNeXt": (RESNEXT, (57.375, 57.12, 58.395), {}),
    "ResNeXt without buffers": (RESNEXT, None, {}),
    "stride in the 3x3": ({}, (57.375, 57.12, 58.395), {}),
}


@pytest.mark.parametrize(("sizes", "std", "expected"), DETECTORS.values(), ids=DETECTORS)
def test_the_trunk_of_a_detector(sizes, std, expected, caplog):
    """Its buffers of pixels show where the stride is; the rest is left out, and said so."""
    trunk = Trunk(**sizes, first=bool(expected))
    state = detector(trunk, pixel_std=std)
    width = sizes.get("base", 8) / 64
    with caplog.at_level(logging.INFO, "rescalenet"):
        imported = read(state)
    assert imported.config.options == {"shortcut": "conv", "width": width, **expected}
    count = len(PYRAMID) + len(HEADS) + (2 if std else 0)
    assert f"detectron2 checkpoint: {count} tensors are not of the trunk" in caplog.messages[0]
    std = std or (57.375, 57.12, 58.395)
    for found, value in zip(imported.transform.std, std, strict=True):
        assert found == pytest.approx(value / 255, rel=1e-6)
    assert imported.transform.channel_order == "BGR"


def test_the_trunk_of_a_detector_has_equal_features():
    trunk = disturbed(Trunk())
    state = detector(trunk, pixel_std=(1.0, 1.0, 1.0))
    assert_equal(state, trunk, expected={"width": 1 / 8, "stride_in_1x1": True})


def test_rgb_buffers():
    state = detector(Trunk(), pixel_std=(58.395, 57.12, 57.375), pixel_mean=(123.675, 116.28, 103.53))
    imported = read(state)
    assert imported.transform.channel_order == "RGB"
    assert imported.transform.mean == pytest.approx((0.485, 0.456, 0.406), abs=1e-6)


def test_a_file_of_detectron(tmp_path, caplog):
    """The raw pickle of Python 2 of a whole detector, with momentum, biases that nothing uses, and the solver's."""
    trunk = make_affine(disturbed(Trunk()))
    content = {**blobs(trunk, statistics=False), **caffe2_heads(), "conv1_b": torch.zeros(8)}
    content |= {f"{key}_momentum": value for key, value in content.items()} | {"lr": torch.tensor(0.1)}
    (tmp_path / "net.pkl").write_bytes(python2({key: value.numpy() for key, value in content.items()}, "blobs"))
    with caplog.at_level(logging.INFO, "rescalenet"):
        converted = convert_batchnorm(read_checkpoint(tmp_path / "net.pkl"))
    assert converted.layout == "Caffe2"
    assert converted.model.config.options["stride_in_1x1"]
    assert f"{2 * len(CAFFE2)} tensors are not of the trunk, and 1 biases beside norms are not used" in caplog.text
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(converted.model.forward_levels(x, (1, 2, 3, 4)), trunk(x), strict=True):
            assert relative_error(a, b) <= 3e-6


def test_the_parts_of_a_detector():
    """A checkpoint of detectron2 is split at its prefix; nothing is lost."""
    trunk = Trunk()
    found, rest = split(detector(trunk, pixel_std=(1.0, 1.0, 1.0)))
    assert list(found) == [key for key in trunk.state_dict() if "num_batches" not in key]
    assert set(rest) == {*PYRAMID, *HEADS, "pixel_mean", "pixel_std"}


def test_the_parts_of_a_detector_of_caffe2():
    """The names are detectron2's, and the background, first in Caffe2, is the last class."""
    trunk, heads = Trunk(), caffe2_heads()
    found, rest = split({**blobs(trunk, statistics=False), **heads})
    assert set(found) == {key for key in trunk.state_dict() if "num_batches" not in key}
    assert set(rest) == {f"{name}.{leaf}" for name in CAFFE2.values() for leaf in ("weight", "bias")}
    for blob, name in CAFFE2.items():
        for short, leaf in (("w", "weight"), ("b", "bias")):
            value = heads[f"{blob}_{short}"]
            if blob == "cls_score":
                value = torch.cat([value[1:], value[:1]])
            elif blob in ("bbox_pred", "mask_fcn_logits"):
                value = value[4 if blob == "bbox_pred" else 1 :]
            assert torch.equal(rest[f"{name}.{leaf}"], value)


# -- refusals ----------------------------------------------------------------------------------------


def without(part, state):
    return {key: value for key, value in state.items() if part not in key}


REFUSED = {
    "deformable convolutions (res3.0.conv2_offset.weight)": lambda: {
        **detector(Trunk()),
        "backbone.bottom_up.res3.0.conv2_offset.weight": torch.ones(1),
    },
    "a C4 net": lambda: detector(Trunk(), "backbone.", parts={"roi_heads.res5.0.conv1.weight": (1,)}),
    "a DC5 net": lambda: detector(Trunk(), "backbone.", parts=HEADS),
    "its norms have no running statistics: GroupNorm": lambda: without("running_", Trunk().state_dict()),
    "its stem has no norm": lambda: without("stem.conv1.norm", Trunk().state_dict()),
    "does not show where its bottlenecks have their stride": lambda: detector(Trunk()),
    "it has GroupNorm (res_conv1_gn_s)": lambda: {
        key.replace("_bn_", "_gn_"): value for key, value in blobs(Trunk(), statistics=False).items()
    },
    "unknown blob 'retnet_cls_pred_fpn3_w'": lambda: {
        **blobs(Trunk(), statistics=False),
        "retnet_cls_pred_fpn3_w": torch.ones(2),
    },
    "which no registered net is": lambda: blobs(Trunk((3, 4, 6, 1)), statistics=False),
    "missing key 'res4.1.conv3.norm.bias'": lambda: without("res4_1_branch2c_bn_b", blobs(Trunk(), statistics=False)),
    "unexpected key 'res4.1.conv1.extra'": lambda: {
        **torchvision_names(Trunk()),
        "stem.fc.weight": torch.ones(10, 256),
        "stem.fc.bias": torch.ones(10),
        "res4.1.conv1.extra": torch.ones(1),
    },
    "res5.0.conv3.weight has shape (256,)": lambda: {
        **blobs(Trunk(), statistics=False),
        "res5_0_branch2c_w": torch.ones(256),
    },
    "conv2.weight is missing or no kernel": lambda: without("res2_0_branch2b_w", blobs(Trunk(), statistics=False)),
    "res2.0.shortcut.weight is missing or no kernel": lambda: {
        **blobs(Trunk(), statistics=False),
        "res2_0_branch1_w": torch.tensor(1.0),
    },
    "unexpected key 'linear.bias'": lambda: {
        **blobs(Trunk(classes=3), statistics=False),
        "fc1000_w": torch.tensor(1.0),
    },
    "stem.conv1.weight is missing or no kernel": lambda: {
        **blobs(Trunk(), statistics=False),
        "conv1_w": torch.ones(2),
    },
}


@pytest.mark.parametrize(("reason", "state"), REFUSED.items(), ids=REFUSED)
def test_what_does_not_fit(reason, state):
    with pytest.raises(zoo.WeightsError, match=re.escape(reason)) as caught:
        read(state())
    assert str(caught.value).startswith("detectron2 checkpoint: ")
    assert "\n" not in str(caught.value)


def test_another_name_than_the_checkpoint_is():
    with pytest.raises(zoo.WeightsError, match="which rescalenet101 is not; leave the name out"):
        read(blobs(Trunk(), statistics=False), "rescalenet101")
    with pytest.raises(zoo.WeightsError, match="only its trunk can be converted"):
        read(detector(Trunk(), pixel_std=(1.0, 1.0, 1.0)), "mask_rcnn_rescalenet50_fpn")


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [{"depths": (3, 4, 6, 3)}, R101, {"depths": (3, 4, 23, 3), "inner": 256, "groups": 32}],
    ids=["R-50", "R-101", "X-101"],
)
def test_in_full(sizes):
    trunk = Trunk(**{"base": 64, "inner": 64, **sizes, "first": "groups" not in sizes})
    trunk = make_affine(disturbed(trunk.double()))
    expected = {} if "groups" in sizes else {"stride_in_1x1": True}
    assert_equal(blobs(trunk, statistics=False), trunk, expected=expected)
