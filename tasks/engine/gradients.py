"""What is done to the gradients between backward and the optimizer's update."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tasks import config as cfg
from tasks.errors import ConfigError
from zoo.nets.parameters import knows_ends, output_parameters

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # weights (I, O / groups, ...)
_EPS = 1e-3  # smallest weight norm of adaptive gradient clipping, so that weights at 0 can leave it (Brock et al. 2021)


def require_ends(model: nn.Module, key: str) -> None:
    """Refuse a model without a net that names its first and last layers, which ``key`` must leave alone.

    Raises:
        ConfigError: there is no such net.
    """
    if not knows_ends(model):
        raise ConfigError(
            f"{key}: {type(model).__name__} has no net of the zoo, so its last layers are not known; give it the "
            "methods input_parameters and output_parameters, or leave the option out"
        )


def dims_of_units(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return, by name of each weight, all its dimensions but that of the outputs.

    Weights are the parameters with two or more dimensions: of linear layers (O, I), convolutions (O, I / groups, ...)
    and embeddings (tokens, d). A unit of a weight is what makes one output: a row, a filter, the vector of a token.
    """
    transposed = {id(module.weight) for module in model.modules() if isinstance(module, _TRANSPOSED)}
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim > 1}
    outputs = {name: 1 if id(weight) in transposed else 0 for name, weight in weights.items()}
    return {name: tuple(d for d in range(weights[name].ndim) if d != output) for name, output in outputs.items()}


def centralize_(gradient: Tensor, dims: tuple[int, ...]) -> None:
    """Subtract from the gradient of each unit its mean (Yong et al. 2020, arXiv:2004.01461, eq. 1).

    Args:
        gradient: gradient of a weight, changed in place.
        dims: all dimensions but the output's.
    """
    gradient.sub_(gradient.mean(dims, keepdim=True))


def clip_units_(gradient: Tensor, weight: Tensor, limit: float, dims: tuple[int, ...]) -> None:
    """Scale the gradient of each unit down to ``limit`` times the norm of its weight, or 1e-3 if that is smaller.

    Adaptive gradient clipping (Brock et al. 2021, arXiv:2102.06171, eq. 3).

    Args:
        gradient: gradient of a weight, changed in place.
        weight: the weight, without autograd.
        limit: largest ratio of the norms, the paper's lambda.
        dims: all dimensions but the output's.
    """
    allowed = torch.linalg.vector_norm(weight, dim=dims, keepdim=True).clamp_(min=_EPS).mul_(limit)
    # a gradient of 0 has the ratio infinity, which becomes 1
    ratio = allowed.div_(torch.linalg.vector_norm(gradient, dim=dims, keepdim=True))
    gradient.mul_(ratio.clamp_(max=1))


class GradientChanges:
    """The changes that a config asks for, in this order: centralization, clipping by unit, clipping as a whole.

    Centralization concerns all weights, the classifier's too, as published. Clipping by unit leaves the last layers
    alone, as published. Biases, multipliers and norm parameters take part in the clipping as a whole only.

    Args:
        model: net on its device, with its frozen parameters known.
        section: optimizer's section of the config.

    Attributes:
        used: whether there is any change.
    """

    def __init__(self, model: nn.Module, section: cfg.OptimizerSection) -> None:
        self.section = section
        self.used = section.centralize or section.agc is not None or section.clip_norm is not None
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # the weights of the two changes by unit, with their dimensions
        by_name, dims = dict(model.named_parameters()), dims_of_units(model)
        trained = [name for name in dims if by_name[name].requires_grad]
        outputs: set[str] = set()
        if section.agc is not None:
            require_ends(model, "train.optimizer.agc")
            outputs = output_parameters(model)
        self.centralized = [(by_name[name], dims[name]) for name in trained]
        self.clipped = [(by_name[name], dims[name]) for name in trained if name not in outputs]

    def change(self) -> None:
        """Change the gradients, which must be those of the loss without a scale for half precision."""
        section = self.section
        if section.centralize:
            for weight, dims in self.centralized:
                if weight.grad is not None:
                    centralize_(weight.grad, dims)
        if section.agc is not None:
            for weight, dims in self.clipped:
                if weight.grad is not None:
                    clip_units_(weight.grad, weight.detach(), section.agc, dims)
        if section.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, section.clip_norm)
