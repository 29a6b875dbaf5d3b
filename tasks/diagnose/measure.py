"""The signals in a net: statistics of forwards, gradients of the loss, and the size of an optimizer step."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from tasks.diagnose.moments import ChannelStatistics, PairStatistics
from tasks.diagnose.recorder import Point, Recorder, Reduce, gather, own_parameters
from tasks.diagnose.signals import Activation, Input, Layer, Signals, Sum
from tasks.diagnose.theory import expected_powers, growth_of, scheme_of
from tasks.errors import UserError
from tasks.printing import listed
from zoo.baseline_layers import StandardizedConvNd
from zoo.calibration import HasDataBias, sum_dtype
from zoo.errors import ZooError
from zoo.modules import evaluating, without_wrappers
from zoo.nets.base import Net
from zoo.products import per_filter
from zoo.trunk import TrunkBlock

Forward = Callable[[nn.Module, Any], object]
Loss = Callable[[nn.Module, Any], Tensor]
Step = Callable[[nn.Module], None]


@contextmanager
def as_in_training(model: nn.Module) -> Iterator[None]:
    """Run a net as in training, but without dropout and noise, and leave no trace of it.

    BatchNorm takes the statistics of the batch, as nothing else describes a net at init, but where it is frozen. Inside
    of the ``with`` block its running statistics change; after it they, the modes of the modules and the random state
    are as before.
    """
    norms = _trained_norms(model)
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with evaluating(model), torch.random.fork_rng(list(devices)):
        for norm in norms:
            norm.training = True
        try:
            yield
        finally:
            with torch.no_grad():
                for module, name, buffer, values in buffers:
                    module._buffers[name] = buffer  # the forward may have put another in its place
                    if buffer is not None and values is not None:
                        buffer.copy_(values)


def _trained_norms(model: nn.Module) -> list[nn.Module]:
    """Return the BatchNorms that take the statistics of the batch in training.

    In a net in training mode they are those in that mode, in one in evaluation mode all that are not frozen.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if model.training:
        return [norm for norm in norms if norm.training]
    nets = [module for module in model.modules() if isinstance(module, Net)]
    frozen = {inside for net in nets for module in net.frozen for inside in module.modules()}
    return [norm for norm in norms if norm not in frozen]


