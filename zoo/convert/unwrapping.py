"""The state dict inside of a checkpoint: training scripts and wrappers of nets put others around it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.convert.pickles import shown
from zoo.errors import WeightsError, one_line
from zoo.modules import without_prefixes

log = logging.getLogger("rescalenet")

MOST_TENSORS = 20_000
LONGEST_NAME = 300  # characters
# what training programs put a state dict into
WRAPPERS = ("model", "state_dict", "model_state", "model_state_dict", "net", "blobs")
_DEEPEST = 4  # wrappers inside of each other; a pickle may contain itself


def state_inside(content: Any, what: str) -> dict[str, Tensor]:
    """Return the tensors in a checkpoint's content by name, in its order.

    A state dict under ``model``, ``state_dict`` or a like key is taken out, prefixes of DataParallel and torch.compile
    are removed, and Caffe2's momentum is left out. What is left out is counted in the log.

    Args:
        content: content of the file: tensors or arrays by name, or a dict that contains them.
        what: name of the checkpoint, for messages.

    Raises:
        zoo.WeightsError: content without tensors, with several state dicts, or with tensors that are not plain.
    """
    return without_prefixes(_tensors(_unwrapped(content, what), what))


def _unwrapped(content: Any, what: str) -> Mapping[Any, Any]:
    """Return the state dict inside a checkpoint's content.

    Args:
        content: content of a checkpoint.
        what: name of the checkpoint, for messages.

    Raises:
        WeightsError: content without tensors, or with several state dicts.
    """
    if not isinstance(content, Mapping):
        raise WeightsError(f"{what}: contains a {type(content).__name__}; must contain a state dict")
    # tensors beside a wrapper are records of the training, such as the best accuracy
    for _ in range(_DEEPEST):
        inner = [key for key in WRAPPERS if _has_tensors(content.get(key))]
        if not inner:
            break
        if len(inner) > 1:
            raise WeightsError(f"{what}: contains {' and '.join(inner)}; save one of them alone")
        content = content[inner[0]]
    if not _has_tensors(content):
        names = ", ".join(repr(shown(str(key))) for key in list(content)[:5]) or "nothing"
        raise WeightsError(
            f"{what}: contains no tensors but {names}; a state dict may be under {', '.join(WRAPPERS)}, or alone"
        )
    return content


def _has_tensors(content: Any, depth: int = 0) -> bool:
    """Return whether a mapping contains tensors, itself or in a wrapper."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return False
    return any(map(_is_tensor, content.values())) or any(_has_tensors(content.get(key), depth + 1) for key in WRAPPERS)


def _is_tensor(value: Any) -> bool:
    """Return whether a value is a tensor or an array."""
    return isinstance(value, Tensor | np.ndarray)


def _tensors(content: Mapping[Any, Any], what: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict, each checked; what else it contains is counted and logged."""
    found, left_out = {}, 0
    if len(content) > MOST_TENSORS:
        raise WeightsError(f"{what}: has {len(content)} entries; a state dict may have {MOST_TENSORS}")
    for key, value in content.items():
        if not _is_tensor(value) or not isinstance(key, str) or key.endswith("_momentum"):
            left_out += 1
            continue
        if len(key) > LONGEST_NAME or not key.isprintable():
            raise WeightsError(f"{what}: the name {shown(key)!r} has more than {LONGEST_NAME} printable characters")
        try:
            tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value.detach()
        except (TypeError, ValueError) as error:  # text, other byte orders, negative strides
            raise WeightsError(f"{what}: {key} is an array that is no tensor: {one_line(error)}") from None
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise WeightsError(f"{what}: {key} is a {tensor.layout} tensor on {tensor.device}; must be a plain tensor")
        if tensor.is_complex() or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise WeightsError(f"{what}: {key} of shape {tuple(tensor.shape)} is complex or has fewer numbers stored")
        found[key] = tensor
    if not found:
        raise WeightsError(f"{what}: its tensors have no names; a state dict has text for keys")
    if left_out:
        log.info("%s: %d entries are not weights and were left out", what, left_out)
    return found
