"""Models of detectron2 with narrow backbones of the zoo, and inputs for them. It imports detectron2."""

from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.structures import BitMasks, Boxes, Instances

import zoo.export.detectron2_registration as registration

CONFIGS = Path(__file__).parents[2] / "configs" / "detection" / "detectron2"


def config(**changes):
    cfg = get_cfg()
    registration.add_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "mask_rcnn_rescalenet50_fpn.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ZOO.NAME = "rescalenet18"
    cfg.MODEL.ZOO.OPTIONS.width = 0.125
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.merge_from_list([item for pair in changes.items() for item in (pair[0].replace("__", "."), pair[1])])
    return cfg


def objects(size):
    found = Instances(size)
    found.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0], [30.0, 20.0, 60.0, 56.0]]))
    found.gt_classes = torch.tensor([0, 2])
    masks = torch.zeros(2, *size, dtype=torch.bool)
    masks[0, 8:40, 8:40] = masks[1, 20:56, 30:60] = True
    found.gt_masks = BitMasks(masks)
    return found


def sample(image, instances=None):
    content = {"image": torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1).float(), "height": 64, "width": 96}
    return content if instances is None else {**content, "instances": instances}
