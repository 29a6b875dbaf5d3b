"""Biases initialised from data (paper, section 3.1): the layers that have them, and ``calibrate``."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ZooError


class HasDataBias(nn.Module):
    """Mixin of the layers that hold a bias initialised from data.

    ``calibrated`` is True once a checkpoint or ``zoo.calibrate`` has supplied that bias; the forward
    never reads it.
    """

    data_bias_name = "pre_bias"
    channel_dim = 1
    calibrated = False
    input_scale = 1.0  # the input is this times the nominal one, and so is the output (``RescaledAdd.hold``)

    @property
    def data_bias(self) -> nn.Parameter:
        """The (C,) parameter that calibration sets."""
        return getattr(self, self.data_bias_name)

    @property
    def data_bias_channels(self) -> int:
        """C."""
        return self.data_bias.numel()

    def calibration_input(self, x: Tensor) -> Tensor:
        """The tensor whose channel mean the bias removes, given the layer's input."""
        return x if self.input_scale == 1 else x / self.input_scale

    def calibration_sums(self, x: Tensor) -> Tensor:
        """What calibration adds up over inputs x: float64 sums, and last how many values each of them has.

        Raises:
            ZooError: x has a wrong number of channels.
        """
        x = self.calibration_input(x)
        dim = self.channel_dim % x.ndim
        if x.shape[dim] != self.data_bias_channels:
            raise ZooError(f"calibrate: an input has {x.shape[dim]} channels, the layer {self.data_bias_channels}")
        sums = x.sum(dim=[d for d in range(x.ndim) if d != dim], dtype=torch.float64)
        return torch.cat([sums, sums.new_tensor([x.numel() // x.shape[dim]])])

    def calibrate_(self, means: Tensor) -> None:
        """Initialise from the sums over their number."""
        self.data_bias.data.copy_(-means)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if prefix + self.data_bias_name in state_dict:
            self.calibrated = True
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@dataclass
class CalibrationReport:
    """What ``calibrate`` did, as qualified module names.

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


_POSITIONS: ContextVar[Tensor | None] = ContextVar("positions", default=None)


@contextmanager
def only_positions(keep: Tensor) -> Iterator[None]:
    """While it lasts, calibration looks at the positions of layers' inputs where ``keep`` (B, T) is True.

    Padding tells nothing of the data. Nothing but ``calibrate`` reads it.
    """
    token = _POSITIONS.set(keep)
    try:
        yield
    finally:
        _POSITIONS.reset(token)


class _Stopped(Exception):
    """Raised inside a batch's thread to end it after another one failed."""


class _Runner(threading.Thread):
    """One batch on its way through the net. Runs only while the main thread waits for it."""

    def __init__(self, forward: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._forward = forward
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._stop_requested = False
        self.at: tuple[nn.Module, Tensor] | None = None  # the layer it waits before, and its statistics
        self.sums: dict[nn.Module, Tensor] = {}  # of each layer's calls so far
        self.calls: Counter[nn.Module] = Counter()
        self.error: BaseException | None = None

    def run(self) -> None:
        self._go.acquire()
        try:
            with torch.no_grad():  # grad mode belongs to the thread
                if not self._stop_requested:
                    self._forward()
        except _Stopped:
            pass
        except BaseException as error:  # handed to the caller of calibrate
            self.error = error
        self.at = None
        self._back.release()

    def wait_before(self, layer: nn.Module, statistics: Tensor) -> None:
        """Called in the runner's thread by the hook: report and wait for the bias to be set."""
        self.at = (layer, statistics)
        self._back.release()
        self._go.acquire()
        if self._stop_requested:
            raise _Stopped

    def advance(self) -> None:
        """Called in the main thread: let the batch move to its next layer, or to the end."""
        self._go.release()
        self._back.acquire()
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        if self.is_alive():
            self._stop_requested = True
            self._go.release()
            self.join()


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
    force: bool = False,
) -> CalibrationReport:
    """Set every bias before a product to minus the channel mean of its input (and measure every ``InputGain``).

    All batches move through the net together, layer by layer in forward order: a layer's bias is
    set from the exact mean over all batches (and ranks) before any batch goes on, so that later
    layers see calibrated inputs. The model runs in eval mode (dropout off) without gradients and
    its mode is restored. A layer that a forward calls several times (how often, one more forward of the first batch
    tells) is set from all its calls, and the batches begin again behind it. Biases that a checkpoint supplied are
    kept. The activations of all batches at one depth are alive at once: 8 batches need about 8 times a forward's
    memory.

    Args:
        model: any module; its layers with data-initialised biases are found by type.
        batches: inputs of the model, at least one; ``forward(model, batch)`` (by default
            ``model(batch)``) is called once for each.
        forward: how to call the model on a batch.
        reduce: sums a float64 tensor over ranks (``accelerator.reduce``); called once a layer.
        force: also reset biases that a checkpoint supplied.

    Raises:
        ZooError: no batches, a wrong number of channels, a mean that is not finite, or batches that take
            different ways through the net.
    """
    batches = list(batches)
    if not batches:
        raise ZooError("calibrate needs at least one batch")
    names = {module: name for name, module in model.named_modules() if isinstance(module, HasDataBias)}
    report = CalibrationReport(supplied=[n for m, n in names.items() if m.calibrated and not force])
    pending = {m for m in names if force or not m.calibrated}
    if not pending:
        return report
    current: dict[int, _Runner] = {}  # by thread id
    first_seen: dict[nn.Module, int] = {}  # layers calibrated before the first call of a layer, in this pass

    def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if layer not in pending:
            return
        assert isinstance(layer, HasDataBias)
        runner = current[threading.get_ident()]
        first_seen.setdefault(layer, len(report.calibrated))
        x, keep = args[0], _POSITIONS.get()
        sums = layer.calibration_sums(x if keep is None else x[keep])
        runner.sums[layer] = runner.sums[layer] + sums if layer in runner.sums else sums
        runner.calls[layer] += 1
        if runner.calls[layer] >= calls[layer]:
            runner.wait_before(layer, runner.sums[layer])

    def start(batch: Any) -> _Runner:
        runner = _Runner(lambda: forward(model, batch) if forward else model(batch))
        runner.start()
        assert runner.ident is not None
        current[runner.ident] = runner
        return runner

    modes = {m: m.training for m in model.modules()}
    model.eval()
    handles: list[Any] = []
    runners: list[_Runner] = []
    try:
        calls = _count_calls(pending, lambda: forward(model, batches[0]) if forward else model(batches[0]))
        handles = [m.register_forward_pre_hook(hook) for m in pending]
        runners = [start(batch) for batch in batches]
        while True:
            for runner in runners:
                runner.advance()
            stops = [runner.at for runner in runners]
            if all(stop is None for stop in stops):
                break
            layers = {stop[0] if stop else None for stop in stops}
            if len(layers) != 1:
                where = sorted(names[m] if m is not None else "the end" for m in layers)  # type: ignore[index]
                raise ZooError(f"calibrate: batches take different ways through the net ({', '.join(where)})")
            (layer,) = layers
            assert isinstance(layer, HasDataBias)
            total = torch.stack([stop[1] for stop in stops if stop]).sum(0)
            if reduce is not None:
                total = reduce(total)
            mean = total[:-1] / total[-1]
            if not torch.isfinite(mean).all():
                raise ZooError(f"calibrate: the input of {names[layer]} has a mean that is not finite")
            layer.calibrate_(mean)
            layer.calibrated = True
            pending.discard(layer)
            if calls[layer] > 1:  # its earlier calls, and all that came of them, were made without its bias
                stale = set(report.calibrated[first_seen[layer] :])
                del report.calibrated[first_seen[layer] :]
                pending |= {m for m, name in names.items() if name in stale}
                first_seen.clear()
                for runner in runners:
                    runner.stop()
                runners = [start(batch) for batch in batches]
            report.calibrated.append(names[layer])
    finally:
        for runner in runners:
            runner.stop()
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    report.unreached = [names[m] for m in names if m in pending]
    return report


def _count_calls(layers: Collection[nn.Module], forward: Callable[[], Any]) -> Counter[nn.Module]:
    """How often one forward calls each of the layers."""
    calls: Counter[nn.Module] = Counter()
    handles = [m.register_forward_pre_hook(lambda layer, _: calls.update([layer])) for m in layers]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return calls
