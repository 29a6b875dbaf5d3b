"""Biases before products of a converted net, set from data without a change of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.calibration import HasDataBias
from zoo.errors import ZooError
from zoo.layers import BiasedConvNd, BiasedLinear, ChannelBias
from zoo.modules import evaluating
from zoo.nets.base import Backbone
from zoo.products import product_bias


def center_inputs_(
    model: nn.Module, batches: Iterable[Any], *, forward: Callable[[nn.Module, Any], Any] | None = None
) -> list[str]:
    """Move each bias before an unpadded product to minus the mean of its input, and correct the bias after the product.

    g W (x + b) + beta stays the same if beta grows by g W (b - b'). For a padded product this is true only away from
    the borders, so its bias stays. Converted nets start with b = 0; fresh ones with b = -mean (docs/method.md, M8).

    Args:
        model: net of scheme ``rescale`` with ``post_bias=True``.
        batches: inputs of the model, at least one.
        forward: function that runs the model on a batch; by default ``model(batch)``.

    Returns:
        The names of the layers whose bias was set.

    Raises:
        ZooError: no batch, or a mean that is not finite.
    """
    layers = {name: layer for name, layer in model.named_modules() if _can_move(layer)}
    heads = {
        f"{name}.head_bias".lstrip("."): (net.head_bias, net.fc)
        for name, net in model.named_modules()
        if isinstance(net, Backbone)
        and net.pooled
        and isinstance(net.head_bias, ChannelBias)
        and isinstance(net.fc, nn.Linear)
    }
    if not (batches := list(batches)):
        raise ZooError("center_inputs_: no batch; give at least one")
    # the sums over all inputs
    sums: dict[str, Tensor] = {}
    watched: dict[str, Any] = {**layers, **{name: head for name, (head, _) in heads.items()}}

    def watch(name: str, layer: HasDataBias) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            found = layer.calibration_sums(args[0])
            sums[name] = sums[name] + found if name in sums else found

        return hook

    handles = [layer.register_forward_pre_hook(watch(name, layer)) for name, layer in watched.items()]
    try:
        with evaluating(model), torch.no_grad():
            for batch in batches:
                (forward or (lambda net, inputs: net(inputs)))(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    # the biases
    for name, total in sums.items():
        if not torch.isfinite(total).all():
            raise ZooError(f"center_inputs_: the input of {name} has a mean that is not finite")
    with torch.no_grad():
        for name, total in sums.items():
            _move(watched[name], heads[name][1] if name in heads else watched[name], -total[:-1] / total[-1])
    return list(sums)


def _can_move(layer: nn.Module) -> bool:
    """Return whether a layer has a bias before an unpadded product and one after it."""
    if isinstance(layer, BiasedConvNd):
        return layer.bias is not None and not any(layer.padding)
    return isinstance(layer, BiasedLinear) and layer.bias is not None


def _move(layer: HasDataBias, product: Any, bias: Tensor) -> None:
    """Set the bias (I,) of a layer, and correct the bias (O,) of the product that reads it."""
    change = layer.data_bias.double() - bias  # b - b'
    moved = product_bias(product.weight.double(), change, getattr(product, "groups", 1))
    if (weight_scale := getattr(product, "weight_scale", None)) is not None:
        moved = moved * weight_scale.double()
    product.bias.copy_(product.bias.double() + moved)
    layer.data_bias.copy_(bias)
