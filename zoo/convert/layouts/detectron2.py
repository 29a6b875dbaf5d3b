"""The trunks of detectron2's nets: ResNet and ResNeXt, alone or inside a detector, under its own or Caffe2's names.

The keys do not show where a bottleneck has its stride and what a pixel is worth. MSRA's R-50 and R-101 have the stride
in the first 1x1 and take BGR with a std of 1, Facebook's ResNeXts have it in the 3x3 and take BGR, and torchvision's
nets in detectron2's keys have it in the 3x3 and take RGB. What a file shows of that decides; a file that shows nothing
is refused, unless the option ``stride_in_1x1`` is given.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.convert.layouts.base import Imported, Layout
from zoo.convert.layouts.caffe2_names import detectron2_key, is_caffe2
from zoo.convert.layouts.fitting import candidates, fitted, with_asked
from zoo.convert.layouts.resnet import Architecture
from zoo.errors import WeightsError
from zoo.nets.base import ModelConfig
from zoo.nets.resnet import ResNet
from zoo.specs import MODELS
from zoo.transforms import IMAGENET_MEAN, IMAGENET_STD, InputTransform

log = logging.getLogger("rescalenet")

NAME = "detectron2"
EPS = 1e-5  # of its norms, frozen or not

# pixels on the 0..255 scale, BGR
BGR_MEAN = (103.53, 116.28, 123.675)
RESNEXT_STD = (57.375, 57.12, 58.395)

_TRUNKS = ("backbone.bottom_up.", "backbone.", "bottom_up.", "")  # prefixes of a trunk's keys
_FIRST = "stem.conv1.weight"


def matches(keys: Collection[str]) -> bool:
    """Return whether keys are of a net of detectron2 with a ResNet."""
    return any(f"{prefix}{_FIRST}" in keys and f"{prefix}res2.0.conv1.weight" in keys for prefix in _TRUNKS)


# -- the trunk and the rest ------------------------------------------------------------------------------


def split(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the trunk of a checkpoint and the rest of its detector, both in detectron2's keys.

    Caffe2's blobs are renamed as detectron2 renames them: norms without statistics get a mean of 0 and a variance of
    1, the background moves from the first to the last class, and its box and mask are dropped.

    Args:
        state: state dict of detectron2, or blobs of Detectron.

    Returns:
        The trunk with keys such as ``res2.0.conv1.norm.weight``, and the rest with keys such as
        ``backbone.fpn_lateral2.weight`` and ``roi_heads.box_head.fc1.weight``.

    Raises:
        WeightsError: blobs that are not known.
    """
    if is_caffe2(state):
        state = _from_caffe2(state)
        prefix = ""
    else:
        prefix = next((prefix for prefix in _TRUNKS if f"{prefix}{_FIRST}" in state), "")
    trunk, rest = {}, {}
    for key, value in state.items():
        inside = key.removeprefix(prefix) if key.startswith(prefix) else ""
        if re.match(r"(stem|res[2-9])\.|linear\.(weight|bias)$", inside):
            trunk[inside] = value
        else:
            rest[key] = value
    return trunk, rest


def _from_caffe2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return blobs in detectron2's keys, as detectron2 reads them."""
    # GroupNorm has blobs of its own
    if blob := next((key for key in state if re.search(r"_gn_[sb]$", key)), None):
        raise WeightsError(f"{NAME} checkpoint: it has GroupNorm ({blob}), which no weights can replace")
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        own = detectron2_key(key)
        if own is None:
            if value.numel() > 1:  # single numbers are the solver's: learning rate, iteration
                raise WeightsError(f"{NAME} checkpoint: unknown blob {key!r} of Caffe2; must be a ResNet, FPN or R-CNN")
            continue
        renamed[own] = _without_background(own, value)
    # Caffe2's affine layers become norms of mean 0 and variance 1, which differ from them by eps: detectron2's
    # FrozenBatchNorm2d calls 1 - eps the identity, but gives norms that a file without versions lacks 1
    for key, value in list(renamed.items()):
        if key.endswith(".norm.weight") and key.replace(".weight", ".running_mean") not in renamed:
            renamed[key.replace(".weight", ".running_mean")] = torch.zeros_like(value)
            renamed[key.replace(".weight", ".running_var")] = torch.ones_like(value)
    return renamed


