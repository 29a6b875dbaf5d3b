"""Feature pyramid over a backbone of any scheme.

Source: Lin et al. 2017 (arXiv:1612.03144). With ``heads="2fc"`` and a normalized backbone it computes the same as
torchvision's ``FeaturePyramidNetwork``. In a backbone without normalization, the power of the levels differs by two
orders of magnitude at init. Each lateral then reads its level through an ``InputGain``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.layers import GainedConv
from zoo.schemes.vision import VisionScheme


class FPN(nn.Module):
    """Feature pyramid: maps of rising stride -> maps at the same strides, and one at twice the largest stride.

    Args:
        in_channels: number of channels of each level, finest level first.
        out_channels: number of channels of every output.
        scheme: scheme of the convolutions and norms; None: plain convolutions with a bias.
        gains: whether each level is read through an ``InputGain``.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, scheme: VisionScheme | None, gains: bool) -> None:
        super().__init__()

        def conv(channels: int, kernel: int) -> tuple[nn.Module, nn.Module]:
            if scheme is None:
                plain = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2)
                nn.init.kaiming_uniform_(plain.weight, a=1)
                nn.init.zeros_(plain.bias)  # type: ignore[arg-type]
                return plain, nn.Identity()
            return scheme.linear_conv(channels, out_channels, kernel), scheme.norm(out_channels)

        self.laterals, self.lateral_norms = nn.ModuleList(), nn.ModuleList()
        self.outputs, self.output_norms = nn.ModuleList(), nn.ModuleList()
        for channels in in_channels:
            layer, norm = conv(channels, 1)
            assert isinstance(layer, nn.Conv2d)
            self.laterals.append(GainedConv(layer) if gains else layer)
            self.lateral_norms.append(norm)
        for _ in in_channels:
            layer, norm = conv(out_channels, 3)
            self.outputs.append(layer)
            self.output_norms.append(norm)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Compute the pyramid: L maps (N, C_l, H_l, W_l) -> L + 1 maps (N, O, H_l, W_l)."""
        inner = [norm(conv(x)) for conv, norm, x in zip(self.laterals, self.lateral_norms, maps, strict=True)]
        for i in range(len(inner) - 2, -1, -1):
            size = inner[i].shape[-2:]
            inner[i] = inner[i] + F.interpolate(inner[i + 1], size=size, mode="nearest")
        out = [norm(conv(x)) for conv, norm, x in zip(self.outputs, self.output_norms, inner, strict=True)]
        return [*out, F.max_pool2d(out[-1], kernel_size=1, stride=2)]


class BodyWithFPN(nn.Module):
    """Backbone and pyramid with the interface of torchvision's detectors.

    Args:
        body: feature extractor of the zoo.
        out_channels: number of channels of every output.
        plain: whether the layers of the pyramid are plain; otherwise they follow the scheme of the body.
    """

    def __init__(self, body: zoo.FeatureExtractor, out_channels: int, *, plain: bool) -> None:
        super().__init__()
        scheme = body.body.scheme
        self.body = body
        own = None if plain else scheme
        self.fpn = FPN(body.feature_info.channels(), out_channels, own, gains=not scheme.normalized)
        self.out_channels = out_channels
        strides = body.feature_info.reduction()
        self.strides = [*strides, 2 * strides[-1]]
        self.names = [*(str(i) for i in range(len(strides))), "pool"]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the pyramid of images (N, C, H, W): {"0": (N, O, h, w), ..., "pool": ...}, finest map first."""
        return dict(zip(self.names, self.fpn(self.body(x)), strict=True))
