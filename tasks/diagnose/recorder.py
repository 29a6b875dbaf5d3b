"""What the layers of a net see: hooks and a dispatch mode that add up statistics, and leave the net as it is."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.diagnose.flow import ADDITIONS, Flow, aten, same_memory
from tasks.diagnose.moments import Positions, Signs, channel_sums, pair_sums
from tasks.errors import UserError
from zoo.calibration import HasDataBias, counted_positions, sum_dtype
from zoo.layers import GainedConv

Kind = Literal["input", "product", "norm", "bias", "activation", "sum"]

# operations whose input has a sign that matters
ACTIVATIONS = {
    aten.relu: "relu",
    aten.relu_: "relu",
    aten.hardtanh: "relu6",
    aten.hardtanh_: "relu6",
    aten.leaky_relu: "leaky_relu",
    aten.leaky_relu_: "leaky_relu",
    aten.rrelu_with_noise: "rrelu",
    aten.rrelu_with_noise_: "rrelu",
    aten.prelu: "prelu",
    aten._prelu_kernel: "prelu",
    aten.elu: "elu",  # SELU too
    aten.elu_: "elu",
    aten.celu: "celu",
    aten.celu_: "celu",
    aten.gelu: "gelu",
    aten.silu: "silu",
    aten.silu_: "silu",
    aten.mish: "mish",
    aten.mish_: "mish",
    aten.hardswish: "hardswish",
    aten.hardswish_: "hardswish",
    aten.softplus: "softplus",
}
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # layers that normalize
_CHANNELS_SECOND = (_ConvNd, GainedConv, _NormBase, nn.GroupNorm)  # layers with (N, C, ...), whatever comes before


@dataclass
class Point:
    """A place in the net and the sums over what passed there.

    Attributes:
        name: qualified name of the module; of an activation or addition that the module computes for the n-th time in a
            forward, ``name:n``.
        kind: kind of the values: the input of the first product, the output of a product, norm or bias from data,
            the input of an activation, or the sum of trunk and branch.
        sums: ``channel_sums`` of the place; of an input, of all channels together.
        pair: ``pair_sums`` of weighted trunk and weighted branch, of a sum.
        trunk_weight: weight of the trunk in a sum.
        after: ``channel_sums`` behind an activation that directly follows a sum; None without one.
        after_inside: whether that activation is computed in the block of the sum, and not where its result is read.
        identity: whether a sum has an identity shortcut.
        signs: signs of an activation's input.
        function: name of the activation.
        centred: ``channel_sums`` of what a bias from data centres, before that bias.
        calls: number of times that the place was passed.
    """

    name: str
    kind: Kind
    sums: Tensor | None = None
    pair: Tensor | None = None
    trunk_weight: float = 1.0
    after: Tensor | None = None
    after_inside: bool = False
    identity: bool = False
    signs: Signs | None = None
    function: str = ""
    centred: Tensor | None = None
    calls: int = 0


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a net by name, without those that only compute the weight of another one.

    ``torch.nn.utils.parametrize`` puts such modules into a layer, as for a spectral norm.
    """
    modules = dict(model.named_modules())
    lists = [module for module in modules.values() if isinstance(module, parametrize.ParametrizationList)]
    inside = {module for each in lists for module in each.modules()}
    return {name: module for name, module in modules.items() if module not in inside}


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that belong to a layer, by name.

    They are its own, those that ``torch.nn.utils.parametrize`` computes them from, and those of the convolution inside
    of one with a gain.
    """
    if isinstance(module, GainedConv):
        return dict(module.named_parameters())
    found = dict(module.named_parameters(recurse=False))
    if parametrize.is_parametrized(module):
        inside = module.parametrizations.named_parameters()  # type: ignore[union-attr]
        found |= {f"parametrizations.{name}": parameter for name, parameter in inside}
    return found


def is_product(module: nn.Module) -> bool:
    """Return whether a module multiplies by a weight of its own.

    Convolutions and linear layers do, and any other module with a weight of two dimensions that are larger than 1: a
    scale (C, 1, 1) for each channel is none.
    """
    if isinstance(module, _ConvNd | nn.Linear | GainedConv):
        return True
    return any(sum(size > 1 for size in p.shape) >= 2 for p in own_parameters(module).values())


def function_name(operation: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> str:
    """Return the name of the activation that an operation computes."""
    name = ACTIVATIONS[operation]
    if name == "relu6":  # whose operation is that of any range
        lowest = arguments[1] if len(arguments) > 1 else keywords.get("min_val", -1)
        return "relu6" if lowest == 0 else "hardtanh"
    return name


class Recorder:
    """The statistics of a net's forwards.

    The net's outputs, parameters, buffers and hooks are the same before and after. Forwards are run inside
    ``recording``; each adds to the points.

    Args:
        model: any module.
        units: whether the signs of each unit are recorded, besides those of each channel.

    Attributes:
        points: points by name and kind, in the order of the forward.
        forwards: number of forwards so far.
        varied: names of the places that had another number of channels in a later call, as of one activation for
            layers of several sizes; these later values are left out.
    """

    def __init__(self, model: nn.Module, *, units: bool = False) -> None:
        self.model, self.units = model, units
        self.points: dict[tuple[str, Kind], Point] = {}
        self.forwards = 0
        self.varied: list[str] = []
        self._names = {module: name for name, module in named_layers(model).items()}
        self._products = {module for module in self._names if is_product(module)}
        self._blocks = {module for module in self._names if any(child in self._products for child in module.modules())}
        self._clear()

    def _clear(self) -> None:
        """Begin a forward."""
        self._stack: list[nn.Module] = []
        self._calls: Counter[tuple[str, Kind]] = Counter()
        self._paused = False
        self._flow = Flow([])
        self._channels, self._width = 1, 0  # dimension and number of the channels after the last product
        self._last: tuple[Point, Tensor] | None = None  # the last sum and its result, until an activation reads that
        self._followed: Point | None = None  # sum whose result the current activation reads

    @contextmanager
    def recording(self, *, gradients: bool = False) -> Iterator[None]:
        """Record the one forward inside of the ``with`` block, with or without autograd's graph."""
        self._clear()
        self._flow = Flow([*self.model.parameters(), *self.model.buffers()])
        handles = []
        for module in self._names:
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            with torch.set_grad_enabled(gradients), _Watch(self, self._flow):
                yield
            self.forwards += 1
        finally:
            for handle in handles:
                handle.remove()
            self._clear()

    @property
    def unreached(self) -> list[str]:
        """Names of the modules with weights that no forward has called."""
        reached = {name for name, kind in self.points if kind == "product"}
        names = [name for module, name in self._names.items() if module in self._products and name not in reached]
        # A module such as torch's attention uses the weights of modules inside of it without calling them.
        return [name for name in names if not any(name.startswith(f"{outer}.") for outer in reached if outer)]

    # -- modules

    def _enter(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._stack.append(module)
        x = arguments[0] if arguments else None
        if not isinstance(x, Tensor) or self._paused:
            return
        with self._pause():
            if module in self._products and not self._calls[("", "input")]:
                self._calls[("", "input")] += 1  # also of tokens: what embeddings return is not the net's input
                if x.is_floating_point():
                    samples = x if x.ndim > 1 else x.reshape(1, -1)
                    # of all channels, as the input's meaning of them is not known and its sizes may differ
                    sums = channel_sums(samples, -1, self._keep(x)).sum(1, keepdim=True)
                    self._add(Point("input", "input"), sums)
            if isinstance(module, HasDataBias):
                point = self._point(self._names[module], self._kind(module))
                centred = module.calibration_input(x)
                if centred.ndim > 1:
                    self._include(point, "centred", channel_sums(centred, module.channel_dim, self._keep(centred)))

    def _leave(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if self._stack and self._stack[-1] is module:
            self._stack.pop()
        if self._paused or not (module in self._products or isinstance(module, (*NORMS, HasDataBias))):
            return
        if isinstance(output, tuple) and output:  # attention returns its weights too
            output = output[0]
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim < 2:
            return
        with self._pause():
            dim = self._output_dimension(module, output)
            self._flow.place(output, dim)
            if module in self._products:
                self._channels = 1 if dim == 1 and output.ndim > 2 else -1
                self._width = output.shape[dim]
            point = self._point(self._names[module], self._kind(module))
            self._add(point, channel_sums(output, dim, self._keep(output)))

    # -- operations

    def before(self, operation: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Point | None:
        """Record the operands of an operation before it may replace them.

        Returns:
            The point of a sum, whose result is still to be recorded.
        """
        if not self._stack:
            return None
        if operation in ACTIVATIONS:
            x = arguments[0]
            if x.ndim > 1 and not self._flow.node(x).constant:
                with self._pause():
                    self._activation(x, function_name(operation, arguments, keywords))
        elif operation in ADDITIONS and len(arguments) > 1:
            found = self._flow.residual(arguments[0], arguments[1], float(keywords.get("alpha", 1)))
            # of two dimensions there are sums of coordinates too, as of boxes
            if found is not None and (found.trunk.ndim > 2 or found.trunk.shape[1] == self._width > 1):
                with self._pause():
                    point = self._numbered(self._block(), "sum")
                    trunk, branch = found.trunk, found.branch
                    sums = pair_sums(trunk, branch, self._dimension(trunk, branch), self._keep(trunk))
                    u, v = found.trunk_weight, found.branch_weight
                    weights = sums.new_tensor([u, v, u * u, v * v, u * v, 1.0])
                    self._include(point, "pair", sums * weights[:, None])
                    point.identity, point.trunk_weight = found.identity, u
                return point
        return None

    def after(self, operation: Any, result: Any, point: Point | None) -> None:
        """Record the result of a sum, and that of an activation which follows one directly."""
        if not isinstance(result, Tensor) or not self._stack:
            return
        if point is not None:
            with self._pause():
                self._add(point, channel_sums(result, self._dimension(result), self._keep(result)))
                self._last = point, result
        elif operation in ACTIVATIONS and self._followed is not None:
            with self._pause():
                sums = channel_sums(result, self._dimension(result), self._keep(result))
                followed = self._followed
                self._include(followed, "after", sums)
                followed.after_inside = self._block() == followed.name.partition(":")[0]
        self._followed = None

    def _activation(self, x: Tensor, function: str) -> None:
        name = self._names[self._stack[-1]]
        point = self._numbered(name, "activation")
        point.function = function
        dim, keep = self._dimension(x), self._keep(x)
        self._add(point, channel_sums(x, dim, keep))
        signs = Signs.of(x, dim, keep, units=self.units)
        if point.signs is None:
            point.signs = signs
        elif point.signs.channels.shape == signs.channels.shape:  # or else left out, as its sums are
            point.signs.add(signs)
        if self._last is not None and same_memory(x, self._last[1]):
            self._followed, self._last = self._last[0], None

    # -- common

    def _block(self) -> str:
        """Return the name of the innermost module in progress that contains products, and is none itself."""
        inside = [m for m in self._stack if m in self._blocks and m not in self._products]
        return self._names[inside[-1]] if inside else ""

    def _numbered(self, name: str, kind: Kind) -> Point:
        """Return the point of a module's next operation of a kind in this forward."""
        self._calls[(name, kind)] += 1
        number = self._calls[(name, kind)]
        return self._point(name if number == 1 else f"{name}:{number}", kind)

    def _kind(self, module: nn.Module) -> Kind:
        """Return the kind of the point at a module's output."""
        if module in self._products:
            return "product"
        return "bias" if isinstance(module, HasDataBias) else "norm"

    def _point(self, name: str, kind: Kind) -> Point:
        return self.points.setdefault((name, kind), Point(name, kind))

    def _add(self, point: Point, sums: Tensor) -> None:
        point = self.points.setdefault((point.name, point.kind), point)
        self._include(point, "sums", sums)
        point.calls += 1

    def _include(self, point: Point, field: Literal["sums", "pair", "after", "centred"], sums: Tensor) -> None:
        """Add sums to those of a point; other channels than before have no place in them."""
        before = getattr(point, field)
        if before is None or before.shape == sums.shape:
            setattr(point, field, sums if before is None else before + sums)
        elif point.name not in self.varied:
            self.varied.append(point.name)

    def _dimension(self, *tensors: Tensor) -> int:
        """Return the dimension of the channels of tensors of one shape.

        It follows from what computed them, or else is that of the last product's output.
        """
        if tensors[0].ndim == 2:
            return 1
        found = (self._flow.dimension(tensor) for tensor in tensors)
        return next((dim for dim in found if dim is not None), self._channels)

    def _output_dimension(self, module: nn.Module, output: Tensor) -> int:
        """Return the dimension of the channels in the output of a product, norm or bias from data."""
        if output.ndim == 2 or isinstance(module, _CHANNELS_SECOND):
            return 1
        if isinstance(module, nn.Linear | nn.Embedding):
            return output.ndim - 1
        if (dim := self._flow.dimension(output)) is not None:
            return dim
        if isinstance(module, HasDataBias):
            return module.channel_dim % output.ndim
        # A weight (O, I, h, w) is that of a convolution, of whatever library.
        return 1 if any(p.ndim >= 4 for p in own_parameters(module).values()) else output.ndim - 1

    @staticmethod
    def _keep(x: Tensor) -> Tensor | None:
        positions = counted_positions()
        return None if positions is None else Positions(positions).of(x)

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Compute statistics that the hooks and the dispatch mode do not record."""
        self._paused = True
        try:
            with torch.no_grad():
                yield
        finally:
            self._paused = False

    @property
    def paused(self) -> bool:
        """Whether an operation is one of the recorder's own."""
        return self._paused


class _Watch(TorchDispatchMode):
    """The dispatch mode of a recorder, for one forward."""

    def __init__(self, recorder: Recorder, flow: Flow) -> None:
        super().__init__()
        self.recorder, self.flow = recorder, flow

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        if self.recorder.paused:
            return func(*args, **keywords)
        operation = func.overloadpacket
        point = self.recorder.before(operation, args, keywords)
        result = func(*args, **keywords)
        self.flow.record(operation, (args, keywords), result)
        self.recorder.after(operation, result, point)
        return result


Reduce = Callable[[Tensor], Tensor]


def gather(points: list[Point], reduce: Reduce | None) -> None:
    """Add up the sums of all points over processes in place, and move them to the CPU in one transfer.

    Signs of units are kept where all processes saw the same sizes.

    Args:
        points: points of the same net, the same on all processes.
        reduce: sum of a float64 tensor over processes; None for one process.

    Raises:
        UserError: the processes saw different layers, on all of them.
    """
    points = sorted(points, key=lambda point: (point.name, point.kind))  # the order of calls may differ
    if reduce is not None:
        _agree(points, reduce)
    fields = ("sums", "pair", "after", "centred")
    places = [(point, name) for point in points for name in fields if getattr(point, name) is not None]
    tensors = [getattr(point, name) for point, name in places]
    signs = [point.signs for point in points if point.signs is not None]
    tensors += [sign.channels for sign in signs] + [sign.units for sign in signs if sign.units is not None]
    if not tensors:
        return
    dtype = next(t.dtype for t in tensors if t.is_floating_point())
    flat = torch.cat([tensor.flatten().to(dtype) for tensor in tensors])
    flat = (flat if reduce is None else reduce(flat)).cpu()
    split = [part.view(t.shape) for part, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)]
    for (point, name), part in zip(places, split, strict=False):
        setattr(point, name, part)
    rest = iter(split[len(places) :])
    for sign in signs:
        sign.channels = next(rest) > 0
    for sign in signs:
        if sign.units is not None:
            sign.units = next(rest) > 0


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _agree(points: list[Point], reduce: Reduce) -> None:
    """Raise an error on all processes unless they have the same sums, and drop signs of units that they have not.

    Sums of other layers would be added up without a sign of it, or the processes would wait for each other for ever.
    """
    sums, units, device = [], [], torch.device("cpu")
    for point in points:
        tensors = [point.sums, point.pair, point.after, point.centred]
        if point.signs is not None:
            tensors.append(point.signs.channels)
            units.append(_shape(point.signs.units))
        device = next((tensor.device for tensor in tensors if tensor is not None), device)
        sums.append((point.name, point.kind, [_shape(tensor) for tensor in tensors]))
    # The bytes of a hash of each: their squares, added up over processes, are exact in float32 too.
    hashed = [byte for layout in (sums, units) for byte in zlib.crc32(repr(layout).encode()).to_bytes(4, "big")]
    numbers = [1, *hashed, *(byte * byte for byte in hashed)]
    count, *totals = reduce(torch.tensor(numbers, dtype=sum_dtype(device), device=device)).tolist()
    # Of n numbers, n times the sum of the squares is the square of the sum only if all are equal.
    pairs = zip(totals[: len(hashed)], totals[len(hashed) :], strict=True)
    equal = [count * squares == total * total for total, squares in pairs]
    if not all(equal[:4]):
        raise UserError(
            "diagnose: the processes saw different layers, or layers of different sizes, so their statistics do not "
            "add up; use batches that take the same way through the net on all processes, or one process"
        )
    if not all(equal[4:]):
        for point in points:
            if point.signs is not None:
                point.signs.units = None