@contextmanager
def keeping_norms(model: nn.Module, mode: AbstractContextManager[None]) -> Iterator[None]:
    """Enter a mode of a net in which the BatchNorms that are in training mode now stay so.

    Args:
        model: net.
        mode: context that sets the modes of its modules, such as ``Task.loss_mode``.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    with mode:
        for norm in norms:
            norm.training = True
        yield


def diagnose(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    loss: Loss | None = None,
    step: Step | None = None,
    reduce: Reduce | None = None,
    loss_scale: float = 1.0,
    units: bool = True,
    label: str = "",
    source: str = "",
    expected_power: float = 1.0,
    trained: bool = False,
    real_inputs: bool = True,
) -> Signals:
    """Return the signals in any net: of this zoo, of torchvision and timm, or a module of your own.

    The net, its outputs and its training stay as they are. The memory needed does not grow with the number of batches.

    >>> import torch, zoo
    >>> _ = torch.manual_seed(0)
    >>> net, images = zoo.create_model("rescalenet20_cifar"), torch.randn(16, 3, 32, 32)
    >>> _ = zoo.calibrate(net, [images])
    >>> signals = diagnose(net, [images])
    >>> [f"{each.name} {each.growth:.2f}" for each in signals.sums[1:3]]
    ['layer1.1 0.9...', 'layer1.2 0.9...']

    Args:
        model: net on its device.
        batches: inputs of the net, or what ``forward`` and ``loss`` take; read once, one at a time.
        forward: function that runs the net on a batch; by default ``loss``, or without one ``model(batch)``.
        loss: function that returns the loss of a batch, a 0-D tensor, for the norms of gradients; None: they are left
            out.
        step: function that makes one optimizer step of the net that it is given, a copy with gradients; None: the
            ratios of updates to weights are left out.
        reduce: sum of a float64 tensor over processes; None for one process.
        loss_scale: factor of the loss before its gradients, which are divided by it: small ones are 0 in float16.
        units: whether the signs of each unit are counted, which takes two bytes for each unit of the net.
        label: name in tables and legends.
        source: description of the inputs.
        expected_power: E[x^2] of inputs that are standardised as the net requires; NaN if that is not known.
        trained: whether the weights come from a training.
        real_inputs: whether the inputs are such as the net is made for, not noise.

    Raises:
        UserError: no batches, a net in which nothing was seen, or a loss that is not finite in its form.
    """
    # 1. Statistics of forwards, and the gradient of the loss.
    model = without_wrappers(model)
    recorder, samples = Recorder(model, units=units), 0
    gradients = None if loss is None else Gradients(model, loss_scale)
    with as_in_training(model):
        for batch in batches:
            samples += _length(batch)
            if loss is None or forward is not None:
                with recorder.recording():
                    (forward or _call)(model, batch)
            if loss is not None:
                assert gradients is not None
                # Without a forward of its own, the loss's is recorded.
                with nullcontext() if forward is not None else recorder.recording(gradients=True):
                    value = loss(model, batch)
                gradients.add(value)
    idle = int(not recorder.forwards)
    if idle if reduce is None else _total(idle, reduce, model):  # of any process, so that all of them stop
        raise UserError("diagnose: no batches; give at least one to each process")
    # 2. Norms of the parameters, of their gradients and of an update.
    numbers = ParameterNumbers(model)
    if gradients is not None:
        gradients.finish(reduce)
        numbers.gradient_norms = norms(gradients.sums)
        if step is not None:
            numbers.update_ratios = first_update(model, gradients.sums, step)
    # 3. The rows.
    found = read(recorder, numbers, reduce)
    return dataclasses.replace(
        found,
        label=label or found.model,
        source=source,
        samples=samples if reduce is None else _total(samples, reduce, model),
        input=None if found.input is None else dataclasses.replace(found.input, expected=expected_power),
        loss=math.nan if gradients is None else gradients.loss,
        notes=(*found.notes, *_notes(gradients, trained=trained, real_inputs=real_inputs)),
        trained=trained,
        real_inputs=real_inputs,
    )


def _total(count: int, reduce: Reduce, model: nn.Module) -> int:
    """Return the sum of the counts of all processes."""
    device = next(model.parameters()).device
    return round(float(reduce(torch.tensor([count], dtype=sum_dtype(device), device=device))))


def read(recorder: Recorder, numbers: ParameterNumbers, reduce: Reduce | None = None) -> Signals:
    """Return what a recorder has seen, with the numbers of the parameters; no label and no loss.

    Raises:
        UserError: no layer with weights was called.
    """
    model = recorder.model
    gather(list(recorder.points.values()), reduce)
    # A place that was passed without samples has no statistics, such as a mask head where no object was found.
    empty = [key for key, point in recorder.points.items() if point.sums is not None and not point.sums[-1].any()]
    for key in empty:
        del recorder.points[key]
    points = list(recorder.points.values())
    if not any(point.kind == "product" for point in points):
        raise UserError(f"diagnose: the forward of {type(model).__name__} called no layer with weights")
    scales = _Scales(model)
    scheme = scheme_of(model)
    return Signals(
        label="",
        model=getattr(getattr(model, "config", None), "name", type(model).__name__),
        scheme="" if scheme is None else scheme.name,
        source="",
        samples=0,
        input=_input(points),
        layers=tuple(layer_rows(points, scales, numbers)),
        sums=tuple(sum_rows(points, scales, model)),
        activations=tuple(activation_rows(points, scales)),
        unreached=tuple(recorder.unreached),
        notes=(f"only the first number of channels counts at {listed(recorder.varied, 3)}",) if recorder.varied else (),
        multiplier_init=1.0 if scheme is None else scheme.multiplier_init,
    )


def _notes(gradients: Gradients | None, *, trained: bool, real_inputs: bool) -> Iterator[str]:
    if gradients is None:
        yield "no loss: gradients and updates were not computed"
    elif not gradients.parameters:
        yield "all parameters are frozen: there are no gradients and no updates"
    if trained and not real_inputs:
        yield "the weights were trained on other inputs than noise: dead channels are not judged"


def _call(model: nn.Module, batch: Any) -> object:
    return model(batch)


def _length(batch: Any) -> int:
    """Return the number of samples of a batch: the length of its first tensor or list, or of a list of images."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    if isinstance(batch, dict):
        return max(map(_length, batch.values()), default=0)
    if isinstance(batch, list | tuple) and batch:
        # Images (C, H, W) are one sample each. Collated batches are lists too, of tensors with a dimension for samples.
        images = isinstance(batch, list) and all(isinstance(x, Tensor) and x.ndim == 3 for x in batch)
        return len(batch) if images else _length(batch[0])
    return 1


