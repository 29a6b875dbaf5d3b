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
from tasks.exporting import batches, read_inputs, shown_pictures
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


def photographs(side: int, count: int = 6) -> list[Tensor]:
    """The pictures of the package, standardised: (3, side, side) each."""
    paths, _ = shown_pictures(None, "photographs")
    return read_inputs(paths, 3, zoo.InputTransform.imagenet(side, side).build(), count)


def pans(side: int, frames: int = 5, count: int = 6) -> list[Tensor]:
    """Clips that move over the pictures of the package, standardised: (3, frames, side, side) each."""
    transform = zoo.VideoTransform(
        frames, 1, None, side, side, zoo.transforms.IMAGENET_MEAN, zoo.transforms.IMAGENET_STD
    )
    return [transform.build()(clip) for clip in islice(moving_windows(transform), count)]


def distinct(net: Any, inputs: Sequence[Tensor]) -> Any:
    """A net in eval mode that is calibrated on real inputs and whose biases and multipliers hide nothing."""
    zoo.calibrate(net.train(), [torch.stack(list(inputs))])
    for parameter in net.parameters():
        if parameter.ndim <= 1:
            nn.init.normal_(parameter, 0.5, 0.2)
    return net.eval()


def _vision(kind: str, features: bool, target: Target) -> Deployment:
    make = pans if kind in CLIPS else photographs
    first, other = make(64), make(97)
    net = distinct(narrow(kind), first)
    if features:
        net = zoo.FeatureExtractor(net, None)
    graph = graph_of(net, batches(first, other), "pictures of the package", folded=target.folded)
    return Deployment("clips" if kind in CLIPS else "images", (graph,), {})


def _converted(target: Target) -> Deployment:
    """torchvision's ResNet-18 without its norms, in its full width, which targets of torchvision's layout require."""
    original = train_statistics_(zoo.create_model("rescalenet18", scheme="bn", num_classes=5, shortcut="conv"))
    inputs = batches(photographs(64), photographs(97))
    graph = graph_of(from_batchnorm(original).eval(), inputs, "pictures of the package", folded=target.folded)
    return Deployment("images", (graph,), {})


def _detector(whole: bool, target: Target) -> Deployment:
    model = small(detections=30, **({"heads": "4conv1fc"} if whole else {}))
    calibrated(model)
    sharpened(model).eval()
    if not whole:
        inputs = batches(photographs(64), photographs(96))
        return Deployment("images", (graph_of(model.backbone, inputs, "pictures", folded=target.folded),), {})
    images = [x.mul(0.2).add(0.5).clamp(0, 1) for x in (photographs(96)[0], photographs(128)[1][:, :, :100])]
    return Deployment("image_lists", (whole_graph(model, images, "pictures", folded=target.folded),), {})


def _text(target: Target) -> Deployment:
    sizes = {"dim": 16, "hidden": 32, "heads": 2, "encoder_layers": 2, "decoder_layers": 2}
    net = zoo.create_model(
        "rescale_transformer_tiny", **sizes, source_vocabulary=50, target_vocabulary=50, max_length=64
    )
    for parameter in net.parameters():
        if parameter.ndim <= 1:
            nn.init.normal_(parameter, 0.5, 0.2)
    rows = [padded(rows) for rows in ([[5, 6, 7, 2]], [[9, 8, 2], [20, 30, 40, 45, 2]], [[11] * 9 + [2]])]
    if target.form == "net":
        pairs = [(x, torch.cat([x[:, -1:], x[:, :-1]], 1)) for x in rows]
        return Deployment("text", (whole_text_graph(net.eval(), pairs, "token ids", _languages()),), {})
    return Deployment("text", graphs_of(net.eval(), rows, "token ids", folded=target.folded), {})


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
