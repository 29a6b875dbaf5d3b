"""Config lines of detectron2 for nets and detectors of the zoo, and what its classes cannot have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from torch import nn

from zoo.convert.detectron2 import AnyInput, feature_names, pixel_settings
from zoo.errors import ExportError
from zoo.export.batchnorm_form import layout_of, refused_layout
from zoo.nets.base import Backbone
from zoo.nets.resnet import ResNet
from zoo.registry import model_info
from zoo.transforms import AnyTransform

# MODEL.RESNETS.DEPTH of the blocks that detectron2 has
_DEPTHS = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
    ("bottleneck", (3, 8, 36, 3)): 152,
}
LEVELS = ["res2", "res3", "res4", "res5"]
Config = dict[str, Any]


def as_resnet(net: nn.Module) -> ResNet:
    """Return a net, of which detectron2 has classes.

    Raises:
        ExportError: another net.
    """
    if not isinstance(net, ResNet):
        name = net.config.name if isinstance(net, Backbone) else type(net).__name__
        raise ExportError(f"export to detectron2: {name} is no ResNet for images, the only nets that it has")
    return net


def resnet_config(net: ResNet, out_features: list[str]) -> Config:
    """Return the lines of a ResNet.

    Args:
        net: net of the zoo.
        out_features: detectron2's names of the maps.

    Raises:
        ExportError: detectron2's ResNets cannot compute this net, with the reason.
    """
    layout = layout_of(net)
    if reason := next(_reasons(net, layout), None):
        raise ExportError(f"{net.config.name} has no counterpart in detectron2: {reason}")
    first: Any = net.stages()[0][0]
    inner = first.conv2.out_channels
    return {
        "RESNETS": {
            "DEPTH": _DEPTHS[layout.block, layout.depths],
            "NUM_GROUPS": layout.groups,
            "WIDTH_PER_GROUP": inner // layout.groups,
            "STEM_OUT_CHANNELS": net.levels[0].channels,
            "RES2_OUT_CHANNELS": net.levels[1].channels,
            "STRIDE_IN_1X1": layout.stride_in_1x1,
            "NORM": "FrozenBN",
            "OUT_FEATURES": out_features,
        }
    }


def _reasons(net: ResNet, layout: Any) -> Iterator[str]:
    """Yield what detectron2's ResNets cannot have."""
    yield from refused_layout(net, layout)
    if (layout.block, layout.depths) not in _DEPTHS:
        yield f"{layout.block} blocks {layout.depths}, which no MODEL.RESNETS.DEPTH gives"
    if layout.block == "basic" and net.levels[1].channels != 64:
        yield f"basic blocks of {net.levels[1].channels} channels in the first stage, it has 64"
    # channels double from stage to stage
    stages: list[Any] = net.stages()
    for before, after in pairwise(stages):
        for conv in ("conv1", "conv2", "conv3")[: 2 if layout.block == "basic" else 3]:
            counts = [getattr(stage[0], conv).out_channels for stage in (before, after)]
            if counts[1] != 2 * counts[0]:
                yield f"width={layout.width} gives stages of {counts[0]} and {counts[1]} channels; its stages double"


def input_config(transform: AnyTransform | None) -> Config:
    """Return the lines of the input; none if it is not known."""
    if not isinstance(transform, AnyInput):
        return {}
    order = transform.channel_order
    return {"MODEL": pixel_settings(transform, order), "INPUT": {"FORMAT": order}}


def detector_config(detector: Any) -> Config:
    """Return the lines of a Faster or Mask R-CNN of the zoo.

    Raises:
        ExportError: detectron2's classes cannot compute this detector, with the reason.
    """
    name, options = detector.config.name, options_of(detector)
    if reason := next(_detector_reasons(detector, options), None):
        raise ExportError(f"{name} has no counterpart in detectron2: {reason}")
    # the net and its proposals
    heads = detector.roi_heads
    levels = [f"p{number}" for number in range(2, 7)]
    model: Config = {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "MASK_ON": detector.has_masks,
        "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
        **resnet_config(as_resnet(detector.backbone.body.body), LEVELS),
        "FPN": {"IN_FEATURES": list(LEVELS), "OUT_CHANNELS": options["fpn_channels"]},
        "ANCHOR_GENERATOR": {
            "SIZES": [[options["anchor_scale"] * stride] for stride in detector.strides],
            "ASPECT_RATIOS": [list(options["aspect_ratios"])],
        },
        "RPN": {
            "IN_FEATURES": levels,
            "CONV_DIMS": [-1] * options["rpn_convs"],
            "BATCH_SIZE_PER_IMAGE": options["rpn_samples"],
            **{
                f"{when}_NMS_TOPK_{mode.upper()}": options[f"proposals_{mode}"]
                for when in ("PRE", "POST")
                for mode in ("train", "test")
            },
        },
        "ROI_HEADS": {
            "NAME": "StandardROIHeads",
            "IN_FEATURES": levels[:-1],
            "NUM_CLASSES": detector.num_classes,
            "BATCH_SIZE_PER_IMAGE": options["box_samples"],
            "SCORE_THRESH_TEST": heads.score_thresh,
            "NMS_THRESH_TEST": heads.nms_thresh,
        },
        "ROI_BOX_HEAD": {
            "NAME": "FastRCNNConvFCHead",
            "NUM_FC": 2,
            "FC_DIM": options["box_width"],
            "POOLER_RESOLUTION": 7,
        },
    }
    # heads of Mask R-CNN alone
    if detector.has_masks:
        model["ROI_MASK_HEAD"] = {
            "NAME": "MaskRCNNConvUpsampleHead",
            "NUM_CONV": len(options["mask_convs"]),
            "CONV_DIM": options["mask_width"],
            "POOLER_RESOLUTION": 14,
        }
    # the input, and what is reported
    pixels = input_config(detector.input)
    sizes = {"MIN_SIZE_TEST": detector.input.min_size, "MAX_SIZE_TEST": detector.input.max_size}
    return {
        "MODEL": {**model, **pixels["MODEL"]},
        "INPUT": {**pixels["INPUT"], **sizes},
        "TEST": {"DETECTIONS_PER_IMAGE": heads.detections_per_img},
    }


def options_of(detector: Any) -> dict[str, Any]:
    """Return all options of a detector of the zoo by name."""
    return {**model_info(detector.config.name).options, **detector.config.options}


def _detector_reasons(detector: Any, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield what detectron2's Faster and Mask R-CNN cannot have."""
    if options["conventions"] != "detectron2":
        yield (
            f"conventions={options['conventions']!r}, its anchors, RoI pooling and masks are others; detectors with "
            "conventions='detectron2' go there"
        )
    if options["heads"] != "2fc":
        yield f"heads={options['heads']!r}, it has two linear layers for boxes and no norm in the heads"
    body = detector.backbone.body
    names = feature_names(body.body)
    if (found := [names[i] for i in body.out_indices]) != LEVELS:
        yield f"a pyramid on {', '.join(found)}; it has one on {', '.join(LEVELS)}"
    if options["canonical_size"] != 224:
        yield f"canonical_size={options['canonical_size']}, it has 224"
    if detector.has_masks and set(options["mask_convs"]) != {options["mask_width"]}:
        yield (
            f"mask_convs={options['mask_convs']} and mask_width={options['mask_width']}, its mask head has one number "
            "of channels"
        )
    if detector.roi_heads.thresholds is not None:
        yield "a threshold for each class, it has one for all"
