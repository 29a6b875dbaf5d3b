"""Plug-in for fairseq: ``fairseq-train DATA --user-dir THIS_FOLDER --arch rescale_transformer_wmt_en_de ...``.

fairseq imports this module by itself, outside of the package ``zoo``; the nets are ``zoo.nets.transformer``'s.

The biases are initialised from the first training batch. In half precision fairseq's optimizer has copied the
parameters into float32 by then, and each update copies these back. ``_keep_biases`` therefore copies the biases into
them before the first update.
"""

from __future__ import annotations

import json
import logging
from argparse import ArgumentParser, Namespace
from typing import Any

import torch
import torch.distributed
from fairseq.models import (
    FairseqEncoder,
    FairseqEncoderDecoderModel,
    FairseqIncrementalDecoder,
    register_model,
    register_model_architecture,
)
from fairseq.utils import convert_padding_direction
from torch import Tensor

import zoo
from zoo.nets.base import ModelConfig
from zoo.nets.transformer import PAD, Cache, Memory, Transformer
from zoo.registry import build_model
from zoo.schemes.text import TEXT_SCHEMES

log = logging.getLogger("rescalenet")


class Encoder(FairseqEncoder):
    """The encoder's half of a net. The net is a submodule of the model; the tuple here hides it from torch."""

    def __init__(self, dictionary: Any, net: Transformer) -> None:
        super().__init__(dictionary)
        self._net = (net,)

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None, **kwargs: Any) -> dict[str, list[Tensor]]:
        """Return fairseq's dictionary, with the keys and values of each decoder layer as ``encoder_states``."""
        right = convert_padding_direction(src_tokens, PAD, left_to_right=True)
        memory = self._net[0].encode(right)
        flat = [tensor for pair in memory.keys_values for tensor in pair]
        return {
            "encoder_out": [flat[0].transpose(0, 1)],  # (S, B, ...): fairseq reads the batch size from it
            "encoder_padding_mask": [right == PAD],
            "encoder_states": flat,
            "mask": [] if memory.mask is None else [memory.mask],
            "encoder_embedding": [],
            "src_tokens": [],
            "src_lengths": [],
        }

    def reorder_encoder_out(self, encoder_out: dict[str, list[Tensor]], new_order: Tensor) -> dict[str, list[Tensor]]:
        """Return the rows ``new_order`` of every entry."""
        order = torch.arange(len(encoder_out["encoder_padding_mask"][0]), device=new_order.device)
        if torch.equal(order, new_order):
            return encoder_out
        rows = {
            key: [tensor.index_select(0, new_order) for tensor in tensors]
            for key, tensors in encoder_out.items()
            if key != "encoder_out"
        }
        return {**rows, "encoder_out": [rows["encoder_states"][0].transpose(0, 1)]}

    def max_positions(self) -> int:
        return self._net[0].layout.max_length