def _without_background(key: str, value: Tensor) -> Tensor:
    """Return a predictor's tensor in detectron2's order of the classes; Caffe2 has the background first."""
    if ".cls_score." in key:
        return torch.cat([value[1:], value[:1]])
    if ".bbox_pred." in key:
        return value[4:]
    return value[1:] if ".mask_head.predictor." in key else value


# -- the trunk's net -------------------------------------------------------------------------------------


def foreign_key(key: str) -> str:
    """Return the trunk's key in detectron2 of one of our ResNet's keys."""
    module, _, leaf = key.rpartition(".")
    if module == "fc":
        return f"linear.{leaf}"
    module = re.sub(r"^layer(\d+)", lambda match: f"res{int(match[1]) + 1}", module)
    module = module.replace("downsample.conv", "shortcut").replace("downsample.norm", "shortcut.norm")
    module = re.sub(r"norm([123])$", r"conv\1.norm", module)
    return f"{module}.{leaf}"


def _torchvision_key(key: str) -> str:
    """Return torchvision's key of a trunk's key in detectron2."""
    key = key.removeprefix("stem.").replace("linear.", "fc.")
    key = re.sub(r"^res(\d)", lambda match: f"layer{int(match[1]) - 1}", key)
    key = key.replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")
    return re.sub(r"conv(\d)\.norm\.", r"bn\1.", key)


def read(state: Mapping[str, Tensor], name: str | None, options: Mapping[str, Any]) -> Imported:
    """Return the trunk of a checkpoint of detectron2 in the keys of our ``bn`` net.

    Args:
        state: state dict of detectron2, or blobs of Detectron.
        name: name of our net; None to find it.
        options: options of our net; ``stride_in_1x1`` decides where the checkpoint does not.

    Raises:
        WeightsError: a checkpoint that no net of the zoo fits, with the reason.
    """
    if name is not None and name not in MODELS:
        raise WeightsError(
            f"{NAME} checkpoint: {name} is no registered net, and only its trunk can be converted: its detectors have "
            "other anchors, another RoI align and the background as the last class; leave the name out"
        )
    trunk, rest = split(state)
    _refuse_foreign_parts(trunk, rest)
    # torchvision's nets in detectron2's keys keep the name of their last layer, with the stem's prefix
    of_torchvision = "stem.fc.weight" in trunk
    trunk = {re.sub(r"^stem\.fc\.", "linear.", key): value for key, value in trunk.items()}
    unused = [key for key in trunk if re.search(r"conv\d\.bias$|shortcut\.bias$", key)]
    for key in unused:
        del trunk[key]
    if unused or rest:
        log.info(
            "%s checkpoint: %d tensors are not of the trunk, and %d biases beside norms are not used, as in detectron2",
            *(NAME, len(rest), len(unused)),
        )
    # the net that has these blocks
    kernels = [
        _FIRST,
        "res2.0.conv1.weight",
        "res2.0.conv2.weight",
        *(k for k in trunk if k.endswith("shortcut.weight")),
    ]
    for key in kernels:
        if key not in trunk or trunk[key].ndim != 4 or not trunk[key].numel():
            raise WeightsError(f"{NAME} checkpoint: {key} is missing or no kernel of shape (O, I, h, w)")
    found = Architecture.of({_torchvision_key(key): value for key, value in trunk.items()})
    asked = {**options}
    if found.block == "bottleneck" and _stride_in_1x1(found, rest, is_caffe2(state), of_torchvision, options):
        asked["stride_in_1x1"] = True
    head = trunk.get("linear.weight")
    configs = [
        ModelConfig(
            name=spec.name,
            scheme="bn",
            num_classes=0 if head is None or not head.ndim else head.shape[0],
            in_chans=trunk[_FIRST].shape[1],
            options=with_asked(NAME, found.of_layout(spec.layout), asked),
        )
        for spec in candidates(NAME, ResNet, name, str(found), found.fits)
    ]
    imported = fitted(NAME, trunk, configs, foreign_key)
    # the input that it expects
    fused = is_caffe2(state) and not any(key.endswith(("_rm", "_running_mean")) for key in state)
    transform = _transform(found, rest, imported.config.options, of_torchvision, fused)
    return dataclasses.replace(imported, transform=transform, eps=EPS)


