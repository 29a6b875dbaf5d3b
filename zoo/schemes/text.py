"""The schemes of Transformers.

A text scheme makes the linear layers (with their init), the joins of trunk and branch, and the norm at the end of a
stack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.joins import Join, PlainJoin, PostNormJoin, PreNormJoin, RescaledJoin
from zoo.layers import BiasedLinear, BiasedProjections, FeatureBias
from zoo.method import coefficients, init_factor
from zoo.schemes.base import Growth, Place, Scheme, register_scheme

Role = Literal["query", "key", "value", "output", "hidden", "shrink"]


class DynamicTanh(nn.Module):
    """weight * tanh(alpha x) + bias over the last dimension (Zhu et al. 2025, "Transformers without Normalization")."""

    def __init__(self, dim: int, alpha: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, torch.tanh(self.alpha * x), self.weight)


class DynamicErf(nn.Module):
    """weight * erf(alpha x + shift) + bias over the last dimension; alpha and shift are numbers.

    Chen et al. 2025, "Stronger Normalization-Free Transformers", arXiv:2512.10938.
    """

    def __init__(self, dim: int, alpha: float) -> None:
        super().__init__()
        self.alpha, self.shift = nn.Parameter(torch.tensor(float(alpha))), nn.Parameter(torch.zeros(()))
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, torch.erf(self.alpha * x + self.shift), self.weight)


@dataclass(frozen=True)
class TextScheme(Scheme):
    """No normalization and Xavier init: the base of the others, and ``none`` itself."""

    name: ClassVar[str] = "none"
    registered: ClassVar[dict[str, type[TextScheme]]] = {}

    def linear(self, roles: Sequence[Role], in_features: int, out_features: int, place: Place) -> Any:
        """Return the layer that computes ``roles``, each with ``out_features``, packed in this order."""
        layer = self._make_linear(roles, in_features, len(roles) * out_features)
        with torch.no_grad():
            for role, weight in zip(roles, layer.weight.chunk(len(roles)), strict=True):
                self._init(role, weight, place)
            if layer.bias is not None:
                layer.bias.zero_()
        return layer

    def join(self, place: Place, channels: int) -> Join:
        return PlainJoin()

    def final_norm(self, stack: str, dim: int) -> nn.Module:
        """Return the module after the last branch of a stack; an Identity in schemes without one."""
        return nn.Identity()

    def embedding_std(self, dim: int, stack: str, layers: int) -> float:
        """Return the standard deviation of an embedding's entries; the net multiplies looked-up rows by sqrt(dim)."""
        return dim**-0.5

    def _make_linear(self, roles: Sequence[Role], in_features: int, out_features: int) -> Any:
        return nn.Linear(in_features, out_features)

    def _init(self, role: Role, weight: Tensor, place: Place) -> None:
        nn.init.xavier_uniform_(weight, gain=self._gain(role, place))

    def _gain(self, role: Role, place: Place) -> float:
        return 1.0


@dataclass(frozen=True)
class TextRescale(TextScheme):
    """RescaleNet: a bias before each product, rescaled residual connections, a learnable multiplier.

    Attributes:
        multiplier: whether each branch has the learnable scalar m_k (docs/method.md, M5); if not, beta_k is used (M2).
            With ``"channel"`` each output channel of the branch has an m_k of its own (1 at init), an addition.
        encoder_c, decoder_c: constants c of the stacks' decay; None for the number of a stack's branches. A trunk ends
            with c / (branches + c) of its input's power.
        post_bias: whether each linear layer has an ordinary bias too.
    """

    name: ClassVar[str] = "rescale"
    trunk_growth: ClassVar[Growth] = "stays"

    multiplier: bool | Literal["channel"] = True
    encoder_c: float | None = None
    decoder_c: float | None = None
    post_bias: bool = False

    def __post_init__(self) -> None:
        for key in ("encoder_c", "decoder_c"):
            if (c := getattr(self, key)) is not None and not c > 0:
                raise ZooError(f"option {key}={c}: must be > 0")

    def _c(self, place: Place) -> float:
        c = self.encoder_c if place.stack == "encoder" else self.decoder_c
        return float(place.total if c is None else c)

    def join(self, place: Place, channels: int) -> RescaledJoin:
        c = self._c(place)
        alpha, beta = coefficients(place.index, c)
        per_channel = channels if self.multiplier == "channel" else None
        weight = 1 / math.sqrt(c) if self.multiplier else beta
        return RescaledJoin(alpha, weight, bool(self.multiplier), PlainJoin, channels=per_channel)

    def final_norm(self, stack: str, dim: int) -> nn.Module:
        # the keys and values that the decoder makes of the encoder's output have biases of their own
        return nn.Identity() if stack == "encoder" else FeatureBias(dim)

    def _make_linear(self, roles: Sequence[Role], in_features: int, out_features: int) -> Any:
        if len(roles) == 3:  # queries have a bias of their own, keys and values share one
            size = out_features // 3
            return BiasedProjections(in_features, (size, 2 * size), post_bias=self.post_bias)
        return BiasedLinear(in_features, out_features, post_bias=self.post_bias)

    def _init(self, role: Role, weight: Tensor, place: Place) -> None:
        if role in ("query", "key"):
            nn.init.xavier_uniform_(weight)
            return
        factor = init_factor(place.index, self._c(place), place.layers) if self.multiplier else 1.0
        gain = math.sqrt(2) if role == "hidden" else 1.0
        weight.normal_(0.0, factor * gain * weight.shape[1] ** -0.5)


