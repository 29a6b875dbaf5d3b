"""Training passes of a net as CUDA graphs: ``train.graphs``."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

# In this mode other threads may use CUDA while a graph is recorded, as the one does that pins batches of workers.
# An older torch does not have it, and no workers beside a recording.
PINS_BESIDE = "capture_error_mode" in inspect.signature(torch.cuda.make_graphed_callables).parameters
_MODE: dict[str, Any] = {"capture_error_mode": "thread_local"} if PINS_BESIDE else {}


class GraphedNet(nn.Module):
    """A net whose forward and backward pass are recorded once, and replayed in each training step.

    A launch of a kernel from Python takes longer than the kernel of a small net takes on the GPU. A replay launches all
    kernels of a pass at once. They are those of the net without graphs, and use the present weights and random state.
    Smaller batches, evaluation, and forwards without gradients run as usual.

    Args:
        net: net on a CUDA device, called with one tensor; its parameters must stay where they are in memory.
        batch_size: length of the batches whose passes are replayed; all of them have one shape.
    """

    def __init__(self, net: nn.Module, batch_size: int) -> None:
        super().__init__()
        self.net, self.batch_size = net, batch_size
        self.recorded: tuple[nn.Module, ...] = ()  # a tuple, so that it is no submodule, with the same parameters again

    def forward(self, x: Tensor) -> Tensor:
        """Return the net's output."""
        if not self.training or not torch.is_grad_enabled() or len(x) != self.batch_size:
            return self.net(x)
        if not self.recorded:
            self.recorded = (self._record(x),)
        # A recorded backward pass always writes to the same gradients. Those of an earlier one are kept for their sum.
        for parameter in self.net.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
        return self.recorded[0](x)

    def _record(self, x: Tensor) -> nn.Module:
        """Return the recorded passes of a batch; buffers and random state stay as they were."""
        buffers = [buffer.clone() for buffer in self.net.buffers()]
        state = torch.cuda.get_rng_state(x.device)
        passes = _Pass(self.net, torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"))
        # The recorded passes keep their nodes of the gradients, which belong to another stream than later steps. torch
        # synchronizes the two, and would warn of it in this process.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        with torch.autocast("cuda", enabled=False):  # a backward pass runs outside of autocast
            torch.cuda.make_graphed_callables(passes, (x.detach().clone(),), allow_unused_input=True, **_MODE)
        # the recording ran the net a few times
        with torch.no_grad():
            for buffer, before in zip(self.net.buffers(), buffers, strict=True):
                buffer.copy_(before)
        torch.cuda.set_rng_state(state, x.device)
        return passes


class _Pass(nn.Module):
    """The forward pass in a module of its own, whose ``forward`` torch replaces by the replay.

    Args:
        net: net.
        dtype: dtype of autocast.
        enabled: whether autocast is on.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype, enabled: bool) -> None:
        super().__init__()
        self.net, self.dtype, self.enabled = net, dtype, enabled

    def forward(self, x: Tensor) -> Tensor:
        # A graph must convert the parameters itself: with autocast's cache it would have the converted ones of now.
        with torch.autocast("cuda", dtype=self.dtype, enabled=self.enabled, cache_enabled=False):
            return self.net(x)
