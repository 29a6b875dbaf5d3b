"""Converted detectors: the detections of the original, without its norms, in every form."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torchvision.models import detection as torchvision_detection

import zoo
from tasks.detection.class_names import CATEGORIES
from tasks.detection.convert import rescaled_detector
from tasks.detection.detector import create_detector
from tasks.detection.evaluate import categories_of, evaluate_weights, to_results
from tests.helpers.batchnorm import flatten_, relative_error
from tests.helpers.detection import calibrated, norms, real, sample, small
from tests.helpers.exports import export_detector
from tests.helpers.torchvision_detectors import LIMITS, SIZES, old_keys, picture, settle, torchvision_detector
from zoo.calibration import HasDataBias
from zoo.convert import convert_batchnorm, from_batchnorm
from zoo.errors import WeightsError, ZooError
from zoo.layers import InputGain
from zoo.transforms import IMAGENET_MEAN, IMAGENET_STD

FORMS = ("gained", "folded", "balanced")


@torch.no_grad()
def detections(model, image):
    return model.eval()([image])[0]


def matched(found, expected, tolerance):
    """For each expected object the found one whose box is nearest, of those not taken with a score as near as this."""
    left, order = list(range(len(found["scores"]))), []
    for box, score in zip(expected["boxes"], expected["scores"], strict=True):
        near = [i for i in left if abs(found["scores"][i] - score) <= tolerance]
        assert near, f"no object with score {float(score)}"
        order.append(min(near, key=lambda i: float((found["boxes"][i] - box).abs().max())))
        left.remove(order[-1])
    return order


def assert_equal_detections(found, expected, *, boxes, scores, masks, least=20):
    """The same objects, in the same order where their scores differ by more than ``scores``.

    Masks are compared where their probability is not 0.5 to ``masks``.
    """
    assert len(found["scores"]) == len(expected["scores"]) >= least
    order = matched(found, expected, scores)
    found = {key: value[order] for key, value in found.items()}
    assert torch.equal(found["labels"], expected["labels"])
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=0, atol=boxes)
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=scores)
    assert found.keys() == expected.keys()
    if "masks" in found:
        torch.testing.assert_close(found["masks"], expected["masks"], rtol=0, atol=masks)
        decided = (expected["masks"] - 0.5).abs() > masks
        assert torch.equal(found["masks"][decided] > 0.5, expected["masks"][decided] > 0.5)


EXACT = {"boxes": 1e-8, "scores": 1e-10, "masks": 1e-9}  # float64: rounding alone
SINGLE = {"boxes": 1e-3, "scores": 1e-5, "masks": 1e-3}  # fp32: torchvision's own distance from float64 is half of it


# -- torchvision's detectors ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def originals():
    """Original detectors by style and kind, made once."""
    made = {}

    def get(v2, masks):
        if (v2, masks) not in made:
            made[v2, masks] = torchvision_detector(v2=v2, masks=masks)
        return made[v2, masks]

    return get


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("v2", [False, True])
def test_same_detections_in_every_form(originals, v2, form):
    """Up to rounding in float64, and within a thousandth of a pixel in fp32."""
    theirs = originals(v2, True)
    ours = from_batchnorm(theirs, form=form)
    assert ours.config.name == "mask_rcnn_rescalenet18_fpn"
    assert ours.config.scheme == "rescale"
    assert not norms(ours)
    image = picture()
    assert_equal_detections(detections(ours, image), detections(theirs, image), **SINGLE)
    double = copy.deepcopy(theirs).double()
    ours = from_batchnorm(double, form=form)
    assert_equal_detections(detections(ours, image.double()), detections(double, image.double()), **EXACT)


@pytest.mark.parametrize("v2", [False, True])
def test_faster_rcnn(originals, v2):
    theirs = originals(v2, False)
    ours = from_batchnorm(theirs)
    assert ours.config.name == "faster_rcnn_rescalenet18_fpn"
    assert_equal_detections(detections(ours, picture()), detections(theirs, picture()), **SINGLE)


@pytest.mark.parametrize("v2", [False, True])
def test_pyramid_is_the_originals(originals, v2):
    """Features of several images at once, in float64."""
    theirs = copy.deepcopy(originals(v2, True)).double()
    ours = from_batchnorm(theirs)
    x = torch.stack([picture(seed=3), picture(seed=4)]).double()
    with torch.no_grad():
        found, expected = ours.backbone(x), theirs.backbone(x)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert float((found[key] - value).norm() / value.norm()) < 1e-12


def test_nothing_is_left_to_calibrate(originals):
    """The gains of the pyramid are 1, and calibration finds every bias supplied."""
    ours = from_batchnorm(originals(True, True))
    assert all(m.calibrated for m in ours.modules() if isinstance(m, HasDataBias))
    assert {float(m.gain) for m in ours.modules() if isinstance(m, InputGain)} == {1.0}
    before = copy.deepcopy(ours.state_dict())
    report, _ = calibrated(ours)
    assert not report.calibrated
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize("v2", [False, True])
def test_factors_of_the_norms_are_where_the_form_puts_them(originals, v2):
    """gained: W of the original and g beside it; folded: g in the weights."""
    theirs = originals(v2, True)
    own = theirs.state_dict()
    gained, folded = (from_batchnorm(theirs, form=form).state_dict() for form in ("gained", "folded"))
    key = "backbone.body.body.layer2.0.conv1.weight"
    assert torch.equal(gained[key], own["backbone.body.layer2.0.conv1.weight"])
    assert not torch.equal(folded[key], own["backbone.body.layer2.0.conv1.weight"])
    scales = [key for key in gained if key.endswith("weight_scale")]
    assert not any(key.endswith("weight_scale") for key in folded)
    assert any(key.startswith("roi_heads.mask_head.") for key in scales) == v2
    assert any(key.startswith("backbone.fpn.") for key in scales) == v2
    if v2:
        assert torch.equal(gained["roi_heads.mask_head.conv1.weight"], own["roi_heads.mask_head.0.0.weight"])


def test_state_dicts_convert_too(originals):
    """torchvision's defaults are assumed for what the keys do not show, and options replace them."""
    theirs = originals(True, True)
    done = convert_batchnorm(theirs.state_dict())
    assert done.layout == "torchvision Faster or Mask R-CNN"
    assert done.transform == done.model.input == zoo.DetectionTransform(800, 1333, IMAGENET_MEAN, IMAGENET_STD)
    assert done.eps == 1e-5
    assert done.classes is None
    assert dataclasses.asdict(done.transform)["min_size"] == 800
    ours = from_batchnorm(theirs.state_dict(), "mask_rcnn_rescalenet18_fpn", **LIMITS, **SIZES)
    assert_equal_detections(detections(ours, picture()), detections(theirs, picture()), **SINGLE)


