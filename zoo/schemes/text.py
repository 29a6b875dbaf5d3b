"""How a Transformer does without normalization, or with it: one object per scheme.

A scheme makes the linear layers (with their init), the joins of trunk and branch, and the end of a stack. The net is
written once, in ``zoo.nets.transformer``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.joins import Join, PostNormJoin, PreNormJoin, RescaledJoin
from zoo.layers import BiasedLinear, BiasedProjections, FeatureBias
from zoo.method import coefficients, init_factor

Stack = Literal["encoder", "decoder"]

Role = Literal["query", "key", "value", "output", "hidden", "shrink"]


@dataclass(frozen=True)
class Place:
    """A residual branch's place: the ``index``-th (from 1) of the ``total`` of its stack.

    Attributes:
        encoders, decoders: layers of the two stacks.
    """

    stack: Stack
    index: int
    total: int
    encoders: int
    decoders: int


class DynamicTanh(nn.Module):
    """weight * tanh(alpha x) + bias over the last dimension (Zhu et al. 2025, "Transformers without Normalization")."""

    def __init__(self, dim: int, alpha: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, torch.tanh(self.alpha * x), self.weight)


@dataclass(frozen=True)
class TransformerScheme:
    """No normalization and Xavier init: the base of the others, and ``none`` itself."""

    name: ClassVar[str] = "none"
    needs_weights: ClassVar[bool] = False

    def linear(self, roles: Sequence[Role], in_features: int, out_features: int, place: Place, held: float) -> Any:
        """The layer that computes ``roles``, each with ``out_features``, packed in this order.

        Args:
            held: its input over the nominal input; 1 but for schemes that hold their trunk.
        """
        layer = self._make_linear(roles, in_features, len(roles) * out_features, held)
        with torch.no_grad():
            for role, weight in zip(roles, layer.weight.chunk(len(roles)), strict=True):
                self._init(role, weight, place)
            if layer.bias is not None:
                layer.bias.zero_()
        return layer

    def join(self, place: Place, dim: int) -> Any:
        """The residual connection."""
        return Join()

    def end(self, stack: Stack, layers: int, dim: int) -> nn.Module:
        """What follows the last branch of a stack."""
        return nn.Identity()

    def held_at_end(self, stack: Stack, branches: int) -> float:
        """The last trunk over the nominal one."""
        return 1.0

    def embedding_std(self, dim: int, stack: Stack, layers: int) -> float:
        """Standard deviation of an embedding's entries; the net multiplies by sqrt(dim) what it looks up."""
        return dim**-0.5

    def _make_linear(self, roles: Sequence[Role], in_features: int, out_features: int, held: float) -> Any:
        return nn.Linear(in_features, out_features)

    def _init(self, role: Role, weight: Tensor, place: Place) -> None:
        nn.init.xavier_uniform_(weight, gain=self._gain(role, place))

    def _gain(self, role: Role, place: Place) -> float:
        return 1.0


@dataclass(frozen=True)
class Rescale(TransformerScheme):
    """RescaleNet: a bias before each product, rescaled residual connections, a learnable multiplier.

    Attributes:
        multiplier: the learnable scalar m_k of each branch; without it beta_k is used.
        encoder_c, decoder_c: constants of the stacks' decay; None for the number of a stack's branches. A trunk ends
            with c / (branches + c) of its input's power.
        post_bias: give each linear layer an ordinary bias too.
    """

    name: ClassVar[str] = "rescale"

    multiplier: bool = True
    encoder_c: float | None = None
    decoder_c: float | None = None
    post_bias: bool = False

    def __post_init__(self) -> None:
        for key in ("encoder_c", "decoder_c"):
            if (c := getattr(self, key)) is not None and not c > 0:
                raise ZooError(f"option {key}={c}: must be greater than 0")

    def _c(self, stack: Stack, branches: int) -> float:
        c = self.encoder_c if stack == "encoder" else self.decoder_c
        return float(branches if c is None else c)

    def join(self, place: Place, dim: int) -> RescaledJoin:
        k, c = place.index, self._c(place.stack, place.total)
        alpha, beta = coefficients(k, c)
        join = RescaledJoin(alpha, 1 / math.sqrt(c) if self.multiplier else beta, self.multiplier)
        # x_k over the product of all alphas so far: then the trunk is added as it is
        join.hold(math.sqrt((k - 1 + c) / c), math.sqrt((k + c) / c))
        return join

    def held_at_end(self, stack: Stack, branches: int) -> float:
        c = self._c(stack, branches)
        return math.sqrt((branches + c) / c)

    def end(self, stack: Stack, branches: int, dim: int) -> nn.Module:
        if stack == "encoder":
            return nn.Identity()  # the decoder's keys and values have biases of their own
        return FeatureBias(dim, self.held_at_end(stack, branches))

    def _make_linear(self, roles: Sequence[Role], in_features: int, out_features: int, held: float) -> Any:
        if len(roles) == 3:  # queries have a bias of their own, keys and values share one
            size = out_features // 3
            layer: Any = BiasedProjections(in_features, (size, 2 * size), post_bias=self.post_bias)
        else:
            layer = BiasedLinear(in_features, out_features, post_bias=self.post_bias)
        layer.input_scale = held
        return layer

    def _init(self, role: Role, weight: Tensor, place: Place) -> None:
        if role in ("query", "key"):
            nn.init.xavier_uniform_(weight)
            return
        factor = init_factor(place.index, self._c(place.stack, place.total), 2) if self.multiplier else 1.0
        gain = math.sqrt(2) if role == "hidden" else 1.0
        weight.normal_(0.0, factor * gain * weight.shape[1] ** -0.5)


