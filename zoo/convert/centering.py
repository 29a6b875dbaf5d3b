"""Biases before products of a converted net, set from data without a change of its outputs.

A conversion leaves these biases at 0, so that the products see the outputs of ReLUs, whose means are far from 0. In a
fresh RescaleNet these biases are minus the means (docs/method.md, M8). With such biases a converted net fine-tunes
better (docs/convert.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.arguments import instance_of
from zoo.calibration import HasDataBias, list_of_batches, with_count
from zoo.errors import ZooError
from zoo.layers import BiasedConvNd, BiasedLinear, ChannelBias
from zoo.modules import evaluating
from zoo.nets.base import Backbone
from zoo.precision import precise
from zoo.products import product_bias


def untouched_biases(model: nn.Module) -> list[str]:
    """Return the names of the layers whose trainable bias before the product is still 0 and can be moved."""
    biases = {name: layer.data_bias for name, (layer, _) in _movable(model).items()}
    return [name for name, bias in biases.items() if bias.requires_grad and not bias.any()]


def center_inputs_(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    names: Iterable[str] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> list[str]:
    """Move each bias before a product to minus the mean of its input, and correct the bias after the product.

    g W (x + b) + beta stays the same if beta grows by g W (b - b'). For a padded product without ``biased_padding``
    this is true only away from the borders, so its bias stays. Converted nets have ``biased_padding`` and start with
    b = 0; fresh ones start with b = -mean (docs/method.md, M8).

    Args:
        model: net of scheme ``rescale`` with ``post_bias=True``.
        batches: inputs of the model, at least one.
        names: names of the layers whose bias is moved; None for all whose move leaves the outputs as they are.
        forward: function that runs the model on a batch; by default ``model(batch)``.
        reduce: sum of a float64 tensor over ranks (``accelerator.reduce``), called for each layer.

    Returns:
        The names of the layers whose bias was set; a layer that no input reached keeps its own.

    Raises:
        ZooError: no batch, the name of a layer without such a bias, or a mean that is not finite.
    """
    movable = _movable(instance_of(model, "center_inputs_"))
    chosen = list(movable) if names is None else list(names)
    if other := sorted(set(chosen) - set(movable)):
        raise ZooError(f"center_inputs_: {other[0]} has no bias that can be moved without a change of the outputs")
    if not (batches := list_of_batches(batches, "center_inputs_", tensors=forward is None)):
        raise ZooError("center_inputs_: no batch; give at least one")
    # the sums over all inputs, and their number last; the same order on every rank
    sums = {name: with_count(torch.zeros_like(movable[name][0].data_bias), 0) for name in chosen}

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: Any, args: tuple[Any, ...]) -> None:
            sums[name] += layer.calibration_sums(args[0])

        return hook

    handles = [movable[name][0].register_forward_pre_hook(watch(name)) for name in chosen]
    try:
        with evaluating(model), torch.no_grad():
            for batch in batches:
                (forward or (lambda net, inputs: net(inputs)))(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if reduce is not None:
        sums = {name: reduce(total) for name, total in sums.items()}
    # the biases; a layer that no input reached keeps its own
    means = {name: total[:-1] / total[-1] for name, total in sums.items() if total[-1] > 0}
    for name, mean in means.items():
        if not torch.isfinite(mean).all():
            raise ZooError(f"center_inputs_: the input of {name} has a mean that is not finite")
    with torch.no_grad():
        for name, mean in means.items():
            _move(*movable[name], -mean)
    torch.clear_autocast_cache()  # autocast keeps copies of parameters in its dtype, also of the old bias
    return list(means)


def _movable(model: nn.Module) -> dict[str, tuple[HasDataBias, Any]]:
    """Return the layers whose bias can be moved, by name, each with the product whose bias corrects it."""
    found: dict[str, tuple[HasDataBias, Any]] = {}
    for name, part in model.named_modules():
        if isinstance(part, BiasedConvNd | BiasedLinear):
            found[name] = part, part
        elif isinstance(part, Backbone) and part.pooled and isinstance(part.head_bias, ChannelBias):
            found[f"{name}.head_bias".lstrip(".")] = part.head_bias, part.fc  # no Linear in nets of features
    return {
        name: (layer, product)
        for name, (layer, product) in found.items()
        if getattr(product, "bias", None) is not None
        and not (isinstance(product, BiasedConvNd) and product.geometry.bias_varies)
    }


def _move(layer: HasDataBias, product: Any, bias: Tensor) -> None:
    """Set the bias (I,) of a layer, and correct the bias (O,) of the product that reads it, in float64."""
    before = precise(layer.data_bias).clone()
    layer.data_bias.copy_(bias)
    change = before - precise(layer.data_bias)  # b - b', as it was rounded
    moved = product_bias(precise(product.weight), change, getattr(product, "groups", 1))
    if (weight_scale := getattr(product, "weight_scale", None)) is not None:
        moved = moved * precise(weight_scale)
    product.bias.copy_(precise(product.bias) + moved)
