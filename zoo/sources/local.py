"""Checkpoints in files of this machine, read without running anything that is in them."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from zoo.convert.checkpoints import read_checkpoint
from zoo.headers import HEADER_KEY
from zoo.sources.cache import sha256_of
from zoo.sources.conversion import Original

ENDINGS = (".safetensors", ".pth", ".pt", ".pkl", ".pyth")


def fetch(path: Path) -> Original:
    """Return a checkpoint of another project in a file.

    Raises:
        WeightsError: a file that is missing, damaged or no checkpoint.
    """
    return Original(read_checkpoint(path), sha256_of(path), meta={"licence": "unknown"})


def is_own_weights(path: Path) -> bool:
    """Return whether a safetensors file is a weights file of this zoo."""
    try:
        with safe_open(path, framework="pt") as file:
            return HEADER_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False
