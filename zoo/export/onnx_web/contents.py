"""What a page shows: which deployments it takes, and an example of their input, made from the first sample."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from torch import Tensor

from zoo.errors import ExportError
from zoo.export.graphs import Deployment

_RATE = 8  # frames per second of an example of a clip whose frames are spread over the whole video


def require_shown(deployment: Deployment) -> None:
    """Check that a page can show what the graphs compute.

    Raises:
        ExportError: a net without classes, such as a feature extractor, or one of pictures with other channels than
            RGB or grey.
    """
    if deployment.kind == "text":
        return
    description = deployment.description
    if not description["classes"]:
        raise ExportError("export to onnx-web: the page shows classes, and this net has none; choose another target")
    channels = len(description["input"]["mean"])
    if channels not in (1, 3):
        raise ExportError(f"export to onnx-web: browsers read pictures of 1 or 3 channels, not {channels}")


def add_example(deployment: Deployment, folder: Path) -> None:
    """Write an example of the input: ``example.png`` or ``example.webm``."""
    if deployment.kind == "text":
        return
    (sample,) = deployment.graphs[0].samples[0]
    if deployment.kind == "image_lists":
        _to_image(sample).save(folder / "example.png")
        return
    pixels = _in_unit_range(sample[0], deployment.description["input"])
    if deployment.kind == "images":
        _to_image(pixels).save(folder / "example.png")
    else:
        _write_clip(pixels, deployment.description["input"], folder / "example.webm")


def _in_unit_range(sample: Tensor, layout: Mapping[str, Any]) -> Tensor:
    """Return an input (C, [T,] H, W) as RGB or grey in 0..1."""
    if layout["standardised_in_graph"]:
        return sample
    shape = (-1, *[1] * (sample.ndim - 1))
    pixels = sample * sample.new_tensor(layout["std"]).view(shape) + sample.new_tensor(layout["mean"]).view(shape)
    return pixels.flip(0) if layout["channel_order"] == "BGR" else pixels


def _to_array(pixels: Tensor) -> np.ndarray:
    """Return a picture (C, H, W) in 0..1 as uint8 (H, W, C)."""
    values: np.ndarray = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return values


def _to_image(pixels: Tensor) -> Image.Image:
    values = _to_array(pixels)
    return Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)


def _write_clip(pixels: Tensor, layout: Mapping[str, Any], path: Path) -> None:
    """Write a clip (C, T, H, W) in 0..1 as a video whose frames at the times of the transform are those of the clip."""
    repeats = max(1, round(layout["interval"] or 1))
    rate = Fraction(layout["fps"] or _RATE).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libvpx-vp9", rate=rate, options={"crf": "10", "b": "0"})
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = (size // 2 * 2 for size in pixels.shape[2:])  # of whole chroma samples
        for number in range(pixels.shape[1]):
            image = _to_array(pixels[:, number].expand(3, -1, -1))[: stream.height, : stream.width]
            for _ in range(repeats):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))
