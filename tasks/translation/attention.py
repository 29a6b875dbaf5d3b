"""Where a translation looked: a picture of the cross-attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.files import atomic_write
from zoo.nets.transformer import CrossAttention, Transformer
from zoo.text import EOS, Tokenizer


@torch.no_grad()
def cross_attention(model: Transformer, source: Tensor, target: Tensor) -> Tensor:
    """Attention of each position of the decoder's input (B, T) to the source (B, S): (layers, B, heads, T, S).

    Row t is what the net looked at when it chose the token after the t-th of its input.
    """
    found: list[Tensor] = []

    def record(module: Any, args: tuple[Any, ...]) -> None:
        found.append(module.weights(*args))

    layers = [m for m in model.modules() if isinstance(m, CrossAttention)]
    handles = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        model(source, target)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found)


def attention_picture(model: Transformer, coder: Tokenizer, source: str, target: str, path: Path) -> None:
    """A PNG of the cross-attention, the mean over heads and layers: source pieces across, target pieces down."""
    from matplotlib.figure import Figure

    device = model.encoder_embedding.weight.device
    tokens = coder([source])
    (ids,) = coder.target.encode([target])
    weights = cross_attention(model, tokens.to(device), torch.tensor([[EOS, *ids]], device=device))
    grid = weights.mean((0, 2))[0].cpu()
    across, down = coder.source.pieces(tokens[0].tolist()), [*coder.target.pieces(ids), "</s>"]
    figure = Figure(figsize=(1.5 + 0.32 * len(across), 1.5 + 0.26 * len(down)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(grid.numpy(), cmap="Blues", vmin=0, aspect="auto")
    axes.set_xticks(range(len(across)), across, rotation=90)
    axes.set_yticks(range(len(down)), down)
    axes.set_xlabel("source")
    axes.set_ylabel("translation")
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))
