"""Graphs of nets of images and clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.export import get_target
from zoo.export.graphs import Deployment, Graph, Port, Settings
from zoo.export.writing import Exported, export
from zoo.folding import fold
from zoo.modules import evaluating
from zoo.nets.vgg import VGG
from zoo.transforms import AnyTransform


class Standardise(nn.Module):
    """A net of images or clips in 0..1, which are standardised first: (N, C, [T,] H, W).

    Args:
        net: net of standardised inputs.
        mean: mean of each channel.
        std: standard deviation of each channel.
        reverse: whether the net takes BGR; the inputs are RGB.
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float], *, reverse: bool = False) -> None:
        super().__init__()
        self.net, self.reverse = net, reverse
        scale = 1 / torch.tensor(std, dtype=torch.float64)
        self.register_buffer("factor", scale.float())
        self.register_buffer("shift", (-torch.tensor(mean, dtype=torch.float64) * scale).float())

    def forward(self, x: Tensor) -> Any:
        shape = (-1, *[1] * (x.ndim - 2))
        if self.reverse:
            x = x.flip(1)
        return self.net(x * self.factor.view(shape) + self.shift.view(shape))


class Probabilities(nn.Module):
    """A classifier whose logits (N, classes) become probabilities."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).softmax(1)


def outputs_of(net: nn.Module, x: Tensor, single: str = "logits") -> tuple[tuple[str, Tensor], ...]:
    """Return the outputs of a net with names: ``single`` for a tensor, ``map0``, ... for a list, keys of a dict.

    Keys that are numbers, as those of torchvision's pyramids, become ``p0`` and so on.
    """
    with torch.no_grad():
        output = net(x)
    if isinstance(output, Tensor):
        return ((single, output),)
    if isinstance(output, dict):
        return tuple((f"p{key}" if key.isdigit() else key, value) for key, value in output.items())
    return tuple((f"map{i}", value) for i, value in enumerate(output))


class InOrder(nn.Module):
    """A net whose list or dict of outputs is a tuple in order."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        output = self.net(x)
        if isinstance(output, Tensor):
            return output
        return tuple(output.values()) if isinstance(output, dict) else tuple(output)


def graph_of(
    net: nn.Module,
    samples: Sequence[Tensor],
    shown: str,
    *,
    folded: bool = True,
    name: str = "model",
    standardise: tuple[Sequence[float], Sequence[float], bool] | None = None,
    softmax: bool = False,
    transform: AnyTransform | None = None,
) -> Graph:
    """Return the graph of a net of images (N, C, H, W) or clips (N, C, T, H, W), with feature maps or logits.

    Height and width may change, except where the net fixes them: VGG pools to 7 x 7 positions.

    Args:
        net: net of the zoo, feature extractor, or body and pyramid of a detector.
        samples: inputs at which it is compared. The first has a batch of 1; further ones have other batches and sizes.
        shown: description of the samples.
        folded: whether the graph computes the deployment form.
        name: name of the graph.
        standardise: mean, standard deviation and whether the channels are reversed, if the graph takes images in 0..1.
        softmax: whether the graph returns probabilities instead of logits.
        transform: transform of the net's inputs, for targets that write it into files of their own.
    """
    module: nn.Module = (fold(net) if folded else net).eval()
    outputs = outputs_of(module, samples[0], "probabilities" if softmax else "logits")
    module = InOrder(module)
    if softmax:
        module = Probabilities(module)
    if standardise is not None:
        module = Standardise(module, *standardise[:2], reverse=standardise[2])
    first = samples[0]
    sizes: tuple[int | str, ...] = ("height", "width")
    if isinstance(net, VGG):
        sizes = tuple(first.shape[-2:])
        samples = [x for x in samples if x.shape[-2:] == first.shape[-2:]]
    frames = (first.shape[2],) if first.ndim == 5 else ()
    ports = []
    for key, value in outputs:
        positions: tuple[int | str, ...] = ()
        if value.ndim > 2:  # a map, whose size follows from that of the input
            sides = value.shape[-2:]
            own = (f"{key}_{axis}" if isinstance(axis, str) else side for axis, side in zip(sizes, sides, strict=True))
            positions = (*value.shape[2:-2], *own)
        ports.append(Port(key, ("batch", value.shape[1], *positions)))
    source = Port("clips" if frames else "images", ("batch", first.shape[1], *frames, *sizes))
    return Graph(
        name, module.eval(), (source,), tuple(ports), tuple((x,) for x in samples), shown, net=net, transform=transform
    )


def export_net(
    net: nn.Module,
    samples: Sequence[Tensor],
    folder: str | Path,
    to: str = "onnx",
    *,
    folded: bool = True,
    settings: Settings | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export a net of images (N, C, H, W) or clips (N, C, T, H, W), or a feature extractor, from memory.

    ``rescalenet export`` exports weights, with more in the manifest.

    Args:
        net: net of the zoo, or a module that contains one.
        samples: inputs at which the files are compared; the first has a batch of 1.
        folder: folder to write.
        to: name of the target.
        folded: whether the deployment form is exported (``zoo.fold``).
        settings: settings of the export.
        overwrite: whether an earlier export in the folder is replaced.

    Raises:
        ZooError: an unknown target.
        ExportError: see ``zoo.export.writing.export``.
    """
    target = get_target(to)
    with evaluating(net):
        graph = graph_of(net, samples, _sizes(samples), folded=folded and target.folded)
        deployment = Deployment("clips" if samples[0].ndim == 5 else "images", (graph,), {})
        return export(deployment, target, folder, settings, overwrite=overwrite)


def _sizes(samples: Sequence[Tensor]) -> str:
    """Return the sizes of inputs, as in ``inputs of 1 x 3 x 32 x 32, 3 x 3 x 40 x 40``."""
    return "inputs of " + ", ".join(dict.fromkeys(" x ".join(map(str, x.shape)) for x in samples))
