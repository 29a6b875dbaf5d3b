"""Encoder-decoder Transformers, written once for every scheme.

Vaswani et al. 2017, "Attention is all you need"; rescaled residuals: Shao et al. 2020 (docs/method.md, M5, M6, M14).
Token ids and sinusoids are fairseq's (id 0 <s>, 1 padding, 2 </s>, 3 unknown; a decoder's input begins with </s>).

In the shapes below, B counts sentences, S and T source and target tokens; d is the width, H the heads, D = d / H.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.calibration import only_positions
from zoo.errors import ZooError
from zoo.folding import folded_linear
from zoo.losses import linear_cross_entropy
from zoo.nets.base import ModelConfig, Net
from zoo.nets.regularization import BranchRegularization
from zoo.options import free
from zoo.precision import precise_device
from zoo.schemes.base import Place
from zoo.schemes.text import TEXT_SCHEMES, TextScheme
from zoo.specs import ModelSpec, register_model
from zoo.text import PAD, UNK
from zoo.trunk import ModuleScales, TrunkBlock, TrunkScales, planned, set_input_scale


@dataclass(frozen=True)
class TransformerLayout(BranchRegularization):
    """Sizes of a net.

    Attributes:
        dim: width d.
        hidden: width of the feed-forward layers.
        heads: heads of each attention.
        drop_rate: dropout on embeddings and branches.
        attention_drop_rate: dropout on attention weights.
        hidden_drop_rate: dropout after the activation of the feed-forward layers.
        share: embeddings that are one matrix with the output layer: ``all`` (one vocabulary), ``decoder`` or ``none``.
        source_vocabulary, target_vocabulary: numbers of tokens.
        max_length: largest length of a sentence in tokens, including </s>.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = (
        "dim",
        "hidden",
        "heads",
        "encoder_layers",
        "decoder_layers",
        "activation",
        "drop_rate",
        "attention_drop_rate",
        "hidden_drop_rate",
        "drop_path_rate",
        "branch_noise",
        "share",
        "source_vocabulary",
        "target_vocabulary",
        "max_length",
    )

    dim: int
    hidden: int
    heads: int
    encoder_layers: int = 6
    decoder_layers: int = 6
    activation: Literal["relu", "gelu"] = "relu"
    drop_rate: float = free(0.1)
    attention_drop_rate: float = free(0.0)
    hidden_drop_rate: float = free(0.0)
    share: Literal["all", "decoder", "none"] = "all"
    source_vocabulary: int = 32000
    target_vocabulary: int = 32000
    max_length: int = free(1024)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("dim", "hidden", "heads", "encoder_layers", "decoder_layers", "max_length"):
            if getattr(self, key) < 1:
                raise ZooError(f"option {key}={getattr(self, key)}: must be >= 1")
        for key in ("drop_rate", "attention_drop_rate", "hidden_drop_rate"):
            if not 0 <= getattr(self, key) < 1:
                raise ZooError(f"option {key}={getattr(self, key)}: must be in [0, 1)")
        if self.dim % self.heads:
            raise ZooError(f"options dim={self.dim} and heads={self.heads}: dim must be a multiple of heads")
        source, target = self.source_vocabulary, self.target_vocabulary
        if min(source, target) <= UNK:
            raise ZooError(
                f"options source_vocabulary={source}, target_vocabulary={target}: must be > {UNK}, the last special id"
            )
        if self.share == "all" and source != target:
            raise ZooError(
                f"option share='all' requires one vocabulary, not source_vocabulary={source} and "
                f"target_vocabulary={target}; use share='decoder'"
            )


@dataclass
class Memory:
    """A batch of encoded sentences: the decoder's input from the source.

    Attributes:
        keys_values: keys and values for each decoder layer, (B, H, S, D) each.
        mask: (B, 1, 1, S), 0 at tokens and -inf at padding; None without padding.
    """

    keys_values: list[tuple[Tensor, Tensor]]
    mask: Tensor | None

    def select(self, rows: Tensor) -> Memory:
        """Return the sentences with these numbers."""
        chosen = [(k[rows], v[rows]) for k, v in self.keys_values]
        return Memory(chosen, None if self.mask is None else self.mask[rows])


