"""What an image classifier is exported as: one graph of its logits, its probabilities or its feature maps."""

from __future__ import annotations

import zoo
from tasks.classification.commands import ClassificationExportOptions
from tasks.errors import UserError
from tasks.exporting import (
    ExportRequest,
    batches,
    classifier_deployment,
    other_sizes,
    read_inputs,
    require_graph,
    resized,
    shown_pictures,
    sizes_of,
    spread,
    unstandardised,
)
from tasks.images import find_images
from zoo.export.graphs import Deployment


def deployment(entry: zoo.Weights, request: ExportRequest, options: ClassificationExportOptions) -> Deployment:
    """Return the graph of a classifier, compared at pictures of two sizes.

    Raises:
        UserError: probabilities of feature maps, or no picture that can be read.
    """
    transform = entry.transform
    assert isinstance(transform, zoo.InputTransform)
    if options.softmax and options.features:
        raise UserError("--softmax and --features: feature maps have no classes; give one of the two")
    require_graph(request, normalize=options.normalize, softmax=options.softmax)
    transform = resized(transform, options.size or transform.size)
    small = unstandardised(transform) if options.normalize else transform
    paths, shown = shown_pictures(request.data, "photographs")
    channels = entry.config.in_chans
    files = spread(find_images(paths, channels), max(8, request.calibration))
    inputs = read_inputs(files, channels, small.build())
    sizes = other_sizes(small.size)
    samples = batches(inputs, *(read_inputs(files[:2], channels, resized(small, size).build()) for size in sizes))
    shown = f"{shown}, {sizes_of((small.size, *sizes))}"
    return classifier_deployment(entry, request, options, transform, samples, inputs, shown)
