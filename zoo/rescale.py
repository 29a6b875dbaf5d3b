"""The method: coefficients, branch initialization and data-dependent calibration.

Shao, Hu, Wang, Xue, Raj, "Is normalization indispensable for training deep neural networks?",
NeurIPS 2020. Letters follow the paper: k counts residual branches through the whole net,
L is their number, c the constant of the decay (c = L unless said otherwise).
"""

from __future__ import annotations

import math
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
from zoo.layers import Calibrated, RescaledAdd


def coefficients(k: int, c: float) -> tuple[float, float]:
    """Weights (alpha_k, beta_k) of trunk and branch in the k-th rescaled residual connection.

    x_k = alpha_k x_{k-1} + beta_k F_k(x_{k-1}),  alpha_k = sqrt((k-1+c)/(k+c)),  beta_k = sqrt(1/(k+c))

    so that alpha_k^2 + beta_k^2 = 1 and every branch reaches the output with the same weight
    (paper, section 3.2). ``k = 0`` is accepted: the authors' code counts from there.

    Raises:
        ZooError: if k is negative, c is not positive, or k-1+c is negative.
    """
    if k < 0 or c <= 0 or k - 1 + c < 0:
        raise ZooError(f"coefficients(k={k}, c={c}): k must be >= 0, c > 0 and k - 1 + c >= 0")
    return math.sqrt((k - 1 + c) / (k + c)), math.sqrt(1 / (k + c))


def init_factor(k: int, c: float, layers: int) -> float:
    """Factor on the He standard deviation of each of a branch's ``layers`` linear layers.

    With the learnable multiplier the forward uses m_k/sqrt(c) instead of beta_k; the missing
    sqrt(c/(k+c)) goes into the weights, shared equally: ((k+c)/c)^(-1/(2n)) (paper, section 3.3).

    Raises:
        ZooError: if k is negative, c not positive or ``layers`` less than 1.
    """
    if k < 0 or c <= 0 or layers < 1:
        raise ZooError(f"init_factor(k={k}, c={c}, layers={layers}): k >= 0, c > 0 and layers >= 1 are needed")
    return ((k + c) / c) ** (-1 / (2 * layers))


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
def positions(keep: Tensor) -> Iterator[None]:
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
    names = {module: name for name, module in model.named_modules() if isinstance(module, Calibrated)}
    report = CalibrationReport(supplied=[n for m, n in names.items() if m.calibrated and not force])
    pending = {m for m in names if force or not m.calibrated}
    if not pending:
        return report
    current: dict[int, _Runner] = {}  # by thread id
    first_seen: dict[nn.Module, int] = {}  # layers calibrated before the first call of a layer, in this pass

    def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if layer not in pending:
            return
        assert isinstance(layer, Calibrated)
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
            assert isinstance(layer, Calibrated)
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


def branch_statistics(model: nn.Module) -> list[dict[str, Any]]:
    """For each residual block in order: its multiplier m_k and the Frobenius norms of its branch weights.

    Training makes m_k grow while weight decay shrinks the weights; the product of m_k and the
    norms tells whether the two cancel. ``m`` is None where the scheme has no multiplier.
    """
    rows: list[dict[str, Any]] = []
    for name, module in model.named_modules():
        branch = getattr(module, "branch_layers", None)
        if branch is None:
            continue
        join = module.join
        multiplier = join.multiplier if isinstance(join, RescaledAdd) else None
        norms = [float(torch.linalg.vector_norm(getattr(module, layer).weight.detach())) for layer in branch]
        m = None if multiplier is None else float(multiplier.detach())
        rows.append({"block": name, "m": m, "weight_norms": norms})
    return rows
