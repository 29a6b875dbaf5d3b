"""The trunk's scale: why a rescaled net stores s_k x_k in place of x_k, and the numbers s_k (docs/method.md, M10, M11).

x_k = alpha_k x_{k-1} + ... (M5) multiplies the trunk by alpha_k in every block, which costs a pass over the trunk's
gradient. If the trunk is stored as s_k x_k with s_{k-1} = alpha_k s_k, the shortcut is a plain addition. In return the
biases of a block are multiplied by s_{k-1}, and the weight of its last product by s_k / s_{k-1}. These factors act on
parameters, which are smaller than activations. Stored parameters, features and logits are those of the formulas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import nn

from zoo.errors import ZooError
from zoo.joins import Join


@dataclass(frozen=True)
class ModuleScales:
    """The scales of one module on the trunk. A scale is the stored tensor over the value of the formulas.

    Attributes:
        module: qualified name in the net.
        alpha: weight of the trunk in the module's join; 1 for modules that are no block.
        scale_in, scale_out: scales of the module's input and output.
        memory: scale of the encoder's output, which a cross-attention reads.
    """

    module: str
    alpha: float
    scale_in: float
    scale_out: float
    memory: float = 1.0


class OnTrunk(nn.Module):
    """Base of the modules with constants that follow from the trunk's scale."""

    def set_scales(self, scales: ModuleScales) -> None:
        """Set the constants that follow from ``scales``."""
        raise NotImplementedError

    def output_scales(self, scales: ModuleScales) -> dict[str, float]:
        """Return the output scale of each module inside, by name; modules called at several scales are left out."""
        return {}


class TrunkBlock(OnTrunk):
    """Base of the residual blocks: the layers of a branch, and the join of trunk and branch."""

    join: Join

    def branch_layers(self) -> list[nn.Module]:
        """Return the convolutions or linear layers that the branch's values pass, in order."""
        raise NotImplementedError


def set_input_scale(layer: nn.Module, scale: float) -> None:
    """Set the scale at which a layer reads its input.

    Raises:
        ZooError: a scale other than 1, for a layer without ``input_scale``.
    """
    if hasattr(layer, "input_scale"):
        setattr(layer, "input_scale", scale)  # noqa: B010  (for mypy a module's attributes are tensors)
    elif scale != 1:
        raise ZooError(
            f"{type(layer).__name__} has no input_scale; a trunk at scale {scale:.3g} requires one in each layer"
        )


class PlannedBlock(NamedTuple):
    """The facts that a block's scales follow from.

    Attributes:
        module: qualified name in the net.
        alpha: weight of the trunk in the block's join.
        projected: whether the shortcut is a projection, whose weights can change the scale.
    """

    module: str
    alpha: float
    projected: bool = False


def planned(name: str, block: TrunkBlock, *, projected: bool = False) -> PlannedBlock:
    """Return the plan of a block.

    Raises:
        ZooError: the trunk's weight is not positive, so that no scale can replace it.
    """
    if not block.join.alpha > 0:
        raise ZooError(f"{name}: the trunk's weight alpha={block.join.alpha} must be > 0; choose another c or index")
    return PlannedBlock(name, block.join.alpha, projected)


