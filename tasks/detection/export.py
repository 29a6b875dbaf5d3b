"""What a detector is exported as: one graph of a whole image's objects, or of its body and pyramid."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from tasks.detection.commands import DetectionExportOptions
from tasks.detection.rcnn import Standardize
from tasks.errors import DataError, UserError
from tasks.exporting import (
    ExportRequest,
    batches,
    describe_images,
    read_inputs,
    require_graph,
    shown_pictures,
    sizes_of,
    spread,
    standardisation,
)
from tasks.images import find_images, read_image
from tasks.spec import load_model
from zoo.export.graphs import Deployment, Graph, Port
from zoo.export.images import graph_of
from zoo.folding import fold
from zoo.transforms import InputTransform

SIZES = 4  # pictures of different sizes that a whole detector is compared at
PYRAMID_SIDES = (128, 192, 160)  # pixels of the inputs at which body and pyramid are compared
CALIBRATION = 64  # pictures, which are large: no more of them are read for sizes or for quantisation
# The layers with weights. What is between them, such as NMS and the pooling of regions, stays in float.
QUANTISED = (
    "backbone",
    "rpn.head",
    "roi_heads.box_head",
    "roi_heads.box_predictor",
    "roi_heads.mask_head",
    "roi_heads.mask_predictor",
)


class OneImage(nn.Module):
    """A detector of one image (3, H, W) in 0..1: boxes (N, 4), labels (N,), scores (N,) and masks (N, 1, H, W)."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        (found,) = self.detector([image])
        return tuple(found.values())


def deployment(entry: zoo.Weights, request: ExportRequest, options: DetectionExportOptions) -> Deployment:
    """Return the graph of a detector, compared at pictures of several sizes.

    Raises:
        UserError: a target that takes no whole detector, or standardisation of a whole detector, which has its own.
        DataError: no picture that can be read.
    """
    transform = entry.transform
    assert isinstance(transform, zoo.DetectionTransform)
    detector = load_model(entry).eval()
    if options.features:
        return _pyramid(detector, transform, request, options)
    if options.normalize:
        raise UserError("--normalize: a whole detector standardises itself; leave it out, or give --features")
    graph = whole_graph(detector, _images(request), _shown(request), folded=request.fold)
    calibration = tuple((image,) for image in _calibration_images(request))
    description = {
        "input": describe_images(transform, normalize=True, layout="CHW"),
        "classes": list(entry.classes),
        "outputs": {
            "boxes": "x1, y1, x2, y2 in pixels of the image",
            "labels": "number of the class, from 1",
            "masks": "probability of each pixel",
        },
    }
    return Deployment("image_lists", (graph,), description, calibration=calibration)


def whole_graph(detector: Any, images: list[Tensor], shown: str, *, folded: bool = True) -> Graph:
    """Return the graph of a whole detector.

    Args:
        detector: detector of torchvision's form in eval mode.
        images: images (3, H, W) in 0..1 at which it is compared.
        shown: description of the images.
        folded: whether the graph computes the deployment form.
    """
    # 1. the objects at the images, by which it is compared
    module = (fold(detector) if folded else detector).eval()
    with torch.no_grad():
        found = [module([image])[0] for image in images]
    shown = f"{shown}, " + ", ".join(f"{image.shape[-2]} x {image.shape[-1]}" for image in images)
    count = sum(len(each["boxes"]) for each in found)
    required, stand_in = module.roi_heads.score_thresh, None
    if count or required == 0:
        shown = f"{shown} ({count} objects)"
    else:  # no object has the score that is required: a graph without the requirement is compared
        lowered = copy.deepcopy(detector)
        lowered.roi_heads.score_thresh = 0.0
        stand_in = whole_graph(lowered, images, shown, folded=folded)
        count = sum(len(stand_in.run(sample)[0]) for sample in stand_in.samples)
        shown = f"{shown} (no object has a score of {required:g}; {count} objects with score_thresh=0)"
    # 2. the outputs that it has: a Faster R-CNN has no masks
    axes: dict[str, tuple[int | str, ...]] = {
        "boxes": ("objects", 4),
        "labels": ("objects",),
        "scores": ("objects",),
        "masks": ("objects", 1, "height", "width"),
    }
    outputs = tuple(Port(name, axes[name], "int64" if name == "labels" else "float32") for name in found[0])
    return Graph(
        "model",
        OneImage(module).eval(),
        (Port("image", (3, "height", "width")),),
        outputs,
        tuple((image,) for image in images),
        shown,
        compares="objects",
        net=detector,
        stand_in=stand_in,
        quantised=tuple(f"detector.{name}" for name in QUANTISED if _has(module, name)),
    )