class Decoder(FairseqIncrementalDecoder):
    """The decoder's half."""

    def __init__(self, dictionary: Any, net: Transformer) -> None:
        super().__init__(dictionary)
        self._net = (net,)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]] | None = None,
        incremental_state: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return logits (B, T, V), of the last token only when decoding incrementally."""
        assert encoder_out is not None
        net, states = self._net[0], encoder_out["encoder_states"]
        memory = Memory(list(zip(states[::2], states[1::2], strict=True)), next(iter(encoder_out["mask"]), None))
        if incremental_state is None:
            return net.project(net.decode(prev_output_tokens, memory)), {"attn": [None]}
        saved = self.get_incremental_state(incremental_state, "cache") or {}
        cache = Cache([saved[str(i)] for i in range(len(saved))])
        logits = net.step(prev_output_tokens[:, -1:], memory, cache)
        self.set_incremental_state(incremental_state, "cache", {str(i): layer for i, layer in enumerate(cache.layers)})
        return logits[:, None], {"attn": [None]}

    def reorder_incremental_state(self, incremental_state: dict[str, Any], new_order: Tensor) -> None:
        """Keep the rows ``new_order`` of the cache."""
        saved = self.get_incremental_state(incremental_state, "cache")
        if saved:
            rows = {key: tensor.index_select(0, new_order) for key, tensor in saved.items()}
            self.set_incremental_state(incremental_state, "cache", rows)

    def max_positions(self) -> int:
        return self._net[0].layout.max_length


@register_model("rescale_transformer")
class RescaleTransformer(FairseqEncoderDecoderModel):
    """``zoo.nets.transformer.Transformer`` in fairseq. Its biases are calibrated on the first training batch."""

    def __init__(self, net: Transformer, source: Any, target: Any) -> None:
        super().__init__(Encoder(source, net), Decoder(target, net))
        self.net = net
        self.fresh: list[tuple[Tensor, Tensor]] = []  # biases of before and after calibration, until an update

    @staticmethod
    def add_args(parser: ArgumentParser) -> None:
        """Add a Transformer's options under fairseq's names, and the scheme."""
        for side in ("encoder", "decoder"):
            parser.add_argument(f"--{side}-layers", type=int, metavar="N")
        parser.add_argument("--encoder-embed-dim", type=int, metavar="N", help="width of both stacks")
        parser.add_argument(
            "--encoder-ffn-embed-dim", type=int, metavar="N", help="width of the feed-forward layers of both stacks"
        )
        parser.add_argument("--encoder-attention-heads", type=int, metavar="N", help="attention heads of both stacks")
        parser.add_argument("--activation-fn", choices=["relu", "gelu"])
        parser.add_argument("--dropout", type=float, metavar="D")
        parser.add_argument("--attention-dropout", type=float, metavar="D")
        parser.add_argument("--activation-dropout", type=float, metavar="D")
        parser.add_argument("--share-all-embeddings", action="store_true")
        parser.add_argument("--share-decoder-input-output-embed", action="store_true")
        parser.add_argument("--max-source-positions", type=int, metavar="N")
        parser.add_argument("--max-target-positions", type=int, metavar="N")
        parser.add_argument("--scheme", choices=list(TEXT_SCHEMES), help="replacement of normalization, or its kind")
        parser.add_argument(
            "--scheme-options",
            type=json.loads,
            metavar="JSON",
            help='options of the scheme, drop_path_rate and branch_noise, as in {"decoder_c": 1}',
        )

    @classmethod
    def build_model(cls, args: Namespace, task: Any) -> RescaleTransformer:
        base_architecture(args)
        for dictionary in (task.source_dictionary, task.target_dictionary):
            ids = (dictionary.bos(), dictionary.pad(), dictionary.eos(), dictionary.unk())
            if ids != (0, 1, 2, 3):
                raise ValueError(f"<s>, padding, </s> and unknown have ids {ids}; must be (0, 1, 2, 3)")
        share = "all" if args.share_all_embeddings else "decoder" if args.share_decoder_input_output_embed else "none"
        sizes = {
            "dim": args.encoder_embed_dim,
            "hidden": args.encoder_ffn_embed_dim,
            "heads": args.encoder_attention_heads,
            "encoder_layers": args.encoder_layers,
            "decoder_layers": args.decoder_layers,
            "activation": args.activation_fn,
            "drop_rate": args.dropout,
            "attention_drop_rate": args.attention_dropout,
            "hidden_drop_rate": args.activation_dropout,
            "share": share,
            "source_vocabulary": len(task.source_dictionary),
            "target_vocabulary": len(task.target_dictionary),
            "max_length": max(args.max_source_positions, args.max_target_positions),
        }
        if taken := sorted(sizes.keys() & args.scheme_options.keys()):
            raise ValueError(f"--scheme-options: {taken[0]!r} has an argument of fairseq; use that")
        options = {**sizes, **args.scheme_options}
        net: Any = build_model(ModelConfig("rescale_transformer_base", args.scheme, 0, 0, options))
        model = cls(net, task.source_dictionary, task.target_dictionary)
        _keep_biases(task, model)
        return model

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor, **kwargs: Any) -> Any:
        """Return logits (B, T, V) and fairseq's dictionary; the first training batch calibrates the biases."""
        if self.training and not all(layer.calibrated for layer in self._layers()):
            self._calibrate(src_tokens, prev_output_tokens)
        return super().forward(src_tokens, src_lengths, prev_output_tokens)

    def _layers(self) -> list[zoo.calibration.HasDataBias]:
        """Return the layers whose biases come from data."""
        return [module for module in self.net.modules() if isinstance(module, zoo.calibration.HasDataBias)]

    def _calibrate(self, source: Tensor, target: Tensor) -> None:
        right = convert_padding_direction(source, PAD, left_to_right=True)
        biases = [layer.data_bias for layer in self._layers()]
        before = [bias.detach().clone() for bias in biases]
        report = zoo.calibrate(
            self.net, [(right, target)], forward=lambda net, batch: net(*batch), reduce=_sum_over_ranks
        )
        log.info("%s", report)
        self.fresh = [(old, bias.detach().clone()) for old, bias in zip(before, biases, strict=True)]

    def check_biases(self) -> None:
        """Check that an optimizer has not overwritten the biases that were just calibrated with those of before.

        Raises:
            RuntimeError: it has.
        """
        lost, moved = 0.0, 0.0
        for layer, (before, after) in zip(self._layers(), self.fresh, strict=True):
            now = layer.data_bias.detach()
            if now.shape != before.shape:  # an optimizer that shards the parameters
                now = before
            lost += float((now - before).float().square().sum())
            moved += float((after - before).float().square().sum())
        self.fresh = []
        if lost < 0.01 * moved:  # less than a tenth of the way is left
            raise RuntimeError(
                "the first update has overwritten the biases that the first batch gave: the optimizer has copies of "
                "the parameters that are unknown here, as with options that shard them; train the first update without "
                "such an option and go on from its checkpoint"
            )


