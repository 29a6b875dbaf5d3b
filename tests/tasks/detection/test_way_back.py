"""Detectors of the zoo in the keys of detectron2, and back; tests/interop does the same with detectron2 itself."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from tests.helpers.detection import calibrated, sharpened, small
from tests.helpers.torchvision_detectors import picture
from zoo.convert import from_detectron2
from zoo.convert.detectron2 import BODY, KEY, LENGTH, read_description, write_description
from zoo.convert.layouts.detectron2_heads import background_first, background_last, our_key, their_key

PREFIX = "backbone.bottom_up."
SIZES = {"min_size": 96, "max_size": 160, "proposals_test": 100, "proposals_train": 100}
WITH_MASKS, WITHOUT = "mask_rcnn_rescalenet18_fpn", "faster_rcnn_rescalenet18_fpn"


def as_detectron2(model):
    """The state that detectron2 has of a detector of ours."""
    state = background_last(model.state_dict())
    convs = model.config.options.get("rpn_convs", 1)
    theirs = {their_key(key, convs): value for key, value in state.items() if not key.startswith("backbone.body.")}
    body = model.backbone.body.body
    theirs |= {f"{PREFIX}{BODY}{key}": value for key, value in body.state_dict().items()}
    return {**theirs, PREFIX + KEY: write_description(body.config, model.input)}


@pytest.mark.parametrize("scheme", ["rescale", "bn"])
@pytest.mark.parametrize(("detector", "convs"), [("mask", 1), ("faster", 2)])
def test_a_detector_comes_back_with_its_detections(tmp_path, scheme, detector, convs):
    input = {"mean": (0.5, 0.4, 0.3), "std": (0.3, 0.2, 0.1)}
    model = small(scheme=scheme, detector=detector, conventions="detectron2", rpn_convs=convs, **input)
    calibrated(model)
    sharpened(model).eval()
    state = as_detectron2(model)
    assert f"proposal_generator.rpn_head.conv{'' if convs == 1 else '.conv1'}.weight" in state
    name = WITH_MASKS if detector == "mask" else WITHOUT
    again = from_detectron2(state, name, **SIZES)
    assert again.input == model.input
    with torch.no_grad():
        ours, theirs = model([picture()])[0], again([picture()])[0]
    assert len(ours["boxes"]) > 10
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value)
    # from a file, by the command and by name
    torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}, "iteration": 7}, tmp_path / "m.pth")
    entry = zoo.sources.convert(tmp_path / "m.pth", tmp_path / "m.safetensors", name=name, classes=list("abc"), **SIZES)
    assert entry.classes == ("a", "b", "c")
    assert entry.meta["layout"].startswith("detectron2")
    loaded = zoo.create_model(name, tmp_path / "m.safetensors").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded([picture()])[0]["boxes"], ours["boxes"])


def test_the_backbone_comes_back_alone():
    model = small()
    net = from_detectron2(as_detectron2(model))
    assert net.config.name == "rescalenet18"
    assert net.num_classes == 0
    assert not net.head_bias.calibrated
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(net.forward_levels(x, (1, 2, 3, 4)), model.eval().backbone.body(x), strict=True):
            torch.testing.assert_close(a, b)


def test_what_no_detector_has_is_refused():
    state = as_detectron2(small(conventions="detectron2"))
    norm = {**state, "backbone.fpn_lateral2.norm.weight": torch.ones(32)}
    agnostic = dict(state)
    for leaf in ("weight", "bias"):
        key = f"roi_heads.box_predictor.bbox_pred.{leaf}"
        agnostic[key] = state[key][:4]
    without = {key: value for key, value in state.items() if "objectness" not in key}
    narrow = {**state, f"{PREFIX}{BODY}stem.conv1.bias": torch.zeros(3)}
    for content, message in (
        (norm, "norms or convolutions in pyramid or box head do not convert"),
        (agnostic, "has 4 rows; must be 12, for each class"),
        (without, "rpn.head.cls_logits.weight is missing; it is no whole detector"),
        (narrow, "stem.conv1.bias has shape \\(3,\\), the model \\(8,\\)"),
    ):
        with pytest.raises(zoo.WeightsError, match=message):
            from_detectron2(content, WITH_MASKS)
    with pytest.raises(zoo.ZooError, match="no option 'box_withd' .did you mean box_width"):
        from_detectron2(state, WITH_MASKS, box_withd=3)
    with pytest.raises(zoo.ZooError, match="box_width"):
        from_detectron2(state, WITH_MASKS, box_width=3)
    with pytest.raises(zoo.WeightsError, match="2 class names for 3 classes"):
        from_detectron2(state, WITH_MASKS, classes=["a", "b"])


def test_names_and_classes_there_and_back():
    state = small(rpn_convs=3).state_dict()
    for key in state:
        assert our_key(their_key(key, 3)) == key
    there = background_last(state)
    assert len(there["roi_heads.box_predictor.bbox_pred.bias"]) == 12
    back = background_first(there)
    for key, value in state.items():
        read = value.clone()
        if "bbox_pred" in key and "box_predictor" in key:
            read[:4] = 0  # of the background, which nothing reads
        elif "mask_fcn_logits" in key:
            read[:1] = 0
        assert torch.equal(back[key], read), key


def test_descriptions_are_read_back():
    config = zoo.ModelConfig("rescalenet50", "rescale", 7, 3, {"width": 0.5, "stride_in_1x1": True})
    transform = zoo.InputTransform(64, 64, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), channel_order="BGR")
    codes = write_description(config, transform)
    assert codes.shape == (LENGTH,)
    for stored in (codes, codes.bfloat16(), codes + 0.3):
        header = read_description(stored, "c.pth")
        assert header.config == zoo.ModelConfig("rescalenet50", "rescale", 0, 3, config.options)
        assert header.transform == transform
    with pytest.raises(zoo.ZooError, match="its options take 5... characters"):
        write_description(zoo.ModelConfig("rescalenet50", "rescale", 7, 3, {"a": "b" * 5000}), transform)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_descriptions_of_strangers_are_one_line(data):
    """Bytes that are no description, and JSON that is nearly one."""
    good = json.loads(bytes(write_description(zoo.ModelConfig("rescalenet18", "rescale", 0, 3, {}), IMAGENET).int()))
    place = data.draw(st.sampled_from(["", "config", "transform", "options"]))
    target = good["config"]["options"] if place == "options" else good[place] if place else good
    key = data.draw(st.sampled_from([*target, "other"]))
    target[key] = data.draw(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x, max_size=3)))
    text = data.draw(st.sampled_from([json.dumps(good), json.dumps(good)[:-3], json.dumps(key)])).encode()[:LENGTH]
    codes = torch.tensor(list(text), dtype=torch.float32)
    if data.draw(st.booleans()):
        codes[data.draw(st.integers(0, len(codes) - 1))] = data.draw(st.floats(width=32))
    state = {**STATE, PREFIX + KEY: codes}
    reason = ""
    try:
        from_detectron2(state)
    except zoo.ZooError as error:
        reason = str(error)
    assert "\n" not in reason


IMAGENET = zoo.InputTransform.imagenet()
STATE = {"backbone.bottom_up.body.body.stem.conv1.weight": torch.zeros(64, 3, 7, 7)}