# -- parameters and gradients ---------------------------------------------------------------------------


class Gradients:
    """The mean over batches of the loss's gradient, beside the net's own ``grad``.

    Args:
        model: net.
        scale: factor of the loss, by which its gradients are divided at the end.
    """

    def __init__(self, model: nn.Module, scale: float = 1.0) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.scale = scale
        self.device = next(model.parameters()).device
        self.sums: dict[str, Tensor] = {}
        self.loss, self.batches = 0.0, 0
        self._total: Tensor | None = None

    def add(self, loss: Tensor) -> None:
        """Add the gradient of a batch's loss, a 0-D tensor."""
        if self.parameters:
            found = torch.autograd.grad(loss * self.scale, list(self.parameters.values()), allow_unused=True)
            for name, gradient in zip(self.parameters, found, strict=True):
                if gradient is not None:
                    self.sums[name] = self.sums[name] + gradient if name in self.sums else gradient
        value = loss.detach().double().cpu()
        self._total = value if self._total is None else self._total + value
        self.batches += 1

    def finish(self, reduce: Reduce | None = None) -> None:
        """Divide by the number of batches of all processes."""
        assert self._total is not None
        count = torch.tensor([float(self.batches), float(self._total)], dtype=torch.float64)
        if reduce is not None:
            # A parameter that this process has not used may have been used by others.
            used = [float(name in self.sums) for name in self.parameters]
            flat = torch.tensor([*count.tolist(), *used], dtype=sum_dtype(self.device), device=self.device)
            count, by = reduce(flat).cpu().split([2, len(used)])
            own = {name: self.sums.get(name) for name, users in zip(self.parameters, by.tolist(), strict=True) if users}
            self.sums = {
                name: reduce(torch.zeros_like(self.parameters[name]) if gradient is None else gradient)
                for name, gradient in own.items()
            }
        self.sums = {name: gradient / (float(count[0]) * self.scale) for name, gradient in self.sums.items()}
        self.loss = float(count[1] / count[0])


class ParameterNumbers:
    """Norms of the weights, gradients and updates of each module's own parameters.

    Args:
        model: net.

    Attributes:
        gradient_norms: norm of the gradient by name of the parameter.
        update_ratios: norm of a step over the norm of the parameter, by name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.gradient_norms: dict[str, float] = {}
        self.update_ratios: dict[str, float] = {}

    def gradient_norm(self, module: str) -> float:
        """Return the norm of the gradient with respect to all parameters of a module's own; NaN without one."""
        own = [self.gradient_norms[name] for name in self._own(module) if name in self.gradient_norms]
        return math.hypot(*own) if own else math.nan

    def update_ratio(self, module: str) -> float:
        """Return the ratio of the update of a product's weight; NaN without one."""
        return self.update_ratios.get(main_parameter(self._own(module)), math.nan)

    def _own(self, module: str) -> dict[str, nn.Parameter]:
        prefix = f"{module}." if module else ""
        return {prefix + name: parameter for name, parameter in own_parameters(self.modules[module]).items()}


