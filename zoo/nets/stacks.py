"""Convolutions with their norms and activations, numbered from 1: the parts of stems, blocks and VGG's stages."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from zoo.folding import Shift, folded_activation, folded_conv, separated


class ConvLayer(NamedTuple):
    """A convolution, its norm, and its activation; None where another module has the activation."""

    conv: Any
    norm: Any
    act: Any


class ConvStack(nn.Module):
    """Base of the modules with the children conv1, norm1, act1, conv2, norm2, act2, ...

    The children are looked up at each use, so that a child that is replaced from outside takes effect.
    """

    depth = 0  # number of convolutions

    def add_layer(self, conv: nn.Module, norm: nn.Module, act: nn.Module | None) -> None:
        """Append a layer."""
        self.depth += 1
        for kind, module in zip(ConvLayer._fields, (conv, norm, act), strict=True):
            if module is not None:
                self.add_module(f"{kind}{self.depth}", module)

    def layers(self) -> list[ConvLayer]:
        """Return all layers in order."""
        numbers = range(1, self.depth + 1)
        return [ConvLayer(*(getattr(self, f"{kind}{i}", None) for kind in ConvLayer._fields)) for i in numbers]

    def fold_layer_(
        self,
        number: int,
        *,
        gain: float | Tensor = 1.0,
        input_gain: float = 1.0,
        input_shift: Shift = None,
        output_shift: Shift = None,
    ) -> None:
        """Put a layer's deployment form in its place (``zoo.folding.folded_conv``).

        Args:
            number: number of the layer, from 1.
            gain: factor on the convolution's output, or one per output channel, (O,).
            input_gain: factor on its input.
            input_shift: shift of the input, (I,).
            output_shift: shift that the output gets, (O,).
        """
        conv, norm, act = self.layers()[number - 1]
        plain, rest = folded_conv(
            conv, norm, gain=gain, input_gain=input_gain, input_shift=input_shift, output_shift=output_shift
        )
        setattr(self, f"conv{number}", plain)
        setattr(self, f"norm{number}", rest)
        if act is not None:
            setattr(self, f"act{number}", folded_activation(act, output_shift, conv.weight))

    def separate_shifts_(self, depthwise: bool) -> None:
        """Put the shifts of the deployment form after the ReLUs (``zoo.folding.separate_shifts``)."""
        for number, layer in enumerate(self.layers(), 1):
            if layer.act is not None:
                setattr(self, f"act{number}", separated(layer.conv, layer.act, depthwise))
