"""Conversion of Transformers from fairseq's checkpoints and to them.

Our nets of scheme ``pre_ln`` and ``post_ln`` are fairseq's own ``transformer`` (``--encoder-normalize-before`` and
``--decoder-normalize-before``, or neither). Nets of every scheme are ``rescale_transformer`` of the plug-in
(``zoo.export.fairseq.USER_DIR``), which has our tensors. Token ids, sinusoids and the scale of the embeddings are
fairseq's, so logits are equal.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.arguments import file_path
from zoo.building import WithoutInit, planned
from zoo.errors import ZooError, one_line
from zoo.nets.base import ModelConfig
from zoo.nets.regularization import BranchRegularization
from zoo.nets.transformer import Transformer
from zoo.registry import build_model
from zoo.specs import MODELS
from zoo.states import check_shapes, load_state, shapes_of
from zoo.text import BOS, EOS, PAD, UNK, Vocabulary
from zoo.torchfiles import load_torch

log = logging.getLogger("rescalenet")

PLUGIN = "rescale_transformer"
_NATIVE = ("post_ln", "pre_ln")
_IDS = ("<s>", "<pad>", "</s>", "<unk>")
# our options that fairseq has no argument for
_WITHOUT_ARGUMENT = tuple(field.name for field in dataclasses.fields(BranchRegularization))
# arguments that our net has no option for, with the only value that can be converted
_FIXED: dict[str, Any] = {
    "encoder_learned_pos": False,
    "decoder_learned_pos": False,
    "adaptive_softmax_cutoff": None,
    "adaptive_input": False,
    "no_cross_attention": False,
    "cross_self_attention": False,
    "no_scale_embedding": False,
    "no_token_positional_embeddings": False,
    "layernorm_embedding": False,
    "encoder_layerdrop": 0,
    "decoder_layerdrop": 0,
    "quant_noise_pq": 0,
}


def needs_plugin(model: Transformer) -> bool:
    """Return whether a net is of a scheme that fairseq itself does not have."""
    return model.scheme.name not in _NATIVE


def to_fairseq(model: Transformer, *, plugin: bool | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the arguments and the state dict of the fairseq model with the same logits.

    Args:
        model: net to convert.
        plugin: whether the plug-in's model is made; None for schemes that fairseq itself does not have.

    Raises:
        ZooError: ``plugin=False`` for a scheme that fairseq does not have, or a folded net.
    """
    if model.folded:
        raise ZooError("a folded net has no fairseq form: convert the net before zoo.fold")
    # 1. fairseq's own architecture or the plug-in's
    layout, scheme = model.layout, model.scheme.name
    if plugin is None:
        plugin = needs_plugin(model)
    if not plugin and scheme not in _NATIVE:
        raise ZooError(f"fairseq has no Transformer of scheme {scheme!r}: it requires the plug-in (plugin=True)")
    # 2. arguments that both have
    args: dict[str, Any] = {
        "task": "translation",
        "arch": PLUGIN if plugin else "transformer",
        "encoder_layers": layout.encoder_layers,
        "decoder_layers": layout.decoder_layers,
        "activation_fn": layout.activation,
        "dropout": layout.drop_rate,
        "attention_dropout": layout.attention_drop_rate,
        "activation_dropout": layout.hidden_drop_rate,
        "share_all_embeddings": layout.share == "all",
        "share_decoder_input_output_embed": layout.share != "none",
        "max_source_positions": layout.max_length,
        "max_target_positions": layout.max_length,
    }
    for side in ("encoder", "decoder"):
        args[f"{side}_embed_dim"] = layout.dim
        args[f"{side}_ffn_embed_dim"] = layout.hidden
        args[f"{side}_attention_heads"] = layout.heads
    without_argument = {key: value for key in _WITHOUT_ARGUMENT if (value := getattr(layout, key))}
    # 3. tensors: the plug-in has the same as our net, under a prefix
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    if plugin:
        args |= {"scheme": scheme, "scheme_options": {**dataclasses.asdict(model.scheme), **without_argument}}
        return args, {f"net.{key}": value for key, value in state.items()}
    if without_argument:
        log.warning("fairseq's transformer has no %s, which is left out", ", ".join(without_argument))
    # fairseq's own architecture has other names, and queries, keys and values apart
    before = scheme == "pre_ln"
    for side in ("encoder", "decoder"):
        args[f"{side}_normalize_before"] = before
        args[f"{side}_learned_pos"] = False
    return args, _to_native(model, state)


