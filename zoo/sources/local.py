"""Checkpoints in files of this machine, read without running anything that is in them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from safetensors import SafetensorError, safe_open

from zoo.convert.checkpoints import read_checkpoint
from zoo.errors import WeightsError
from zoo.files import sha256_of
from zoo.headers import HEADER_KEY
from zoo.sources.conversion import Original, open_converted
from zoo.weights import Weights


def open_weights(name: str, model: str | None) -> Weights:
    """Return the entry of a checkpoint in a file, converted into the cache; see ``zoo.weights.Source``.

    The folder of the file stays out of the cache and of the converted file.
    """
    path = Path(name)
    if not path.is_file():
        raise WeightsError(f"{name}: no such file")
    sha256 = sha256_of(path)
    entry = open_converted(path.name, model, lambda: fetch(path, sha256), content=sha256)
    return dataclasses.replace(entry, name=name)


def fetch(path: Path, sha256: str) -> Original:
    """Return a checkpoint of another project in a file.

    Args:
        path: path of the file.
        sha256: sha256 of the file.

    Raises:
        WeightsError: a file that is missing, damaged or no checkpoint.
    """
    return Original(read_checkpoint(path), sha256, meta={"licence": "unknown"})


def is_own_weights(path: Path) -> bool:
    """Return whether a safetensors file is a weights file of this zoo."""
    try:
        with safe_open(path, framework="pt") as file:
            return HEADER_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False
