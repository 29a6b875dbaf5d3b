"""What a video classifier is exported as: one graph of its logits, its probabilities or its feature maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import zoo
from tasks.errors import DataError, UserError
from tasks.exporting import (
    ExportRequest,
    batches,
    classifier_deployment,
    other_sizes,
    require_graph,
    resized,
    shown_pictures,
    sizes_of,
    spread,
    unstandardised,
)
from tasks.images import find_images, read_image
from tasks.video.commands import VideoExportOptions
from tasks.video.data import as_clip
from tasks.video.decode import probe, read_frames
from tasks.video.sampling import ClipSampler
from tasks.video.sources import find_videos
from zoo.export.graphs import Deployment

CALIBRATION = 64  # clips, which are large: quantisation is calibrated on no more of them


def deployment(entry: zoo.Weights, request: ExportRequest, options: VideoExportOptions) -> Deployment:
    """Return the graph of a video classifier, compared at clips of two sizes.

    Raises:
        UserError: probabilities of feature maps.
        DataError: no video that can be read.
    """
    transform = entry.transform
    assert isinstance(transform, zoo.VideoTransform)
    if options.softmax and options.features:
        raise UserError("--softmax and --features: feature maps have no classes; give one of the two")
    require_graph(request, normalize=options.normalize, softmax=options.softmax)
    transform = resized(transform, options.size or transform.size)
    small = unstandardised(transform) if options.normalize else transform
    request = replace(request, calibration=min(request.calibration, CALIBRATION))
    clips, shown = _clips(small, request.data, max(4, request.calibration))
    inputs = [small.build()(clip) for clip in clips]
    sizes = other_sizes(small.size)
    transforms = [resized(small, size).build() for size in sizes]
    samples = batches(inputs, *([build(clip) for clip in clips[:2]] for build in transforms))
    shown = f"{shown}, {sizes_of((small.size, *sizes))}"
    return classifier_deployment(entry, request, options, transform, samples, inputs, shown)


def _clips(transform: zoo.VideoTransform, data: Path | None, count: int) -> tuple[list[Tensor], str]:
    """Return clips (T, 3, H, W) of uint8, and their description."""
    if data is None:
        return list(islice(moving_windows(transform), count)), "clips that pan over the photographs of the package"
    clips = []
    for path in spread(find_videos([str(data)]), count):
        info = probe(path)
        numbers = ClipSampler(transform).uniform(info, 1)[0]
        clips.append(as_clip(read_frames(path, info, numbers.tolist())))
    if not clips:
        raise DataError(f"{data}: has no videos to compare at")
    return clips, f"clips of {data.name}"


def moving_windows(transform: zoo.VideoTransform) -> Iterator[Tensor]:
    """Yield clips of a window that moves over a photograph, to the right and back."""
    paths, _ = shown_pictures(None, "photographs")
    for path in find_images(paths):
        picture = torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1)  # (3, H, W)
        side = picture.shape[1] * 3 // 4
        phases = np.linspace(0, 2 * np.pi, transform.frames, endpoint=False)
        places = ((1 - np.cos(phases)) / 2 * (picture.shape[2] - side)).astype(int)
        yield torch.stack([picture[:, :side, x : x + side] for x in places.tolist()])
