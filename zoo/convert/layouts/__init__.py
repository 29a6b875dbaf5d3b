"""Layouts of BatchNorm checkpoints that others publish; one module a family of sources."""

from __future__ import annotations

from zoo.convert.layouts import caffe2, detectron2, refused, resnet, slowfast, torchvision_video, vgg
from zoo.convert.layouts.base import Imported, Layout

__all__ = ["LAYOUTS", "Imported", "Layout"]

# the first that matches the keys reads them
LAYOUTS: list[Layout] = [
    *refused.REFUSED,
    resnet.LAYOUT,
    vgg.LAYOUT,
    detectron2.LAYOUT,
    caffe2.LAYOUT,
    torchvision_video.LAYOUT,
    *slowfast.LAYOUTS,
]
