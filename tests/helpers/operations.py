"""The operations that torch runs, and those among them whose result the host reads."""

from collections import Counter
from contextlib import contextmanager

import torch

from benchmarks import operations

WAITS = ("_local_scalar_dense", "is_nonzero", "aten.equal", "aten.nonzero", "aten.masked_select", "aten._unique2")


class Recorder(operations.Recorder):
    """The names of the operations while it is entered, and ``nonzero``, which a boolean index hides."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "aten.index" in str(func) and not isinstance(args[1], int):  # an int is index_select's dimension
            indices = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            self.lines += ["aten.nonzero.default"] * len(indices)
        return super().__torch_dispatch__(func, types, args, kwargs)


def recorded(function):
    """The operations of a function, of backward on this thread too."""
    with torch.autograd.set_multithreading_enabled(False), Recorder(shapes=False) as recorder:
        function()
    return recorder.lines


def waiting(names):
    """Those of the operations for whose result the host waits on a GPU, with their counts."""
    return Counter(name for name in names if any(wait in name for wait in WAITS))


@contextmanager
def no_waits_for_the_gpu():
    """CUDA itself raises where the host reads the result of an operation."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
