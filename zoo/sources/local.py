"""Checkpoints in files of this machine, read without running anything that is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from zoo.errors import WeightsError, one_line
from zoo.sources.cache import sha256_of
from zoo.sources.conversion import Original
from zoo.weights import HEADER_KEY

ENDINGS = (".safetensors", ".pth", ".pt", ".pkl")
# entries of training checkpoints that contain the state dict
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "blobs")


def fetch(path: Path) -> Original:
    """Return a checkpoint of another project in a file.

    Raises:
        WeightsError: a file that is missing, damaged or no checkpoint.
    """
    return Original(read_state(path, str(path)), sha256_of(path), meta={"licence": "unknown"})


def is_own_weights(path: Path) -> bool:
    """Return whether a safetensors file is a weights file of this zoo."""
    try:
        with safe_open(path, framework="pt") as file:
            return HEADER_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_state(path: Path, name: str) -> Mapping[str, Tensor]:
    """Return the state dict in a file.

    Args:
        path: path of the file; its ending determines how it is read.
        name: name of the weights, for messages.

    Raises:
        WeightsError: a file that is missing, damaged, has objects other than tensors in it, or no state dict.
    """
    if not path.is_file():
        raise WeightsError(f"{name}: no such file")
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise WeightsError(f"{name}: a checkpoint's name ends in {', '.join(ENDINGS)}, not in {ending!r}")
    try:
        if ending == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zipfile, torch and safetensors, which share no class
        raise WeightsError(f"{name}: not a checkpoint of tensors ({one_line(error)})") from None
    # training checkpoints have more than the net
    for _ in range(2):
        inner = next((content[key] for key in WRAPPERS if isinstance(content, Mapping) and key in content), None)
        if isinstance(inner, Mapping):
            content = inner
    tensors = isinstance(content, Mapping) and all(isinstance(key, str) for key in content)
    if not tensors or not any(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{name}: no state dict in it; looked for {', '.join(WRAPPERS)} and for tensors by name")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}
