"""The structure of a model beyond its tensors: the modules, with the settings that decide its outputs in evaluation.

An activation, a stride or an eps that was changed in a built model is in no state dict. Weights saved from such a model
would load into one with other outputs, unsaid.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from zoo.nets.regularization import BranchEnd, BranchNoise

TRAINING_ONLY = (nn.Identity, _DropoutNd, StochasticDepth, BranchNoise, BranchEnd)  # no effect in evaluation


def structure_of(model: nn.Module) -> dict[str, str]:
    """Return the class and settings of each module by name, without what has no effect in evaluation.

    Left out are dropout and its kind, the momentum of statistics, and whether an operation is in place. Statistics that
    ranks compute together are those of BatchNorm.
    """
    modules = model.named_modules(remove_duplicate=False)
    return {name: _description(module) for name, module in modules if name and not isinstance(module, TRAINING_ONLY)}


def _description(module: nn.Module) -> str:
    """Return the class of a module with its settings, as ``print`` shows them."""
    if isinstance(module, _BatchNorm):
        return f"BatchNorm({module.num_features}, eps={module.eps:g})"
    settings = module.extra_repr().removesuffix("inplace=True").removesuffix(", ")
    return f"{type(module).__name__}({settings})"


def first_difference(required: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """Return the first difference between two structures as ``name is A, not B``; None if there is none.

    Args:
        required: structure of the model that its config builds.
        found: structure of the model at hand.
    """
    for name in [*required, *(name for name in found if name not in required)]:
        expected, actual = required.get(name, "left out"), found.get(name, "left out")
        if expected != actual:
            return f"{name} is {actual}, not {expected}"
    return None
