"""Biases initialised from data (docs/method.md, M8): the layers that have them, and ``calibrate``, which sets them.

The order of this file: ``HasDataBias`` (the layers' side), ``only_positions`` (the positions that count),
``merge_batches``, ``CalibrationReport`` and ``calibrate`` (the users' side), and the passes over the data behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from zoo.arguments import flag, instance_of, shown
from zoo.errors import ZooError, one_line
from zoo.modules import evaluating, without_wrappers
from zoo.precision import lacks_float64, precise


class HasDataBias(nn.Module):
    """Mixin of the layers whose bias is initialised from data.

    ``calibrated`` is True once a checkpoint or ``zoo.calibrate`` has supplied that bias; the forward
    never reads it.
    """

    data_bias_name = "pre_bias"
    channel_dim = 1
    calibrated = False
    input_scale = 1.0  # ratio of the layer's input to the published net's, and of its output (``zoo.trunk``)

    @property
    def data_bias(self) -> nn.Parameter:
        """The (C,) parameter that calibration sets."""
        return getattr(self, self.data_bias_name)

    @property
    def data_bias_channels(self) -> int:
        """C."""
        return self.data_bias.numel()

    def calibration_input(self, x: Tensor) -> Tensor:
        """Return the tensor whose channel mean the bias removes, given the layer's input."""
        return x if self.input_scale == 1 else x / self.input_scale

    def calibration_sums(self, x: Tensor) -> Tensor:
        """Return what calibration adds up over inputs: (C + 1,) float64, the channel sums and last the values in each.

        Raises:
            ZooError: x has a wrong number of channels.
        """
        x = self.calibration_input(x)
        dim = self.channel_dim % x.ndim
        if x.shape[dim] != self.data_bias_channels:
            raise ZooError(f"calibrate: an input has {x.shape[dim]} channels, the layer {self.data_bias_channels}")
        sums = x.sum(dim=[d for d in range(x.ndim) if d != dim], dtype=sum_dtype(x.device))
        return with_count(sums, x.numel() // x.shape[dim])

    def calibrate_(self, means: Tensor) -> None:
        """Set the bias from the sums over their number."""
        self.data_bias.data.copy_(-means)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if prefix + self.data_bias_name in state_dict:
            self.calibrated = True
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the type in which a device adds up one call's input: float64, or float32 if it has no other."""
    return torch.float32 if lacks_float64(device) else torch.float64


def with_count(sums: Tensor, count: int) -> Tensor:
    """Return (C,) sums and their count as one (C + 1,) float64 tensor, on the CPU if their device has no float64."""
    sums = precise(sums)
    return torch.cat([sums, sums.new_tensor([count])])


_POSITIONS: ContextVar[Tensor | None] = ContextVar("positions", default=None)


@contextmanager
def only_positions(keep: Tensor) -> Iterator[None]:
    """Restrict calibration, inside the ``with`` block, to the positions of layers' inputs where ``keep`` is True.

    The Transformer excludes padding with it. ``calibrate`` and ``tasks.diagnose`` read it (``counted_positions``).

    Args:
        keep: (B, T) boolean, for inputs (B, T, C).
    """
    token = _POSITIONS.set(keep)
    try:
        yield
    finally:
        _POSITIONS.reset(token)


def counted_positions() -> Tensor | None:
    """Return the mask of ``only_positions``, (B, T); None outside of its ``with`` block."""
    return _POSITIONS.get()


def list_of_batches(batches: Iterable[Any], name: str, *, tensors: bool = True) -> list[Any]:
    """Return batches as a list.

    Args:
        batches: batches that were given.
        name: name of the function, for the message.
        tensors: whether each batch must have a tensor.

    Raises:
        ZooError: one tensor, whose samples would be taken for batches, nothing to iterate over, or a batch without a
            tensor.
    """
    if isinstance(batches, Tensor | str | bytes | Mapping) or not isinstance(batches, Iterable):
        raise ZooError(f"{name}: batches is a {type(batches).__name__}: must be a list of batches, such as [images]")
    batches = list(batches)
    for batch in batches if tensors else ():
        if not any(isinstance(leaf, Tensor) for leaf in tree_flatten(batch)[0]):
            raise ZooError(f"{name}: a batch is a {type(batch).__name__}: must be a tensor or contain tensors")
    return batches


def merge_batches(batches: Iterable[Any]) -> list[Any]:
    """Concatenate batches into one: a list of one batch, or of the batches as they are if they cannot be merged.

    A batch is a tensor or a nest of tuples, named tuples, lists and dicts of tensors. Dimension 0 of every tensor must
    count the samples: a detector's list of pictures (C, H, W) is not such a batch. Batches are merged if they have one
    structure, corresponding tensors have the same trailing sizes, dtype and device, and the tensors of a batch have the
    same size in dimension 0. Batches that contain anything else (numbers, strings, None) are not merged.
    """
    batches = list(batches)
    if len(batches) < 2:
        return batches
    leaves, structures = zip(*(tree_flatten(batch) for batch in batches), strict=True)
    for batch in leaves:
        sizes = {len(leaf) if isinstance(leaf, Tensor) and leaf.ndim > 0 else None for leaf in batch}
        if len(sizes) != 1 or None in sizes:
            return batches
    kinds = [[(leaf.shape[1:], leaf.dtype, leaf.device) for leaf in batch] for batch in leaves]
    if any(structure != structures[0] for structure in structures) or any(kind != kinds[0] for kind in kinds):
        return batches
    return [tree_unflatten([torch.cat(parts) for parts in zip(*leaves, strict=True)], structures[0])]


@dataclass
class CalibrationReport:
    """Result of ``calibrate``, as qualified module names.

    Attributes:
        calibrated: layers whose bias was set from the data, in forward order.
        supplied: layers left alone because a checkpoint (or an earlier calibration) supplied the bias.
        unreached: layers that the forward never called; their bias is unchanged.
    """

    calibrated: list[str] = field(default_factory=list)
    supplied: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{len(self.calibrated)} biases initialised from data, {len(self.supplied)} kept from a checkpoint, "
            f"{len(self.unreached)} not reached"
        )


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
    force: bool = False,
) -> CalibrationReport:
    """Set every bias before a product to minus the channel mean of its input (and measure every ``InputGain``).

    A layer's bias is set from the exact mean over all batches (and ranks) before any later layer's, so that later
    layers see calibrated inputs. How that is done depends on the number of batches::

        one batch:        count the calls of each layer in one forward
                          forward: at a layer's last call set its bias, then continue
                          after a layer with several calls: start the forward again, for what came of its earlier calls
        several batches:  until all biases are set:
                              forward of each batch as far as the next layer's last call; add its sums up
                              set its bias

    One batch takes two forwards, and one more for each layer with several calls. Several batches take about (layers x
    batches) half forwards. ``merge_batches`` makes one batch of several; that is done here for plain tensors of equal
    trailing sizes without ``forward``, which assumes that the net treats samples independently in eval mode.
    A forward's activations of one batch at one depth are alive: for a merged batch, those of all samples.

    A layer with several calls per forward (a head shared by pyramid levels) is set from all its calls. Those were made
    with its initial bias, so the layers set in between are calibrated again.

    The forward runs repeatedly, in eval mode (dropout off), without gradients, on the inputs' device, and in the
    caller's autocast context: call ``calibrate`` under ``torch.autocast`` to calibrate in the precision of a run. Sums
    are float64. Training modes are restored. Biases that a checkpoint supplied are kept.

    Args:
        model: any module; its layers with data-initialised biases are found by type.
        batches: inputs of the model, at least one.
        forward: function that runs the model on a batch; by default ``model(batch)``, without wrappers of torch. It
            must do the same each time. For batches of images and labels: ``lambda model, batch: model(batch[0])``.
        reduce: sum of a float64 tensor over ranks (``accelerator.reduce``), called each time a layer is set.
        force: whether to reset biases that a checkpoint supplied, too.

    Raises:
        ZooError: no batches, a wrong number of channels, a mean that is not finite, or batches that take
            different ways through the net.
    """
    # one batch if possible: it takes the fewest forwards
    instance_of(model, "calibrate")
    force = flag(force, "force")
    for name, function in {"forward": forward, "reduce": reduce}.items():
        if function is not None and not callable(function):
            raise ZooError(f"calibrate: {name}={shown(function)}: must be a function")
    batches = list_of_batches(batches, "calibrate", tensors=forward is None)
    if not batches:
        raise ZooError("calibrate: no batches; give at least one")
    if forward is None:
        model = without_wrappers(model)  # of torch.compile, which would compile the net again with each hook
    if forward is None and all(isinstance(batch, Tensor) for batch in batches):
        batches = merge_batches(batches)
    # the layers to set, and those that keep the bias of a checkpoint
    names = {module: name for name, module in model.named_modules() if isinstance(module, HasDataBias)}
    pending = {m for m in names if force or not m.calibrated}
    supplied = [name for m, name in names.items() if m not in pending]
    passes = _Passes(names, pending, lambda batch: (forward or _run)(model, batch), reduce)
    # the forwards, in eval mode
    with evaluating(model), torch.no_grad():
        passes.run(batches)
    return CalibrationReport([names[m] for m in passes.done], supplied, [names[m] for m in names if m in pending])


