"""Float64 where the device has it: MPS has none, so that exact sums and products of weights are taken on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor


def lacks_float64(device: torch.device) -> bool:
    """Return whether a device has no float64."""
    return device.type == "mps"


def precise(x: Tensor) -> Tensor:
    """Return a tensor in float64, on the CPU if its device has no float64."""
    return (x.cpu() if lacks_float64(x.device) else x).double()


def precise_factor(factor: Tensor | float) -> Tensor | float:
    """Return a factor that multiplies a ``precise`` tensor: a tensor like those, a number as it is."""
    return precise(factor) if isinstance(factor, Tensor) else factor


def precise_device() -> torch.device:
    """Return the device on which tensors are made now, or the CPU if that has no float64."""
    device = torch.get_default_device()
    return torch.device("cpu") if lacks_float64(device) else device