def from_fairseq(path: str | Path) -> Transformer:
    """Return the net of a fairseq checkpoint, with the same logits and the token ids of its dictionary.

    No code in the file is executed: objects other than tensors and plain values are read as inert data.

    Args:
        path: checkpoint of fairseq's ``transformer`` or of the plug-in.

    Raises:
        ZooError: another kind of file, another architecture, or an option that our net does not have.
    """
    # 1. architecture and scheme
    path = file_path(path, "path")
    content = read_checkpoint(path)
    args, state = _arguments(content, path), content["model"]
    arch = str(args.get("_name") or args.get("arch") or "")
    plugin = arch.startswith(PLUGIN)
    if not plugin and not arch.startswith("transformer"):
        raise ZooError(f"{path}: has arch {arch[:80]!r}; must be transformer or {PLUGIN}")
    for side in ("encoder", "decoder"):
        if not plugin and not any(f"{side}." in key for key in state):
            raise ZooError(f"{path}: has arch {arch[:80]!r} and no {side}; must be a net of translation, with both")
    scheme = str(args.get("scheme")) if plugin else _native_scheme(args, path)
    # 2. the config, and the tensors by our keys; a net on the meta device takes no memory before they are compared
    own = dict(args.get("scheme_options") or {}) if plugin else {}
    options = _options(args, state, plugin=plugin, path=path)
    config = ModelConfig(_closest(options), scheme, 0, 0, {**options, **own})
    skeleton = planned(lambda: build_model(config), str(path))
    assert isinstance(skeleton, Transformer)
    if plugin:
        state = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
    else:
        state = _from_native(skeleton, state, path)
    check_shapes(shapes_of(skeleton.state_dict()), shapes_of(state), str(path))
    # 3. the net with the checkpoint's tensors
    with WithoutInit():
        model = build_model(config)
    assert isinstance(model, Transformer)
    load_state(model, {k: v.float() for k, v in state.items()}, str(path))
    return model.eval()


def _options(args: Mapping[str, Any], state: Mapping[str, Tensor], *, plugin: bool, path: Path) -> dict[str, Any]:
    """Return our options of a checkpoint: from its tensors if possible, which cannot contradict the net.

    Args:
        args: arguments of the checkpoint.
        state: tensors of the checkpoint.
        plugin: whether it is of the plug-in.
        path: path of the checkpoint, for messages.

    Raises:
        ZooError: layers or embeddings that are missing, or arguments that are no numbers.
    """
    # layers of both stacks
    layers = [_layers(state, f"net.{side}." if plugin else f"{side}.layers.", path) for side in ("encoder", "decoder")]
    # embeddings (vocabulary, d)
    share = (
        "all"
        if args.get("share_all_embeddings")
        else "decoder"
        if args.get("share_decoder_input_output_embed")
        else "none"
    )
    sizes = []
    for side in ("encoder", "encoder" if share == "all" else "decoder"):
        key = f"net.{side}_embedding.weight" if plugin else f"{side}.embed_tokens.weight"
        if key not in state or state[key].ndim != 2:
            raise ZooError(f"{path}: has no matrix {key}, the embedding of a Transformer")
        sizes.append(state[key].shape)
    # our options
    try:
        return {
            "dim": sizes[0][1],
            "hidden": int(args["encoder_ffn_embed_dim"]),
            "heads": int(args["encoder_attention_heads"]),
            "encoder_layers": layers[0],
            "decoder_layers": layers[1],
            "activation": str(args.get("activation_fn", "relu")),
            "drop_rate": float(args.get("dropout", 0.1)),
            "attention_drop_rate": float(args.get("attention_dropout", 0.0)),
            "hidden_drop_rate": float(args.get("activation_dropout", 0.0)),
            "share": share,
            "source_vocabulary": sizes[0][0],
            "target_vocabulary": sizes[1][0],
            "max_length": max(int(args.get(f"max_{side}_positions") or 1024) for side in ("source", "target")),
        }
    except KeyError as error:
        raise ZooError(f"{path}: its arguments have no {error}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ZooError(f"{path}: an argument is no number ({one_line(error)})") from None


def _layers(state: Iterable[str], prefix: str, path: Path) -> int:
    """Return the number of layers whose keys begin with a prefix and a number.

    Raises:
        ZooError: no layer, or numbers that are not 0, 1, 2, ...
    """
    numbers = {key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)}
    if not numbers:
        raise ZooError(f"{path}: has no tensors {prefix}0...., the layers of a Transformer")
    if numbers != {str(number) for number in range(len(numbers))}:
        raise ZooError(f"{path}: its layers {prefix}N are not numbered from 0 to {len(numbers) - 1}")
    return len(numbers)


