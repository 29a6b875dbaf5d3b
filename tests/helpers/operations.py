"""The operations that torch runs, and those among them whose result the host reads."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "is_nonzero", "aten.equal", "aten.nonzero", "aten.masked_select", "aten._unique2")


class Recorder(TorchDispatchMode):
    """The names of the operations while it is entered; a boolean index, which hides ``nonzero``, is one of them."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        if "aten.index" in str(func):
            indices = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            self.names += ["aten.nonzero.default"] * len(indices)
        return func(*args, **(kwargs or {}))


def recorded(function):
    """The operations of a function, of backward on this thread too."""
    with torch.autograd.set_multithreading_enabled(False), Recorder() as recorder:
        function()
    return recorder.names


def waiting(names):
    """Those of the operations for whose result the host waits on a GPU, with their counts."""
    return Counter(name for name in names if any(wait in name for wait in WAITS))