@dataclass(frozen=True)
class PreNorm(TransformerScheme):
    """Layer normalization at the start of each branch and at the end of each stack (fairseq's ``normalize_before``)."""

    name: ClassVar[str] = "pre_ln"

    def join(self, place: Place, dim: int) -> Any:
        return PreNormJoin(self.norm(dim))

    def end(self, stack: Stack, branches: int, dim: int) -> nn.Module:
        return self.norm(dim)

    def norm(self, dim: int) -> nn.Module:
        """The normalization of ``dim`` features."""
        return nn.LayerNorm(dim)

    def _init(self, role: Role, weight: Tensor, place: Place) -> None:
        packed = role in ("query", "key", "value")  # fairseq: as rows of one (3 d, d) matrix
        nn.init.xavier_uniform_(weight, gain=1 / math.sqrt(2) if packed else 1.0)


@dataclass(frozen=True)
class PostNorm(PreNorm):
    """Layer normalization after each residual addition (Vaswani et al. 2017)."""

    name: ClassVar[str] = "post_ln"

    def join(self, place: Place, dim: int) -> Any:
        return PostNormJoin(self.norm(dim))

    def end(self, stack: Stack, branches: int, dim: int) -> nn.Module:
        return nn.Identity()


@dataclass(frozen=True)
class DyT(PreNorm):
    """Pre-LN with a tanh in place of each normalization (Zhu et al. 2025).

    Attributes:
        dyt_alpha: the tanh's slope at init.
    """

    name: ClassVar[str] = "dyt"

    dyt_alpha: float = 0.5

    def norm(self, dim: int) -> nn.Module:
        return DynamicTanh(dim, self.dyt_alpha)


@dataclass(frozen=True)
class DeepNorm(TransformerScheme):
    """Post-LN with a heavier trunk and smaller branches (Wang et al. 2022, "DeepNet", encoder-decoder setting)."""

    name: ClassVar[str] = "deepnorm"

    def _constants(self, place: Place) -> tuple[float, float]:
        n, m = place.encoders, place.decoders
        if place.stack == "encoder":
            return 0.81 * (n**4 * m) ** (1 / 16), 0.87 * (n**4 * m) ** (-1 / 16)
        return (3 * m) ** 0.25, (12 * m) ** -0.25

    def join(self, place: Place, dim: int) -> Any:
        return PostNormJoin(nn.LayerNorm(dim), self._constants(place)[0])

    def _init(self, role: Role, weight: Tensor, place: Place) -> None:
        gain = 1.0 if role in ("query", "key") else self._constants(place)[1]
        nn.init.xavier_normal_(weight, gain=gain)


@dataclass(frozen=True)
class TFixup(TransformerScheme):
    """No normalization, smaller values, outputs, feed-forward layers and embeddings at init (Huang et al. 2020)."""

    name: ClassVar[str] = "t_fixup"

    def _factor(self, stack: Stack, encoders: int, decoders: int) -> float:
        return 0.67 * encoders**-0.25 if stack == "encoder" else (9 * decoders) ** -0.25

    def embedding_std(self, dim: int, stack: Stack, layers: int) -> float:
        return self._factor(stack, layers, layers) * dim**-0.5

    def _gain(self, role: Role, place: Place) -> float:
        if role in ("query", "key"):
            return 1.0
        return self._factor(place.stack, place.encoders, place.decoders)


TRANSFORMER_SCHEMES: MappingProxyType[str, type[TransformerScheme]] = MappingProxyType(
    {cls.name: cls for cls in (Rescale, PostNorm, PreNorm, TransformerScheme, TFixup, DeepNorm, DyT)}
)
