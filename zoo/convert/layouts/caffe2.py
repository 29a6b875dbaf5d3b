"""ResNets of Caffe2, whose blobs have the same names for images (Detectron) and for clips (SlowFast)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.convert.layouts import detectron2, slowfast
from zoo.convert.layouts.base import Imported, Layout
from zoo.convert.layouts.caffe2_names import is_caffe2


def read(state: Mapping[str, Tensor], name: str | None, options: Mapping[str, Any]) -> Imported:
    """Return a checkpoint of Caffe2 in the keys of our ``bn`` net; the dimensions of its first kernel decide.

    Args:
        state: blobs by name.
        name: name of our net; None to find it.
        options: options of our net.

    Raises:
        WeightsError: a checkpoint that no net of the zoo fits, with the reason.
    """
    reader = slowfast.read_caffe2 if state["conv1_w"].ndim == 5 else detectron2.read
    return reader(state, name, options)


LAYOUT = Layout("Caffe2", is_caffe2, read)
