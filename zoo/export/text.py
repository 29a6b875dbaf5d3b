"""Graphs of a translation net: the encoder, and the decoder's step with its cache.

A search runs the encoder once and the step once for each target token. ``translate.py``, which exports contain, is a
beam search with these graphs and numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo import cleaning
from zoo.export import translate
from zoo.export.graphs import Graph, Port
from zoo.files import write_text
from zoo.folding import fold
from zoo.nets.transformer import Cache, Memory, Transformer
from zoo.text import EOS, PAD
from zoo.transforms import AnyTransform


def add_translator(folder: Path) -> None:
    """Write ``translate.py`` and ``cleaning.py``, which need no module of this package."""
    source = Path(translate.__file__).read_text(encoding="utf-8")
    line = "from zoo.cleaning import clean\n"
    assert line in source
    write_text(source.replace(line, "from cleaning import clean\n"), folder / "translate.py")
    write_text(Path(cleaning.__file__).read_text(encoding="utf-8"), folder / "cleaning.py")


class Encoder(nn.Module):
    """The encoder: tokens (B, S) -> keys and values of the source for each decoder layer, (B, H, S, D) each."""

    def __init__(self, net: Transformer) -> None:
        super().__init__()
        self.net = net

    def forward(self, source: Tensor) -> tuple[Tensor, ...]:
        memory = self.net.encode(source, padded=True)
        return tuple(tensor for pair in memory.keys_values for tensor in pair)


class GrowingCache(Cache):
    """A cache that changes no tensor in place, as exporters require: keys and values (B, T, 2, H, D) of each layer."""

    def extend(self, layer: int, new: Tensor) -> Tensor:
        self._buffers[layer] = torch.cat([self._buffers[layer], new], 1)
        return self._buffers[layer]


class DecoderStep(nn.Module):
    """A step of the decoder.

    Args:
        net: net in deployment form or as trained.

    Inputs: the source tokens (B, S), whose padding the step ignores; the last target token (B, 1), which is </s> at
    first; keys and values of the source as ``Encoder`` returns them; the cache, keys and values (B, T, 2, H, D) of the
    target tokens before the last one, for each layer. Outputs: logits (B, V), and the cache of T + 1 tokens.
    """

    def __init__(self, net: Transformer) -> None:
        super().__init__()
        self.net = net

    def forward(self, source: Tensor, token: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(self.net.decoder)
        memory, past = tensors[: 2 * count], tensors[2 * count :]
        pairs = [(memory[2 * i], memory[2 * i + 1]) for i in range(count)]
        mask = torch.zeros_like(source, dtype=memory[0].dtype).masked_fill(source == PAD, float("-inf"))[:, None, None]
        cache = GrowingCache(past)
        logits = self.net.step(token, Memory(pairs, mask), cache)
        return (logits, *cache.layers)


def whole_graph(
    net: Transformer, samples: Sequence[tuple[Tensor, Tensor]], shown: str, transform: AnyTransform | None = None
) -> Graph:
    """Return the graph of the whole net as it was trained: source (B, S) and target (B, T) -> logits (B, T, V).

    Args:
        net: net that is not folded.
        samples: token ids of source and target at which it is compared. The first has a batch of 1.
        shown: description of the samples.
        transform: languages and vocabularies of the net.
    """
    inputs = (Port("source", ("batch", "source"), "int64"), Port("target", ("batch", "target"), "int64"))
    outputs = (Port("logits", ("batch", "target", net.layout.target_vocabulary)),)
    net = net.eval()
    return Graph("model", net, inputs, outputs, tuple(samples), shown, net=net, transform=transform)


def graphs_of(net: Transformer, samples: Sequence[Tensor], shown: str, *, folded: bool = True) -> tuple[Graph, Graph]:
    """Return the graphs of the encoder and of the decoder's step.

    Args:
        net: net of any scheme.
        samples: source tokens (B, S), padded at the end. The first is one sentence; further ones have other sizes.
        shown: description of the samples.
        folded: whether the graphs compute the deployment form.
    """
    module = (fold(net) if folded else net).eval()
    layout, layers = net.layout, len(net.decoder)
    heads, size = layout.heads, layout.dim // layout.heads
    memory = tuple(
        Port(f"memory_{kind}_{i}", ("batch", heads, "source", size)) for i in range(layers) for kind in ("key", "value")
    )
    past, present = (
        tuple(Port(f"{name}_{i}", ("batch", axis, 2, heads, size)) for i in range(layers))
        for name, axis in (("past", "target"), ("present", "target + 1"))
    )
    source = Port("source", ("batch", "source"), "int64")
    encoder = Graph("encoder", Encoder(module).eval(), (source,), memory, tuple((x,) for x in samples), shown, net=net)
    step = DecoderStep(module).eval()
    decoder = Graph(
        "decoder",
        step,
        (source, Port("token", ("batch", 1), "int64"), *memory, *past),
        (Port("logits", ("batch", layout.target_vocabulary)), *present),
        tuple(arguments for x in samples for arguments in _steps(encoder, step, x)),
        f"the first tokens of greedy translations of {shown}",
        net=net,
    )
    return encoder, decoder


def _steps(encoder: Graph, step: DecoderStep, source: Tensor, count: int = 4) -> list[tuple[Tensor, ...]]:
    """Return the arguments of the second and of a later step of greedy search."""
    layers = len(step.net.decoder)
    with torch.no_grad():
        memory = [tensor.contiguous() for tensor in encoder.module(source)]
        key = memory[0]
        past = [key.new_zeros(len(source), 0, 2, key.shape[1], key.shape[3])] * layers
        token = torch.full((len(source), 1), EOS, device=source.device)
        calls = []
        for _ in range(count):
            calls.append((source, token, *memory, *past))
            logits, *past = step(*calls[-1])
            token = logits.argmax(1, keepdim=True)
    return [calls[1], calls[-1]]