class Cache:
    """Keys and values of the target tokens so far, for each decoder layer: (rows, tokens, 2, H, D).

    The buffers are larger than the tokens require, so that appending a token copies only that token. Rows are reordered
    by copying the tokens so far from one buffer into a second one.

    Args:
        layers: keys and values of each layer, of an earlier cache.
    """

    def __init__(self, layers: Sequence[Tensor] = ()) -> None:
        self.length = layers[0].shape[1] if layers else 0
        self._buffers = list(layers)
        self._spare: list[Tensor | None] = [None] * len(layers)

    @property
    def layers(self) -> list[Tensor]:
        """Keys and values of each layer."""
        return [buffer[:, : self.length] for buffer in self._buffers]

    def extend(self, layer: int, new: Tensor) -> Tensor:
        """Append the keys and values of new tokens (rows, T, 2, H, D), and return those of all tokens."""
        end = self.length + new.shape[1]
        # a buffer for the first tokens of a layer, or one of twice the size that copies the tokens so far
        if layer == len(self._buffers):
            self._buffers.append(new.new_empty(new.shape[0], max(_FIRST_TOKENS, end), *new.shape[2:]))
            self._spare.append(None)
        elif end > self._buffers[layer].shape[1]:
            old = self._buffers[layer]
            self._buffers[layer] = old.new_empty(old.shape[0], 2 * end, *old.shape[2:])
            self._buffers[layer][:, : self.length] = old[:, : self.length]
            self._spare[layer] = None
        buffer = self._buffers[layer]
        buffer[:, self.length : end] = new
        return buffer[:, :end]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        count = len(rows)
        for i, (buffer, spare) in enumerate(zip(self._buffers, self._spare, strict=True)):
            if spare is None or len(spare) < count:
                spare = buffer.new_empty(count, *buffer.shape[1:])
            moved = spare[:count]
            torch.index_select(buffer[:, : self.length], 0, rows, out=moved[:, : self.length])
            self._buffers[i], self._spare[i] = moved, buffer


_FIRST_TOKENS = 32  # size of a new buffer


