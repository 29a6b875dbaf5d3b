"""Nets of the zoo as convolutions without biases that are each followed by a norm: what other frameworks' classes have.

A net without normalization is folded, and its norms are identities that carry the biases. Only nets without a bias
before a padded product have this form, unless that bias is on the zeros around the input too (``biased_padding``, as in
converted nets): no bias after the product equals it at the borders.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ExportError
from zoo.export.graphs import Graph
from zoo.export.images import Probabilities, Standardise
from zoo.folding import ChannelMax, fold
from zoo.nets.base import Backbone
from zoo.nets.resnet import ResNet
from zoo.schemes.vision import BatchNorm, FrozenBatchNorm
from zoo.specs import get_spec

EPS = 1e-5  # of the norms of torchvision and detectron2


@dataclass(frozen=True)
class BatchNormForm:
    """A net's convolutions and norms.

    Attributes:
        body: the net, folded unless it keeps its norms.
        normed: whether the norms are the net's own.
    """

    body: Any
    normed: bool

    @classmethod
    def of(cls, net: Backbone, framework: str) -> BatchNormForm:
        """Return the form of a net, as trained or folded.

        Args:
            net: net of the zoo.
            framework: name of the framework, for messages.

        Raises:
            ExportError: a net with GroupNorm, or with a bias before a padded product.
        """
        normed = keeps_norms(net)
        body = net if normed else fold(net)
        if not normed:
            _refuse_shifts(body, net.config.name, framework)
        return cls(body, normed)

    def modules(self) -> Iterator[str]:
        """Yield the names of the convolutions, norms and the last layer of a residual net."""
        for name, _ in self.body.named_modules():
            if name.rpartition(".")[2].startswith(("conv", "norm")) or (name == "fc" and self.body.num_classes):
                yield name

    def tensor(self, module: str, leaf: str) -> Tensor:
        """Return a tensor of a module.

        Args:
            module: name of our module.
            leaf: name of the tensor: those of a convolution, a BatchNorm or a linear layer.
        """
        ours: Any = self.body.get_submodule(module)
        if leaf == "num_batches_tracked":
            return getattr(ours, leaf, torch.zeros((), dtype=torch.long))
        # a norm that was folded into its convolution
        if is_norm(module) and isinstance(ours, nn.Identity):
            conv: Any = self.body.get_submodule(module.replace("norm", "conv"))
            ones = torch.ones_like(conv.weight[:, 0, 0, 0])
            bias = torch.zeros_like(ones) if conv.bias is None else conv.bias
            return {"weight": ones, "bias": bias, "running_mean": 0 * ones, "running_var": (1 - EPS) * ones}[leaf]
        if leaf == "bias":
            bias = ours.weight.new_zeros(ours.weight.shape[0]) if ours.bias is None else ours.bias
            # the bias before a ResNet's classifier acts on the pooled features
            before = getattr(getattr(self.body, "head_bias", None), "bias", None)
            if module == "fc" and before is not None:
                bias = (bias.double() + ours.weight.double() @ before.double()).to(bias.dtype)
            return bias
        return getattr(ours, leaf)


def keeps_norms(net: Backbone) -> bool:
    """Return whether a net has BatchNorm with the eps of torchvision and detectron2, and is not folded."""
    if net.folded or not isinstance(net.scheme, BatchNorm | FrozenBatchNorm):
        return False
    return all(module.eps == EPS for name, module in net.named_modules() if is_norm(name) and hasattr(module, "eps"))


def is_norm(name: str) -> bool:
    """Return whether a module of this name is a norm."""
    return name.rpartition(".")[2].startswith("norm")


def _refuse_shifts(body: nn.Module, name: str, framework: str) -> None:
    """Refuse a folded net that has norms left, or biases before padded products."""
    for place, module in body.named_modules():
        if isinstance(module, nn.GroupNorm):
            raise ExportError(f"{name}: {place} is a GroupNorm, which depends on the input; {framework} has BatchNorm")
    floors = {place: module.floor for place, module in body.named_modules() if isinstance(module, ChannelMax)}
    shifted = {place: float(floor.abs().max()) for place, floor in floors.items() if floor.any()}
    if shifted:
        place, largest = max(shifted.items(), key=lambda item: item[1])
        raise ExportError(
            f"{name}: {len(shifted)} of its padded convolutions have a bias before the padding (up to {largest:.2g}, "
            f"after {place}), which no bias of {framework}'s equals at the borders; export to onnx keeps it"
        )


def layout_of(net: Backbone) -> Any:
    """Return the layout of a net, with its own options."""
    spec = get_spec(net.config.name)
    options = {key: value for key, value in net.config.options.items() if key in spec.layout.OPTIONS}
    return dataclasses.replace(spec.layout, **options)


def refused_layout(net: ResNet, layout: Any) -> Iterator[str]:
    """Yield what the ResNets of torchvision and detectron2 cannot have."""
    if (layout.shortcut or net.scheme.default_shortcut) != "conv":
        yield "shortcut='avgpool', its shortcuts are strided 1x1 convolutions"
    if layout.stem != "conv7":
        yield f"stem={layout.stem!r}, its stem is a 7x7 convolution"


def trained_net(graph: Graph, framework: str) -> nn.Module:
    """Return the net of a graph, of which the weights are converted.

    Args:
        graph: graph to export.
        framework: name of the framework, for messages.

    Raises:
        ExportError: a graph without a net, or one that computes more than its net.
    """
    if graph.net is None:
        raise ExportError(f"export to {framework}: {graph.name} is no net whose weights can be converted")
    for kind, what in ((Standardise, "standardisation"), (Probabilities, "softmax")):
        if any(isinstance(module, kind) for module in graph.module.modules()):
            raise ExportError(f"export to {framework}: its classes have no {what}; export the net without")
    return graph.net
