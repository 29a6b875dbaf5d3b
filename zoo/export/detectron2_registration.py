"""Registration of the zoo's backbones with detectron2, done by importing this module, and their config keys.

import zoo.export.detectron2_registration as rescalenet
cfg = get_cfg()
rescalenet.add_config(cfg)
cfg.merge_from_file(".../configs/detection/detectron2/mask_rcnn_rescalenet50_fpn.yaml")

detectron2's checkpointer then takes weights of the zoo too (``zoo.export.detectron2_checkpoints``).
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY

from zoo.convert.detectron2 import described_in
from zoo.errors import WeightsError, ZooError
from zoo.export.detectron2 import Pyramid, ZooBackbone, calibrate, fpn, names_weights, retinanet_fpn
from zoo.export.detectron2_checkpoints import extend_checkpointer

__all__ = [
    "add_config",
    "build_zoo_backbone",
    "build_zoo_fpn_backbone",
    "build_zoo_retinanet_fpn_backbone",
    "calibrate",
]

extend_checkpointer()


def add_config(cfg: Any) -> None:
    """Add the keys below MODEL.ZOO, with their defaults."""
    cfg.MODEL.ZOO = CfgNode()
    cfg.MODEL.ZOO.NAME = "rescalenet50"  # of zoo.list_models()
    cfg.MODEL.ZOO.WEIGHTS = ""  # of the net or a detector: tag, name.tag or path; empty: MODEL.WEIGHTS, or from scratch
    cfg.MODEL.ZOO.SCHEME = ""  # empty: the weights', or rescale
    cfg.MODEL.ZOO.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.ZOO.OPTIONS = CfgNode(new_allowed=True)  # of the net and its scheme


@BACKBONE_REGISTRY.register()
def build_zoo_backbone(cfg: Any, input_shape: Any) -> ZooBackbone:
    """Build the backbone that MODEL.ZOO describes; its first MODEL.BACKBONE.FREEZE_AT levels are not trained.

    Raises:
        ZooError: an unknown name or option, weights that are missing or of another net, or another pixel mean.
    """
    section = cfg.MODEL.ZOO
    key, weights, scheme, options = "MODEL.ZOO.WEIGHTS", section.WEIGHTS, section.SCHEME, dict(section.OPTIONS)
    try:
        # options and input of what is in MODEL.WEIGHTS are needed before detectron2 loads it
        if not weights and names_weights(cfg.MODEL.WEIGHTS, section.NAME):
            key, weights = "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS
        elif not weights and (stored := described_in(cfg.MODEL.WEIGHTS)) and stored.config.name == section.NAME:
            scheme, options = scheme or stored.config.scheme, {**stored.config.options, **options}
        return ZooBackbone(
            section.NAME,
            weights=weights or None,
            scheme=scheme or None,
            out_features=section.OUT_FEATURES,
            freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
            format=cfg.INPUT.FORMAT,
            options=options,
        )
    except WeightsError as error:
        hint = "" if key == "MODEL.WEIGHTS" else "; if a checkpoint of detectron2 is loaded afterwards, leave it empty"
        raise WeightsError(f"{key}: {error}{hint}") from None
    except ZooError as error:
        raise ZooError(f"MODEL.ZOO: {error}") from None


def _on_backbone(make: Any, cfg: Any, input_shape: Any) -> Pyramid:
    """Build a pyramid by MODEL.FPN on the backbone of MODEL.ZOO."""
    section = cfg.MODEL.FPN
    return make(
        build_zoo_backbone(cfg, input_shape),
        in_features=section.IN_FEATURES,
        out_channels=section.OUT_CHANNELS,
        norm=section.NORM,
        fuse_type=section.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_zoo_fpn_backbone(cfg: Any, input_shape: Any) -> Pyramid:
    """Build the backbone of MODEL.ZOO with detectron2's FPN (MODEL.FPN)."""
    return _on_backbone(fpn, cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_zoo_retinanet_fpn_backbone(cfg: Any, input_shape: Any) -> Pyramid:
    """Build the backbone of MODEL.ZOO with RetinaNet's pyramid (MODEL.FPN), which has two more levels."""
    return _on_backbone(retinanet_fpn, cfg, input_shape)
