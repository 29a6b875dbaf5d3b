"""Detectors: equal to torchvision's where they should be, free of norms, independent of batch-mates, calibrated."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import zoo
from tasks.detection.detector import Standardize, create_detector
from tests.helpers.detection import SMALL, calibrated, norms, sample, sharpened, small
from tests.helpers.exports import export_detector
from tests.helpers.nets import BASELINES
from tests.helpers.nets import IMAGES as NARROW
from zoo.calibration import HasDataBias
from zoo.errors import ExportError, ZooError
from zoo.export.images import export_net
from zoo.layers import InputGain

# -- against torchvision ----------------------------------------------------------------------------


def from_torchvision(key):
    """The name that we have for a tensor of torchvision's Mask R-CNN."""
    key = re.sub(r"^backbone\.body\.(conv1|bn1)\.", lambda m: f"backbone.body.body.stem.{m[1]}.", key)
    key = re.sub(r"^backbone\.body\.layer", "backbone.body.body.layer", key)
    key = key.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.norm.")
    key = re.sub(r"\bbn(\d)\.", r"norm\1.", key)
    key = re.sub(r"fpn\.inner_blocks\.(\d)\.0\.", r"fpn.laterals.\1.", key)
    key = re.sub(r"fpn\.layer_blocks\.(\d)\.0\.", r"fpn.outputs.\1.", key)
    key = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.conv{int(m[1]) + 1}.", key)
    return re.sub(r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv.0.0.", key)


def test_equals_torchvisions_mask_rcnn():
    """Same tensors, same losses and same detections as maskrcnn_resnet50_fpn, for BN bodies and default heads."""
    sizes = {"min_size": 128, "max_size": 192}
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4, _skip_resize=True, **sizes)
    ours = create_detector("mask_rcnn_rescalenet50_fpn", scheme="bn", num_classes=3, **sizes)
    state = {from_torchvision(key): value for key, value in theirs.state_dict().items()}
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in ours.state_dict().items()}
    ours.load_state_dict(state)
    data = [sample(128, 160, seed=1), sample(128, 160, seed=2)]
    images, targets = [image for image, _ in data], [target for _, target in data]
    losses = []
    for model in (theirs, ours):
        model.train()
        torch.manual_seed(0)
        losses.append(model(images, targets))
    assert losses[0].keys() == losses[1].keys()
    for key in losses[0]:
        torch.testing.assert_close(losses[0][key], losses[1][key], rtol=1e-4, atol=1e-5)
    for model in (theirs, ours):
        model.eval()
        model.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        a, b = theirs(images[:1])[0], ours(images[:1])[0]
    assert len(a["boxes"]) > 10
    torch.testing.assert_close(a["scores"], b["scores"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a["boxes"], b["boxes"], rtol=1e-3, atol=1e-2)


def test_resizing_is_torchvisions_up_to_rounding():
    """torchvision multiplies by a float; ours is in integers: the floor of the exact product."""
    theirs = GeneralizedRCNNTransform(800, 1333, [0.0] * 3, [1.0] * 3).eval()
    ours = Standardize(zoo.DetectionTransform(800, 1333, (0.0,) * 3, (1.0,) * 3), 32).eval()
    for height, width in [(480, 640), (333, 500), (1200, 900), (200, 2000), (101, 103)]:
        image = torch.rand(3, height, width)
        a, b = theirs.resize(image)[0], ours.resize(image)[0]
        short, long = min(height, width), max(height, width)
        exact = [min(side * 800 // short, side * 1333 // long) for side in (height, width)]
        assert list(b.shape[1:]) == exact
        assert all(0 <= x - y <= 1 for x, y in zip(exact, a.shape[1:], strict=True))
        if a.shape == b.shape:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert ours.resize(torch.rand(3, 1, 3000))[0].shape == (3, 1, 1333)  # never nothing


def test_sizes_at_which_resizing_differs():
    """Those of docs/detection.md: the exact product is a whole number, and torchvision's float product lies below."""
    sides = np.arange(1, 1401)
    height, width = np.meshgrid(sides, sides, indexing="ij")
    short, long = np.minimum(height, width), np.maximum(height, width)
    factor = np.minimum(800 / short, 1333 / long)
    differ, whole, vanish = (np.zeros(short.shape, bool) for _ in range(3))
    for side in (height, width):
        exact = np.minimum(side * 800 // short, side * 1333 // long)
        theirs = np.floor(side * factor).astype(int)
        assert set((exact - theirs).flat) == {0, 1}
        differ |= exact != theirs
        vanish |= theirs == 0
        by_long = 1333 * short < 800 * long
        whole |= np.where(by_long, side * 1333 % long == 0, side * 800 % short == 0)
    assert not (differ & ~whole).any()
    assert (differ & ~vanish).sum() == 77_881
    assert vanish.sum() == 134
    short_sides = [side for side in sides[199:640] if differ[side - 1, 639]]
    assert short_sides == [385, 386, 387, 388, 390, 398, 539, 578, 607, 610]
    theirs = GeneralizedRCNNTransform(800, 1333, [0.0] * 3, [1.0] * 3).eval()
    ours = Standardize(zoo.DetectionTransform(800, 1333, (0.0,) * 3, (1.0,) * 3), 32).eval()
    for side in (386, 392, 539):
        image = torch.rand(3, side, 640)
        a, b = theirs.resize(image)[0], ours.resize(image)[0]
        assert torch.equal(a, b) if side == 392 else a.shape != b.shape


# -- what a detector is made of ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(NARROW))
@pytest.mark.parametrize("heads", ["2fc", "4conv1fc"])
def test_no_norm_anywhere_in_a_rescale_detector(kind, heads):
    assert not norms(small(kind, heads=heads))


@pytest.mark.parametrize("name", zoo.list_models(input_kind="images"))
def test_every_net_carries_a_detector(name):
    """On the meta device: strides, shapes and parameter counts."""
    with torch.device("meta"):
        model = create_detector(f"mask_rcnn_{name}_fpn", num_classes=3)
        body = zoo.create_model(name, num_classes=0)
        maps = model.backbone(torch.empty(2, 3, 128, 192))
    strides = model.backbone.strides
    assert strides == ([1, 2, 4, 8] if name.endswith("_cifar") else [4, 8, 16, 32, 64])
    for stride, x in zip(strides, maps.values(), strict=True):
        assert x.shape == (2, 256, 128 // stride, 192 // stride)
    channels = model.backbone.body.feature_info.channels()
    pyramid = sum(256 * c + 256 for c in channels) + len(channels) * (256 * 256 * 9 + 256)
    own = sum(p.numel() for p in model.backbone.body.parameters())
    assert sum(p.numel() for p in model.backbone.parameters()) == own + pyramid
    assert own <= sum(p.numel() for p in body.parameters())  # without head and head bias


CASES = [(kind, scheme, "2fc") for kind in NARROW for scheme in ("rescale", "bn", "gn", "none")]
CASES += [("basic", scheme, "4conv1fc") for scheme in BASELINES]


@pytest.mark.parametrize(("kind", "scheme", "heads"), CASES)
def test_losses_gradients_and_detections(kind, scheme, heads):
    model = small(kind, scheme, heads=heads)
    calibrated(model)
    data = [sample(seed=1), sample(seed=2, objects=0)]
    model.train()
    losses = model([image for image, _ in data], [target for _, target in data])
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    model.eval()
    with torch.no_grad():
        outputs = model([image for image, _ in data])
    for output in outputs:
        count = len(output["scores"])
        assert output["boxes"].shape == (count, 4)
        assert output["masks"].shape == (count, 1, 96, 128)
        assert ((output["labels"] >= 1) & (output["labels"] <= 3)).all()


def test_faster_rcnn_has_no_masks():
    model = small(detector="faster")
    image, target = sample()
    assert not model.has_masks
    del target["masks"]
    assert "loss_mask" not in model.train()([image], [target])
    assert model.eval()([image])[0].keys() == {"boxes", "labels", "scores"}


# -- what a net without norms is for ----------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["rescale", "gn", "bn"])
@pytest.mark.parametrize("heads", ["2fc", "4conv1fc"])
def test_detections_do_not_depend_on_batch_mates(scheme, heads):
    """Sizes that torchvision would pad to a common one."""
    model = small(scheme=scheme, heads=heads)
    calibrated(model)
    sharpened(model).eval()
    images = [sample(96, 128, seed=1)[0], sample(128, 96, seed=2)[0], sample(96, 128, seed=3)[0], sample(70, 90)[0]]
    with torch.no_grad():
        together = model(images)
        alone = [model([image])[0] for image in images]
    for a, b in zip(together, alone, strict=True):
        assert len(a["scores"]) > 5
        for key, tolerance in (("scores", 1e-5), ("boxes", 1e-2), ("labels", 0)):
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=tolerance)
        assert float((a["masks"] - b["masks"]).abs().mean()) < 1e-5


def test_calibration_centres_the_inputs_of_every_biased_layer():
    """Heads included: over the same boxes, x + b has channel means of zero in each layer."""
    model = small(heads="4conv1fc")
    _, pairs = calibrated(model, batches=1)
    seen = {}

    def hook(layer, args):
        x = layer.calibration_input(args[0])
        means = x.double().mean([d for d in range(x.ndim) if d != layer.channel_dim % x.ndim])
        seen[layer] = float((means + layer.data_bias.double()).abs().max() / x.double().square().mean().sqrt())

    layers = [m for m in model.modules() if isinstance(m, HasDataBias) and not isinstance(m, InputGain)]
    for layer in layers:
        layer.register_forward_pre_hook(hook)
    model.eval()
    with torch.no_grad():
        model.calibration_pass(*pairs[0])
    assert len(seen) == len(layers)
    assert max(seen.values()) < 1e-4


@pytest.mark.parametrize("scheme", ["rescale", "bn"])
def test_frozen_levels(scheme):
    """Level n leaves the parameters of the first n of stem and stages out; statistics stand still there."""
    counts = []
    for levels in range(6):
        model = small("bottleneck", scheme)
        model.freeze(levels)
        body = model.backbone.body.body
        parts = [body.stem, body.layer1, body.layer2, body.layer3, body.layer4]
        assert [any(p.requires_grad for p in part.parameters()) for part in parts] == [i >= levels for i in range(5)]
        counts.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
        before = {k: v.clone() for k, v in body.state_dict().items() if "running" in k}
        image, target = sample()
        losses = model.train()([image, image], [target, target])
        sum(losses.values()).backward()
        for i, part in enumerate(parts):
            assert part.training == (i >= levels)
        moved = {k.split(".")[0] for k, v in body.state_dict().items() if k in before and not torch.equal(before[k], v)}
        names = ["stem", "layer1", "layer2", "layer3", "layer4"]
        assert moved == (set(names[levels:]) if scheme == "bn" else set())
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 6
    with pytest.raises(ZooError, match="freeze=6"):
        small().freeze(6)


# -- weights ----------------------------------------------------------------------------------------


@pytest.fixture
def backbone_weights(tmp_path):
    name, options = NARROW["basic"]
    net = zoo.create_model(name, num_classes=2, scheme="bn", **options)
    transform = zoo.InputTransform(64, 64, (0.2, 0.4, 0.6), (0.1, 0.2, 0.3), channel_order="BGR")
    zoo.save_weights(net, tmp_path / "body.safetensors", transform=transform, classes=["a", "b"])
    return str(tmp_path / "body.safetensors")


def test_input_comes_from_the_backbones_weights(backbone_weights):
    """mean, std and channel order; a BGR net sees the RGB image turned."""
    make = {"num_classes": 3, "min_size": 96, "max_size": 160, "body": NARROW["basic"][1], **SMALL}
    model = create_detector("mask_rcnn_rescalenet18_fpn", weights_backbone=backbone_weights, **make).eval()
    assert model.config.scheme == "bn"
    assert model.input == zoo.DetectionTransform(96, 160, (0.2, 0.4, 0.6), (0.1, 0.2, 0.3), "BGR")
    image = torch.rand(3, 96, 128)
    (got,) = model.transform([image])[0].tensors
    mean, std = torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(got, (image.flip(0) - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    with pytest.raises(ZooError, match="were trained with mean="):
        create_detector("mask_rcnn_rescalenet18_fpn", weights_backbone=backbone_weights, mean=(0.5, 0.5, 0.5), **make)
    frozen = create_detector(
        "mask_rcnn_rescalenet18_fpn", weights_backbone=backbone_weights, scheme="frozen_bn", **make
    )
    assert not [m for m in frozen.modules() if isinstance(m, nn.BatchNorm2d)]
    with pytest.raises(ZooError, match="'4conv1fc' with scheme 'frozen_bn'"):
        create_detector(
            "mask_rcnn_rescalenet18_fpn",
            weights_backbone=backbone_weights,
            scheme="frozen_bn",
            heads="4conv1fc",
            **make,
        )


@pytest.mark.parametrize("scheme", ["rescale", "bn"])
def test_round_trip(scheme, tmp_path, caplog):
    model = small(scheme=scheme, heads="4conv1fc")
    calibrated(model)
    sharpened(model).eval()
    path = tmp_path / "detector.safetensors"
    zoo.save_weights(model, path, transform=model.input, classes=["a", "b", "c"], meta={"note": 1})
    again = create_detector("mask_rcnn_rescalenet18_fpn", str(path)).eval()
    assert again.config == model.config
    assert again.input == model.input
    assert zoo.get_weights(str(path)).classes == ("a", "b", "c")
    image = sample()[0]
    with torch.no_grad():
        a, b = model([image])[0], again([image])[0]
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)
    with caplog.at_level("INFO"):
        other = create_detector("mask_rcnn_rescalenet18_fpn", str(path), num_classes=7, score_thresh=0.3)
    assert "new last layers: 7 classes instead of the weights' 3" in caplog.text
    assert other.roi_heads.box_predictor.cls_score.out_features == 8
    assert other.roi_heads.score_thresh == 0.3
    assert torch.equal(other.roi_heads.box_head.fc.weight, model.roi_heads.box_head.fc.weight)
    assert not zoo.calibrate(other, [0], forward=lambda m, _: None).unreached  # all of it was supplied
    with pytest.raises(ZooError, match=r"have option fpn_channels=32, not 64"):
        create_detector("mask_rcnn_rescalenet18_fpn", str(path), fpn_channels=64)
    with pytest.raises(ZooError, match="are of scheme"):
        create_detector("mask_rcnn_rescalenet18_fpn", str(path), scheme="gn")
    with pytest.raises(zoo.WeightsError, match="are of mask_rcnn_rescalenet18_fpn, not of faster"):
        create_detector("faster_rcnn_rescalenet18_fpn", str(path))
    with pytest.raises(zoo.WeightsError, match="are of mask_rcnn_rescalenet18_fpn, not of rescalenet18"):
        zoo.create_model("rescalenet18", str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mask_rcnn_rescalenet18", {}), "unknown detector 'mask_rcnn_rescalenet18': must be faster_rcnn_BACKBONE_fpn"),
        (("mask_rcnn_rescalenet19_fpn", {}), "unknown model 'rescalenet19' .did you mean rescalenet18"),
        (("mask_rcnn_rescalenet18_fpn", {"fpn_chanels": 3}), "no option 'fpn_chanels' .did you mean fpn_channels"),
        (("mask_rcnn_rescalenet18_fpn", {"heads": "3fc"}), "option heads='3fc'"),
        (("mask_rcnn_rescalenet18_fpn", {"fpn_channels": 0}), "option fpn_channels=0: must be > 0"),
        (("mask_rcnn_rescalenet18_fpn", {"box_convs": (8, 0)}), r"option box_convs=\(8, 0\): must be values > 0"),
        (("mask_rcnn_rescalenet18_fpn", {"mask_convs": ()}), r"option mask_convs=\(\): must be one or more values > 0"),
        (
            ("mask_rcnn_rescalenet18_fpn", {"aspect_ratios": (1, 0)}),
            r"aspect_ratios=.*: must be one or more values",
        ),
        (("mask_rcnn_rescalenet18_fpn", {"body": {"widht": 1}}), "no option 'widht' .did you mean width"),
        (("mask_rcnn_rescalenet18_fpn", {"num_classes": 0}), "num_classes=0"),
        (("mask_rcnn_rescalenet18_fpn", {"scheme": "frozen_bn"}), "requires weights"),
        (("mask_rcnn_rescalenet18_fpn", {"out_indices": (3, 9)}), "out_indices"),
        (("mask_rcnn_rescalenet18_fpn", {"min_size": 900, "max_size": 800}), "min_size=900, max_size=800"),
    ],
)
def test_mistakes_are_one_clear_error(arguments, message):
    name, options = arguments
    with pytest.raises(ZooError, match=message):
        create_detector(name, **options)


# -- deployment -------------------------------------------------------------------------------------


def test_folded_detector_gives_the_same():
    model = small(heads="4conv1fc")
    calibrated(model)
    sharpened(model).eval()
    image = sample()[0]
    with torch.no_grad():
        a, b = model([image])[0], zoo.fold(model)([image])[0]
    torch.testing.assert_close(a["scores"], b["scores"], rtol=0, atol=1e-4)
    torch.testing.assert_close(a["boxes"], b["boxes"], rtol=0, atol=1e-1)


@pytest.mark.parametrize("folded", [False, True])
def test_body_and_pyramid_in_onnxruntime(folded, tmp_path):
    model = sharpened(small(heads="4conv1fc"))
    model = zoo.fold(model) if folded else model
    inputs = [torch.randn(count, 3, *size) for count, size in ((1, (96, 128)), (2, (96, 128)), (3, (64, 160)))]
    made = export_net(model.backbone, inputs, tmp_path / "pyramid", folded=folded)
    assert made.worst < 1e-5


@pytest.mark.parametrize("detector", ["mask", "faster"])
def test_whole_detector_in_onnxruntime(detector, tmp_path):
    """Traced at one size, equal at others: boxes, scores and masks."""
    model = small(detector=detector, detections=30)
    calibrated(model)
    sharpened(model).eval()
    images = [sample(*size, seed=3)[0] for size in ((96, 128), (128, 96), (150, 210), (64, 150))]
    with torch.no_grad():
        assert min(len(model([image])[0]["scores"]) for image in images) > 5
    made = export_detector(model, images, tmp_path / "detector")
    assert made.worst < 1e-3
    assert "150 x 210" in str(made)
    assert int(re.search(r"\((\d+) objects\)", str(made))[1]) >= 24


def test_an_export_is_never_compared_without_objects(tmp_path):
    """A detector is compared below its threshold where nothing is above; one that finds nothing at all is refused."""
    model = small(detections=10, score_thresh=0.9999)
    calibrated(model)
    sharpened(model).eval()
    made = export_detector(model, [sample(seed=3)[0], sample(80, 112, seed=4)[0]], tmp_path / "sure")
    assert "no object has a score of 0.9999; 20 objects with score_thresh=0" in str(made)
    assert 0 < made.worst < 1e-3
    assert model.roi_heads.score_thresh == 0.9999
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "sure/model.onnx"), providers=["CPUExecutionProvider"])
    assert len(session.run(None, {"image": sample(seed=3)[0].numpy()})[0]) == 0  # the file has the threshold
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[0] = 1e6  # all is background
    with pytest.raises(ExportError, match="no object is found in .*96 x 128.*: nothing could be compared"):
        export_detector(model, [sample(seed=3)[0]], tmp_path / "blind")
    assert not (tmp_path / "blind").exists()