def _has(module: nn.Module, name: str) -> bool:
    """Return whether a module has a submodule of this name: a Faster R-CNN has no mask head."""
    return any(key == name for key, _ in module.named_modules())


def _shown(request: ExportRequest) -> str:
    if request.data is None:
        return "pictures of nuclei and photographs of the package"
    return f"pictures of {request.data.name}"


def _images(request: ExportRequest) -> list[Tensor]:
    """Return images (3, H, W) in 0..1, of as many sizes as there are."""
    if request.data is None:
        paths = [path for name in ("nuclei", "photographs") for path in shown_pictures(None, name)[0]]
    else:
        paths = [str(request.data)]
    transform = zoo.DetectionTransform(1, 1, (0.0,) * 3, (1.0,) * 3).build()
    images: list[Tensor] = []
    sizes: Counter[tuple[int, ...]] = Counter()
    for path in spread(find_images(paths), CALIBRATION):
        picture = read_image(path)
        if sizes[picture.size] == 0:
            images.append(transform(picture))
        sizes[picture.size] += 1
        if len(images) == SIZES:
            break
    if not images:
        raise DataError(f"{request.data}: has no pictures to compare at")
    return images


def _calibration_images(request: ExportRequest) -> Iterator[Tensor]:
    """Yield images (3, H, W) in 0..1 that quantisation is calibrated on, in their own sizes."""
    transform = zoo.DetectionTransform(1, 1, (0.0,) * 3, (1.0,) * 3).build()
    count = min(request.calibration, CALIBRATION)
    for path in spread(find_images([str(request.data)]), count) if count else ():
        yield transform(read_image(path))


def _pyramid(
    detector: nn.Module, transform: zoo.DetectionTransform, request: ExportRequest, options: DetectionExportOptions
) -> Deployment:
    """Return the graph of body and pyramid: standardised images (N, 3, H, W) -> p0, p1, ..., pool."""
    statistics = (transform.mean, transform.std)
    if options.normalize:
        statistics = ((0.0,) * 3, (1.0,) * 3)
    paths, _ = shown_pictures(request.data, "photographs")
    require_graph(request, normalize=options.normalize, softmax=False)
    files = spread(find_images(paths), 8)
    order = "RGB" if options.normalize else transform.channel_order
    first, *others = (
        read_inputs(files, 3, InputTransform(side, side, *statistics, channel_order=order).build())
        for side in PYRAMID_SIDES
    )
    backbone: nn.Module = detector.backbone  # type: ignore[assignment]
    graph = graph_of(
        backbone,
        batches(first, *others),
        f"{_shown(request)}, {sizes_of(PYRAMID_SIDES)}",
        folded=request.fold,
        standardise=standardisation(transform, options.normalize),
        transform=transform,
    )
    description = {"input": describe_images(transform, normalize=options.normalize, layout="NCHW"), "classes": []}
    # quantisation is calibrated at the sizes that the detector works at
    own = replace(transform, mean=statistics[0], std=statistics[1], channel_order=order)
    prepare = Standardize(own, detector.transform.size_divisible).eval()  # type: ignore[arg-type, union-attr]
    calibration = tuple((prepare([image])[0].tensors,) for image in _calibration_images(request))
    return Deployment("images", (graph,), description, calibration=calibration)
