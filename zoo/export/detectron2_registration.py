"""Registration of the zoo's backbones with detectron2, done by importing this module, and their config keys.

import zoo.export.detectron2_registration as rescalenet
cfg = get_cfg()
rescalenet.add_config(cfg)
cfg.merge_from_file(".../configs/detection/detectron2/mask_rcnn_rescalenet50_fpn.yaml")
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY

from zoo.export.detectron2 import FPN, ZooBackbone, fpn


def add_config(cfg: Any) -> None:
    """Add the keys below MODEL.ZOO, with their defaults."""
    cfg.MODEL.ZOO = CfgNode()
    cfg.MODEL.ZOO.NAME = "rescalenet50"  # of zoo.list_models()
    cfg.MODEL.ZOO.WEIGHTS = ""  # tag, name.tag or path of a safetensors file; empty: from scratch
    cfg.MODEL.ZOO.SCHEME = ""  # empty: the weights', or rescale
    cfg.MODEL.ZOO.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.ZOO.OPTIONS = CfgNode(new_allowed=True)  # of the net and its scheme


@BACKBONE_REGISTRY.register()
def build_zoo_backbone(cfg: Any, input_shape: Any) -> ZooBackbone:
    """Build the backbone that MODEL.ZOO describes; its first MODEL.BACKBONE.FREEZE_AT levels are not trained."""
    section = cfg.MODEL.ZOO
    return ZooBackbone(
        section.NAME,
        weights=section.WEIGHTS or None,
        scheme=section.SCHEME or None,
        out_features=section.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        format=cfg.INPUT.FORMAT,
        options=dict(section.OPTIONS),
    )


@BACKBONE_REGISTRY.register()
def build_zoo_fpn_backbone(cfg: Any, input_shape: Any) -> FPN:
    """Build the backbone of MODEL.ZOO with detectron2's FPN (MODEL.FPN)."""
    section = cfg.MODEL.FPN
    bottom_up = build_zoo_backbone(cfg, input_shape)
    return fpn(bottom_up, in_features=section.IN_FEATURES, out_channels=section.OUT_CHANNELS, norm=section.NORM)
