"""State dicts: ``adapt`` fits one to a net that differs from the weights' net, ``load_state`` loads one completely.

``check_shapes`` compares without loading.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from zoo.calibration import HasDataBias
from zoo.errors import WeightsError, suggestion
from zoo.nets.base import ModelConfig, Net

log = logging.getLogger("rescalenet")


def adapt(state: Mapping[str, Tensor], stored: ModelConfig, model: Net) -> dict[str, Tensor]:
    """Fit a state to a net that differs in last layer, input channels or frozen statistics; each change is logged.

    Args:
        state: state of a net with the config ``stored``.
        stored: config of the weights.
        model: net to load the state into.
    """
    config = model.config
    state = dict(state)
    # a new last layer keeps its initialization
    if config.num_classes != stored.num_classes:
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        if config.num_classes:
            log.info("new last layer: %d classes instead of the weights' %d", config.num_classes, stored.num_classes)
    # the first convolution, by timm's rule
    if config.in_chans != stored.in_chans:
        key = next(k for k, p in model.named_parameters() if p.ndim >= 4)
        state[key] = adapt_input_channels(state[key], config.in_chans)
        log.info("stem adapted: %d input channels instead of the weights' %d", config.in_chans, stored.in_chans)
    return frozen_statistics(state, stored.scheme, config.scheme)


def adapt_input_channels(weight: Tensor, channels: int) -> Tensor:
    """Return the first convolution's weight (O, I, *kernel) for another number of input channels, as timm adapts it.

    One channel gets the sum of the old ones, so that a grey image gives what its three equal channels gave. More
    channels repeat the old ones in order and are multiplied by I / channels, fewer are the first ones times that.

    >>> import torch
    >>> adapt_input_channels(torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1), 4).flatten()
    tensor([0.7500, 1.5000, 2.2500, 0.7500])
    """
    old = weight.shape[1]
    if channels == old:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeated = torch.cat([weight] * math.ceil(channels / old), 1)[:, :channels]
    return repeated * (old / channels)


def frozen_statistics(state: dict[str, Tensor], stored: str, scheme: str) -> dict[str, Tensor]:
    """Return a state of scheme ``stored`` for a net of scheme ``scheme``: frozen BatchNorm counts no batches."""
    if (scheme, stored) != ("frozen_bn", "bn"):
        return state
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a state."""
    return {key: tuple(value.shape) for key, value in state.items()}


def check_shapes(required: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Check that tensors have the required names and shapes.

    Args:
        required: shapes by the net's keys.
        found: shapes of the tensors.
        source: origin of the tensors, for the message.

    Raises:
        WeightsError: missing or unexpected keys (with near matches) or wrong shapes.
    """
    missing = sorted(required.keys() - found.keys())
    if unexpected := sorted(found.keys() - required.keys()):
        hint = suggestion(unexpected[0], missing) if missing else ""
        raise WeightsError(f"{source}: {len(unexpected)} unexpected keys, the first {unexpected[0]!r}{hint}")
    if missing:
        raise WeightsError(f"{source}: {len(missing)} keys are missing, the first {missing[0]!r}")
    for key, shape in required.items():
        if found[key] != shape:
            raise WeightsError(f"{source}: {key} has shape {found[key]}, the model {shape}")


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str, *, fresh: tuple[str, ...] = ()) -> None:
    """Load every tensor, or raise one error that names what does not fit.

    Args:
        model: net to load into.
        state: tensors by the net's keys.
        source: origin of the state, for the message.
        fresh: prefixes of keys that keep their initialization.

    Raises:
        WeightsError: missing or unexpected keys (with near matches), wrong shapes, or numbers of another kind.
    """
    own = model.state_dict()
    kept = {key: value for key, value in own.items() if key.startswith(fresh)} if fresh else {}
    required = {key: value for key, value in own.items() if key not in kept}
    check_shapes(shapes_of(required), shapes_of(state), source)
    for key, value in required.items():
        if state[key].is_complex() or (value.is_floating_point() and not state[key].is_floating_point()):
            raise WeightsError(f"{source}: {key} has type {state[key].dtype}, the model {value.dtype}")
    model.load_state_dict({**kept, **state})
    # loading marks every bias as calibrated; those that kept their own initialization are not
    for name, module in model.named_modules():
        if isinstance(module, HasDataBias) and f"{name}.{module.data_bias_name}" in kept:
            module.calibrated = False


def require_finite(value: Tensor, key: str, source: str) -> None:
    """Refuse a tensor of a state with NaN or infinities; integers have none.

    Args:
        value: tensor.
        key: key of the tensor.
        source: name of the file or weights, for the message.

    Raises:
        WeightsError: values that are not finite.
    """
    if value.is_floating_point() and not bool(value.isfinite().all()):
        raise WeightsError(f"{source}: {key} has NaN or infinite values; a net with such weights has no outputs")
