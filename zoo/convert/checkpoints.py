"""Reading the state dict of a checkpoint file, whatever it is wrapped in, without executing anything in it."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zoo.convert.pickles import read_pickle, shown
from zoo.errors import WeightsError
from zoo.modules import without_prefixes

log = logging.getLogger("rescalenet")

MOST_TENSORS = 20_000
LONGEST_NAME = 300  # characters
# what training programs put a state dict into: detectron2, many, SlowFast, Detectron
WRAPPERS = ("model", "state_dict", "model_state", "blobs")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors in a checkpoint by name, in the order of the file.

    Files that end in ``.safetensors`` and ``.pkl`` (raw pickles of numpy arrays) are read as such, all others as
    PyTorch's own. A state dict under ``model``, ``state_dict``, ``model_state`` or ``blobs`` is taken out, prefixes of
    DataParallel and torch.compile are removed, and Caffe2's momentum is left out. What is left out is logged.

    Args:
        path: path of the file.

    Raises:
        WeightsError: a file that is missing, damaged, contains code, or contains no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        content = _read_safetensors(path)
    elif path.suffix == ".pkl" and not zipfile.is_zipfile(path):
        content = read_pickle(path)
    else:
        content = _read_torch(path)
    return without_prefixes(_tensors(unwrapped(content, path), path))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a complete safetensors file ({error}); get it again") from None


def _read_torch(path: Path) -> Any:
    """Return the content of a file that ``torch.save`` wrote; tensors of new files are mapped, not read."""
    zipped = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise WeightsError(
                f"{path}: contains {shown(refused[1])}, and nothing of it was executed; a checkpoint may only contain "
                "tensors and plain values: save its state dict alone"
            ) from None
        raise _damaged(path, error) from None
    except Exception as error:  # another kind of file fails in any way
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> WeightsError:
    reason = shown(" ".join(str(error).split()) or type(error).__name__)
    return WeightsError(f"{path}: not a checkpoint that can be read safely ({reason})")


def unwrapped(content: Any, path: Path) -> Mapping[Any, Any]:
    """Return the state dict inside a checkpoint's content.

    Args:
        content: content of the file.
        path: path of the file, for messages.

    Raises:
        WeightsError: content without tensors, or with several state dicts.
    """
    for _ in WRAPPERS:  # a wrapper may be inside another one
        if not isinstance(content, Mapping):
            raise WeightsError(f"{path}: contains a {type(content).__name__}; must contain a state dict")
        if any(is_tensor(value) for value in content.values()):
            break
        inner = [key for key in WRAPPERS if isinstance(content.get(key), Mapping) and content[key]]
        if len(inner) > 1:
            raise WeightsError(f"{path}: contains {' and '.join(inner)}; save one of them alone")
        if not inner:
            break
        content = content[inner[0]]
    if not any(is_tensor(value) for value in content.values()):
        names = ", ".join(repr(shown(str(key))) for key in list(content)[:5]) or "nothing"
        raise WeightsError(
            f"{path}: contains no tensors but {names}; a state dict may be under {', '.join(WRAPPERS)}, or alone"
        )
    return content


def is_tensor(value: Any) -> bool:
    """Return whether a value is a tensor or an array."""
    return isinstance(value, Tensor | np.ndarray)


def _tensors(content: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict, each checked; what else it contains is counted and logged."""
    found, left_out = {}, 0
    if len(content) > MOST_TENSORS:
        raise WeightsError(f"{path}: has {len(content)} entries; a state dict may have {MOST_TENSORS}")
    for key, value in content.items():
        if not is_tensor(value) or not isinstance(key, str) or key.endswith("_momentum"):
            left_out += 1
            continue
        if len(key) > LONGEST_NAME or not key.isprintable():
            raise WeightsError(f"{path}: the name {shown(key)!r} has more than {LONGEST_NAME} printable characters")
        tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value.detach()
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise WeightsError(f"{path}: {key} is a {tensor.layout} tensor on {tensor.device}; must be a plain tensor")
        if tensor.is_complex() or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise WeightsError(f"{path}: {key} of shape {tuple(tensor.shape)} is complex or has fewer numbers stored")
        found[key] = tensor
    if left_out:
        log.info("%s: %d entries are not weights and were left out", path, left_out)
    return found
