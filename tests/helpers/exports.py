"""Exports of nets that tests make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from tasks.detection.export import whole_graph
from tasks.exporting import batches, describe_images, read_inputs, shown_pictures, spread
from tasks.images import find_images
from tasks.translation.vocabulary import train_vocabulary
from tasks.video.export import moving_windows
from tests.helpers.batchnorm import train_statistics_
from tests.helpers.detection import calibrated, sharpened, small
from tests.helpers.nets import CLIPS, narrow
from zoo.convert import from_batchnorm
from zoo.export import TARGETS, Target
from zoo.export.graphs import Deployment
from zoo.export.images import graph_of
from zoo.export.text import graphs_of
from zoo.export.text import whole_graph as whole_text_graph
from zoo.export.writing import Exported, export
from zoo.text import padded


def export_detector(
    detector: Any, images: Sequence[Tensor], folder: Path, to: str = "onnx", *, folded: bool = False
) -> Exported:
    """Export a whole detector, compared at images (3, H, W) in 0..1."""
    graph = whole_graph(detector, list(images), "images", folded=folded)
    return export(Deployment("image_lists", (graph,), {}), TARGETS[to], folder)


CLASSES = ["ant", "bee", "cow", "dog", "elk"]


def of_images(side: int) -> zoo.InputTransform:
    return zoo.InputTransform.imagenet(side, side)


def of_clips(side: int, frames: int = 5) -> zoo.VideoTransform:
    statistics = zoo.transforms.IMAGENET_MEAN, zoo.transforms.IMAGENET_STD
    return zoo.VideoTransform(frames, 1, None, side, side, *statistics)


def photographs(side: int, count: int = 6) -> list[Tensor]:
    """The pictures of the package, standardised: (3, side, side) each."""
    paths, _ = shown_pictures(None, "photographs")
    return read_inputs(spread(find_images(paths), count), 3, of_images(side).build())


def pans(side: int, count: int = 6) -> list[Tensor]:
    """Clips that move over the pictures of the package, standardised: (3, 5, side, side) each."""
    transform = of_clips(side)
    return [transform.build()(clip) for clip in islice(moving_windows(transform), count)]


def distinct(net: Any, inputs: Sequence[Tensor]) -> Any:
    """A net in eval mode that is calibrated on real inputs and whose biases and multipliers hide nothing."""
    zoo.calibrate(net.train(), [torch.stack(list(inputs))])
    for parameter in net.parameters():
        if parameter.ndim <= 1:
            nn.init.normal_(parameter, 0.5, 0.2)
    return net.eval()


def _vision(kind: str, features: bool, target: Target) -> Deployment:
    clips = kind in CLIPS
    make, layout = (pans, "NCTHW") if clips else (photographs, "NCHW")
    first = make(64)
    net = distinct(narrow(kind), first)
    if features:
        net = zoo.FeatureExtractor(net, None)
    transform = of_clips(64) if clips else of_images(64)
    return _images(net, batches(first, make(97), make(66)), transform, layout, target, [] if features else CLASSES)


def _images(
    net: nn.Module, samples: list[Tensor], transform: Any, layout: str, target: Target, classes: list[str]
) -> Deployment:
    graph = graph_of(net, samples, "pictures of the package", folded=target.folded, transform=transform)
    description = {"input": describe_images(transform, normalize=False, layout=layout), "classes": classes}
    return Deployment("clips" if samples[0].ndim == 5 else "images", (graph,), description)


def _converted(target: Target) -> Deployment:
    """torchvision's ResNet-18 without its norms, in its full width, which targets of torchvision's layout require."""
    original = train_statistics_(zoo.create_model("rescalenet18", scheme="bn", num_classes=5, shortcut="conv"))
    samples = batches(photographs(64), photographs(97), photographs(66))
    return _images(from_batchnorm(original).eval(), samples, of_images(64), "NCHW", target, CLASSES)


def _detector(whole: bool, target: Target) -> Deployment:
    model = small(detections=30, **({"heads": "4conv1fc"} if whole else {}))
    calibrated(model)
    sharpened(model).eval()
    if not whole:
        samples = batches(photographs(64), photographs(96), photographs(80))
        return _images(model.backbone, samples, of_images(64), "NCHW", target, [])
    images = [x.mul(0.2).add(0.5).clamp(0, 1) for x in (photographs(96)[0], photographs(128)[1][:, :, :100])]
    graph = whole_graph(model, images, "pictures", folded=target.folded)
    description = {"input": describe_images(model.input, normalize=True, layout="CHW"), "classes": CLASSES[:3]}
    return Deployment("image_lists", (graph,), description)


def _text(target: Target) -> Deployment:
    sizes = {"dim": 16, "hidden": 32, "heads": 2, "encoder_layers": 2, "decoder_layers": 2, "max_length": 64}
    transform = _languages()
    vocabulary = transform.build().source
    count = len(vocabulary)
    net = zoo.create_model("rescale_transformer_tiny", **sizes, source_vocabulary=count, target_vocabulary=count)
    for parameter in net.parameters():
        if parameter.ndim <= 1:
            nn.init.normal_(parameter, 0.5, 0.2)
    rows = [padded(rows) for rows in ([[5, 6, 7, 2]], [[9, 8, 2], [20, 21, 22, 23, 2]], [[11] * 9 + [2]])]
    if target.form == "net":
        pairs = [(x, torch.cat([x[:, -1:], x[:, :-1]], 1)) for x in rows]
        return Deployment("text", (whole_text_graph(net.eval(), pairs, "token ids", transform),), {})
    graphs = graphs_of(net.eval(), rows, "token ids", folded=target.folded)
    names = {"source": "source.model", "target": "target.model"}
    return Deployment("text", graphs, {"vocabularies": names}, files=dict.fromkeys(names.values(), vocabulary.model))


def _languages() -> zoo.TextTransform:
    vocabulary = train_vocabulary(["one two three four five six seven eight nine ten"] * 50, 50, "bpe")
    return zoo.TextTransform.from_vocabularies(("en", "de"), vocabulary, vocabulary)


# What the table of support has a row for, by the name of the row.
FAMILIES: dict[str, Callable[[Target], Deployment]] = {
    "ResNet, basic blocks": lambda target: _vision("basic", False, target),
    "ResNet, bottlenecks": lambda target: _vision("bottleneck", False, target),
    "ResNeXt": lambda target: _vision("grouped", False, target),
    "ResNet for CIFAR": lambda target: _vision("cifar", False, target),
    "VGG": lambda target: _vision("vgg", False, target),
    "ResNet, feature maps": lambda target: _vision("bottleneck", True, target),
    "Faster and Mask R-CNN, body and pyramid": lambda target: _detector(False, target),
    "Faster and Mask R-CNN, whole": lambda target: _detector(True, target),
    "ResNet, converted from BatchNorm": _converted,
    "R3D and MC3": lambda target: _vision("r3d", False, target),
    "R(2+1)D": lambda target: _vision("r2plus1d", False, target),
    "I3D and SlowOnly": lambda target: _vision("i3d", False, target),
    "R3D, feature maps": lambda target: _vision("r3d", True, target),
    "Transformer": _text,
}
