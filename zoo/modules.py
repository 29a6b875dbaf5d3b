"""Modules as users have them: evaluation mode for a while, and the wrappers of torch around a net and its keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

PREFIXES = ("module.", "_orig_mod.", "model.")  # of nn.DataParallel, torch.compile, and modules around a net


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a module into eval mode inside the ``with`` block; each module inside gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def without_wrappers(model: Any) -> Any:
    """Return what is inside of the wrappers of torch.compile, of data-parallel training and of averaged weights."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            model = model.module
        else:
            return model


def without_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without the prefixes of wrappers, where all keys have them: those in ``PREFIXES``."""
    state = dict(state)
    while state and (prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None)):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
