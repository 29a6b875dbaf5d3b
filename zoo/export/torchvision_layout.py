"""Nets of the zoo as state dicts of torchvision's ResNet and VGG classes, loaded there and compared.

Only nets that torchvision's classes can compute have one: shortcuts and stem as torchvision's, full width, and no bias
before a padded product unless it is on the zeros around the input too (``biased_padding``, as in converted nets). A net
without normalization is folded, and the BatchNorm layers of the state dict are identities that carry the biases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet
from torchvision.models.vgg import VGG as TorchvisionVGG
from torchvision.models.vgg import make_layers

from zoo.convert.layouts.resnet import foreign_key
from zoo.convert.layouts.vgg import module_names
from zoo.errors import ExportError
from zoo.export import Verified
from zoo.files import atomic_write
from zoo.folding import ChannelMax, fold
from zoo.modules import evaluating
from zoo.nets.base import Backbone
from zoo.nets.resnet import ResNet
from zoo.nets.vgg import VGG
from zoo.schemes.vision import BatchNorm, FrozenBatchNorm
from zoo.specs import get_spec

EPS = 1e-5  # of torchvision's norms
TOLERANCE = 1e-4  # largest |difference| over largest |output| that passes (float32)


def export_state(model: nn.Module, path: Path, example: tuple[Any, ...], weights: object) -> Verified:
    """Write the state dict, load it into torchvision's class and compare the outputs there.

    Args:
        model: net of the zoo for images, folded or not.
        path: ``.pth`` file; it is written only if the outputs agree.
        example: a batch of images (N, 3, H, W); noise of its size is compared, as it may be zeros.
        weights: weights that the net was made from.

    Raises:
        ExportError: a net that torchvision's classes cannot compute, with the reason, or outputs that differ.
    """
    (batch,) = example
    if not isinstance(model, Backbone):
        raise ExportError(f"export to torchvision: {type(model).__name__} is no net of the zoo for images")
    # the outputs to compare with
    noise = torch.randn(batch.shape, generator=torch.Generator().manual_seed(0))
    batch = noise.to(next(model.parameters()))
    with evaluating(model), torch.no_grad():
        expected = model(batch)
    state = torchvision_state(model)
    error = 0.0

    def write(temporary: Path) -> None:
        nonlocal error
        torch.save(state, temporary)
        # the file, as torchvision's class reads it
        with torch.device("meta"):
            theirs = counterpart(model)
        theirs.load_state_dict(torch.load(temporary, weights_only=True), assign=True)
        with torch.no_grad():
            error = float((theirs.eval()(batch) - expected).abs().max() / expected.abs().max())
        if not error <= TOLERANCE:
            raise ExportError(f"{path}: the outputs in torchvision differ by {error:.1e}; at most {TOLERANCE:g} pass")

    atomic_write(path, write)
    return Verified(path, error, f"images of {tuple(batch.shape)}", f"torchvision {torchvision.__version__}")


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
    normed = _keeps_norms(net)
    body = net if normed else fold(net)
    if not normed:
        _refuse_shifts(body, net.config.name)
    state = {}
    names = {theirs: ours for ours, theirs in _modules(net)}
    for key in keys:
        module, _, leaf = key.rpartition(".")
        state[key] = _tensor(body, names[module], leaf).detach().clone()
    return state


def counterpart(net: Backbone) -> nn.Module:
    """Return torchvision's net of the same architecture, fresh.

    Raises:
        ExportError: torchvision's classes have no such net.
    """
    config = net.config
    spec = get_spec(config.name)
    options = {key: value for key, value in config.options.items() if key in spec.layout.OPTIONS}
    layout = dataclasses.replace(spec.layout, **options)
    if not isinstance(net, ResNet | VGG):
        raise ExportError(f"{config.name}: torchvision's layout is known of ResNets and VGGs for images only")
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
    return TorchvisionVGG(make_layers(plan, batch_norm=_keeps_norms(net)), config.num_classes, init_weights=False)


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
        if (layout.shortcut or net.scheme.default_shortcut) != "conv":
            yield "shortcut='avgpool', its shortcuts are strided 1x1 convolutions"
        if layout.stem != "conv7":
            yield f"stem={layout.stem!r}, its stem is a 7x7 convolution"
        if layout.stride_in_1x1:
            yield "stride_in_1x1=True, its strides are in the 3x3"
        if layout.base_channels != 64 or len(layout.depths) != 4:
            yield f"{len(layout.depths)} stages from {layout.base_channels} channels, it has 4 from 64"


def _keeps_norms(net: Backbone) -> bool:
    """Return whether a net has BatchNorm with torchvision's eps, and is not folded."""
    if net.folded or not isinstance(net.scheme, BatchNorm | FrozenBatchNorm):
        return False
    return all(module.eps == EPS for name, module in net.named_modules() if _is_norm(name) and hasattr(module, "eps"))