def norms(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the norm of each tensor, with one transfer from the device."""
    found = [torch.linalg.vector_norm(tensor.detach(), dtype=sum_dtype(tensor.device)) for tensor in tensors.values()]
    return dict(zip(tensors, torch.stack(found).tolist(), strict=True)) if found else {}


def relative_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """Return ||after - before|| / ||before|| of each tensor; NaN if that is 0 / 0."""
    sizes = norms(before)
    changes = norms({name: after[name].detach() - tensor for name, tensor in before.items()})
    return {name: changes[name] / size if size > 0 else math.nan for name, size in sizes.items()}


def first_update(model: nn.Module, gradients: dict[str, Tensor], step: Step) -> dict[str, float]:
    """Return the ratios of the first step of an optimizer to the weights; the step is made on a copy of the net."""
    copied = copy.deepcopy(model)
    for name, parameter in copied.named_parameters():
        parameter.grad = gradients[name].to(parameter) if name in gradients else None
    step(copied)
    after = dict(copied.named_parameters())
    before = {name: p.detach() for name, p in model.named_parameters() if name in gradients and p.ndim >= 2}
    return relative_changes(before, after)


def main_parameter(own: Mapping[str, nn.Parameter]) -> str:
    """Return the name of the largest of a layer's parameters with two dimensions or more; empty without one."""
    weights = {name: parameter.numel() for name, parameter in own.items() if parameter.ndim >= 2}
    return max(weights, key=lambda name: weights[name], default="")


def main_weight(module: nn.Module) -> Tensor | None:
    """Return the weight of a product; one that ``torch.nn.utils.parametrize`` computes is computed."""
    if parametrize.is_parametrized(module, "weight"):
        with torch.no_grad(), evaluating(module):  # a spectral norm makes an iteration in training mode
            return module.weight  # type: ignore[return-value]
    own = own_parameters(module)
    return own.get(main_parameter(own))


# -- rows -----------------------------------------------------------------------------------------------


class _Scales:
    """The scales at which the nets of this zoo inside of a module store their trunks (docs/method.md, M10)."""

    def __init__(self, model: nn.Module) -> None:
        self.nets = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, Net) and hasattr(module, "trunk_scales") and not module.folded
        }
        self.rows = {
            self._inside(name, row.module): row for name, net in self.nets.items() for row in net.trunk_scales.rows
        }

    @staticmethod
    def _inside(net: str, module: str) -> str:
        return f"{net}.{module}" if net else module

    def output(self, place: str) -> float:
        """Return the scale of a module's output."""
        module = place.partition(":")[0]
        for name, net in self.nets.items():
            inside = module if not name else module.removeprefix(f"{name}.")
            if name and inside == module:
                continue
            try:
                return net.trunk_scales.output_scale(net, inside)
            except ZooError:  # inside of a block where several scales meet
                return 1.0
        return 1.0

    def block(self, place: str) -> tuple[float, float]:
        """Return the scales before and after a block."""
        row = self.rows.get(place.partition(":")[0])
        return (1.0, 1.0) if row is None else (row.scale_in, row.scale_out)


def _input(points: list[Point]) -> Input | None:
    point = next((point for point in points if point.kind == "input"), None)
    if point is None or point.sums is None:
        return None
    total, squares, count = (float(row.sum()) for row in point.sums)
    mean = total / count
    return Input(mean=mean, std=math.sqrt(max(squares / count - mean**2, 0.0)))


