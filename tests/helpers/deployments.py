"""Deployments of small nets and detectors, as the commands make them."""

import torch
from torch import nn

from zoo.export.graphs import Deployment, Graph, Port
from zoo.export.images import graph_of


def images(net, *, size=64, transform=None, **options):
    """A net of images as trained: noise of several batches and sizes."""
    chans = (net.body if hasattr(net, "body") else net).config.in_chans
    x = torch.randn(3, chans, size, size, generator=torch.Generator().manual_seed(0))
    samples = [x[:1], x, torch.nn.functional.pad(x[1:], (0, 1, 0, 33))]
    return Deployment("images", (graph_of(net, samples, "noise", folded=False, transform=transform, **options),), {})


class OfImage(nn.Module):
    """A detector of one image (3, H, W), with its objects in order: boxes, labels, scores, masks."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, image):
        return tuple(self.detector([image])[0].values())


def whole_detector(detector, pictures):
    """A detector and images (3, H, W) at which it is compared."""
    axes = {"boxes": ("objects", 4), "masks": ("objects", 1, "height", "width")}
    with torch.no_grad():
        names = list(detector.eval()([pictures[0]])[0])
    outputs = tuple(Port(name, axes.get(name, ("objects",))) for name in names)
    graph = Graph(
        "model",
        OfImage(detector).eval(),
        (Port("image", (3, "height", "width")),),
        outputs,
        tuple((x,) for x in pictures),
        "pictures",
        "objects",
        detector,
    )
    return Deployment("image_lists", (graph,), {})
