"""Layouts of BatchNorm checkpoints that others publish; one module a family of sources."""

from __future__ import annotations

from zoo.convert.layouts import refused, resnet, vgg
from zoo.convert.layouts.base import Imported, Layout

__all__ = ["LAYOUTS", "Imported", "Layout"]

# the first that matches the keys reads them
LAYOUTS: list[Layout] = [*refused.REFUSED, resnet.LAYOUT, vgg.LAYOUT]