def _keep_biases(task: Any, model: RescaleTransformer) -> None:
    """Make a task's first update start from the calibrated biases, also where the optimizer has float32 copies.

    The task is the one place at which fairseq hands the optimizer out: the model never sees it.
    """
    step = getattr(task, "optimizer_step", None)
    if step is None:  # a task that only describes the data
        return

    def optimizer_step(optimizer: Any, *args: Any, **kwargs: Any) -> None:
        if not model.fresh:
            step(optimizer, *args, **kwargs)
            return
        _refresh_copies(optimizer)
        step(optimizer, *args, **kwargs)
        model.check_biases()

    task.optimizer_step = optimizer_step


def _refresh_copies(optimizer: Any) -> None:
    """Copy the parameters of fairseq's ``FP16Optimizer`` into its float32 copies again, as it did at its start."""
    optimizer = getattr(optimizer, "_optimizer", optimizer)  # inside of block-wise model updates (BMUF)
    copies = getattr(optimizer, "fp32_params", None)
    if copies is None:  # an optimizer of the parameters themselves
        return
    fresh = optimizer.build_fp32_params(None, optimizer.fp16_params, flatten=optimizer.has_flat_params)
    pairs = (
        [(copies[key], fresh[key]) for key in copies] if isinstance(copies, dict) else zip(copies, fresh, strict=True)
    )
    with torch.no_grad():
        for copy, value in pairs:
            copy.copy_(value)


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)
    return tensor


def _defaults(args: Namespace, **values: Any) -> None:
    for key, value in values.items():
        if getattr(args, key, None) is None:
            setattr(args, key, value)


@register_model_architecture("rescale_transformer", "rescale_transformer")
def base_architecture(args: Namespace) -> None:
    """Set the defaults of Transformer base."""
    _defaults(
        args,
        encoder_layers=6,
        decoder_layers=6,
        encoder_embed_dim=512,
        encoder_ffn_embed_dim=2048,
        encoder_attention_heads=8,
        activation_fn="relu",
        dropout=0.1,
        attention_dropout=0.0,
        activation_dropout=0.0,
        share_all_embeddings=False,
        share_decoder_input_output_embed=False,
        max_source_positions=1024,
        max_target_positions=1024,
        scheme="rescale",
        scheme_options={},
    )


@register_model_architecture("rescale_transformer", "rescale_transformer_wmt_en_de")
def wmt_en_de(args: Namespace) -> None:
    """Set the defaults of fairseq's transformer_wmt_en_de."""
    base_architecture(args)


@register_model_architecture("rescale_transformer", "rescale_transformer_wmt_en_de_big")
def wmt_en_de_big(args: Namespace) -> None:
    """Set the defaults of fairseq's transformer_wmt_en_de_big."""
    _defaults(args, encoder_embed_dim=1024, encoder_ffn_embed_dim=4096, encoder_attention_heads=16, dropout=0.3)
    base_architecture(args)


@register_model_architecture("rescale_transformer", "rescale_transformer_iwslt_de_en")
def iwslt_de_en(args: Namespace) -> None:
    """Set the defaults of fairseq's transformer_iwslt_de_en."""
    _defaults(args, encoder_embed_dim=512, encoder_ffn_embed_dim=1024, encoder_attention_heads=4)
    base_architecture(args)
