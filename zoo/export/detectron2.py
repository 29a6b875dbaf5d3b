"""Backbones of the zoo inside detectron2. Requires detectron2; see its installation notes.

``import zoo.export.detectron2_registration`` puts the builders into detectron2's registry; here are the classes, for
lazy configs and for code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import zoo
from zoo.errors import ExportError, ZooError, suggestion
from zoo.layers import GainedConv

try:
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import Backbone
    from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
except ImportError as error:
    raise ExportError(
        f"the detectron2 adapter needs detectron2 ({error}): see its installation notes, and docs/detection.md"
    ) from None

IMAGENET = zoo.InputTransform.imagenet()


class ZooBackbone(Backbone):
    """A backbone of the zoo with detectron2's interface: standardised images (N, 3, H, W) -> {name: map}.

    detectron2 standardises with its own pixel mean and std, by default in BGR order and with a std of 1. Such images
    have 58 times the scale that ImageNet nets of the zoo expect, and without normalization a wrong scale changes the
    result. The backbone therefore converts its input from detectron2's settings (``pixel_std``, ``format``) to those of
    the weights. The weights are not changed.

    Args:
        name, weights, scheme, options: arguments of ``zoo.create_model``.
        out_features: names of the maps: ``stem``, ``res2`` to ``res5`` for ResNets, the stages' names for others.
        freeze_at: number of feature levels, counted from the stem, that are not trained.
        pixel_mean, pixel_std, format: detectron2's MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and INPUT.FORMAT.

    Raises:
        ZooError: unknown names or options, or a pixel mean that differs from the weights'. Its offset could not be
            corrected at the borders, where detectron2 pads with zeros.
    """

    def __init__(
        self,
        name: str,
        *,
        weights: str | None = None,
        scheme: str | None = None,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        freeze_at: int = 0,
        pixel_mean: Sequence[float] = (103.53, 116.28, 123.675),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
        format: str = "BGR",
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if (takes := zoo.model_info(name).input_kind) != "images":
            raise ZooError(f"{name} takes {takes}, not images")
        transform = IMAGENET if weights is None else zoo.get_weights(weights, model=name).transform
        assert isinstance(transform, zoo.InputTransform | zoo.DetectionTransform)
        # the net, with the feature levels that were asked for
        net = zoo.create_model(name, weights, scheme=scheme, num_classes=0, **(options or {}))
        names = feature_names(net)
        for feature in out_features:
            if feature not in names:
                raise ZooError(f"{name} has no feature {feature!r}{suggestion(feature, names)}")
        indices = sorted(names.index(feature) for feature in out_features)
        self.body = zoo.FeatureExtractor(net, indices)
        self.body.freeze(freeze_at)
        self._out_features = [names[i] for i in indices]
        info = self.body.feature_info
        self._shapes = dict(zip(self._out_features, zip(info.channels(), info.reduction(), strict=True), strict=True))
        # from detectron2's pixels to those of the weights: order of the channels, then scale
        self.reverse = format != transform.channel_order
        if format not in ("RGB", "BGR"):
            raise ZooError(f"INPUT.FORMAT={format!r}: must be RGB or BGR")
        trained = pixel_settings(transform, format)
        if max(abs(a - b) for a, b in zip(pixel_mean, trained["PIXEL_MEAN"], strict=True)) > 0.5:
            raise ZooError(
                f"MODEL.PIXEL_MEAN={list(pixel_mean)}: must be {trained['PIXEL_MEAN']} ({format}) for these weights"
            )
        scale = torch.tensor(pixel_std) / torch.tensor(trained["PIXEL_STD"])
        self.register_buffer("input_scale", scale.view(-1, 1, 1), persistent=False)

    input_scale: Tensor

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = x * self.input_scale
        maps = self.body(x.flip(1) if self.reverse else x)
        return dict(zip(self._out_features, maps, strict=True))

    def output_shape(self) -> dict[str, Any]:
        """Return the channels and stride of each map, by name."""
        return {name: ShapeSpec(channels=c, stride=stride) for name, (c, stride) in self._shapes.items()}

    @property
    def size_divisibility(self) -> int:
        """0, as images may have any size."""
        return 0


def feature_names(net: zoo.Backbone) -> list[str]:
    """Return detectron2's names of a net's feature levels, finest first: ``layer1`` of a ResNet is its ``res2``."""
    names = [level.module for level in net.levels]
    return [f"res{int(name[5:]) + 1}" if name.startswith("layer") else name for name in names]


def pixel_settings(transform: zoo.InputTransform | zoo.DetectionTransform, format: str) -> dict[str, list[float]]:
    """Return PIXEL_MEAN and PIXEL_STD of weights, on the 0..255 scale and in the order of ``format``."""
    step = 1 if format == transform.channel_order else -1
    return {
        "PIXEL_MEAN": [round(255 * value, 4) for value in transform.mean[::step]],
        "PIXEL_STD": [round(255 * value, 4) for value in transform.std[::step]],
    }


def fpn(bottom_up: ZooBackbone, *, in_features: Sequence[str], out_channels: int = 256, norm: str = "") -> FPN:
    """Return detectron2's FPN on a backbone of the zoo, with a level at twice the last stride.

    The levels of a net without normalization differ by orders of magnitude in power at init. If neither the net nor the
    FPN has norms, each lateral convolution reads its level through an ``InputGain``, which ``zoo.calibrate`` measures
    (docs/method.md, M15).
    """
    pyramid = FPN(
        bottom_up, in_features=list(in_features), out_channels=out_channels, norm=norm, top_block=LastLevelMaxPool()
    )
    if not (norm or bottom_up.body.body.scheme.normalized):
        for name, child in list(pyramid.named_children()):
            if name.startswith("fpn_lateral"):
                gained = GainedConv(child)
                setattr(pyramid, name, gained)
                pyramid.lateral_convs[[c is child for c in pyramid.lateral_convs].index(True)] = gained
    return pyramid
