"""The structure of a model beyond its tensors: the modules, with the settings that decide its outputs in evaluation.

An activation, a stride, a pooling or an eps that was changed in a built model is in no state dict. Weights saved from
such a model would load into one with other outputs, unsaid.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from zoo.arguments import shown
from zoo.nets.regularization import BranchEnd, BranchNoise

TRAINING_ONLY = (nn.Identity, _DropoutNd, StochasticDepth, BranchNoise, BranchEnd)  # no effect in evaluation
# attributes without effect in evaluation, or that describe the weights or their input, which the header has
_NO_SETTINGS = frozenset(
    (
        *("training", "calibrated", "frozen", "grad_checkpointing", "init_factor", "inplace", "momentum", "drop_rate"),
        *("sparse", "scale_grad_by_freq", "pretrained_cfg", "default_cfg"),
        *("min_size", "max_size", "image_mean", "image_std", "reverse"),
    )
)


def first_difference(required: nn.Module, found: nn.Module) -> str | None:
    """Return the first difference in structure between two models as ``name is A, not B``; None if there is none.

    Modules are compared by class and settings, without what has no effect in evaluation: dropout and its kind, the
    momentum of statistics, and whether an operation is in place. Statistics that ranks compute together are those of
    BatchNorm. Attributes that the required model lacks or computes later are not compared, nor are those of modules of
    other packages, which may count or remember something in them.

    Args:
        required: model that the config builds.
        found: model at hand.
    """
    expected, actual = _modules(required), _modules(found)
    for name in [*expected, *(name for name in actual if name not in expected)]:
        ours, theirs = expected.get(name), actual.get(name)
        if name and (a := _description(theirs)) != (b := _description(ours)):
            return f"{name} is {a}, not {b}"
        if name and (a := _origin(theirs)) != (b := _origin(ours)):
            return f"{name} is a module of {a}, not of {b}"
        for key, value in _settings(ours, theirs):
            if (other := getattr(theirs, key)) != value:
                return f"{f'{name}.{key}'.lstrip('.')} is {shown(other)}, not {shown(value)}"
    return None


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that have an effect in evaluation, by name; the model itself has the name ""."""
    modules = model.named_modules(remove_duplicate=False)
    return {
        name: module
        for name, module in modules
        if not (name and isinstance(module, TRAINING_ONLY) and _is_known(module))
    }


def _is_known(module: nn.Module) -> bool:
    """Return whether a class is of torch or of this project: any other may have a forward of its own."""
    return type(module).__module__.partition(".")[0] in ("torch", "torchvision", "zoo", "tasks")


def _description(module: nn.Module | None) -> str:
    """Return the class of a module with its settings, as ``print`` shows them."""
    if module is None:
        return "left out"
    if isinstance(module, _BatchNorm):
        return f"BatchNorm({module.num_features}, eps={module.eps:g})"
    settings = module.extra_repr().removesuffix("inplace=True").removesuffix(", ")
    return f"{type(module).__name__}({settings})"


def _origin(module: Any) -> str:
    """Return the Python module in which a class is defined: another class may have the same name."""
    return _BatchNorm.__module__ if isinstance(module, _BatchNorm) else type(module).__module__


def _settings(required: Any, found: Any) -> Iterator[tuple[str, Any]]:
    """Yield the settings that two modules have: public attributes with plain values, also those of the class."""
    for key in {**vars(required), **vars(found)} if _is_known(required) else ():
        value = getattr(required, key, None)
        if not (key.startswith("_") or key in _NO_SETTINGS) and _is_plain(value) and hasattr(found, key):
            yield key, value


def _is_plain(value: Any) -> bool:
    """Return whether a value is a number, text, or a list or tuple of such."""
    return isinstance(value, bool | int | float | str) or (
        isinstance(value, list | tuple) and all(map(_is_plain, value))
    )