@dataclass(frozen=True)
class TrunkScales:
    """The scales s_k of a net's trunk, one row for each block and each module where the trunk begins or ends.

    Two blocks with c = 2 have alpha_1 = sqrt(2/3) and alpha_2 = sqrt(3/4). In a stage of a vision net the last scale
    is 1, so that the feature map is that of the formulas:

    >>> from zoo.method import coefficients
    >>> blocks = [PlannedBlock(f"layer1.{k - 1}", coefficients(k, 2)[0]) for k in (1, 2)]
    >>> print(TrunkScales.ending_at_one(blocks))
    module    alpha   scale in  scale out
    layer1.0  0.8165  0.7071    0.8660
    layer1.1  0.8660  0.8660    1.0000

    A hook on ``layer1.0`` sees 0.8660 x_1. The stem has to give 0.7071 x_0. In a stack of a Transformer the first
    scale is 1, as the embeddings are used elsewhere too:

    >>> print(TrunkScales.beginning_at_one(blocks))
    module    alpha   scale in  scale out
    layer1.0  0.8165  1.0000    1.2247
    layer1.1  0.8660  1.2247    1.4142
    """

    rows: tuple[ModuleScales, ...] = ()

    @classmethod
    def ending_at_one(cls, blocks: Sequence[PlannedBlock]) -> TrunkScales:
        """Return the scales of a trunk whose end has scale 1: s_{k-1} = alpha_k s_k, but 1 before a projection."""
        rows: list[ModuleScales] = []
        scale_out = 1.0
        for name, alpha, projected in reversed(blocks):
            scale_in = 1.0 if projected else alpha * scale_out
            rows.insert(0, ModuleScales(name, alpha, scale_in, scale_out))
            scale_out = scale_in
        return cls(tuple(rows))

    @classmethod
    def beginning_at_one(cls, blocks: Sequence[PlannedBlock], *, memory: float = 1.0) -> TrunkScales:
        """Return the scales of a trunk whose beginning has scale 1: s_k = s_{k-1} / alpha_k.

        Args:
            blocks: blocks of the stack; none has a projection.
            memory: scale of the encoder's output.
        """
        rows: list[ModuleScales] = []
        scale_in = 1.0
        for name, alpha, _ in blocks:
            rows.append(ModuleScales(name, alpha, scale_in, scale_in / alpha, memory))
            scale_in /= alpha
        return cls(tuple(rows))

    @property
    def first(self) -> float:
        """Scale where the trunk begins."""
        return self.rows[0].scale_in

    @property
    def last(self) -> float:
        """Scale where the trunk ends."""
        return self.rows[-1].scale_out

    def __add__(self, other: TrunkScales) -> TrunkScales:
        return TrunkScales(self.rows + other.rows)

    def with_end(self, module: str, scale_in: float, scale_out: float) -> TrunkScales:
        """Return these scales and those of one more module, where the trunk begins or ends."""
        return TrunkScales((*self.rows, ModuleScales(module, 1.0, scale_in, scale_out)))

    def unscaled(self) -> TrunkScales:
        """Return the same rows with all scales 1: a net that applies them computes M5 as it is written."""
        return TrunkScales(tuple(replace(row, scale_in=1.0, scale_out=1.0, memory=1.0) for row in self.rows))

    def within(self, modules: Iterable[str]) -> TrunkScales:
        """Return the rows of these modules."""
        kept = set(modules)
        return TrunkScales(tuple(row for row in self.rows if row.module in kept))

    def apply(self, net: nn.Module) -> None:
        """Set every constant of the net that follows from the scales."""
        for row in self.rows:
            module = net.get_submodule(row.module)
            if isinstance(module, OnTrunk):
                module.set_scales(row)

    def output_scale(self, net: nn.Module, name: str) -> float:
        """Return the scale of the output of the net's module ``name``.

        Raises:
            ZooError: a module inside a block that has no single scale.
        """
        scale = 1.0
        for row in self.rows:
            if name == row.module:
                return row.scale_out
            if name.startswith(f"{row.module}."):
                inside = name.removeprefix(f"{row.module}.")
                module = net.get_submodule(row.module)
                scales = module.output_scales(row) if isinstance(module, OnTrunk) else {}
                if inside not in scales:
                    raise ZooError(f"{name} has no single scale; {row.module} has {', '.join(scales)}")
                return scales[inside]
            if row.module.startswith(f"{name}."):
                scale = row.scale_out  # a container: its output is that of its last module on the trunk
        return scale

    def __str__(self) -> str:
        table = [["module", "alpha", "scale in", "scale out"]]
        table += [[row.module, *(f"{x:.4f}" for x in (row.alpha, row.scale_in, row.scale_out))] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)
