"""Backbones of the zoo inside detectron2. Requires detectron2; see its installation notes.

``import zoo.export.detectron2_registration`` puts the builders into detectron2's registry; here are the classes, for
lazy configs and for code.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.calibration import CalibrationReport, HasDataBias
from zoo.convert.detectron2 import (
    KEY,
    AnyInput,
    feature_names,
    pixel_settings,
    read_description,
    write_description,
)
from zoo.errors import ExportError, ZooError, suggestion
from zoo.headers import Header
from zoo.layers import GainedConv
from zoo.options import free_options, plain
from zoo.specs import get_spec
from zoo.weights import open_weights, weights_name

try:
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import Backbone
    from detectron2.modeling.backbone import fpn as pyramids
    from detectron2.utils import comm
except ImportError as error:
    raise ExportError(
        f"the detectron2 adapter needs detectron2 ({error}): see its installation notes, and docs/detection.md"
    ) from None

log = logging.getLogger("rescalenet")

IMAGENET = zoo.InputTransform.imagenet()


class ZooBackbone(Backbone):
    """A backbone of the zoo with detectron2's interface: standardised images (N, 3, H, W) -> {name: map}.

    detectron2 standardises with its own pixel mean and std, by default in BGR order and with a std of 1. Such images
    have 58 times the scale that ImageNet nets of the zoo expect, and without normalization a wrong scale changes the
    result. The backbone therefore converts its input from detectron2's settings (``pixel_std``, ``format``) to those of
    the weights. The weights are not changed.

    The state has one tensor more than the net, a description of the net and its input
    (``zoo.convert.detectron2``). A checkpoint therefore gives the same features wherever it is loaded, and is refused
    by another net.

    Args:
        name, weights, scheme, options: arguments of ``zoo.create_model``. Weights of a detector around this net are
            taken too, of which the net is used.
        out_features: names of the maps: ``stem``, ``res2`` to ``res5`` for ResNets, the stages' names for others.
        freeze_at: number of feature levels, counted from the stem, that are not trained.
        pixel_mean, pixel_std, format: detectron2's MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and INPUT.FORMAT.

    Raises:
        ZooError: unknown names or options, or a pixel mean that differs from the weights'. Its offset could not be
            corrected at the borders, where detectron2 pads with zeros. Loading a checkpoint raises it too.
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
        if format not in ("RGB", "BGR"):
            raise ZooError(f"INPUT.FORMAT={format!r}: must be RGB or BGR")
        if len(pixel_mean) != 3 or not all(0 <= value <= 255 for value in pixel_mean):
            raise ZooError(f"MODEL.PIXEL_MEAN={list(pixel_mean)}: must be 3 values from 0 to 255")
        if len(pixel_std) != 3 or not all(0 < value < math.inf for value in pixel_std):
            raise ZooError(f"MODEL.PIXEL_STD={list(pixel_std)}: must be 3 values > 0")
        # the net, with the feature levels that were asked for
        net, transform = net_of_weights(name, weights, scheme, options or {})
        if weights is None:  # the input of a fresh net is the config's, on the usual scale
            mean = [value / 255 for value in (pixel_mean if format == transform.channel_order else pixel_mean[::-1])]
            transform = dataclasses.replace(transform, mean=tuple(mean))
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
        self.format, self.pixel_mean, self.pixel_std = format, tuple(pixel_mean), tuple(pixel_std)
        self.register_buffer(KEY, write_description(net.config, transform))
        self.register_buffer("input_scale", torch.empty(len(self.pixel_std), 1, 1), persistent=False)
        self._set_input(transform)
        # what the first step of a training is checked for
        self.freeze_at, self.has_weights, self.checked = freeze_at, weights is not None, False

    input_scale: Tensor

    def _set_input(self, transform: AnyInput) -> None:
        """Convert detectron2's pixels into this input from now on.

        Raises:
            ZooError: a pixel mean of another input.
        """
        trained = pixel_settings(transform, self.format)
        if max(abs(a - b) for a, b in zip(self.pixel_mean, trained["PIXEL_MEAN"], strict=True)) > 0.5:
            raise ZooError(
                f"MODEL.PIXEL_MEAN={list(self.pixel_mean)}: must be {trained['PIXEL_MEAN']} ({self.format}) for these "
                "weights"
            )
        self.transform = transform
        self.reverse = self.format != transform.channel_order
        scale = torch.tensor(self.pixel_std) / torch.tensor(trained["PIXEL_STD"])
        self.input_scale.copy_(scale.view(-1, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.training and not self.checked:
            warn_before_training(self, self)
        x = x * self.input_scale
        maps = self.body(x.flip(1) if self.reverse else x)
        return dict(zip(self._out_features, maps, strict=True))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take over the input that a checkpoint describes.

        Raises:
            ZooError: a checkpoint of another net, or of another pixel mean.
        """
        if isinstance(codes := state_dict.get(prefix + KEY), Tensor):
            stored = read_description(codes, "the checkpoint")
            refuse_other_net(stored, self.body.config)
            assert isinstance(stored.transform, AnyInput)
            self._set_input(stored.transform)
        elif any(key.startswith(f"{prefix}body.") for key in state_dict):
            log.warning(
                "the checkpoint does not state the input that its backbone expects (version 0.1 wrote it); that of the "
                "config is used: mean %s and std %s",
                *pixel_settings(self.transform, self.format).values(),
            )
        if any(key.startswith(f"{prefix}body.") for key in state_dict):
            self.has_weights = True
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def output_shape(self) -> dict[str, Any]:
        """Return the channels and stride of each map, by name."""
        return {name: ShapeSpec(channels=c, stride=stride) for name, (c, stride) in self._shapes.items()}

    @property
    def size_divisibility(self) -> int:
        """0, as images may have any size."""
        return 0


def net_of_weights(
    name: str, weights: str | None, scheme: str | None, options: Mapping[str, Any]
) -> tuple[zoo.Backbone, AnyInput]:
    """Return a net without its head, and the input that it expects; ImageNet's if it is fresh.

    Args:
        name: name of the net.
        weights: weights of the net, or of a detector around it; None for a fresh net.
        scheme: scheme; None for the weights' or ``rescale``.
        options: options of the net.

    Raises:
        ZooError: unknown names or options, or weights of another net.
    """
    if weights is None:
        return zoo.create_model(name, scheme=scheme, num_classes=0, **options), IMAGENET
    entry = open_weights(weights, name)
    if not isinstance(entry.transform, AnyInput):
        raise ZooError(f"weights {weights} take {entry.transform.kind}, not images")
    if zoo.model_info(entry.config.name).input_kind == "image_lists":
        own: dict[str, Any] = {"body": dict(options)} if options else {}
        net = zoo.create_model(entry.config.name, weights, scheme=scheme, **own).backbone.body.body
    else:
        net = zoo.create_model(entry.config.name, weights, scheme=scheme, num_classes=0, **options)
    if net.config.name != name:
        raise ZooError(f"weights {weights} are of {net.config.name}, not of {name}: set MODEL.ZOO.NAME to it")
    return net, entry.transform


def names_weights(text: str, model: str | None) -> bool:
    """Return whether a value of MODEL.WEIGHTS is weights of the zoo, and not a file or an address of detectron2.

    Args:
        text: value.
        model: name of the net, whose tags are names too; None if there is none.
    """
    name = weights_name(text) if text else ""
    return (
        name.endswith(".safetensors")
        or name.startswith(("torchvision:", "timm:", "hf-hub:"))
        or (name.startswith("https://") and "#sha256=" in name)
        or name in zoo.list_weights()
        or (model is not None and name in zoo.model_info(model).weights)
    )


def refuse_other_net(stored: Header, own: zoo.ModelConfig) -> None:
    """Refuse a checkpoint of another net than the model's: tensors of equal shapes may mean another function.

    Args:
        stored: description in the checkpoint.
        own: config of the model's net.

    Raises:
        ZooError: the first difference, with the keys of the config to set.
    """
    config = stored.config
    if config.name != own.name:
        raise ZooError(f"the checkpoint has the backbone {config.name}, the config MODEL.ZOO.NAME={own.name!r}")
    if config.scheme != own.scheme and {config.scheme, own.scheme} != {"bn", "frozen_bn"}:
        raise ZooError(
            f"the checkpoint has a backbone of scheme {config.scheme!r}, the model {own.scheme!r}: set MODEL.ZOO.SCHEME"
        )
    info, spec = zoo.model_info(own.name), get_spec(own.name)
    free = free_options(spec.layout) | free_options(spec.family.schemes[own.scheme])
    known = {**info.options, **info.scheme_options[own.scheme]}
    theirs, ours = (
        {key: plain(options.get(key, known[key])) for key in sorted(known.keys() - free)}
        for options in (config.options, own.options)
    )
    if others := {key: value for key, value in theirs.items() if value != ours[key]}:
        shown = ", ".join(f"{key}={value!r} (the model has {ours[key]!r})" for key, value in others.items())
        raise ZooError(f"the checkpoint has a backbone with {shown}: set it in MODEL.ZOO.OPTIONS")


class Pyramid(pyramids.FPN):
    """detectron2's FPN on a backbone of the zoo. Its first training step checks how the training starts."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the levels of images (N, 3, H, W) by name, finest first."""
        if self.training and not self.bottom_up.checked:
            warn_before_training(self, self.bottom_up)
        return super().forward(x)


def fpn(
    bottom_up: ZooBackbone,
    *,
    in_features: Sequence[str],
    out_channels: int = 256,
    norm: str = "",
    fuse_type: str = "sum",
) -> Pyramid:
    """Return detectron2's FPN on a backbone of the zoo, with a level at twice the last stride, as Mask R-CNN has it.

    The levels of a net without normalization differ by orders of magnitude in power at init. If neither the net nor the
    FPN has norms, each lateral convolution reads its level through an ``InputGain``, which ``zoo.calibrate`` measures
    (docs/method.md, M15).

    Args:
        bottom_up: backbone.
        in_features: names of the levels that it reads.
        out_channels, norm, fuse_type: detectron2's MODEL.FPN.OUT_CHANNELS, MODEL.FPN.NORM and MODEL.FPN.FUSE_TYPE.
    """
    return _pyramid(bottom_up, in_features, out_channels, norm, fuse_type, pyramids.LastLevelMaxPool())


def retinanet_fpn(
    bottom_up: ZooBackbone,
    *,
    in_features: Sequence[str],
    out_channels: int = 256,
    norm: str = "",
    fuse_type: str = "sum",
) -> Pyramid:
    """Return detectron2's FPN with two more levels from the last one of the backbone, as RetinaNet has it.

    The arguments are those of ``fpn``. The first of the two convolutions reads the backbone, so that it has an
    ``InputGain`` where the laterals have one.
    """
    last = in_features[-1]
    top = pyramids.LastLevelP6P7(bottom_up.output_shape()[last].channels, out_channels, last)
    return _pyramid(bottom_up, in_features, out_channels, norm, fuse_type, top)


def _pyramid(
    bottom_up: ZooBackbone,
    in_features: Sequence[str],
    out_channels: int,
    norm: str,
    fuse_type: str,
    top_block: nn.Module,
) -> Pyramid:
    """Return a pyramid, with gains where neither the net nor the pyramid has norms."""
    pyramid = Pyramid(
        bottom_up,
        in_features=list(in_features),
        out_channels=out_channels,
        norm=norm,
        top_block=top_block,
        fuse_type=fuse_type,
    )
    if norm or bottom_up.body.body.scheme.normalized:
        return pyramid
    for name, child in list(pyramid.named_children()):
        if name.startswith("fpn_lateral"):
            gained = GainedConv(child)
            setattr(pyramid, name, gained)
            pyramid.lateral_convs[[c is child for c in pyramid.lateral_convs].index(True)] = gained
    if isinstance(top_block, pyramids.LastLevelP6P7):
        top_block.p6 = GainedConv(top_block.p6)
    return pyramid


# -- before a training -----------------------------------------------------------------------------------


def warn_before_training(model: nn.Module, backbone: ZooBackbone) -> None:
    """Warn, once, of a training that starts from biases without data or from frozen random weights.

    Args:
        model: the backbone, or the pyramid on it.
        backbone: the backbone.
    """
    backbone.checked = True
    name = backbone.body.config.name
    if backbone.freeze_at and not backbone.has_weights:
        log.warning(
            "MODEL.BACKBONE.FREEZE_AT=%d: the first levels of %s are frozen with random weights, as none were loaded; "
            "set it to 0, or give weights in MODEL.WEIGHTS or MODEL.ZOO.WEIGHTS",
            *(backbone.freeze_at, name),
        )
    layers = [layer for layer in model.modules() if isinstance(layer, HasDataBias)]
    if left := sum(not layer.calibrated for layer in layers):
        log.warning(
            "%d of the %d biases and gains from data in %s and its pyramid are not calibrated: the net that trains is "
            "not the published one, and may not train at all; call zoo.export.detectron2.calibrate(trainer.model, "
            "[next(iter(trainer.build_train_loader(cfg)))]) before the first step",
            *(left, len(layers), name),
        )


def calibrate(model: Any, batches: Iterable[list[dict[str, Any]]]) -> CalibrationReport:
    """Calibrate the backbone and the pyramid of a model of detectron2 on batches; see ``zoo.calibrate``.

    Each rank gives its own batches, as many as the others. What a checkpoint supplied is kept.

    Args:
        model: model that ``detectron2.modeling.build_model`` returns, also inside of DistributedDataParallel.
        batches: batches as detectron2's loader gives them, at least one.
    """
    model = getattr(model, "module", model)
    images = [model.preprocess_image(batch).tensor for batch in batches]
    return zoo.calibrate(model.backbone, images, reduce=_sum_over_ranks)


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(tensor)
    return tensor