def _run(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch.

    Raises:
        ZooError: a batch that is no tensor and that the model does not take, as images with their labels.
    """
    try:
        return model(batch)
    except (TypeError, AttributeError) as error:
        if isinstance(batch, Tensor):
            raise
        raise ZooError(
            f"calibrate: the model does not take a batch of type {type(batch).__name__} ({one_line(error)[:80]}); give "
            "its inputs alone, or forward=lambda model, batch: model(batch[0])"
        ) from error


class _Stop(BaseException):
    """Ends a forward at the last call of a layer. No Exception: ``except Exception`` in a net must not swallow it."""

    def __init__(self, layer: HasDataBias, sums: Tensor) -> None:
        self.layer, self.sums = layer, sums


@dataclass
class _Passes:
    """The forwards of one ``calibrate``.

    Attributes:
        names: qualified names of the layers.
        pending: layers whose bias is to be set.
        forward: function that runs a batch.
        reduce: sum over ranks.
        done: layers whose bias was set, in order.
        before: length of ``done`` at a layer's first call; forgotten when a layer with several calls was set.
    """

    names: dict[HasDataBias, str]
    pending: set[HasDataBias]
    forward: Callable[[Any], Any]
    reduce: Callable[[Tensor], Tensor] | None
    done: list[HasDataBias] = field(default_factory=list)
    before: dict[HasDataBias, int] = field(default_factory=dict)

    def run(self, batches: list[Any]) -> None:
        """Set the bias of every pending layer that the batches reach."""
        if not self.pending:
            return
        counts = [self.count(batch) for batch in batches]
        while self.pending:
            # run every batch to the next layer's last call
            stops = [self.advance(*pair, alone=len(batches) == 1) for pair in zip(batches, counts, strict=True)]
            layers = {stop.layer if stop else None for stop in stops}
            if len(layers) > 1:
                where = sorted(self.names[layer] if layer else "the end" for layer in layers)
                raise ZooError(f"calibrate: batches take different ways through the net ({', '.join(where)})")
            (layer,) = layers
            if layer is None:  # the end: no forward reaches the layers that are still pending
                return
            sums = torch.stack([stop.sums for stop in stops if stop]).sum(0)
            self.set_bias(layer, sums, max(calls[layer] for calls in counts))

    def count(self, batch: Any) -> Counter[HasDataBias]:
        """Return how often a forward of a batch calls each layer, so that its last call can be recognized."""
        calls: Counter[HasDataBias] = Counter()
        self.watch(batch, lambda layer, number, sums: calls.update([layer]))
        return calls

    def advance(self, batch: Any, calls: Counter[HasDataBias], alone: bool) -> _Stop | None:
        """Run a batch to the last call of a pending layer, or to the end (None).

        A batch that is alone continues with the new bias if that call is the only one.
        """

        def at_call(layer: HasDataBias, number: int, sums: Tensor) -> None:
            self.before.setdefault(layer, len(self.done))
            if number < calls[layer]:
                return
            if not alone or number > 1:
                raise _Stop(layer, sums)
            self.set_bias(layer, sums, number)

        return self.watch(batch, at_call)

    def watch(self, batch: Any, at_call: Callable[[HasDataBias, int, Tensor], None]) -> _Stop | None:
        """Run a batch with ``at_call(layer, number, sums)`` before each call of a pending layer.

        ``number`` counts the layer's calls in this forward from 1, ``sums`` is the total over them.
        """
        numbers: Counter[HasDataBias] = Counter()
        totals: dict[HasDataBias, Tensor] = {}

        def hook(layer: Any, args: tuple[Any, ...]) -> None:
            if layer in self.pending:
                x, keep = args[0], counted_positions()
                sums = layer.calibration_sums(x if keep is None else x[keep])
                numbers[layer] += 1
                totals[layer] = totals[layer] + sums if layer in totals else sums
                at_call(layer, numbers[layer], totals[layer])

        handles = [layer.register_forward_pre_hook(hook) for layer in self.pending]
        try:
            self.forward(batch)
        except _Stop as stop:
            return stop.with_traceback(None)  # the traceback's frames keep the batch's activations alive
        finally:
            for handle in handles:
                handle.remove()
        return None

    def set_bias(self, layer: HasDataBias, sums: Tensor, calls: int) -> None:
        """Set a layer's bias from its sums on this rank.

        Raises:
            ZooError: the mean is not finite.
        """
        total = sums if self.reduce is None else self.reduce(sums)
        mean = total[:-1] / total[-1]
        if not torch.isfinite(mean).all():
            raise ZooError(f"calibrate: the input of {self.names[layer]} has a mean that is not finite")
        layer.calibrate_(mean)
        layer.calibrated = True
        torch.clear_autocast_cache()  # autocast keeps copies of parameters in its dtype, also of the old bias
        self.pending.discard(layer)
        if calls > 1:  # the inputs of the layers set since its first call lacked its bias
            start = self.before[layer]
            self.pending.update(self.done[start:])
            del self.done[start:]
            self.before.clear()
        self.done.append(layer)
