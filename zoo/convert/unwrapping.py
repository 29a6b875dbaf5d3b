"""The state dict inside of a checkpoint: training scripts and wrappers of nets put others around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.errors import WeightsError
from zoo.modules import without_prefixes

_INSIDE = ("state_dict", "model", "model_state_dict", "model_state", "net")  # keys of checkpoints, by their frequency
_DEEPEST = 4


def unwrapped(content: Any, what: str) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint, without the prefixes of ``DataParallel`` and ``torch.compile``.

    Args:
        content: content of ``torch.load(path, weights_only=True)``: a state dict, or a dict with one under
            ``state_dict``, ``model`` or a like key.
        what: name of the checkpoint, for messages.

    Raises:
        zoo.WeightsError: content without a state dict of tensors.
    """
    # the state dict
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            break
        inside = next((key for key in _INSIDE if isinstance(content.get(key), Mapping)), None)
        if inside is None:
            break
        content = content[inside]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{what}: a {type(content).__name__} without tensors by name; give a net's state_dict()")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"{what}: {str(key)[:80]!r} is of type {type(value).__name__}, not a tensor; give a net's state_dict()"
            )
    return without_prefixes(content)