def _refuse_foreign_parts(trunk: Mapping[str, Tensor], rest: Mapping[str, Tensor]) -> None:
    """Refuse a trunk that no net of the zoo computes.

    Raises:
        WeightsError: such a trunk, with the reason.
    """
    if key := next((key for key in trunk if "conv2_offset" in key), None):
        raise WeightsError(f"{NAME} checkpoint: it has deformable convolutions ({key}); the zoo has no such net")
    if "stem.conv1.norm.weight" not in trunk:
        raise WeightsError(f"{NAME} checkpoint: its stem has no norm of the name stem.conv1.norm; must be a ResNet")
    if "stem.conv1.norm.running_mean" not in trunk:
        raise WeightsError(
            f"{NAME} checkpoint: its norms have no running statistics: GroupNorm, which no weights can replace, or "
            "FrozenBatchNorm2d of 2019: load it in detectron2 and save the state dict again"
        )
    if any(key.startswith("roi_heads.res5.") for key in rest):
        raise WeightsError(f"{NAME} checkpoint: a C4 net, whose last stage is in its heads; give one with a pyramid")
    detects = any(key.startswith(("proposal_generator.", "roi_heads.")) for key in rest)
    if detects and not any(".fpn_" in key for key in rest):
        raise WeightsError(f"{NAME} checkpoint: a DC5 net, whose last stage is dilated; give one with a pyramid")


def _stride_in_1x1(
    found: Architecture,
    rest: Mapping[str, Tensor],
    caffe2: bool,
    of_torchvision: bool,
    options: Mapping[str, Any],
) -> bool:
    """Return whether a bottleneck has its stride in the first 1x1.

    Args:
        found: architecture of the trunk.
        rest: tensors outside of the trunk.
        caffe2: whether the names are Caffe2's.
        of_torchvision: whether the net was torchvision's.
        options: options that were asked for.

    Raises:
        WeightsError: neither the checkpoint nor the options decide.
    """
    if "stride_in_1x1" in options:
        return bool(options["stride_in_1x1"])
    if of_torchvision or found.groups > 1:
        return False
    if caffe2:
        return True
    if "pixel_std" in rest:
        return bool((rest["pixel_std"] == 1).all())
    raise WeightsError(
        f"{NAME} checkpoint: it does not show where its bottlenecks have their stride: give stride_in_1x1=True (MSRA's "
        "R-50 and R-101, detectron2's default) or False (torchvision's), as STRIDE_IN_1X1 of its config"
    )


def _transform(
    found: Architecture,
    rest: Mapping[str, Tensor],
    options: Mapping[str, Any],
    of_torchvision: bool,
    fused: bool,
) -> InputTransform | None:
    """Return the input that the trunk expects; None if the checkpoint does not show it.

    Args:
        found: architecture of the trunk.
        rest: tensors outside of the trunk, among them the buffers of a detector of 2019 and 2020.
        options: options of our net.
        of_torchvision: whether the net was torchvision's.
        fused: whether the norms have no statistics of their own, as in Detectron's first files.
    """
    if "pixel_mean" in rest and "pixel_std" in rest:
        mean, std = (tuple(float(v) for v in rest[key].flatten()) for key in ("pixel_mean", "pixel_std"))
        order = "RGB" if mean[0] > mean[-1] else "BGR"  # ImageNet's red is brighter than its blue
        return _scaled(mean, std, order)
    if of_torchvision:
        return InputTransform(224, 256, IMAGENET_MEAN, IMAGENET_STD)
    if options.get("stride_in_1x1") or (fused and found.groups > 1):
        return _scaled(BGR_MEAN, (1.0, 1.0, 1.0), "BGR")
    return _scaled(BGR_MEAN, RESNEXT_STD, "BGR") if found.groups > 1 else None


def _scaled(mean: tuple[float, ...], std: tuple[float, ...], order: Any) -> InputTransform:
    """Return the transform of pixels on the 0..255 scale."""
    of = tuple(value / 255 for value in mean), tuple(value / 255 for value in std)
    return InputTransform(224, 256, *of, channel_order=order)


LAYOUT = Layout(NAME, matches, read)