def test_files_of_old_versions(originals):
    """Keys before torchvision 0.13, and no counters of batches."""
    theirs = originals(False, True)
    state = old_keys(theirs.state_dict())
    assert "roi_heads.mask_head.mask_fcn1.weight" in state
    assert "rpn.head.conv.weight" in state
    again = from_batchnorm(state, eps=1e-5).state_dict()
    for key, value in from_batchnorm(theirs.state_dict()).state_dict().items():
        assert torch.equal(again[key], value)


def test_eps_of_frozen_norms(caplog):
    """A module tells its own; a state dict of frozen norms has torchvision's 0 of COCO_V1, which is logged."""
    theirs = torchvision_detector(masks=False, frozen=True)
    assert convert_batchnorm(theirs).eps == 1e-5
    assert_equal_detections(detections(from_batchnorm(theirs), picture()), detections(theirs, picture()), **SINGLE)
    assert not caplog.text
    with caplog.at_level("INFO"):
        assert convert_batchnorm(theirs.state_dict()).eps == 0.0
    assert "frozen norms: eps 0 as in torchvision's COCO_V1" in caplog.text
    torchvision_detection._utils.overwrite_eps(theirs, 0.0)
    ours = from_batchnorm(theirs.state_dict(), **LIMITS, **SIZES)
    assert_equal_detections(detections(ours, picture()), detections(theirs, picture()), **SINGLE)
    assert convert_batchnorm(theirs.state_dict(), eps=1e-5).eps == 1e-5


@pytest.mark.parametrize("v2", [False, True])
def test_denormal_variances_without_eps(v2):
    """Channels with a filter of zeros keep their constants, in the body and in the norms around it."""
    theirs = flatten_(torchvision_detector(v2=v2, frozen=not v2))
    exact, image = copy.deepcopy(theirs).double(), picture()
    ours, double = from_batchnorm(theirs), from_batchnorm(exact)
    with torch.no_grad():
        right = exact.backbone(image[None].double())
        for found, tolerance in ((double.backbone(image[None].double()), 1e-10), (ours.backbone(image[None]), 3e-6)):
            assert found.keys() == right.keys()
            assert all(relative_error(found[key].double(), value) < tolerance for key, value in right.items())
    assert_equal_detections(detections(double, image.double()), detections(exact, image.double()), **EXACT)
    assert_equal_detections(detections(ours, image), detections(theirs, image), **SINGLE)


