"""The verdict on a net in words: what is wrong, the numbers behind it, and the remedy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tasks.diagnose.signals import Activation, Chain, Layer, Signals, Sum, chains
from tasks.printing import listed

Fault = Literal[
    "not finite", "exploding", "vanishing", "dead layers", "uncalibrated", "wrong input scale", "multiplier at zero"
]

# Limits, each with the reason for its value. docs/why-it-works.md lists what healthy nets have.
EXPLODING = 1e3  # E[x^2] at the end of a chain over that before it: ten doublings; 36 blocks with norms give about 40
VANISHING = 1e-3  # the same downwards
OVERALL_EXPLODING = 1e3  # the same from the first sum to the last one, over all chains
OVERALL_VANISHING = 1e-6  # a fresh ResNet of four stages with projection gain 1 has 5e-3
LOUD_WEIGHT = 10.0  # weights over those of He's init
DEAD_LAYER = 0.9  # share of channels that are never positive: hardly anything passes
DEAD_CHANNELS = 0.2  # mean share of channels with one sign in the later half: 0.07 with GroupNorm at init, 0.24 without
OFF_CENTRE = 0.3  # standard deviations; the output of a ReLU has 0.68
INPUT_RATIO = 100.0  # E[x^2] over the expected one, or the reverse: a factor of 10 in the scale
MULTIPLIER_AT_ZERO = 0.01  # of the init, 1


@dataclass(frozen=True)
class Verdict:
    """One fault.

    Attributes:
        fault: kind of the fault.
        where: places, the worst first.
        numbers: sentence with the numbers.
        remedy: sentence with what to do.
    """

    fault: Fault
    where: tuple[str, ...]
    numbers: str
    remedy: str

    def __str__(self) -> str:
        where = f" ({listed(self.where, 3)})" if self.where else ""
        return f"{self.fault}{where}: {self.numbers} {self.remedy}"


def verdicts(signals: Signals) -> list[Verdict]:
    """Return the faults of a net, none for a healthy one."""
    broken = list(_not_finite(signals))
    if broken:
        return broken
    checks = [_input_scale, _uncalibrated, _loud_weights, _exploding, _vanishing, _multipliers]
    if signals.real_inputs or not signals.trained:  # trained weights have never seen noise
        checks += [_dead_layers, _dead_channels]
    return [found for check in checks for found in check(signals)]


def _not_finite(signals: Signals) -> Iterator[Verdict]:
    rows: list[Layer | Sum] = [*signals.layers, *signals.sums]
    places = [row.name for row in rows if not math.isfinite(row.power)]
    if places:
        yield Verdict(
            "not finite",
            tuple(places),
            f"the first of {len(places)} places with infinite values or NaN is {places[0]}.",
            "Look at the inputs, and at the growth of E[x^2] before it; train with a lower rate or in fp32.",
        )


def _input_scale(signals: Signals) -> Iterator[Verdict]:
    found = signals.input
    if found is None or not math.isfinite(found.expected) or not found.expected > 0:
        return
    ratio = found.power / found.expected
    if 1 / INPUT_RATIO <= ratio <= INPUT_RATIO:
        return
    yield Verdict(
        "wrong input scale",
        ("input",),
        f"the inputs have mean {found.mean:.3g} and standard deviation {found.std:.3g}. Their E[x^2] is "
        f"{found.power:.3g}, {ratio:.3g} times that of inputs as the net expects them.",
        "Scale pixels from 0..255 to 0..1 and standardise them by the mean and std of the weights: a net without "
        "normalization passes every scale on.",
    )


def _uncalibrated(signals: Signals) -> Iterator[Verdict]:
    biased = [layer for layer in signals.layers if math.isfinite(layer.bias_offset)]
    zero = [
        layer for layer in biased if layer.bias_norm == 0 and layer.bias_offset > OFF_CENTRE and not layer.post_bias
    ]
    if len(zero) < max(2, len(biased) / 4):
        return
    offset = statistics.median(layer.bias_offset for layer in zero)
    yield Verdict(
        "uncalibrated",
        tuple(layer.name for layer in zero),
        f"{len(zero)} of {len(biased)} biases before products are 0, and their inputs are {offset:.2g} standard "
        "deviations off centre.",
        "Call zoo.calibrate(model, batches) before training; rescalenet train does so by itself.",
    )


def _loud_weights(signals: Signals) -> Iterator[Verdict]:
    if signals.normalized:
        return
    loud = [layer for layer in signals.products if layer.weight_gain > LOUD_WEIGHT * math.sqrt(2)]
    if loud:
        worst = max(loud, key=lambda layer: layer.weight_gain)
        yield Verdict(
            "exploding",
            tuple(layer.name for layer in sorted(loud, key=lambda layer: -layer.weight_gain)),
            f"the weights of {worst.name} are {worst.weight_gain / math.sqrt(2):.3g} times as large as He's init; its "
            f"output has E[x^2] = {worst.power:.3g}.",
            "Initialise them by He's rule (zoo.method.he_normal_), or divide them by that number: no norm undoes it.",
        )


def _exploding(signals: Signals) -> Iterator[Verdict]:
    chain = _first_chain(signals, lambda chain: chain.powers[-1] > EXPLODING * _start(signals, chain))
    if chain is None:
        yield from _overall(signals, "exploding")
        return
    powers = chain.powers
    yield Verdict(
        "exploding",
        _ends(chain),
        f"{_course(chain)}: {chain.growth:.3g} times in each of {len(powers) - 1} blocks. "
        f"The theory of {signals.scheme or 'x + F(x)'} has {chain.sums[-1].expected / powers[0]:.3g} in all.",
        "Take scheme=rescale, which keeps E[x^2], or a normalization. Of trained weights lower the rate or "
        "raise the weight decay.",
    )


def _vanishing(signals: Signals) -> Iterator[Verdict]:
    chain = _first_chain(signals, lambda chain: chain.powers[-1] < VANISHING * chain.powers[0])
    if chain is None:
        yield from _overall(signals, "vanishing")
        return
    yield Verdict("vanishing", _ends(chain), f"{_course(chain)}.", _REMEDIES["vanishing"])


def _first_chain(signals: Signals, wrong: Callable[[Chain], bool]) -> Chain | None:
    """Return the first chain with two values of E[x^2] that is wrong."""
    found = (chain for chain in chains(signals.sums) if len(chain.powers) > 1 and chain.powers[0] > 0)
    return next((chain for chain in found if wrong(chain)), None)


def _start(signals: Signals, chain: Chain) -> float:
    """Return E[x^2] from which a chain may grow.

    A norm in each branch makes the first sum as large as the first branch, however small the trunk before it is, such
    as an embedding with a standard deviation of 0.02.
    """
    first = chain.sums[0]
    if signals.normalized and first.identity:
        return max(chain.powers[0], first.branch_power)
    return chain.powers[0]


def _ends(chain: Chain) -> tuple[str, ...]:
    return tuple(each.name for each in chain.sums[-3:][::-1])


def _course(chain: Chain) -> str:
    first, last = chain.powers[0], chain.powers[-1]
    return (
        f"E[x^2] of the trunk goes from {first:.3g} before {chain.sums[0].name} to {last:.3g} behind "
        f"{chain.sums[-1].name}"
    )


_REMEDIES = {
    "exploding": "Take scheme=rescale, which keeps E[x^2], or a normalization; initialise the weights by He's rule.",
    "vanishing": "Raise the weights to He's init (projections by the option projection_gain).",
}


def _overall(signals: Signals, fault: Literal["exploding", "vanishing"]) -> Iterator[Verdict]:
    """Yield the fault of a trunk, or of a net without one, that its chains do not show one by one."""
    rows: Sequence[Layer | Sum] = signals.sums if len(signals.sums) > 1 else _plain(signals)
    if len(rows) < 2:
        return
    first, last = rows[0], rows[-1]
    ratio = last.power / first.power if first.power > 0 else math.nan
    if ratio > OVERALL_EXPLODING if fault == "exploding" else ratio < OVERALL_VANISHING:
        yield Verdict(
            fault,
            (last.name,),
            f"E[x^2] is {first.power:.3g} at {first.name} and {last.power:.3g} at {last.name}.",
            _REMEDIES[fault],
        )


def _plain(signals: Signals) -> list[Layer]:
    """Return the layers in front of activations of a net without residual connections."""
    return [] if signals.normalized else signals.products[:-1]


def _dead_layers(signals: Signals) -> Iterator[Verdict]:
    dead = [unit for unit in signals.activations if unit.negative / unit.channels >= DEAD_LAYER and _cuts(unit)]
    if dead:
        worst = max(dead, key=lambda unit: unit.negative / unit.channels)
        yield Verdict(
            "dead layers",
            tuple(unit.name for unit in dead),
            f"in {worst.name} {worst.negative} of {worst.channels} channels are positive for no sample, so that the "
            f"{worst.function} is 0 there.",
            "Their gradient is 0 too: initialise the layer before it again, calibrate its bias, and train with a lower "
            "rate or with train.optimizer.clip_norm.",
        )


def _dead_channels(signals: Signals) -> Iterator[Verdict]:
    # A channel of a single position, as of a classifier's hidden layer, has as few values as there are samples.
    wide = [unit for unit in signals.activations if _cuts(unit) and unit.units != unit.channels]
    if len(wide) < 4:
        return
    # The share grows with depth, so that the later half of the layers decides.
    share = statistics.fmean(unit.dead for unit in wide[len(wide) // 2 :])
    if share > DEAD_CHANNELS:
        worst = sorted(wide, key=lambda unit: -unit.dead)
        yield Verdict(
            "dead layers",
            tuple(unit.name for unit in worst),
            f"{share:.0%} of the channels in the later half of the layers have one sign at all positions of all "
            f"{signals.samples} samples; {worst[0].name} has {worst[0].dead:.0%}.",
            "Take scheme=rescale, whose calibrated bias before each product centres the channels, or a normalization.",
        )


def _cuts(unit: Activation) -> bool:
    """Return whether an activation is 0 for negative inputs, exactly or nearly."""
    return unit.function in ("relu", "relu6")


def _multipliers(signals: Signals) -> Iterator[Verdict]:
    at_zero = [each for each in signals.sums if abs(each.multiplier) < MULTIPLIER_AT_ZERO]
    if not signals.trained and signals.multiplier_init == 0:
        return
    if at_zero:
        yield Verdict(
            "multiplier at zero",
            tuple(each.name for each in at_zero),
            f"{len(at_zero)} of {len(signals.sums)} multipliers m_k are below {MULTIPLIER_AT_ZERO:g} in absolute value "
            f"(m = {at_zero[0].multiplier:.2g} in {at_zero[0].name}): these branches add nothing, and the gradients of "
            "their weights are as small.",
            "Train with a lower train.optimizer.multiplier_lr, with more weight decay, or set them back to 1.",
        )
