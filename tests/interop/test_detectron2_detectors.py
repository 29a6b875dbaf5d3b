"""Converted detectors of detectron2 against detectron2's own (``make test-interop``)."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.model_zoo import get_config_file
from detectron2.modeling import build_model

import zoo
from tests.helpers.torchvision_detectors import norm_fitter, picture, spreader
from zoo.convert import convert_batchnorm

HEIGHT, WIDTH = 160, 224  # of the net's input: its sides are 160 and 224, and nothing is resized


@torch.no_grad()
def detectron2_detector(masks, classes=80, **changes):
    """A Mask or Faster R-CNN of detectron2's R50-FPN configs, with narrow pyramid and heads and random statistics."""
    torch.manual_seed(0)
    kind = "InstanceSegmentation/mask" if masks else "Detection/faster"
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(f"COCO-{kind}_rcnn_R_50_FPN_1x.yaml"))
    settings = {
        "MODEL.DEVICE": "cpu",
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
        "MODEL.ROI_HEADS.NUM_CLASSES": classes,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 200,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 200,
        **changes,
    }
    cfg.merge_from_list([item for pair in settings.items() for item in pair])
    model = build_model(cfg).eval()
    generator = torch.Generator().manual_seed(1)
    last = {m for n, m in model.named_modules() if n.endswith("conv3.norm")}
    norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(norm_fitter(generator, last)) for norm in norms]
    model.proposal_generator.rpn_head.objectness_logits.weight.mul_(30)
    model.proposal_generator.rpn_head.anchor_deltas.weight.mul_(3)
    batch = model.preprocess_image([{"image": pixels(seed)} for seed in (1, 2)])
    features = model.backbone(batch.tensor)
    proposals, _ = model.proposal_generator(batch, features)
    heads = model.roi_heads
    hooks += [
        heads.box_predictor.cls_score.register_forward_hook(spreader(generator, 0.7)),
        heads.box_predictor.bbox_pred.register_forward_hook(spreader(generator, 0.5)),
    ]
    found = heads._forward_box(features, proposals)
    if masks:
        hooks.append(heads.mask_head.predictor.register_forward_hook(spreader(generator, 2.0)))
        heads.forward_with_given_boxes(features, found)
    for hook in hooks:
        hook.remove()
    return model


def pixels(seed=0):
    """An image as detectron2 takes it: BGR, 0..255."""
    return picture(HEIGHT, WIDTH, seed=seed).flip(0) * 255


@pytest.mark.parametrize("form", ["gained", "folded", "balanced"])
@pytest.mark.parametrize("masks", [True, False])
def test_same_detections(masks, form):
    """Boxes to 1e-3 px, scores to 1e-5, and masks but for pixels at a probability of 0.5."""
    theirs = detectron2_detector(masks)
    name = f"{'mask' if masks else 'faster'}_rcnn_rescalenet50_fpn"
    sizes = {"min_size": HEIGHT, "max_size": WIDTH, "proposals_test": 200}
    done = convert_batchnorm(theirs.state_dict(), name, form=form, body={"stride_in_1x1": True}, **sizes)
    assert done.model.config.name == name
    assert done.model.config.options["conventions"] == "detectron2"
    assert done.classes[:2] == ("person", "bicycle")
    assert done.transform.channel_order == "BGR"
    with torch.no_grad():
        found = done.model([picture(HEIGHT, WIDTH)])[0]
        expected = theirs([{"image": pixels(), "height": HEIGHT, "width": WIDTH}])[0]["instances"]
    assert len(expected) > 20
    assert torch.equal(found["labels"], expected.pred_classes + 1)
    torch.testing.assert_close(found["boxes"], expected.pred_boxes.tensor, rtol=0, atol=1e-3)
    torch.testing.assert_close(found["scores"], expected.scores, rtol=0, atol=1e-5)
    if masks:
        decided = (found["masks"][:, 0] - 0.5).abs() > 1e-3
        assert torch.equal((found["masks"][:, 0] > 0.5)[decided], expected.pred_masks[decided])
        assert 0.01 < float(expected.pred_masks.float().mean()) < 0.9


def test_pyramid_is_theirs():
    theirs = detectron2_detector(True)
    ours = zoo.convert.from_batchnorm(
        theirs.state_dict(), "mask_rcnn_rescalenet50_fpn", body={"stride_in_1x1": True}, min_size=HEIGHT, max_size=WIDTH
    ).eval()
    with torch.no_grad():
        expected = theirs.backbone(theirs.preprocess_image([{"image": pixels()}]).tensor)
        found = ours.backbone(ours.transform([picture(HEIGHT, WIDTH)])[0].tensors)
    for a, b in zip(found.values(), expected.values(), strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-5