class _Inert(Namespace):
    """Stand-in for objects of other classes: it keeps what it is made of and its attributes, and does nothing.

    Numbers of numpy, which fairseq stores with its best scores and counters, are stand-ins too.
    """

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(**{str(key): value for key, value in attributes.items()})
        if arguments:
            self.made_of = arguments

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({str(key): value for key, value in state.items()})

    def number(self) -> int | float | bool | None:
        """Return the number of numpy that this stands for: it is made of a type and of bytes; None for others."""
        match getattr(self, "made_of", ()):
            case (_Inert(made_of=(str(code), *_)), bytes(content)) if code in _NUMBERS and len(content) == int(code[1]):
                return np.frombuffer(content, f"<{code}")[0].item()
        return None


_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a fairseq checkpoint, with objects such as its arguments as inert namespaces.

    Raises:
        ZooError: a file that is not a checkpoint of fairseq.
    """
    try:
        content = load_torch(path, stand_in=_Inert)
    except Exception as error:  # unpickling another kind of file raises anything
        raise ZooError(f"{path}: not a checkpoint that can be read safely ({' '.join(str(error).split())})") from None
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("model"), dict)
        or not ({"args", "cfg"} & set(content))
    ):
        raise ZooError(
            f"{path}: not a fairseq checkpoint (no 'model' with 'args' or 'cfg'); give the .pt file that fairseq "
            "wrote, not a state dict"
        )
    for key, value in content["model"].items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ZooError(f"{path}: {str(key)[:80]!r} in 'model' is of type {type(value).__name__}, not a tensor")
    return content


def read_dictionary(path: str | Path) -> list[str]:
    """Return the symbols of a fairseq dictionary in order of their ids.

    Raises:
        ZooError: a file that is not UTF-8, or a line of another form than 'symbol count'.
    """
    symbols = list(_IDS)
    try:  # without a translation of the ends of lines: a symbol may be a carriage return
        text = Path(path).read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ZooError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None
    # not splitlines, which also splits at characters that a symbol may have
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
        fields = line.removesuffix(" #fairseq:overwrite").rsplit(" ", 1)
        if len(fields) != 2 or not fields[1].isdigit():
            raise ZooError(f"{path}, line {number}: {line[:80]!r} must be 'symbol count'")
        symbols.append(fields[0])
    return symbols


def read_vocabulary(path: str | Path) -> Vocabulary:
    """Return the vocabulary of a sentencepiece model, whose special tokens may have any ids.

    fairseq takes the ids of a dictionary, so recipes train models with sentencepiece's own, unknown first. The pieces
    of a text do not depend on ids.

    Raises:
        ZooError: not a sentencepiece model, or one without an unknown token.
    """
    content = Path(path).read_bytes()
    return Vocabulary(_renumbered(content), str(path))


def _renumbered(content: bytes) -> bytes:
    """Return a sentencepiece model with the ids of ``Vocabulary``; what is no such model, as it is."""
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, OSError):
        return content
    if (processor.bos_id(), processor.pad_id(), processor.eos_id(), processor.unk_id()) == (BOS, PAD, EOS, UNK):
        return content
    protocol = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    model = protocol.ModelProto.FromString(content)
    spec = model.trainer_spec
    names = (spec.bos_piece, spec.pad_piece, spec.eos_piece, spec.unk_piece)
    pieces = {piece.piece: piece for piece in model.pieces}
    control, unknown = protocol.ModelProto.SentencePiece.CONTROL, protocol.ModelProto.SentencePiece.UNKNOWN
    first = [
        protocol.ModelProto.SentencePiece(piece=name, score=0, type=unknown if name == spec.unk_piece else control)
        for name in names
    ]
    model.ClearField("pieces")
    model.pieces.extend([*first, *(piece for name, piece in pieces.items() if name not in names)])
    spec.bos_id, spec.pad_id, spec.eos_id, spec.unk_id = BOS, PAD, EOS, UNK
    spec.vocab_size = len(model.pieces)
    return bytes(model.SerializeToString())


def dictionary(vocabulary: Vocabulary) -> str:
    """Return the text of the fairseq dictionary with the vocabulary's ids."""
    return "".join(f"{piece} 1\n" for piece in vocabulary.pieces(range(len(_IDS), len(vocabulary))))


