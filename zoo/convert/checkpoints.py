"""Reading the state dict of a checkpoint file, whatever it is wrapped in, without executing anything in it."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from zoo.convert.pickles import read_pickle, shown
from zoo.convert.unwrapping import state_inside
from zoo.errors import WeightsError, one_line
from zoo.torchfiles import load_torch


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors in a checkpoint by name, in the order of the file.

    Files that end in ``.safetensors`` and ``.pkl`` (raw pickles of numpy arrays) are read as such, all others as
    PyTorch's own; ``state_inside`` takes the tensors out.

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
    return state_inside(content, str(path))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a complete safetensors file ({one_line(error)}); get it again") from None


def _read_torch(path: Path) -> Any:
    """Return the content of a file that ``torch.save`` wrote; tensors of new files are mapped, not read."""
    zipped = zipfile.is_zipfile(path)
    try:
        return load_torch(path, mmap=zipped)
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
