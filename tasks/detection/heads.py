"""Box and mask heads in two styles.

- ``2fc`` is the default of torchvision and detectron2: two linear layers for boxes and four convolutions for masks, all
  of them plain layers without a norm.
- ``4conv1fc`` has four convolutions and a linear layer for boxes. These layers, those of the mask head and those of the
  pyramid follow the scheme of the backbone. Wu and He 2018 use GroupNorm in these places; RescaleNet uses the bias
  before the convolution and He init.

The RPN and the last layers are plain in both styles, as in the published GroupNorm baselines. Their outputs are float32
under autocast too: boxes have the dtype of the deltas that they are decoded from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead

from tasks.detection.conventions import at_least_single
from zoo.method import he_normal_
from zoo.schemes.vision import VisionScheme

HeadStyle = Literal["2fc", "4conv1fc"]


def conv_stack(in_channels: int, channels: Sequence[int], scheme: VisionScheme | None) -> nn.Sequential:
    """Return 3x3 convolutions with norms and ReLUs, named conv1, norm1, act1, ...: (N, C, h, w) -> (N, O, h, w).

    Args:
        in_channels: number of channels of the input.
        channels: number of output channels of each convolution.
        scheme: scheme of the layers; None: plain convolutions with a bias and without norms.
    """
    stack = nn.Sequential()
    for i, out in enumerate(channels, 1):
        if scheme is None:
            plain = nn.Conv2d(in_channels, out, 3, padding=1)
            he_normal_(plain.weight, mode="fan_out")
            nn.init.zeros_(plain.bias)  # type: ignore[arg-type]
            stack.add_module(f"conv{i}", plain)
        else:
            stack.add_module(f"conv{i}", scheme.conv(in_channels, out, 3))
            stack.add_module(f"norm{i}", scheme.norm(out))
        stack.add_module(f"act{i}", nn.ReLU(inplace=True))
        in_channels = out
    return stack


class TwoLinear(nn.Module):
    """Two linear layers with ReLUs: RoI features (R, C, s, s) -> (R, width). The init is detectron2's (Xavier)."""

    def __init__(self, in_channels: int, size: int, width: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_channels * size**2, width)
        self.fc7 = nn.Linear(width, width)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))


class ConvsLinear(nn.Module):
    """3x3 convolutions and a linear layer of a scheme: RoI features (R, C, s, s) -> (R, width)."""

    def __init__(self, in_channels: int, size: int, channels: Sequence[int], width: int, scheme: VisionScheme) -> None:
        super().__init__()
        self.convs = conv_stack(in_channels, channels, scheme)
        last = channels[-1] if channels else in_channels
        self.fc = scheme.hidden_linear(last * size**2, width, first=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc(self.convs(x).flatten(1)))


class ProposalHead(RPNHead):
    """torchvision's head of the RPN, with outputs of at least single precision."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the logits (N, A, h, w) and deltas (N, 4 A, h, w) of each level's A anchors a position."""
        logits, deltas = super().forward(x)
        return [at_least_single(level) for level in logits], [at_least_single(level) for level in deltas]


class BoxPredictor(FastRCNNPredictor):
    """torchvision's last layers for boxes, with outputs of at least single precision."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (R, classes) and deltas (R, 4 classes) of features (R, width)."""
        logits, deltas = super().forward(x)
        return at_least_single(logits), at_least_single(deltas)


class MaskPredictor(MaskRCNNPredictor):
    """torchvision's last layers for masks, with outputs of at least single precision."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (R, classes, 2 s, 2 s) of features (R, C, s, s)."""
        return at_least_single(super().forward(x))


def box_predictor(width: int, classes: int) -> BoxPredictor:
    """Return torchvision's last layers for boxes, with the small weights of detectron2, so that early losses are small.

    Args:
        width: number of input features.
        classes: number of classes, background included.
    """
    predictor = BoxPredictor(width, classes)
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return predictor


def mask_predictor(in_channels: int, width: int, classes: int) -> MaskPredictor:
    """Return torchvision's upsampling and last layer for masks, the latter with detectron2's small init.

    Args:
        in_channels: number of channels of the input.
        width: number of channels after the upsampling.
        classes: number of classes, background included.
    """
    predictor = MaskPredictor(in_channels, width, classes)
    nn.init.normal_(predictor.mask_fcn_logits.weight, std=0.001)
    nn.init.zeros_(predictor.mask_fcn_logits.bias)
    return predictor
