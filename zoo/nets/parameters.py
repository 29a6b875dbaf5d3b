"""Parameters by their place in a net, and their groups for an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from zoo.arguments import instance_of, real_number
from zoo.baseline_layers import HasScalarBias
from zoo.calibration import HasDataBias
from zoo.errors import ZooError
from zoo.joins import Join


@runtime_checkable
class HasEnds(Protocol):
    """A net that knows the parameters of its first and last layers."""

    def input_parameters(self) -> list[Tensor]:
        """Return the parameters of the layers that read the input, such as embeddings; shared ones among them."""

    def output_parameters(self) -> list[Tensor]:
        """Return the parameters of the layers that make the outputs; shared ones among them."""


@runtime_checkable
class HasLevels(Protocol):
    """A net that has levels, from the input on."""

    def level_modules(self) -> dict[str, list[str]]:
        """Return the names of the modules of each level."""


@runtime_checkable
class HasPacked(Protocol):
    """A module with linear layers that consist of several matrices.

    Attributes:
        packed: number of the matrices, of as many rows each, by name of the layer.
    """

    packed: Mapping[str, int]


def knows_ends(model: nn.Module) -> bool:
    """Return whether a model has a net that knows its first and last layers."""
    return any(isinstance(module, HasEnds) for module in model.modules())


def input_parameters(model: nn.Module) -> set[str]:
    """Return the names of the parameters of the first layers, as the nets in a model know them.

    They are a first convolution's and a Transformer's embeddings.

    Args:
        model: a net, a module around nets, or any other module, which has none.
    """
    return _names(model, (p for net in model.modules() if isinstance(net, HasEnds) for p in net.input_parameters()))


def output_parameters(model: nn.Module) -> set[str]:
    """Return the names of the parameters of the last layers, as the nets in a model know them.

    They are the classifier's, a detector's predictors, and a Transformer's output matrix, which may be its embedding.

    Args:
        model: a net, a module around nets, or any other module, which has none.
    """
    return _names(model, (p for net in model.modules() if isinstance(net, HasEnds) for p in net.output_parameters()))


def _names(model: nn.Module, parameters: Iterable[Tensor]) -> set[str]:
    """Return the names of some parameters."""
    chosen = {id(parameter) for parameter in parameters}
    return {name for name, parameter in model.named_parameters() if id(parameter) in chosen}


def packed_matrices(model: nn.Module) -> dict[str, int]:
    """Return, by name of each weight that consists of several matrices one above the other, their number.

    These are the filters of grouped convolutions, and projections to queries, keys and values in one layer.
    """
    counts = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.groups > 1:
            counts[f"{prefix}weight"] = module.groups
        elif isinstance(module, HasPacked):
            counts |= {f"{prefix}{layer}.weight": count for layer, count in module.packed.items()}
    return counts


def no_weight_decay(model: nn.Module) -> set[str]:
    """Return the names of all 0-D and 1-D parameters: biases of both kinds, multipliers, norm parameters."""
    return {name for name, p in model.named_parameters() if p.ndim <= 1}


def parameters_by_level(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the parameters of each level of a net and, last, of the ``head``: all others.

    The head of a classifier is what follows its last feature map, the head of a detector is its pyramid and its heads,
    and the head of a Transformer is what follows its last decoder layer. Levels without parameters are left out, the
    head never is.

    Args:
        model: a net of the zoo, a module around one, or any other module, which has a head alone.
    """
    # the class decides: a wrapper of torch.compile has the attributes of the net inside, but other names of parameters
    nets = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, HasLevels) and hasattr(type(module), "level_modules")
    ]
    prefixes: dict[str, str] = {}  # level by the beginning of its parameters' names
    for name, net in nets[:1]:
        for level, modules in net.level_modules().items():
            prefixes |= {f"{name}.{module}.".removeprefix("."): level for module in modules}
    levels: dict[str, list[str]] = {level: [] for level in [*prefixes.values(), "head"]}
    for name, _ in model.named_parameters():
        levels[next((level for prefix, level in prefixes.items() if name.startswith(prefix)), "head")].append(name)
    return {level: names for level, names in levels.items() if names or level == "head"}


