"""Activation checkpointing: backward computes a part of a net again instead of reading its stored activations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpointed(module: nn.Module, x: Tensor) -> Tensor:
    """Return ``module(x)``, of which only x is stored for backward; nothing changes in forwards without gradients.

    Dropout draws the same numbers again. BatchNorm updates its running statistics in forward only.

    Args:
        module: module that does not change x in place.
        x: input.
    """
    if not torch.is_grad_enabled():
        return module(x)
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return checkpoint(module, x, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _without_updates(norms)

    return checkpoint(module, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _without_updates(norms: list[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Keep the running statistics of BatchNorms: momentum 0, and no count of batches.

    Without running statistics (``track_running_stats=False``) a norm would store other tensors than in forward.
    """
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