def test_settings_of_a_module_are_taken_over():
    theirs = torchvision_detector(masks=False)
    theirs.rpn.anchor_generator.sizes = tuple((16 * 2**i,) for i in range(5))
    theirs.rpn.anchor_generator.cell_anchors = [
        theirs.rpn.anchor_generator.generate_anchors((16 * 2**i,), (0.5, 1.0, 2.0)) for i in range(5)
    ]
    theirs.roi_heads.score_thresh, theirs.roi_heads.detections_per_img = 0.2, 30
    theirs.transform.image_mean = [0.4, 0.5, 0.6]
    ours = from_batchnorm(theirs)
    assert ours.input.mean == (0.4, 0.5, 0.6)
    assert ours.config.options["anchor_scale"] == 4.0
    assert_equal_detections(detections(ours, picture()), detections(theirs, picture()), **SINGLE)
    theirs.rpn.nms_thresh = 0.6
    with pytest.raises(WeightsError, match="rpn.nms_thresh is 0.6; must be 0.7"):
        from_batchnorm(theirs)


# -- classes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coco_detector():
    return torchvision_detector(classes=91)


def test_cocos_91_ids_become_80_classes(coco_detector):
    """The softmax runs over 81 rows: equal to the original with the other rows' logits at minus infinity."""
    done = convert_batchnorm(coco_detector)
    names = torchvision_detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert done.classes is not None
    assert len(done.classes) == done.model.num_classes == 80
    assert done.classes[0] == "person"
    assert done.classes[-1] == "toothbrush"
    unused = [i for i, name in enumerate(names) if name == "N/A"]
    assert len(unused) == 10
    masked = copy.deepcopy(coco_detector)
    with torch.no_grad():
        masked.roi_heads.box_predictor.cls_score.bias[unused] = -torch.inf
    found, expected = detections(done.model, picture()), detections(masked, picture())
    expected["labels"] = torch.tensor([1 + done.classes.index(names[i]) for i in expected["labels"]])
    assert_equal_detections(found, expected, **SINGLE, least=5)
    assert len(found["labels"].unique()) > 1


def test_evaluation_on_coco(coco_detector, tmp_path):
    """Labels of the converted detector become COCO's ids, which are the original's labels."""
    done = convert_batchnorm(coco_detector)
    path = tmp_path / "detector.safetensors"
    zoo.save_weights(done.model, path, transform=done.transform, classes=done.classes)
    data, entry = real("sample"), zoo.get_weights(str(path))
    ids = categories_of(data, entry.classes, entry.name)
    assert None not in ids
    image = picture()
    results = to_results(done.model.eval().detect([image])[0], 1, ids)
    unused = [i for i, name in enumerate(CATEGORIES) if name == "N/A"]
    masked = copy.deepcopy(coco_detector)
    with torch.no_grad():
        masked.roi_heads.box_predictor.cls_score.bias[unused] = -torch.inf
    assert [result["category_id"] for result in results] == detections(masked, image)["labels"].tolist()
    reports = evaluate_weights(zoo.create_model(entry.config.name, weights=str(path)), entry, data)
    assert set(reports) == {"bbox", "segm"}
    assert len(reports["bbox"].per_category) == 80


def test_every_id_can_be_kept(coco_detector):
    done = convert_batchnorm(coco_detector, classes="all")
    assert done.model.num_classes == 90
    assert done.classes is None
    assert_equal_detections(detections(done.model, picture()), detections(coco_detector, picture()), **SINGLE, least=5)
    with pytest.raises(ZooError, match="classes='some': must be coco, all"):
        from_batchnorm(coco_detector, classes="some")


# -- what does not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"backbone.fpn.extra_blocks.p6.weight": torch.zeros(1)}, "levels that convolutions add"),
        (lambda s: s | {"roi_heads.keypoint_head.0.weight": torch.zeros(1)}, "a keypoint head"),
        (lambda s: s | {"roi_heads.box_head.fc8.weight": torch.zeros(1)}, "unexpected keys.*fc8"),
        (lambda s: s | {"roi_heads.mask_head.0.1.running_mean": torch.zeros(32)}, "norms in roi_heads.mask_head"),
        (
            lambda s: {k: v for k, v in s.items() if not k.startswith("roi_heads.box_head.fc6")},
            "norms in|fc.weight is missing",
        ),
        (lambda s: {k: v for k, v in s.items() if "cls_logits" not in k}, "rpn.head.cls_logits.weight is missing"),
        (lambda s: {k: v for k, v in s.items() if "layer4.1.bn2.bias" not in k}, "layer4.1.bn2.bias"),
        (lambda s: {k: v for k, v in s.items() if "_blocks.3" not in k}, "pyramid has 3 levels"),
        (
            lambda s: {k.replace("backbone.body.", "backbone.body.features."): v for k, v in s.items()},
            "its body is no ResNet",
        ),
        (lambda s: s | {"roi_heads.box_predictor.bbox_pred.weight": torch.zeros(4, 64)}, "4 box coordinates"),
        (
            lambda s: s | {"rpn.head.cls_logits.weight": torch.zeros(15, 32, 1, 1)},
            "15 anchors at a position; must be 3",
        ),
    ],
)
def test_what_does_not_fit_is_refused(originals, change, message):
    state = change(dict(originals(False, True).state_dict()))
    with pytest.raises(WeightsError, match=message):
        from_batchnorm(state)