class Branch(TrunkBlock):
    """A residual branch with its join, and dropout, noise and stochastic depth before the join.

    Subclasses make their layers and list those that the values pass in ``branch_layers``.
    """

    def __init__(self, layout: TransformerLayout, scheme: TextScheme, place: Place) -> None:
        super().__init__()
        self.join = scheme.join(place, layout.dim)
        self.drop = _dropout(layout.drop_rate)
        self.branch_end = layout.branch_end(place)

    def add(self, x: Tensor, h: Tensor) -> Tensor:
        """Return the next trunk (B, T, d): x (B, T, d) and the branch, whose last layer reads h."""
        y = self.drop(self.join.product(self.branch_layers()[-1], h))
        return self.join(x, y if self.branch_end is None else self.branch_end(y))

    def set_scales(self, scales: ModuleScales) -> None:
        self.join.set_scales(scales.scale_in, scales.scale_out)
        if self.branch_end is not None:
            self.branch_end.set_scale(scales.scale_out)

    def output_scales(self, scales: ModuleScales) -> dict[str, float]:
        added = ["drop", *(name for name, _ in self.join.named_modules(prefix="join"))]
        if self.branch_end is not None:
            added += [name for name, _ in self.branch_end.named_modules(prefix="branch_end")]
        return dict.fromkeys(added, scales.scale_out)

    def fold_(self) -> None:
        """Change this branch into its deployment form: plain linear layers, the join that remains, no dropout."""
        last = self.branch_layers()[-1]
        folded = self.join.fold(last)
        for name, layer in list(self.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(self, name, folded_linear(layer, gain=folded.product if layer is last else 1.0))
        self.join, self.drop, self.branch_end = folded.join, nn.Identity(), None


def _dropout(rate: float) -> nn.Module:
    return nn.Dropout(rate) if rate else nn.Identity()


class Attention(Branch):
    """Base of self- and cross-attention."""

    def __init__(self, layout: TransformerLayout, scheme: TextScheme, place: Place) -> None:
        super().__init__(layout, scheme, place)
        self.heads, self.drop_rate = layout.heads, layout.attention_drop_rate
        self.head_dim = layout.dim // layout.heads
        self.set_temperature(1.0)

    def set_temperature(self, scale: float) -> None:
        """Set the factor on q k for queries and keys whose product is ``scale`` times that of the formulas."""
        self.temperature = self.head_dim**-0.5 / scale

    def split(self, x: Tensor, parts: int) -> Sequence[Tensor]:
        """Split packed projections into parts and heads: (B, T, parts * d) -> for each part (B, H, T, D)."""
        return x.view(*x.shape[:2], parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Apply scaled dot-product attention: q (B, H, T, D), k and v (B, H, S, D) -> (B, T, d)."""
        drop_rate = self.drop_rate if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, mask, drop_rate, is_causal=causal, scale=self.temperature)
        # (B, H, T, D) -> (B, T, d)
        return out.transpose(1, 2).flatten(2)

    def fold_(self) -> None:
        super().fold_()
        self.drop_rate = 0.0


class SelfAttention(Attention):
    """Attention within a sentence."""

    packed: ClassVar = {"qkv": 3}

    def __init__(self, layout: TransformerLayout, scheme: TextScheme, place: Place) -> None:
        super().__init__(layout, scheme, place)
        self.qkv = scheme.linear(("query", "key", "value"), layout.dim, layout.dim, place)
        self.out = scheme.linear(("output",), layout.dim, layout.dim, place)

    def branch_layers(self) -> list[nn.Module]:
        return [self.qkv, self.out]

    def set_scales(self, scales: ModuleScales) -> None:
        super().set_scales(scales)
        for layer in (self.qkv, self.out):
            set_input_scale(layer, scales.scale_in)
        self.set_temperature(scales.scale_in**2)

    def output_scales(self, scales: ModuleScales) -> dict[str, float]:
        return {"qkv": scales.scale_in, "out": scales.scale_out, **super().output_scales(scales)}

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Return the next trunk: (B, T, d) -> (B, T, d)."""
        q, k, v = self.split(self.qkv(self.join.enter(x)), 3)  # (B, H, T, D) each
        return self.add(x, self.attend(q, k, v, mask, causal))

    def step(self, x: Tensor, layer: int, cache: Cache) -> Tensor:
        """Apply ``forward`` to the tokens (rows, T, d) after those of the cache; T is 1 unless the cache is empty."""
        qkv = self.qkv(self.join.enter(x)).view(*x.shape[:2], 3, self.heads, -1)  # (rows, T, 3, H, D)
        k, v = cache.extend(layer, qkv[:, :, 1:]).transpose(1, 3).unbind(2)  # (rows, H, all tokens, D) each
        q = qkv[:, :, 0].transpose(1, 2)  # (rows, H, T, D)
        return self.add(x, self.attend(q, k, v, causal=q.shape[2] > 1))


class CrossAttention(Attention):
    """Attention of the target to the source."""

    packed: ClassVar = {"key_value": 2}

    def __init__(self, layout: TransformerLayout, scheme: TextScheme, place: Place) -> None:
        super().__init__(layout, scheme, place)
        self.query = scheme.linear(("query",), layout.dim, layout.dim, place)
        self.key_value = scheme.linear(("key", "value"), layout.dim, layout.dim, place)
        self.out = scheme.linear(("output",), layout.dim, layout.dim, place)

    def branch_layers(self) -> list[nn.Module]:
        return [self.key_value, self.out]

    def set_scales(self, scales: ModuleScales) -> None:
        super().set_scales(scales)
        set_input_scale(self.query, scales.scale_in)
        for layer in (self.key_value, self.out):  # the mean of the values has the scale of the encoder's output
            set_input_scale(layer, scales.memory)
        self.set_temperature(scales.scale_in * scales.memory)

    def output_scales(self, scales: ModuleScales) -> dict[str, float]:
        inner = {"query": scales.scale_in, "key_value": scales.memory, "out": scales.scale_out}
        return {**inner, **super().output_scales(scales)}

    def remember(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values (B, H, S, D) of the encoder's output (B, S, d)."""
        key, value = self.split(self.key_value(source), 2)
        return key, value

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Return the next trunk (B * beams, T, d); the beams of a sentence are consecutive rows with the same keys."""
        key, value = keys_values  # (B, H, S, D) each
        (q,) = self.split(self.query(self.join.enter(x)), 1)  # (B * beams, H, T, D)
        rows, heads, length, _ = q.shape
        if (count := key.shape[0]) != rows:  # not len, which fixes an axis that exports leave free
            # beams as further positions of the query: (B, beams, H, T, D) -> (B, H, beams * T, D)
            q = q.view(count, -1, heads, length, q.shape[-1]).transpose(1, 2).flatten(2, 3)
        out = self.attend(q, key, value, mask)  # (B, beams * T, d)
        if count != rows:  # -> (B * beams, T, d)
            out = out.view(rows, length, -1)
        return self.add(x, out)

    def weights(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Return the attention weights of ``forward`` without dropout: (B, H, T, S)."""
        (q,) = self.split(self.query(self.join.enter(x)), 1)
        scores = q @ keys_values[0].transpose(2, 3) * self.temperature  # (B, H, T, S)
        return (scores if mask is None else scores + mask).softmax(3)


class FeedForward(Branch):
    """Two linear layers with an activation between them.

    ReLU is positively homogeneous, so its output has the scale of its input. GELU is not, so its input must have the
    value of the formulas: the product of ``hidden`` is multiplied by ``restore``.
    """

    def __init__(self, layout: TransformerLayout, scheme: TextScheme, place: Place) -> None:
        super().__init__(layout, scheme, place)
        self.restore: float | None = None
        self.hidden = scheme.linear(("hidden",), layout.dim, layout.hidden, place)
        self.shrink = scheme.linear(("shrink",), layout.hidden, layout.dim, place)
        self.activation = nn.ReLU(inplace=True) if layout.activation == "relu" else nn.GELU()
        self.hidden_drop = _dropout(layout.hidden_drop_rate)

    def branch_layers(self) -> list[nn.Module]:
        return [self.hidden, self.shrink]

    def _inner_scale(self, scales: ModuleScales) -> float:
        return scales.scale_in if isinstance(self.activation, nn.ReLU) else 1.0

    def set_scales(self, scales: ModuleScales) -> None:
        super().set_scales(scales)
        inner = self._inner_scale(scales)
        set_input_scale(self.hidden, scales.scale_in)
        set_input_scale(self.shrink, inner)
        self.restore = None if inner == scales.scale_in else 1 / scales.scale_in

    def output_scales(self, scales: ModuleScales) -> dict[str, float]:
        inner = dict.fromkeys(("hidden", "activation", "hidden_drop"), self._inner_scale(scales))
        return {**inner, "shrink": scales.scale_out, **super().output_scales(scales)}

    def fold_(self) -> None:
        restore, self.restore = self.restore, None
        super().fold_()
        self.hidden_drop = nn.Identity()
        if restore is not None:
            self.hidden = folded_linear(self.hidden, gain=restore)

    def forward(self, x: Tensor) -> Tensor:
        """Return the next trunk: (B, T, d) -> (B, T, d)."""
        entered = self.join.enter(x)
        h = self.hidden(entered) if self.restore is None else self.hidden(entered, self.restore)  # (B, T, hidden)
        return self.add(x, self.hidden_drop(self.activation(h)))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward branches."""

    def __init__(self, layout: TransformerLayout, scheme: TextScheme, number: int) -> None:
        super().__init__()
        n, m = layout.encoder_layers, layout.decoder_layers
        places = [Place(2 * number + i, 2 * n, 2, "encoder", n, m) for i in (1, 2)]
        self.self_attn = SelfAttention(layout, scheme, places[0])
        self.ffn = FeedForward(layout, scheme, places[1])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return the next trunk: (B, S, d) -> (B, S, d)."""
        return self.ffn(self.self_attn(x, mask))


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward branches."""

    def __init__(self, layout: TransformerLayout, scheme: TextScheme, number: int) -> None:
        super().__init__()
        n, m = layout.encoder_layers, layout.decoder_layers
        places = [Place(3 * number + i, 3 * m, 2, "decoder", n, m) for i in (1, 2, 3)]
        self.self_attn = SelfAttention(layout, scheme, places[0])
        self.cross_attn = CrossAttention(layout, scheme, places[1])
        self.ffn = FeedForward(layout, scheme, places[2])


class Embedding(nn.Embedding):
    """Token embeddings times sqrt(d), plus sinusoids, then dropout: (B, T) -> (B, T, d)."""

    sinusoids: Tensor

    def __init__(self, vocabulary: int, dim: int, max_length: int, std: float, drop_rate: float) -> None:
        nn.Embedding.__init__(self, vocabulary, dim)
        self.max_length = max_length
        self.drop = _dropout(drop_rate)
        with torch.no_grad():
            self.weight.normal_(0.0, std)
        self.register_buffer("sinusoids", sinusoids(max_length, dim), persistent=False)

    def forward(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Return the embeddings (B, T, d) of tokens (B, T); ``start`` is the position of the first token."""
        end = start + tokens.shape[1]
        if end > self.max_length:
            raise ZooError(
                f"a sentence of {end} tokens: must be <= {self.max_length} tokens, the net's option max_length"
            )
        positions = self.sinusoids[start:end].to(self.weight.dtype)  # (T, d)
        return self.drop(torch.add(positions, super().forward(tokens), alpha=math.sqrt(self.embedding_dim)))


def sinusoids(length: int, dim: int) -> Tensor:
    """Return fairseq's positions (length, dim): sines, then cosines, of geometrically spaced frequencies."""
    half = dim // 2
    kind: dict[str, Any] = {"dtype": torch.float64, "device": precise_device()}
    frequencies = torch.exp(torch.arange(half, **kind) * -(math.log(10000) / max(half - 1, 1)))
    angles = (torch.arange(length, **kind) + PAD + 1)[:, None] * frequencies
    values = torch.cat([angles.sin(), angles.cos(), angles.new_zeros(length, dim % 2)], 1).float()
    return values.to(torch.get_default_device())


class Transformer(Net):
    """An encoder-decoder Transformer: source and target tokens -> logits of the next target token."""

    schemes = TEXT_SCHEMES
    residual = True
    num_classes = 0  # its outputs are tokens, which the vocabulary names

    def __init__(self, layout: TransformerLayout, scheme: TextScheme) -> None:
        super().__init__()
        self.layout, self.scheme = layout, scheme
        n, m, dim, length = layout.encoder_layers, layout.decoder_layers, layout.dim, layout.max_length
        # embeddings
        deviation, drop_rate = scheme.embedding_std(dim, "encoder", n), layout.drop_rate
        self.encoder_embedding = Embedding(layout.source_vocabulary, dim, length, deviation, drop_rate)
        self.decoder_embedding: Embedding | None = None
        if layout.share != "all":
            deviation = scheme.embedding_std(dim, "decoder", m)
            self.decoder_embedding = Embedding(layout.target_vocabulary, dim, length, deviation, drop_rate)
        # the two stacks, each with its final norm
        self.encoder: Any = nn.ModuleList(EncoderLayer(layout, scheme, i) for i in range(n))
        self.encoder_end = scheme.final_norm("encoder", dim)
        self.decoder: Any = nn.ModuleList(DecoderLayer(layout, scheme, i) for i in range(m))
        self.decoder_end = scheme.final_norm("decoder", dim)
        # logits
        self.projection: nn.Linear | None = None
        if layout.share == "none":
            self.projection = nn.Linear(dim, layout.target_vocabulary, bias=False)
            nn.init.normal_(self.projection.weight, std=dim**-0.5)
        self.trunk_scales = self._plan_scales()
        self.trunk_scales.apply(self)

    def _plan_scales(self) -> TrunkScales:
        """Return the scales of both stacks (docs/method.md, M14). Each begins at 1, the scale of the embeddings."""
        blocks = [(name, module) for name, module in self.named_modules() if isinstance(module, TrunkBlock)]
        plans = {
            stack: [planned(name, block) for name, block in blocks if name.startswith(f"{stack}.")]
            for stack in ("encoder", "decoder")
        }
        encoder = TrunkScales.beginning_at_one(plans["encoder"])
        # behind an Identity the memory has the trunk's scale, which keys and values take into account; others remove it
        memory = encoder.last if isinstance(self.encoder_end, nn.Identity) else 1.0
        decoder = TrunkScales.beginning_at_one(plans["decoder"], memory=memory)
        decoder = decoder.with_end("decoder_end", decoder.last, 1.0)
        return encoder.with_end("encoder_end", encoder.last, memory) + decoder

    @classmethod
    def build(cls, layout: Any, scheme: Any, config: ModelConfig) -> Transformer:
        return cls(layout, scheme)

    @property
    def target_embedding(self) -> Embedding:
        """Embedding of target tokens, which may be the encoder's."""
        return self.encoder_embedding if self.decoder_embedding is None else self.decoder_embedding

    @property
    def output_weight(self) -> Tensor:
        """Matrix (target vocabulary, d) of the output layer."""
        return self.target_embedding.weight if self.projection is None else self.projection.weight

    def level_modules(self) -> dict[str, list[str]]:
        """Return the levels: the embeddings, each layer of the encoder, each layer of the decoder.

        An output layer that shares its matrix with an embedding is of the embeddings' level.
        """
        levels = {"embeddings": ["encoder_embedding"]}
        if self.decoder_embedding is not None:
            levels["embeddings"].append("decoder_embedding")
        levels |= {f"encoder.{i}": [f"encoder.{i}"] for i in range(len(self.encoder))}
        levels[f"encoder.{len(self.encoder) - 1}"].append("encoder_end")
        return levels | {f"decoder.{i}": [f"decoder.{i}"] for i in range(len(self.decoder))}

    def input_parameters(self) -> list[Tensor]:
        return [self.encoder_embedding.weight, self.target_embedding.weight]

    def output_parameters(self) -> list[Tensor]:
        return [self.output_weight]

    def project(self, x: Tensor) -> Tensor:
        """Return the logits (..., target vocabulary) of features (..., d)."""
        return F.linear(x, self.output_weight)

    def fold_(self) -> None:
        for module in self.modules():
            if isinstance(module, Branch):
                module.fold_()
            elif isinstance(module, Embedding):
                module.drop = nn.Identity()

    def encode(self, source: Tensor, *, padded: bool | None = None) -> Memory:
        """Return the keys and values that the decoder reads, of tokens (B, S) padded at the end with ``PAD``.

        Args:
            source: tokens.
            padded: whether there is padding; None: that is looked up, for which the host waits for the device.
        """
        padding = source == PAD
        # padding does not count in calibration and in statistics
        with only_positions(~padding):
            x = self.encoder_embedding(source)  # (B, S, d)
            # attention ignores padding: 0 and -inf, (B, 1, 1, S)
            mask = None
            if padding.any() if padded is None else padded:
                mask = torch.zeros(padding.shape, dtype=x.dtype, device=x.device).masked_fill_(padding, -math.inf)
                mask = mask[:, None, None]
            for layer in self.encoder:
                x = layer(x, mask)
            x = self.encoder_end(x)
            return Memory([layer.cross_attn.remember(x) for layer in self.decoder], mask)

    def decode(self, target: Tensor, memory: Memory) -> Tensor:
        """Return the features (B, T, d) of tokens (B, T) that begin with ``EOS`` and are padded at the end."""
        with only_positions(target != PAD):
            x = self.target_embedding(target)
            for layer, keys_values in zip(self.decoder, memory.keys_values, strict=True):
                x = layer.self_attn(x, causal=True)
                x = layer.cross_attn(x, keys_values, memory.mask)
                x = layer.ffn(x)
            return self.decoder_end(x)

    @torch.no_grad()
    def step(self, target: Tensor, memory: Memory, cache: Cache) -> Tensor:
        """Return the logits (rows, vocabulary) after the last of the tokens (rows, T) that follow those in the cache.

        ``rows`` may be a multiple of the memory's sentences: consecutive rows are beams of one.
        """
        x = self.target_embedding(target, cache.length)  # (rows, T, d)
        for i, (layer, keys_values) in enumerate(zip(self.decoder, memory.keys_values, strict=True)):
            x = layer.self_attn.step(x, i, cache)
            x = layer.cross_attn(x, keys_values, memory.mask)
            x = layer.ffn(x)
        cache.length += target.shape[1]
        return self.project(self.decoder_end(x[:, -1]))

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        labels: Tensor | None = None,
        label_smoothing: float = 0.0,
        *,
        places: Tensor | None = None,
        padded: bool | None = None,
    ) -> Any:
        """Return logits (B, T, V), or the summed loss and likelihood if labels are given.

        With ``places`` and ``padded``, the host does not wait for the device.

        Args:
            source: source tokens (B, S).
            target: target tokens (B, T).
            labels: next target tokens (B, T); ``PAD`` at positions without one.
            label_smoothing: weight of the uniform distribution in the loss.
            places: places in the flattened labels (B * T) that are not ``PAD``; None: they are looked up.
            padded: whether the source has padding; None: that is looked up.

        Returns:
            Logits; or two 0-D tensors, see ``zoo.losses.linear_cross_entropy``.
        """
        x = self.decode(target, self.encode(source, padded=padded))  # (B, T, d)
        if labels is None:
            return self.project(x)
        if places is None:
            places = (labels != PAD).flatten().nonzero().flatten()  # (N,)
        features, targets = x.flatten(0, 1).index_select(0, places), labels.flatten().index_select(0, places)
        return linear_cross_entropy(features, self.output_weight, targets, label_smoothing=label_smoothing)


_VASWANI = "Vaswani et al. 2017, Attention is all you need; Shao et al. 2020, RescaleNet"
_LAYOUTS = {
    "tiny": TransformerLayout(128, 256, 4, 4, 4, drop_rate=0.3),
    "small": TransformerLayout(512, 1024, 4, drop_rate=0.3),  # fairseq's iwslt_de_en
    "base": TransformerLayout(512, 2048, 8, drop_rate=0.1),
    "big": TransformerLayout(1024, 4096, 16, drop_rate=0.3),
}
for _size, _layout in _LAYOUTS.items():
    register_model(
        ModelSpec(
            name=f"rescale_transformer_{_size}",
            family=Transformer,
            layout=_layout,
            num_classes=0,
            input_size=0,
            min_size=0,
            paper=_VASWANI,
            input_kind="text",
        )
    )