def layer_rows(points: list[Point], scales: _Scales, parameters: ParameterNumbers) -> Iterator[Layer]:
    """Yield the rows of the products, norms and biases from data."""
    for point in points:
        if point.kind not in ("product", "norm", "bias") or point.sums is None:
            continue
        module = parameters.modules[point.name]
        statistics = ChannelStatistics.of(point.sums, scales.output(point.name))
        weight = main_weight(module)
        row = Layer(
            name=point.name,
            kind=point.kind,
            channels=point.sums.shape[1],
            power=statistics.power,
            mean_power=statistics.mean_power,
            variance=statistics.mean_variance,
            channel_means=tuple(statistics.mean.tolist()),
            channel_variances=tuple(statistics.variance.tolist()),
            gradient_norm=parameters.gradient_norm(point.name),
            update_ratio=parameters.update_ratio(point.name),
        )
        if weight is not None and point.kind == "product":
            row = _with(row, weight_numbers(module, weight))
        if isinstance(module, HasDataBias) and point.centred is not None:
            row = _with(row, bias_numbers(module, point.centred))
        yield row


def _with(layer: Layer, numbers: dict[str, Any]) -> Layer:
    return dataclasses.replace(layer, **numbers)


def weight_numbers(module: nn.Module, weight: Tensor) -> dict[str, float]:
    """Return norm and gain of a product's weight."""
    norm = float(torch.linalg.vector_norm(weight.detach(), dtype=sum_dtype(weight.device)))
    if isinstance(module, nn.Embedding):
        return {"weight_norm": norm}
    if isinstance(module, StandardizedConvNd):  # whose product does not use the scale of its weight
        with torch.no_grad():
            weight = module.kernel()
    elif getattr(module, "weight_scale", None) is not None:  # of a net that was converted from BatchNorm
        weight = weight * per_filter(module.weight_scale, weight)  # type: ignore[arg-type]
    used = float(torch.linalg.vector_norm(weight.detach(), dtype=sum_dtype(weight.device)))
    # the weights of transposed convolutions are (I, O / groups, ...)
    outputs = module.out_channels if isinstance(module, nn.modules.conv._ConvTransposeNd) else len(weight)
    return {"weight_norm": norm, "weight_gain": used / math.sqrt(outputs)}


def bias_numbers(module: HasDataBias, centred: Tensor) -> dict[str, Any]:
    """Return norm and offset of a bias that data initialises, from ``channel_sums`` of what it centres."""
    bias = module.data_bias.detach().double().cpu().flatten()
    statistics = ChannelStatistics.of(centred)
    norm = float(torch.linalg.vector_norm(bias))
    channels = len(statistics.mean)
    if len(bias) % channels or not statistics.mean_variance > 0:  # a gain, or an input that is constant
        return {"bias_norm": norm} if len(bias) > 1 else {}
    offset = (statistics.mean + bias.view(-1, channels)).square().mean().sqrt()
    second = module.data_bias_name != "bias" and getattr(module, "bias", None) is not None
    deviation = math.sqrt(statistics.mean_variance)
    return {"bias_norm": norm, "bias_offset": float(offset) / deviation, "post_bias": second}


def activation_rows(points: list[Point], scales: _Scales) -> Iterator[Activation]:
    """Yield the rows of the activations."""
    for point in points:
        if point.kind != "activation" or point.sums is None or point.signs is None:
            continue
        positive, other = point.signs.channels
        row = Activation(
            name=point.name,
            function=point.function,
            power=ChannelStatistics.of(point.sums, scales.output(point.name)).power,
            channels=len(positive),
            positive=int((~other).sum()),
            negative=int((~positive).sum()),
        )
        if point.signs.units is not None:
            positive, other = point.signs.units
            row = dataclasses.replace(
                row,
                units=positive.numel(),
                positive_units=int((~other).sum()),
                negative_units=int((~positive).sum()),
            )
        yield row