def test_names_and_options_that_do_not_fit(originals):
    theirs = originals(False, True)
    with pytest.raises(WeightsError, match="it is a mask R-CNN, which faster_rcnn_rescalenet18_fpn is not"):
        from_batchnorm(theirs, "faster_rcnn_rescalenet18_fpn")
    with pytest.raises(WeightsError, match="which rescalenet50 is not"):
        from_batchnorm(theirs, "mask_rcnn_rescalenet50_fpn")
    with pytest.raises(WeightsError, match="option box_width=65: it has 64"):
        from_batchnorm(theirs, box_width=65)
    with pytest.raises(ZooError, match="no option 'box_widht'"):
        from_batchnorm(theirs, box_widht=65)


# -- detectors of the zoo ---------------------------------------------------------------------------


@pytest.mark.parametrize("heads", ["2fc", "4conv1fc"])
def test_our_own_bn_detectors_convert(heads):
    old = small("bottleneck", "bn", heads=heads)
    settle(old)
    before = copy.deepcopy(old.state_dict())
    for form in FORMS:
        done = convert_batchnorm(old, form=form)
        assert done.transform == old.input
        assert_equal_detections(detections(done.model, picture()), detections(old, picture()), **SINGLE, least=1)
    assert all(torch.equal(value, before[key]) for key, value in old.state_dict().items())
    with pytest.raises(ZooError, match="the detector given is mask_rcnn_rescalenet50_fpn"):
        from_batchnorm(old, "mask_rcnn_rescalenet18_fpn")
    with pytest.raises(ZooError, match="option 'fpn_channels': the checkpoint decides it"):
        rescaled_detector(old, fpn_channels=7)
    with pytest.raises(WeightsError, match="give the model instead of its state dict"):
        from_batchnorm(old.state_dict())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("basic", {"scheme": "bn", "out_indices": (1, 2, 3)}),
        ("vgg", {"scheme": "bn"}),
        ("basic", {"scheme": "none"}),
    ],
)
def test_our_own_detectors_on_other_bodies(kind, settings):
    """Without the last stage, without the hidden layers, and without norms, where laterals have gains."""
    old = small(kind, detector="faster", **settings)
    settle(old)
    for module in old.modules():
        if isinstance(module, InputGain):
            module.gain.fill_(0.7)
    new = from_batchnorm(old)
    assert_equal_detections(detections(new, picture()), detections(old, picture()), **SINGLE, least=1)


def test_our_own_detectors_that_do_not_convert():
    old = small("basic", "bn", detector="faster")
    with pytest.raises(ZooError, match=r"eps=0.1: the norms of the detector given have their own"):
        from_batchnorm(old, eps=0.1)
    with pytest.raises(ZooError, match=r"classes='some': must be coco, all"):
        from_batchnorm(old, classes="some")
    with torch.no_grad():
        old.rpn.head.cls_logits.bias[0] = torch.nan
    with pytest.raises(ZooError, match=r"rpn.head.cls_logits.bias has values that are not finite"):
        from_batchnorm(old)


def test_options_of_the_result(originals):
    """The branches' constant and thresholds are free; the function stays."""
    theirs = originals(False, True)
    ours = from_batchnorm(theirs, body={"c": 3.0}, detections=7)
    assert ours.config.options["body"]["c"] == 3.0
    found, expected = detections(ours, picture()), detections(theirs, picture())
    assert len(found["scores"]) == 7
    torch.testing.assert_close(found["boxes"], expected["boxes"][:7], rtol=0, atol=1e-3)


