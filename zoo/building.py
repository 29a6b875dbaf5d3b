"""Nets that are about to get a state: planned on the meta device, which takes no memory, and built without random init.

A config that a stranger wrote may ask for a net of any size. ``planned`` builds it without memory, so that its tensors
can be compared with those of the file first (``zoo.states.check_shapes``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from zoo.errors import WeightsError, ZooError, one_line
from zoo.files import without_remarks

Module = TypeVar("Module", bound=nn.Module)

MOST_CONSTANTS = 2**25  # values in tensors that a net computes itself and no file contains, such as sinusoids
MOST_CALLS = 50_000  # of torch's functions; a net of 200 layers makes three thousand

_RANDOM_METHODS = {getattr(torch.Tensor, name) for name in ("normal_", "uniform_")}
_RANDOM_INIT = {
    getattr(nn.init, name)
    for name in (
        "normal_",
        "uniform_",
        "trunc_normal_",
        "kaiming_normal_",
        "kaiming_uniform_",
        "xavier_normal_",
        "xavier_uniform_",
    )
}


def planned(build: Callable[[], Module], source: str) -> Module:
    """Return the net that a function builds, on the meta device: it has shapes and no memory.

    Args:
        build: function without arguments, for the config in a file.
        source: name of the file, for messages.

    Raises:
        WeightsError: a config that no net can be built from, or a net beyond ``MOST_CALLS`` or ``MOST_CONSTANTS``.
    """
    grad = torch.is_grad_enabled()
    try:
        with torch.device("meta"), _Counted(), without_remarks("Initializing zero-element tensors"):
            model = build()
    except ZooError as error:
        raise WeightsError(f"{source}: {one_line(error).removeprefix(f'{source}: ')}") from None
    except Exception as error:  # a stranger's numbers reach torch, whose errors are of any class
        raise WeightsError(f"{source}: its config builds no net ({one_line(error)})") from None
    finally:
        torch.set_grad_enabled(grad)  # the error of _Counted can stop torch.no_grad from restoring it
    stored = model.state_dict().keys()
    constants = {name: buffer for name, buffer in model.named_buffers() if name not in stored}
    if constants and (count := sum(buffer.numel() for buffer in constants.values())) > MOST_CONSTANTS:
        raise WeightsError(
            f"{source}: its config asks for {count} values beside the file's ({', '.join(sorted(constants)[:3])}); "
            f"must be at most {MOST_CONSTANTS}"
        )
    return model


class _Counted(TorchFunctionMode):
    """A context that ends with an error after ``MOST_CALLS``: a number of layers must not keep a process busy."""

    def __init__(self) -> None:
        super().__init__()
        self.left = MOST_CALLS

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ZooError(f"its config asks for more layers than {MOST_CALLS} calls of torch can make")
        return func(*args, **(kwargs or {}))


class WithoutInit(TorchFunctionMode):
    """A context in which parameters get no random init, for nets whose whole state is loaded afterwards.

    What is no parameter is computed as usual: no net has to list the constants that are not in its state.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM_METHODS or func in _RANDOM_INIT:
            target = args[0] if args else kwargs["tensor"]
            # schemes initialize packed layers part by part: views of a parameter
            if isinstance(target, nn.Parameter) or isinstance(target._base, nn.Parameter):
                return target
        return func(*args, **kwargs)
