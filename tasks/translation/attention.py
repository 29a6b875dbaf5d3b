"""Pictures of the cross-attention of a translation: which source pieces each output piece depends on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.errors import DataError
from tasks.plots import new_figure, save_figure
from zoo.nets.transformer import CrossAttention, Transformer
from zoo.text import EOS, Tokenizer

MOST_PIECES = 150  # on either side of a picture, which then has 7000 pixels


@torch.no_grad()
def cross_attention(model: Transformer, source: Tensor, target: Tensor) -> Tensor:
    """Return the cross-attention weights of a translation: (layers, B, heads, T, S).

    Row t has the weights with which the net predicted the token that follows token t of ``target``.

    Args:
        model: net in eval mode.
        source: source tokens (B, S).
        target: input tokens of the decoder (B, T).
    """
    found: list[Tensor] = []  # (B, heads, T, S) of each layer

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


def attention_picture(
    model: Transformer, coder: Tokenizer, source: Sequence[int], target: Sequence[int], path: Path
) -> None:
    """Write a PNG of the mean cross-attention over heads and layers, a column per source and a row per target piece.

    Args:
        model: net in eval mode.
        coder: tokenizer of the net.
        source: token ids of the sentence, without </s>.
        target: token ids of its translation, without </s>.
        path: path of the picture.

    Raises:
        DataError: more pieces than a picture shows.
    """
    if max(len(source), len(target)) > MOST_PIECES:
        raise DataError(f"{max(len(source), len(target))} pieces, a picture shows up to {MOST_PIECES}")
    device = model.encoder_embedding.weight.device
    tokens, ids = torch.tensor([[*source, EOS]], device=device), torch.tensor([[EOS, *target]], device=device)
    grid = cross_attention(model, tokens, ids).mean((0, 2))[0].cpu()  # (layers, 1, heads, T, S) -> (T, S)
    columns, rows = coder.source.pieces([*source, EOS]), [*coder.target.pieces(target), "</s>"]
    figure = new_figure(1.5 + 0.32 * len(columns), 1.5 + 0.26 * len(rows))
    axes = figure.subplots()
    axes.imshow(grid.numpy(), cmap="Blues", vmin=0, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("source")
    axes.set_ylabel("translation")
    save_figure(figure, path, dpi=150)