@dataclass(frozen=True)
class PreNorm(TextScheme):
    """Layer normalization at the start of each branch and at the end of each stack (fairseq's ``normalize_before``)."""

    name: ClassVar[str] = "pre_ln"
    trunk_growth: ClassVar[Growth] = "grows"
    normalized: ClassVar[bool] = True

    def join(self, place: Place, channels: int) -> Join:
        return PreNormJoin(self.norm(channels))

    def final_norm(self, stack: str, dim: int) -> nn.Module:
        return self.norm(dim)

    def norm(self, dim: int) -> nn.Module:
        """Return the normalization of ``dim`` features."""
        return nn.LayerNorm(dim)

    def _init(self, role: Role, weight: Tensor, place: Place) -> None:
        packed = role in ("query", "key", "value")  # fairseq: as rows of one (3 d, d) matrix
        nn.init.xavier_uniform_(weight, gain=1 / math.sqrt(2) if packed else 1.0)


@dataclass(frozen=True)
class PostNorm(PreNorm):
    """Layer normalization after each residual addition (Vaswani et al. 2017)."""

    name: ClassVar[str] = "post_ln"
    trunk_growth: ClassVar[Growth] = "stays"

    def join(self, place: Place, channels: int) -> Join:
        return PostNormJoin(self.norm(channels))

    def final_norm(self, stack: str, dim: int) -> nn.Module:
        return nn.Identity()


@dataclass(frozen=True)
class DyT(PreNorm):
    """Pre-LN with a tanh in place of each normalization (Zhu et al. 2025).

    Attributes:
        dyt_alpha: the tanh's slope at init.
    """

    name: ClassVar[str] = "dyt"
    normalized: ClassVar[bool] = False

    dyt_alpha: float = 0.5

    def norm(self, dim: int) -> nn.Module:
        return DynamicTanh(dim, self.dyt_alpha)


@dataclass(frozen=True)
class Derf(PreNorm):
    """Pre-LN with an error function in place of each normalization (Chen et al. 2025, arXiv:2512.10938).

    Attributes:
        derf_alpha: the factor on the error function's input at init.
    """

    name: ClassVar[str] = "derf"
    normalized: ClassVar[bool] = False

    derf_alpha: float = 0.5

    def norm(self, dim: int) -> nn.Module:
        return DynamicErf(dim, self.derf_alpha)


@dataclass(frozen=True)
class DeepNorm(TextScheme):
    """Post-LN with a heavier trunk and smaller branches (Wang et al. 2022, "DeepNet", encoder-decoder setting)."""

    name: ClassVar[str] = "deepnorm"
    trunk_growth: ClassVar[Growth] = "stays"
    normalized: ClassVar[bool] = True

    def _constants(self, place: Place) -> tuple[float, float]:
        """Return the paper's alpha and beta: weight of the trunk, and gain of the init."""
        n, m = place.encoders, place.decoders
        if place.stack == "encoder":
            return 0.81 * (n**4 * m) ** (1 / 16), 0.87 * (n**4 * m) ** (-1 / 16)
        return (3 * m) ** 0.25, (12 * m) ** -0.25

    def join(self, place: Place, channels: int) -> Join:
        return PostNormJoin(nn.LayerNorm(channels), self._constants(place)[0])

    def _init(self, role: Role, weight: Tensor, place: Place) -> None:
        gain = 1.0 if role in ("query", "key") else self._constants(place)[1]
        nn.init.xavier_normal_(weight, gain=gain)


@dataclass(frozen=True)
class TFixup(TextScheme):
    """No normalization, smaller values, outputs, feed-forward layers and embeddings at init (Huang et al. 2020)."""

    name: ClassVar[str] = "t_fixup"
    trunk_growth: ClassVar[Growth] = "stays"

    def _factor(self, stack: str, encoders: int, decoders: int) -> float:
        return 0.67 * encoders**-0.25 if stack == "encoder" else (9 * decoders) ** -0.25

    def embedding_std(self, dim: int, stack: str, layers: int) -> float:
        return self._factor(stack, layers, layers) * dim**-0.5

    def _gain(self, role: Role, place: Place) -> float:
        if role in ("query", "key"):
            return 1.0
        return self._factor(place.stack, place.encoders, place.decoders)


for _cls in (TextRescale, PostNorm, PreNorm, TextScheme, TFixup, DeepNorm, DyT, Derf):
    register_scheme(_cls)
TEXT_SCHEMES: MappingProxyType[str, type[TextScheme]] = MappingProxyType(TextScheme.registered)
TRANSFORMER_SCHEMES = TEXT_SCHEMES  # name of version 0.1.0
