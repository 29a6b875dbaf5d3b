"""Files for detectron2's own classes, run in detectron2, which must be installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.layers.mask_ops import _do_paste_mask
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import ResNet as Detectron2ResNet
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from detectron2.modeling.postprocessing import detector_postprocess
from torch import nn

from zoo.export.graphs import Arrays, Runner
from zoo.nets.base import Backbone, pool_globally

VERSION = detectron2.__version__


def config(path: Path) -> Any:
    """Return detectron2's config with the lines of a file, for the CPU."""
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def body_runner(lines: Path, weights: Path, body: Backbone, maps: Sequence[str]) -> Runner:
    """Return a function that runs a ResNet of detectron2.

    Args:
        lines: file of config lines.
        weights: checkpoint.
        body: net that was exported, with the number of classes and the pooling of its outputs.
        maps: names of the maps that are its outputs; () for logits or pooled features.
    """
    net: nn.Module = build_resnet_backbone(config(lines), ShapeSpec(channels=body.in_chans))
    outputs = list(maps) or ["res5"]
    if body.num_classes:
        outputs = ["linear"]
        net = Detectron2ResNet(net.stem, net.stages, body.num_classes, ["res5", *outputs])  # it drops stages after
    DetectionCheckpointer(net).load(str(weights))
    net.eval()

    def run(inputs: Arrays) -> list[np.ndarray]:
        with torch.no_grad():
            found = net(torch.from_numpy(inputs[0]))
            if not maps and not body.num_classes:
                found = {"res5": pool_globally(found["res5"], body.global_pool)}
        return [found[name].numpy() for name in outputs]

    return run


def detector_runner(lines: Path, weights: Path, detector: Any, outputs: Sequence[str]) -> Runner:
    """Return a function that runs a detector of detectron2 on an RGB image (3, H, W) in 0..1.

    Images are resized as by the detector that was exported, because detectron2 resizes before its model. Masks are
    probabilities, from which detectron2 makes those of whole images at 0.5.

    Args:
        lines: file of config lines.
        weights: checkpoint.
        detector: detector that was exported.
        outputs: names of the outputs: ``boxes``, ``labels``, ``scores``, ``masks``.
    """
    cfg = config(lines)
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(str(weights))

    def run(inputs: Arrays) -> list[np.ndarray]:
        # the image as detectron2's loader gives it
        image = torch.from_numpy(inputs[0])
        height, width = image.shape[-2:]
        resized, _ = detector.transform.resize(image)
        pixels = 255 * (resized.flip(0) if cfg.INPUT.FORMAT == "BGR" else resized)
        with torch.no_grad():
            (raw,) = model.inference([{"image": pixels}], do_postprocess=False)
        # boxes and masks in the image as it was given
        if raw.has("pred_masks"):
            raw.inside = raw.pred_masks
            raw.remove("pred_masks")
        found = detector_postprocess(raw, height, width)
        boxes = found.pred_boxes.tensor
        objects = {"boxes": boxes, "labels": found.pred_classes + 1, "scores": found.scores}
        if found.has("inside"):
            objects["masks"] = _do_paste_mask(found.inside, boxes, height, width, skip_empty=False)[0][:, None]
        return [objects[name].numpy() for name in outputs]

    return run