def with_vocabularies(
    model: Transformer, dictionaries: Sequence[Sequence[str]], vocabularies: Sequence[Vocabulary]
) -> tuple[Transformer, int]:
    """Return a net for sentencepiece ids, made of a net for the ids of fairseq dictionaries.

    Args:
        model: net for the dictionaries' ids.
        dictionaries: symbols of the source and of the target dictionary, in order of their ids.
        vocabularies: source and target vocabulary.

    Returns:
        The net, and the number of pieces of both vocabularies that the dictionaries lack. These have the embedding of
        the unknown token.

    Raises:
        ZooError: a dictionary of another size than the net's, one of which the vocabulary lacks most symbols, or
            different ones for a net with one embedding.
    """
    # for each side the embedding's row of every piece, (vocabulary,); 3 is the unknown token
    layout = model.layout
    rows, missing = [], 0
    for side, symbols, vocabulary in zip(("source", "target"), dictionaries, vocabularies, strict=True):
        size = getattr(layout, f"{side}_vocabulary")
        if len(symbols) != size:
            raise ZooError(f"the {side} dictionary has {len(symbols)} symbols, the checkpoint {size}")
        ids = {symbol: number for number, symbol in enumerate(symbols)}
        pieces = vocabulary.pieces(range(len(_IDS), len(vocabulary)))
        own = [symbol for symbol in symbols[len(_IDS) :] if not symbol.startswith("madeupword")]  # fairseq's padding
        known = len(set(pieces).intersection(own))
        if 2 * known < len(own):
            raise ZooError(
                f"the {side} vocabulary has {known} of the {len(own)} symbols of the {side} dictionary: "
                "they are not of the same net"
            )
        missing += sum(piece not in ids for piece in pieces)
        rows.append(torch.tensor([*range(len(_IDS)), *(ids.get(piece, 3) for piece in pieces)]))
    if layout.share == "all" and not torch.equal(rows[0], rows[1]):
        raise ZooError("the net has one embedding for both languages: give one dictionary and one vocabulary")
    # the same net with these rows of its embeddings
    sizes = {"source_vocabulary": len(rows[0]), "target_vocabulary": len(rows[1])}
    config = model.config
    again = build_model(ModelConfig(config.name, config.scheme, 0, 0, {**config.options, **sizes}))
    assert isinstance(again, Transformer)
    sides = {"encoder_embedding.weight": 0, "decoder_embedding.weight": 1, "projection.weight": 1}
    state = {k: v[rows[sides[k]]] if k in sides else v for k, v in model.state_dict().items()}
    load_state(again, state, "the converted net")
    return again.eval(), missing


