"""Export to torchvision: nets of the zoo as state dicts of its ResNet and VGG classes, compared there.

Only nets that torchvision's classes can compute have one (``zoo.export.batchnorm_form``): shortcuts and stem as
torchvision's, and full width. A net without normalization is folded, and the BatchNorm layers of the state dict are
identities that carry the biases.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet
from torchvision.models.vgg import VGG as TorchvisionVGG
from torchvision.models.vgg import make_layers

from zoo.convert.layouts.resnet import foreign_key
from zoo.convert.layouts.vgg import module_names
from zoo.errors import ExportError
from zoo.export.batchnorm_form import BatchNormForm, keeps_norms, layout_of, refused_layout, trained_net
from zoo.export.graphs import Arrays, Graph, Runner, Settings
from zoo.nets.base import Backbone
from zoo.nets.resnet import ResNet
from zoo.nets.vgg import VGG

NAME = "torchvision"


def path_of(graph: Graph, folder: Path) -> Path:
    """Return the file of a graph."""
    return folder / f"{graph.name}.pth"


def write(graph: Graph, folder: Path, settings: Settings) -> None:
    """Write the state dict of torchvision's class.

    Raises:
        ExportError: a net that torchvision's classes cannot compute, with the reason.
    """
    torch.save(torchvision_state(_backbone(graph)), path_of(graph, folder))


def load(graph: Graph, folder: Path) -> Runner:
    """Return a function that runs torchvision's class with the file on the CPU."""
    with torch.device("meta"):
        theirs = counterpart(_backbone(graph))
    theirs.load_state_dict(torch.load(path_of(graph, folder), weights_only=True), assign=True)
    theirs.eval()

    def run(inputs: Arrays) -> list[Any]:
        with torch.no_grad():
            return [theirs(torch.from_numpy(inputs[0])).numpy()]

    return run


def _backbone(graph: Graph) -> Backbone:
    """Return the net of a graph.

    Raises:
        ExportError: another module than a net for images.
    """
    net = trained_net(graph, NAME)
    if not isinstance(net, Backbone):
        raise ExportError(f"export to {NAME}: {type(net).__name__} is no net of the zoo for images")
    return net


def torchvision_state(net: Backbone) -> dict[str, Tensor]:
    """Return the state dict of torchvision's net with the outputs of a net of the zoo.

    A net of scheme ``bn`` keeps its norms. Any other is folded; norms of the result have mean 0, variance 1 - eps,
    scale 1, and the convolution's bias as theirs.

    Args:
        net: ResNet or VGG of the zoo, as trained or folded.

    Raises:
        ExportError: a net that torchvision's classes cannot compute, with the reason.

    >>> import zoo
    >>> net = zoo.create_model("rescalenet18", scheme="bn", num_classes=2)
    >>> list(torchvision_state(net))[:2]
    ['conv1.weight', 'bn1.weight']
    """
    with torch.device("meta"):
        keys = counterpart(net).state_dict()
    form = BatchNormForm.of(net, NAME)
    names = {theirs: ours for ours, theirs in _modules(net, form)}
    state = {}
    for key in keys:
        module, _, leaf = key.rpartition(".")
        state[key] = form.tensor(names[module], leaf).detach().clone()
    return state


def counterpart(net: Backbone) -> nn.Module:
    """Return torchvision's net of the same architecture, fresh.

    Raises:
        ExportError: torchvision's classes have no such net.
    """
    config = net.config
    if not isinstance(net, ResNet | VGG):
        raise ExportError(f"{config.name}: torchvision's layout is known of ResNets and VGGs for images only")
    layout = layout_of(net)
    if reason := next(_reasons(net, layout), None):
        raise ExportError(f"{config.name} has no counterpart in torchvision: {reason}")
    if isinstance(net, ResNet):
        block = BasicBlock if layout.block == "basic" else Bottleneck
        return TorchvisionResNet(
            block,
            list(layout.depths),
            num_classes=config.num_classes,
            groups=layout.groups,
            width_per_group=layout.width_per_group,
        )
    plan: list[str | int] = []
    for number, depth in enumerate(layout.depths):
        plan += [*[min(64 * 2**number, 512)] * depth, "M"]
    return TorchvisionVGG(make_layers(plan, batch_norm=keeps_norms(net)), config.num_classes, init_weights=False)


def _reasons(net: ResNet | VGG, layout: Any) -> Iterator[str]:
    """Yield what torchvision's classes cannot have."""
    if layout.width != 1:
        yield f"width={layout.width}, its channel counts are fixed"
    if net.config.in_chans != 3:
        yield f"{net.config.in_chans} input channels, it has 3"
    if len(net.stages()) < len(layout.depths) or (isinstance(net, VGG) and net.hidden_features is None):
        yield "the net was cut off after a stage"
    if not net.num_classes:
        yield "the net has no classifier; create it with classes"
    elif net.global_pool != "avg":
        yield f"global_pool={net.global_pool!r}, it takes the mean"
    if isinstance(net, ResNet):
        yield from refused_layout(net, layout)
        if layout.stride_in_1x1:
            yield "stride_in_1x1=True, its strides are in the 3x3"
        if layout.base_channels != 64 or len(layout.depths) != 4:
            yield f"{len(layout.depths)} stages from {layout.base_channels} channels, it has 4 from 64"


def _modules(net: Backbone, form: BatchNormForm) -> Iterator[tuple[str, str]]:
    """Yield the name of each convolution, norm and linear layer of a net with the one that torchvision gives it."""
    if isinstance(net, VGG):
        depths = tuple(stage.depth for stage in net.stages())
        yield from module_names(depths, form.normed).items()
        return
    for name in form.modules():
        yield name, foreign_key(f"{name}.weight", "conv7", "conv").removesuffix(".weight")