def param_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    multiplier_lr: float = 1.0,
    bias_lr: float = 1.0,
    layer_decay: float = 1.0,
    head_lr: float = 1.0,
) -> list[dict[str, Any]]:
    """Return groups for an optimizer: weights with decay; biases, norm parameters and multipliers without.

    Parameters that do not require gradients are in no group. The factors of the kind and of the level on the learning
    rate are multiplied.

    Args:
        model: any module.
        weight_decay: weight decay of the weights of convolutions and linear layers.
        multiplier_lr: factor on the learning rate of the joins' multipliers, as ``lr_scale`` in their group.
        bias_lr: factor on the learning rate of the biases that are initialised from data, and of scalar biases.
        layer_decay: factor on the learning rate for each level between a parameter and the head, which counts
            as 1: ``layer_decay`` for the last level, ``layer_decay**2`` for the one before it (Clark et al. 2020,
            arXiv:2003.10555).
        head_lr: factor on the learning rate of the head, which is all that belongs to no level.

    Returns:
        The groups that are not empty, with ``params``, ``names``, ``group`` (weights, others, data_biases,
        scalar_biases, multipliers), ``weight_decay`` and ``lr_scale``; one for each kind and rate.

    Raises:
        ZooError: ``layer_decay`` or ``head_lr`` for a model without levels.
    """
    instance_of(model, "param_groups")
    rates = {"weight_decay": weight_decay, "multiplier_lr": multiplier_lr, "bias_lr": bias_lr}
    for key, value in {**rates, "layer_decay": layer_decay, "head_lr": head_lr}.items():
        real_number(value, key)
    kinds, factors = _kinds(model), _factors(model, layer_decay, head_lr)
    settings = {
        "weights": (weight_decay, 1.0),
        "others": (0.0, 1.0),
        "data_biases": (0.0, bias_lr),
        "scalar_biases": (0.0, bias_lr),
        "multipliers": (0.0, multiplier_lr),
    }
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = []
    for kind, (decay, scale) in settings.items():
        for factor in dict.fromkeys(factors.values()):
            names = [name for name in trained if (kinds[name], factors[name]) == (kind, factor)]
            params, rate = [trained[name] for name in names], scale * factor
            groups.append({"params": params, "names": names, "group": kind, "weight_decay": decay, "lr_scale": rate})
    return [group for group in groups if group["params"]]


def _kinds(model: nn.Module) -> dict[str, str]:
    """Return the group of each parameter: that which its module decides, else by the number of its dimensions."""
    without_decay = no_weight_decay(model)
    kinds = {name: "others" if name in without_decay else "weights" for name, _ in model.named_parameters()}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, Join):
            kinds |= {f"{prefix}{parameter}": "multipliers" for parameter in module.multiplier_parameters()}
        elif isinstance(module, HasDataBias):
            kinds[f"{prefix}{module.data_bias_name}"] = "data_biases"
        elif isinstance(module, HasScalarBias):
            kinds |= {f"{prefix}{parameter}": "scalar_biases" for parameter in module.scalar_biases()}
    return kinds


def _factors(model: nn.Module, layer_decay: float, head_lr: float) -> dict[str, float]:
    """Return the factor on the learning rate of each parameter that its level gives."""
    levels = parameters_by_level(model)
    if len(levels) == 1 and (layer_decay, head_lr) != (1.0, 1.0):
        raise ZooError(f"layer_decay={layer_decay}, head_lr={head_lr}: must be 1 for a model without levels")
    factors: dict[str, float] = {}
    for distance, (level, names) in enumerate(reversed(levels.items())):
        factors |= dict.fromkeys(names, head_lr if level == "head" else layer_decay**distance)
    return factors
