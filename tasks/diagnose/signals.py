"""The result of a diagnosis: numbers of each layer, sum and activation of a net, in the order of its forward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tasks.printing import finite


@dataclass(frozen=True, kw_only=True)
class Input:
    """What the first product of a net reads.

    Attributes:
        mean: mean of all values.
        std: standard deviation of all values.
        expected: E[x^2] of photographs that are standardised as the weights require; NaN if that is not known.
    """

    mean: float
    std: float
    expected: float = math.nan

    @property
    def power(self) -> float:
        """E[x^2]."""
        return self.mean**2 + self.std**2


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The output of a product, norm or bias from data, and the layer's parameters.

    Attributes:
        name: qualified name of the module.
        kind: ``product``, ``norm`` or ``bias``.
        channels: number of channels of the output.
        power: E[x^2] of the output.
        mean_power: mean over channels of the squared channel mean.
        variance: mean over channels of the variance.
        bias_norm: norm of the bias that data initialises; NaN without one.
        bias_offset: distance of what that bias centres from mean 0, root mean square over channels, in standard
            deviations; NaN without such a bias.
        post_bias: whether the layer has an ordinary bias besides, which can make up for the offset.
        weight_norm: Frobenius norm of the weight; NaN without one.
        weight_gain: standard deviation of the weight, standardized where the layer does that, times the root of its
            fan-in: sqrt(2) by He's init; NaN for embeddings and norms.
        gradient_norm: norm of the loss's gradient with respect to the layer's parameters; NaN if it was not computed.
        update_ratio: norm of an optimizer step of the weight over the weight's norm; NaN if it was not computed.
        channel_means: mean of each channel over samples and positions.
        channel_variances: variance of each channel.
    """

    name: str
    kind: str
    channels: int
    power: float
    mean_power: float
    variance: float
    bias_norm: float = math.nan
    bias_offset: float = math.nan
    post_bias: bool = False
    weight_norm: float = math.nan
    weight_gain: float = math.nan
    gradient_norm: float = math.nan
    update_ratio: float = math.nan
    channel_means: tuple[float, ...] = field(default=(), repr=False)
    channel_variances: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True)
class Sum:
    """A residual connection: the weighted trunk plus the weighted branch.

    Attributes:
        name: qualified name of the block; of the n-th sum of a block ``name:n``.
        identity: whether the shortcut is an identity and not a projection.
        chain: number of the sequence of sums that follow each other by identity shortcuts.
        trunk_power: E[x^2] of the weighted trunk.
        branch_power: E[x^2] of the weighted branch.
        power: E[x_k^2], behind the activation that follows the sum in nets that have one there.
        previous: E[x_{k-1}^2] at an identity shortcut, before the trunk's weight; NaN at a projection.
        expected: E[x_k^2] by the scheme's theory, from the first sum of the chain on; NaN without a theory.
        cosine: E[x F] / sqrt(E[x^2] E[F^2]) of trunk and branch; 0 if uncorrelated as the theory assumes.
        correlation: the same of both minus their channel means.
        multiplier: the block's m_k, of one for each channel that with the largest absolute value; NaN without one.
    """

    name: str
    identity: bool
    chain: int
    trunk_power: float
    branch_power: float
    power: float
    previous: float
    expected: float = math.nan
    cosine: float = math.nan
    correlation: float = math.nan
    multiplier: float = math.nan

    @property
    def ratio(self) -> float:
        """Branch-to-trunk power; NaN if the trunk is 0."""
        return self.branch_power / self.trunk_power if self.trunk_power > 0 else math.nan

    @property
    def growth(self) -> float:
        """E[x_k^2] / E[x_{k-1}^2]; NaN at a projection."""
        return self.power / self.previous if self.previous > 0 else math.nan