def _is_norm(name: str) -> bool:
    return name.rpartition(".")[2].startswith("norm")


def _refuse_shifts(body: nn.Module, name: str) -> None:
    """Refuse a folded net that has norms left, or biases before padded products."""
    for place, module in body.named_modules():
        if isinstance(module, nn.GroupNorm):
            raise ExportError(f"{name}: {place} is a GroupNorm, which depends on the input; torchvision has BatchNorm")
    floors = {place: module.floor for place, module in body.named_modules() if isinstance(module, ChannelMax)}
    shifted = {place: float(floor.abs().max()) for place, floor in floors.items() if floor.any()}
    if shifted:
        place, largest = max(shifted.items(), key=lambda item: item[1])
        raise ExportError(
            f"{name}: {len(shifted)} of its padded convolutions have a bias before the padding (up to {largest:.2g}, "
            f"after {place}), which no bias of torchvision's equals at the borders; export to onnx keeps it"
        )


def _modules(net: Backbone) -> Iterator[tuple[str, str]]:
    """Yield the name of each convolution, norm and linear layer of a net with the one that torchvision gives it."""
    if isinstance(net, VGG):
        depths = tuple(stage.depth for stage in net.stages())
        yield from module_names(depths, _keeps_norms(net)).items()
        return
    for name, _ in net.named_modules():
        last = name.rpartition(".")[2]
        if last.startswith(("conv", "norm")) or name == "fc":
            yield name, foreign_key(f"{name}.weight", "conv7", "conv").removesuffix(".weight")


def _tensor(body: nn.Module, module: str, leaf: str) -> Tensor:
    """Return a tensor of torchvision's net.

    Args:
        body: our net, folded unless it keeps its norms.
        module: name of our module.
        leaf: name of the tensor in torchvision's module.
    """
    ours: Any = body.get_submodule(module)
    if leaf == "num_batches_tracked":
        return getattr(ours, leaf, torch.zeros((), dtype=torch.long))
    # a norm that was folded into its convolution
    if _is_norm(module) and isinstance(ours, nn.Identity):
        conv: Any = body.get_submodule(module.replace("norm", "conv"))
        ones = torch.ones_like(conv.weight[:, 0, 0, 0])
        bias = torch.zeros_like(ones) if conv.bias is None else conv.bias
        return {"weight": ones, "bias": bias, "running_mean": 0 * ones, "running_var": (1 - EPS) * ones}[leaf]
    if leaf == "bias":
        bias = ours.weight.new_zeros(ours.weight.shape[0]) if ours.bias is None else ours.bias
        # the bias before a ResNet's classifier acts on the pooled features
        before = getattr(getattr(body, "head_bias", None), "bias", None)
        if module == "fc" and before is not None:
            bias = (bias.double() + ours.weight.double() @ before.double()).to(bias.dtype)
        return bias
    return getattr(ours, leaf)