def _arguments(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the arguments in a checkpoint, of old and of new fairseq."""
    args = content.get("args")
    if args is None:
        args = content["cfg"].get("model") if isinstance(content["cfg"], dict) else None
    if isinstance(args, Namespace):
        args = vars(args)
    if not isinstance(args, dict):
        raise ZooError(f"{path}: its arguments have type {type(args).__name__}, which is unknown")
    return {str(key): value.number() if isinstance(value, _Inert) else value for key, value in args.items()}


def _native_scheme(args: dict[str, Any], path: Path) -> str:
    """Return the scheme of fairseq's own Transformer.

    Raises:
        ZooError: arguments that our net does not have.
    """
    for key, value in _FIXED.items():
        if (args.get(key, value) or None) != (value or None):
            raise ZooError(f"{path}: trained with {key}={args[key]!r}, which the zoo's Transformer does not have")
    before = [bool(args.get(f"{side}_normalize_before", False)) for side in ("encoder", "decoder")]
    for key in ("embed_dim", "ffn_embed_dim", "attention_heads"):
        if args.get(f"encoder_{key}") != args.get(f"decoder_{key}"):
            raise ZooError(f"{path}: encoder and decoder differ in {key}, which the zoo's Transformer does not have")
    if before[0] != before[1]:
        raise ZooError(f"{path}: encoder and decoder differ in normalize_before")
    return _NATIVE[before[0]]


def _closest(options: dict[str, Any]) -> str:
    """Return the registered net whose options differ least, so that its name describes the converted net."""

    def differences(name: str) -> int:
        layout = MODELS[name].layout
        return sum(getattr(layout, key) != options[key] for key in ("dim", "hidden", "heads"))

    return min(sorted(name for name, spec in MODELS.items() if spec.input_kind == "text"), key=differences)


def _pairs(model: Transformer) -> list[tuple[str, str]]:
    """Return pairs of our and fairseq's names of the tensors that both store whole."""
    names = []
    for side, count in (("encoder", model.layout.encoder_layers), ("decoder", model.layout.decoder_layers)):
        for i in range(count):
            ours, theirs = f"{side}.{i}", f"{side}.layers.{i}"
            blocks = [("self_attn", "self_attn"), *([("cross_attn", "encoder_attn")] if side == "decoder" else [])]
            for block, their in blocks:
                names += [(f"{ours}.{block}.out", f"{theirs}.{their}.out_proj")]
                names += [(f"{ours}.{block}.join.norm", f"{theirs}.{their}_layer_norm")]
            names += [(f"{ours}.ffn.hidden", f"{theirs}.fc1"), (f"{ours}.ffn.shrink", f"{theirs}.fc2")]
            names += [(f"{ours}.ffn.join.norm", f"{theirs}.final_layer_norm")]
            if side == "decoder":
                names += [(f"{ours}.cross_attn.query", f"{theirs}.encoder_attn.q_proj")]
        if model.scheme.name == "pre_ln":
            names += [(f"{side}_end", f"{side}.layer_norm")]
    return [(f"{a}.{leaf}", f"{b}.{leaf}") for a, b in names for leaf in ("weight", "bias")]


def _packed(model: Transformer) -> list[tuple[str, list[str]]]:
    """Return our names of the tensors that fairseq stores in parts, with the names of the parts in order."""
    found = []
    for side, count in (("encoder", model.layout.encoder_layers), ("decoder", model.layout.decoder_layers)):
        for i in range(count):
            for leaf in ("weight", "bias"):
                theirs = f"{side}.layers.{i}"
                found.append(
                    (f"{side}.{i}.self_attn.qkv.{leaf}", [f"{theirs}.self_attn.{p}_proj.{leaf}" for p in "qkv"])
                )
                if side == "decoder":
                    parts = [f"{theirs}.encoder_attn.{p}_proj.{leaf}" for p in "kv"]
                    found.append((f"{side}.{i}.cross_attn.key_value.{leaf}", parts))
    return found


def _to_native(model: Transformer, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state of our net to that of fairseq's own Transformer."""
    theirs = {their: state[ours] for ours, their in _pairs(model)}
    for ours, parts in _packed(model):
        theirs |= zip(parts, state[ours].chunk(len(parts)), strict=True)
    theirs["encoder.embed_tokens.weight"] = model.encoder_embedding.weight.detach()
    theirs["decoder.embed_tokens.weight"] = model.target_embedding.weight.detach()
    theirs["decoder.output_projection.weight"] = model.output_weight.detach()
    for side in ("encoder", "decoder"):
        theirs[f"{side}.version"] = torch.tensor([3.0])
        theirs[f"{side}.embed_positions._float_tensor"] = torch.zeros(1)
    return {key: value.clone() for key, value in theirs.items()}


def _from_native(model: Transformer, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Convert the state of fairseq's own Transformer to that of our net.

    Raises:
        ZooError: tensors that are missing or left over.
    """
    state = dict(state)
    # each tensor that is used leaves the state
    try:
        for key in [key for key in state if key.endswith(("in_proj_weight", "in_proj_bias"))]:  # of fairseq until 0.8
            begin, leaf = key.rsplit("in_proj_", 1)
            state |= zip((f"{begin}{part}_proj.{leaf}" for part in "qkv"), state.pop(key).chunk(3), strict=False)
        ours = {own: state.pop(their) for own, their in _pairs(model)}
        for own, parts in _packed(model):
            ours[own] = torch.cat([state.pop(part) for part in parts])
        ours["encoder_embedding.weight"] = state.pop("encoder.embed_tokens.weight")
        target, output = state.pop("decoder.embed_tokens.weight"), state.pop("decoder.output_projection.weight", None)
    except KeyError as error:
        raise ZooError(f"{path}: has no tensor {error}; its arguments and its tensors do not agree") from None
    except RuntimeError as error:
        raise ZooError(f"{path}: has tensors that do not fit together ({one_line(error)})") from None
    if model.decoder_embedding is not None:
        ours["decoder_embedding.weight"] = target
    if model.projection is not None and output is not None:
        ours["projection.weight"] = output
    # the tensors that remain must carry no parameters
    known = {f"{side}.{end}" for side in ("encoder", "decoder") for end in ("version", "embed_positions._float_tensor")}
    if left := sorted(set(state) - known):
        raise ZooError(f"{path}: has tensors that the zoo's Transformer does not have: {', '.join(left[:3])}")
    return ours