# -- a converted detector is an ordinary one --------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_round_trip_of_the_weights(originals, form, tmp_path):
    done = convert_batchnorm(originals(True, True), form=form)
    names = [f"class {i}" for i in range(10)]
    path = str(tmp_path / "detector.safetensors")
    zoo.save_weights(done.model, path, transform=done.model.input, classes=names)
    again = zoo.create_model("mask_rcnn_rescalenet18_fpn", weights=path)
    assert again.config == done.model.config
    assert again.input == done.model.input
    assert all(m.calibrated for m in again.modules() if isinstance(m, HasDataBias))
    found, expected = detections(again, picture()), detections(done.model, picture())
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    # half the size: nothing overflows
    zoo.save_weights(done.model, path, transform=done.model.input, classes=names, dtype=torch.float16)
    half = zoo.create_model("mask_rcnn_rescalenet18_fpn", weights=path)
    assert all(value.isfinite().all() for value in half.state_dict().values())


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_folding(originals, v2, form):
    ours = from_batchnorm(originals(v2, True), form=form)
    folded = zoo.fold(ours)
    assert not norms(folded)
    assert_equal_detections(detections(folded, picture()), detections(ours, picture()), **SINGLE)


def test_onnx(originals, tmp_path):
    model = from_batchnorm(originals(True, True), detections=30).eval()
    images = [picture(*size, seed=3) for size in ((96, 128), (150, 210))]
    made = export_detector(model, images, tmp_path / "detector")
    assert made.worst < 1e-3


@pytest.mark.parametrize("v2", [False, True])
def test_training(originals, v2):
    """Finite losses and gradients; the norms' factors do not train."""
    model = from_batchnorm(originals(v2, True)).train()
    data = [sample(seed=1), sample(seed=2)]
    losses = model([image for image, _ in data], [target for _, target in data])
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (not name.endswith("weight_scale")), name
        assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.slow
def test_sgd_on_the_gained_form_takes_the_steps_of_the_original_with_its_norms_fixed():
    """Losses of the first 20 steps with momentum and weight decay, to 1e-9, with norms in every part; weights train."""
    original = torchvision_detector(v2=True, width=0.125).double()
    data = [sample(seed=seed) for seed in (1, 2)]
    images = [picture(*image.shape[1:], seed=seed).double() for seed, (image, _) in enumerate(data)]
    targets = [{**target, "boxes": target["boxes"].double()} for _, target in data]

    def losses(model):
        model.train()
        model.transform.eval()  # torchvision's draws a number in training
        model.roi_heads.fg_bg_sampler.batch_size_per_image = 32
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.ndim > 1)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9, weight_decay=1e-3)
        found = []
        for step in range(20):
            torch.manual_seed(step)  # both draw the same anchors and proposals
            loss = sum(model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return torch.tensor(found, dtype=torch.float64)

    gained, folded = losses(from_batchnorm(original)), losses(from_batchnorm(original, form="folded"))
    fixed = losses(original)
    assert fixed[0] - fixed[-1] > 0.1  # the steps do something
    torch.testing.assert_close(gained, fixed, rtol=1e-9, atol=1e-9)
    assert (folded - fixed).abs().max() > 1e-4


# -- full size --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("body", ["resnet50", "resnet101", "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2"])
@pytest.mark.parametrize("v2", [False, True])
def test_other_bodies(body, v2):
    theirs = torchvision_detector(body, v2=v2)
    ours = from_batchnorm(theirs)
    assert_equal_detections(detections(ours, picture()), detections(theirs, picture()), **SINGLE, least=1)


@pytest.mark.slow
@pytest.mark.parametrize("builder", ["maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn"])
@pytest.mark.parametrize("suffix", ["", "_v2"])
def test_torchvisions_builders_at_full_size(builder, suffix, monkeypatch):
    """What the builders make, at 91 classes and 800 px; COCO_V1's eps for the old ones."""
    torch.manual_seed(0)
    theirs = getattr(torchvision_detection, builder + suffix)(weights=None, weights_backbone=None, num_classes=91)
    settle(theirs, (480, 640))
    if not suffix:
        for module in theirs.backbone.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
    image = picture(480, 640)
    done = convert_batchnorm(theirs.state_dict(), eps=None if suffix else 0.0, classes="all")
    assert done.model.config.name == builder.replace("rcnn_resnet50", "_rcnn_rescalenet50")
    assert set(done.model.config.options) == ({"heads", "rpn_convs", "body"} if suffix else {"body"})
    assert_equal_detections(detections(done.model, image), detections(theirs, image), **SINGLE)


def test_names_of_the_schemes_options():
    """A detector made by name from the config of a converted one has its tensors."""
    ours = from_batchnorm(torchvision_detector(v2=True))
    options = ours.config.options
    again = create_detector(ours.config.name, num_classes=10, **SIZES, **options)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in again.state_dict().items()}
