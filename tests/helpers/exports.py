"""Exports of nets that tests make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tasks.detection.export import whole_graph
from zoo.export import TARGETS
from zoo.export.graphs import Deployment
from zoo.export.writing import Exported, export


def export_detector(
    detector: Any, images: Sequence[Tensor], folder: Path, to: str = "onnx", *, folded: bool = False
) -> Exported:
    """Export a whole detector, compared at images (3, H, W) in 0..1."""
    graph = whole_graph(detector, list(images), "images", folded=folded)
    return export(Deployment("image_lists", (graph,), {}), TARGETS[to], folder)
