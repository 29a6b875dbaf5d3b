"""Training passes of a net as CUDA graphs: ``train.graphs``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class GraphedNet(nn.Module):
    """A net whose forward and backward pass are recorded in the first training step, and replayed in the others.

    A kernel of a small net takes less time on the GPU than its launch from Python. A replay launches all kernels of a
    pass at once. The results are those of the net: a replay runs the same kernels, with the present weights and random
    state. Batches of another shape than the first, evaluation, and forwards without gradients run as usual.

    Args:
        net: net on a CUDA device, called with one tensor; its parameters must stay where they are in memory.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.shape: torch.Size | None = None  # of the recorded batch
        self.replay: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the net's output."""
        if not (self.training and torch.is_grad_enabled()):
            return self.net(x)
        if self.shape is None:
            self._record(x)
        if x.shape != self.shape:
            return self.net(x)
        # A recorded backward pass always writes to the same gradients. Those of an earlier one are kept for their sum.
        for parameter in self.net.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
        return self.replay(x)

    def _record(self, x: Tensor) -> None:
        """Record the passes for batches like ``x``; buffers and random state stay as they were."""
        self.shape = x.shape
        buffers = [buffer.clone() for buffer in self.net.buffers()]
        state = torch.cuda.get_rng_state(x.device)
        # A graph must convert the parameters itself: with autocast's cache it would have the converted ones of now.
        dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        with torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False):
            # The recorded passes keep their nodes of the gradients, which belong to another stream than later steps.
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
            sample = x.detach().clone()
            self.replay = torch.cuda.make_graphed_callables(_Pass(self.net), (sample,), allow_unused_input=True)
        # the recording ran the net a few times
        with torch.no_grad():
            for buffer, before in zip(self.net.buffers(), buffers, strict=True):
                buffer.copy_(before)
        torch.cuda.set_rng_state(state, x.device)


class _Pass(nn.Module):
    """The net in a module of its own, whose ``forward`` torch replaces by the replay."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
