"""Detectors of torchvision with random weights and statistics that behave as trained ones do in fp32."""

import copy

import torch
from torch import nn
from torchvision.models import resnet
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d

from zoo.convert.layouts import resnet as layout  # noqa: F401

SIZES = {"min_size": 96, "max_size": 160}
BODIES = {  # block, depths, other arguments of torchvision's ResNet
    "basic": (resnet.BasicBlock, (2, 2, 2, 2), {}),
    "bottleneck": (resnet.Bottleneck, (3, 4, 6, 3), {}),
    "grouped": (resnet.Bottleneck, (3, 4, 6, 3), {"groups": 32, "width_per_group": 4}),
}


def picture(height, width, seed=0):
    """An image (3, H, W) in 0..1 with detail at every scale, so that regions differ."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(3, height, width)
    for step in (1, 2, 4, 8, 16, 32):
        noise = torch.randn(1, 3, -(-height // step), -(-width // step), generator=generator)
        image += nn.functional.interpolate(noise, size=(height, width), mode="nearest")[0]
    return (0.5 + 0.15 * image).clamp(0, 1)