@dataclass(frozen=True, kw_only=True)
class Activation:
    """The signs of an activation's input over all samples: the three classes of the paper.

    A unit is a channel at a position. A ReLU of a channel that is never positive is dead: it is 0 for every input. One
    of a channel that is always positive is linear.

    Attributes:
        name: qualified name of the module; ``name:n`` of the n-th activation of a module.
        function: name of the activation.
        power: E[x^2] of the input.
        channels: number of channels.
        positive: channels that are positive for all samples at all positions.
        negative: channels that are positive nowhere.
        units: number of units; 0 if positions do not correspond, as with inputs of several sizes.
        positive_units, negative_units: units that are positive for all samples, and for none.
    """

    name: str
    function: str
    power: float
    channels: int
    positive: int
    negative: int
    units: int = 0
    positive_units: int = 0
    negative_units: int = 0

    @property
    def dead(self) -> float:
        """Share of the channels with one sign."""
        return (self.positive + self.negative) / self.channels

    @property
    def dead_units(self) -> float:
        """Share of the units with one sign; NaN without units."""
        return (self.positive_units + self.negative_units) / self.units if self.units else math.nan


@dataclass(frozen=True, kw_only=True)
class Signals:
    """The signals in a net.

    Attributes:
        label: name in tables and legends.
        model: name of the net or its class.
        scheme: scheme of the net; empty for a net of another library.
        source: description of the inputs.
        samples: number of samples.
        input: statistics of the first product's input; None if it has none of its own, as behind embeddings.
        layers, sums, activations: rows in the order of the forward.
        loss: mean loss; NaN if it was not computed.
        unreached: layers with weights that no forward called.
        notes: lines on parts that were left out, with the reason.
        trained: whether the weights come from a training.
        real_inputs: whether the inputs are such as the net is made for, not noise.
        multiplier_init: value at which the scheme's multipliers begin.
    """

    label: str
    model: str
    scheme: str
    source: str
    samples: int
    input: Input | None
    layers: tuple[Layer, ...]
    sums: tuple[Sum, ...]
    activations: tuple[Activation, ...]
    loss: float = math.nan
    unreached: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    trained: bool = False
    real_inputs: bool = True
    multiplier_init: float = 1.0

    @property
    def normalized(self) -> bool:
        """Whether the net contains normalization layers."""
        return any(layer.kind == "norm" for layer in self.layers)

    @property
    def products(self) -> list[Layer]:
        """Layers with weights."""
        return [layer for layer in self.layers if layer.kind == "product"]

    def as_dict(self) -> dict[str, Any]:
        """Return everything but single channels as JSON takes it: NaN and infinities are None, which JSON lacks."""
        found: dict[str, Any] = finite(
            {
                **vars(self),
                "input": None if self.input is None else vars(self.input),
                "layers": [
                    {key: value for key, value in vars(row).items() if not key.startswith("channel_")}
                    for row in self.layers
                ],
                "sums": [{**vars(row), "ratio": row.ratio, "growth": row.growth} for row in self.sums],
                "activations": [
                    {**vars(row), "dead": row.dead, "dead_units": row.dead_units} for row in self.activations
                ],
            }
        )
        return found


@dataclass
class Chain:
    """Sums that follow each other by identity shortcuts, after a projection or the trunk's beginning.

    Attributes:
        sums: sums in order; the first may have a projection.
    """

    sums: list[Sum] = field(default_factory=list)

    @property
    def powers(self) -> list[float]:
        """E[x^2] before the first identity shortcut and after each one."""
        first = [] if not self.sums or not self.sums[0].identity else [self.sums[0].previous]
        return [*first, *(each.power for each in self.sums)]

    @property
    def growth(self) -> float:
        """Geometric mean of E[x_k^2] / E[x_{k-1}^2] over its identity shortcuts; NaN without one."""
        powers = self.powers
        if len(powers) < 2 or not powers[0] > 0 or not powers[-1] > 0:
            return math.nan
        return (powers[-1] / powers[0]) ** (1 / (len(powers) - 1))


def chains(sums: tuple[Sum, ...]) -> Iterator[Chain]:
    """Yield the chains of a net's sums."""
    current: Chain | None = None
    number = -1
    for each in sums:
        if current is None or each.chain != number:
            if current is not None:
                yield current
            current, number = Chain(), each.chain
        current.sums.append(each)
    if current is not None:
        yield current
