"""Detectors of torchvision with random weights and statistics for which fp32 is as exact as for trained ones."""

import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d

from tests.helpers.foreign import narrow

SIZES = {"min_size": 96, "max_size": 160}
LIMITS = {"proposals_test": 200, "detections": 50}  # of the detectors below, as options of ours
BATCH_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def torchvision_detector(body="resnet18", *, v2=False, masks=True, classes=11, frozen=False, channels=32, width=1.0):
    """A detector as torchvision's builders make them, with a narrow pyramid and narrow heads.

    Args:
        body: torchvision's name of a ResNet.
        v2: whether the parts around the body are those of the builders ending in _v2, with BatchNorm.
        masks: whether it is a Mask R-CNN.
        classes: number of classes with the background.
        frozen: whether the body has FrozenBatchNorm2d.
        channels: channels of the pyramid and of the heads' convolutions.
        width: factor on the channels of a body with BatchNorm2d.
    """
    torch.manual_seed(0)
    net = get_model(body, norm_layer=FrozenBatchNorm2d if frozen else nn.BatchNorm2d)
    widths = [round(net.inplanes // 8 * 2**i * width) for i in range(4)]
    if width != 1:
        net = narrow(lambda: get_model(body), width, dtype=torch.float32)
    norm = nn.BatchNorm2d if v2 else None
    levels = {f"layer{i + 1}": str(i) for i in range(4)}
    backbone = BackboneWithFPN(net, levels, widths, channels, norm_layer=norm)
    two = TwoMLPHead(channels * 49, 64)
    settings = {
        "rpn_anchor_generator": AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5),
        "rpn_head": RPNHead(channels, 3, conv_depth=2 if v2 else 1),
        "box_head": FastRCNNConvFCHead((channels, 7, 7), [channels] * 2, [64], norm_layer=norm) if v2 else two,
        "box_predictor": FastRCNNPredictor(64, classes),
        "rpn_pre_nms_top_n_test": 200,
        "rpn_post_nms_top_n_test": 200,
        "box_detections_per_img": 50,
        **SIZES,
    }
    if not masks:
        return settle(FasterRCNN(backbone, **settings))
    settings["mask_head"] = MaskRCNNHeads(channels, [channels] * 2, 1, norm_layer=norm)
    settings["mask_predictor"] = MaskRCNNPredictor(channels, 24, classes)
    return settle(MaskRCNN(backbone, **settings))


def picture(height=96, width=128, seed=0):
    """An image (3, H, W) in 0..1 with detail at every scale, so that its regions differ."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(3, height, width)
    for step in (1, 2, 4, 8, 16, 32):
        noise = torch.randn(1, 3, -(-height // step), -(-width // step), generator=generator)
        image += nn.functional.interpolate(noise, scale_factor=step, mode="nearest")[0, :, :height, :width]
    return (0.5 + 0.15 * image).clamp(0, 1)


def _last_norm(block):
    """The norm at the end of a block's branch, in torchvision's and our names; None for other modules."""
    found = [m for n, m in block.named_children() if isinstance(m, BATCH_NORMS) and n[:-1] in ("bn", "norm")]
    return found[-1] if len(found) > 1 else None


def norm_fitter(generator, last):
    """A hook that gives a norm a random scale and the statistics of its input; those in ``last`` get a small scale."""

    def fit_norm(norm, args):
        (x,) = args
        mean = x.mean((0, 2, 3)) / 3
        noise = torch.randn(4, len(mean), generator=generator)
        variance = (x - mean.view(1, -1, 1, 1)).square().mean((0, 2, 3)) * (0.3 * noise[0]).exp()
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((0.2 * noise[1]).exp() * (0.3 if norm in last else 1.0) * noise[3].add(1.5).sign())
        norm.bias.copy_(0.2 * noise[2])

    return fit_norm


def spreader(generator, std):
    """A hook that scales a last layer so that its outputs differ by this much."""

    def fit_layer(layer, args, out):
        factor = std / out.std(0).mean()
        layer.weight.mul_(factor)
        layer.bias.add_(torch.randn(layer.bias.shape, generator=generator))
        return out * factor

    return fit_layer


@torch.no_grad()
def settle(model, size=(96, 128)):
    """Give norms random scales and the statistics of two pictures, and the last layers outputs that differ.

    Of the mean only a third is removed: removed whole, what is left of a random net's maps is so small that fp32 loses
    a digit in each norm. The last norm of a block is small, as in trained nets.
    """
    generator = torch.Generator().manual_seed(1)
    model.eval()
    last = {norm for block in model.backbone.body.modules() if (norm := _last_norm(block)) is not None}

    # body, pyramid and proposals
    hooks = [
        m.register_forward_pre_hook(norm_fitter(generator, last)) for m in model.modules() if isinstance(m, BATCH_NORMS)
    ]
    model.rpn.head.cls_logits.weight.mul_(30)
    model.rpn.head.bbox_pred.weight.mul_(3)
    batch, _ = model.transform([picture(*size, seed=1), picture(*size, seed=2)])
    features = model.backbone(batch.tensors)
    proposals, _ = model.rpn(batch, features)
    # heads
    heads = model.roi_heads
    hooks += [
        heads.box_predictor.cls_score.register_forward_hook(spreader(generator, 0.5)),
        heads.box_predictor.bbox_pred.register_forward_hook(spreader(generator, 0.5)),
    ]
    heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, batch.image_sizes)))
    if heads.has_mask():
        hooks.append(heads.mask_predictor.mask_fcn_logits.register_forward_hook(spreader(generator, 2.0)))
        boxes = [boxes[:20] for boxes in proposals]
        heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, boxes, batch.image_sizes)))
    for hook in hooks:
        hook.remove()
    return model


def old_keys(state):
    """The keys that files of torchvision before 0.13 have for the same tensors."""
    renamed = {}
    for key, value in state.items():
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for blocks in ("inner_blocks", "layer_blocks"):
            for i in range(4):
                key = key.replace(f"fpn.{blocks}.{i}.0.", f"fpn.{blocks}.{i}.")
        for i in range(4):
            key = key.replace(f"roi_heads.mask_head.{i}.0.", f"roi_heads.mask_head.mask_fcn{i + 1}.")
        if not key.endswith("num_batches_tracked"):
            renamed[key] = value
    return renamed