def sum_rows(points: list[Point], scales: _Scales, model: nn.Module) -> list[Sum]:
    """Return the rows of the residual connections, in chains."""
    multipliers = {name: _multiplier(block) for name, block in _blocks(model)}
    found = [point for point in points if point.kind == "sum" and point.pair is not None and point.sums is not None]
    if multipliers:  # a pyramid around a net of this zoo adds maps of two levels, which are no branches
        found = [point for point in found if point.name.partition(":")[0] in multipliers]
    inputs = [_trunk_input(point) for point in found]
    results = [_power(point.sums) for point in found]
    activated = [None if point.after is None else _power(point.after) for point in found]
    # A sum follows the one before if it reads its result, or that behind an activation, at an identity shortcut.
    follows = [
        number > 0 and point.identity and _equal(inputs[number], results[number - 1], activated[number - 1])
        for number, point in enumerate(found)
    ]
    behind = [_equal(inputs[i], activated[i - 1]) for i, link in enumerate(follows) if link]
    # Of the last sum of a chain no shortcut shows which one is x_k. The other chains do, or where the activation is.
    shown = behind or [point.after_inside for point in found if point.after is not None]
    takes_activated = sum(shown) * 2 >= len(shown)
    rows: list[Sum] = []
    chain = -1
    for number, point in enumerate(found):
        chain += not follows[number]
        linked = number + 1 < len(found) and follows[number + 1]
        after = activated[number]
        use_after = _equal(inputs[number + 1], after) if linked else takes_activated
        power = after if after is not None and use_after else results[number]
        scale_in, scale_out = scales.block(point.name)
        assert point.pair is not None
        pair = PairStatistics.of(point.pair)
        multiplier = multipliers.get(point.name.partition(":")[0])
        rows.append(
            Sum(
                name=point.name,
                identity=point.identity,
                chain=chain,
                trunk_power=pair.power_x / scale_out**2,
                branch_power=pair.power_y / scale_out**2,
                power=power / scale_out**2,
                previous=inputs[number] / scale_in**2 if point.identity else math.nan,
                cosine=pair.cosine,
                correlation=pair.correlation,
                multiplier=math.nan if multiplier is None else multiplier,
            )
        )
    return with_theory(rows, model)


def _multiplier(block: TrunkBlock) -> float | None:
    """Return the multiplier of a block: of one for each channel the one with the largest absolute value."""
    found = block.join.statistics()
    values = [value for key in ("m_min", "m_max") if (value := found.get(key)) is not None]
    return max(values, key=abs) if values else found.get("m")


def _blocks(model: nn.Module) -> list[tuple[str, TrunkBlock]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, TrunkBlock)]


def _power(sums: Tensor | None) -> float:
    assert sums is not None
    return float(sums[1].sum() / sums[2].sum())


def _trunk_input(point: Point) -> float:
    """Return E[x^2] of the trunk as the sum read it, before its weight."""
    assert point.pair is not None
    return float(point.pair[2].sum() / point.pair[5].sum()) / point.trunk_weight**2


def _equal(x: float, *others: float | None) -> bool:
    """Return whether a number equals one of others, which are sums of the same values in another order."""
    return any(other is not None and math.isclose(x, other, rel_tol=1e-6) for other in others)


def with_theory(rows: list[Sum], model: nn.Module) -> list[Sum]:
    """Return the rows with E[x^2] by the theory, which begins at the first measured value of each chain."""
    growth = growth_of(model)
    result: list[Sum] = []
    for chain in sorted({row.chain for row in rows}):
        own = [row for row in rows if row.chain == chain]
        projected = [] if own[0].identity else [own[0]]
        identity = own[len(projected) :]
        if not identity:
            result += own
            continue
        first = projected[0].power if projected else identity[0].previous
        powers = expected_powers(growth, first, identity[0].branch_power, len(identity))
        result += [dataclasses.replace(row, expected=row.power) for row in projected]
        result += [dataclasses.replace(row, expected=p) for row, p in zip(identity, powers[1:], strict=True)]
    return result
