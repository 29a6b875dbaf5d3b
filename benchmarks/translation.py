"""Memory, training and decoding of translation nets: python -m benchmarks.translation

Our pre_ln is compared with our other schemes (the same code) and with ``torch.nn.Transformer``. If they are installed,
so are fairseq's Transformer and generator with converted weights, and the generation of a Marian net of Hugging Face.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from benchmarks import measure
from benchmarks.memory import kept_bytes
from tasks.progress import print_line
from tasks.translation.evaluate import longest_first
from tasks.translation.search import Beam, beam_search
from tasks.translation.text import read_lines
from zoo.text import EOS, PAD, padded

DROPS = {  # dropout rates of common recipes
    "none": {},
    "branches": {"drop_rate": 0.1},
    "all": {"drop_rate": 0.1, "attention_drop_rate": 0.1, "hidden_drop_rate": 0.1},
}
_ZERO = {"drop_rate": 0.0, "attention_drop_rate": 0.0, "hidden_drop_rate": 0.0}
SCHEMES = zoo.model_info("rescale_transformer_tiny").schemes


@dataclass(frozen=True)
class Sizes:
    """Sizes of a net.

    Attributes:
        dim: width of the trunk.
        hidden: width of the feed-forward layers.
        heads: number of attention heads.
        layers: number of layers of the encoder, and of the decoder.
        vocabulary: number of tokens, source and target each.
    """

    dim: int
    hidden: int
    heads: int
    layers: int
    vocabulary: int

    def net(self, scheme: str, **options: Any) -> zoo.Transformer:
        """Return a new net of these sizes, without dropout unless ``options`` set it."""
        torch.manual_seed(0)
        sizes = {"source_vocabulary": self.vocabulary, "target_vocabulary": self.vocabulary}
        layers = {"encoder_layers": self.layers, "decoder_layers": self.layers}
        widths = {"dim": self.dim, "hidden": self.hidden, "heads": self.heads}
        model: Any = zoo.create_model(
            "rescale_transformer_base", scheme=scheme, **{**sizes, **layers, **widths, **_ZERO, **options}
        )
        return model


NETS = {
    "tiny": Sizes(128, 256, 4, 4, 4000),
    "small": Sizes(512, 1024, 4, 6, 8000),
    "base": Sizes(512, 2048, 8, 6, 32000),
    "deep": Sizes(512, 2048, 8, 18, 32000),
}
Batch = tuple[Tensor, Tensor, Tensor]  # source, target, labels


def made_batch(sizes: Sizes, sentences: int, length: int, device: str = "cpu") -> Batch:
    """Return a batch of random sentences (B, T); every second one is two tokens shorter, as in batches by length."""
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randint(4, sizes.vocabulary, (2, sentences, length), generator=generator)
    source[1::2, -2:] = target[1::2, -2:] = PAD
    labels = F.pad(target[:, 1:], (0, 1), value=PAD)
    return source.to(device), target.to(device), labels.to(device)


class TorchTransformer(nn.Module):
    """torch.nn.Transformer with embeddings, tied output and loss, which it leaves to its users."""

    def __init__(self, sizes: Sizes, drop_rate: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.dim)
        nn.init.normal_(self.embedding.weight, std=sizes.dim**-0.5)
        self.positions: Tensor
        self.register_buffer("positions", zoo.nets.transformer.sinusoids(1024, sizes.dim))
        self.body = nn.Transformer(
            sizes.dim,
            sizes.heads,
            sizes.layers,
            sizes.layers,
            sizes.hidden,
            drop_rate,
            batch_first=True,
            norm_first=True,
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Embed tokens with their positions: (B, T) -> (B, T, d)."""
        return self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim) + self.positions[: tokens.shape[1]]

    def forward(self, source: Tensor, target: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        """Return the loss, summed over tokens, and the same without a graph."""
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=source.device)
        padding = torch.zeros(source.shape, device=source.device).masked_fill_(source == PAD, -math.inf)
        x = self.body(
            self.embed(source),
            self.embed(target),
            tgt_mask=mask,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        logits = F.linear(x, self.embedding.weight)
        loss = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=PAD, label_smoothing=smoothing
        )
        return loss, loss.detach()


def fairseq_model(model: zoo.Transformer) -> Any:
    """Return fairseq's Transformer with the weights of a net of ours."""
    from fairseq.data import Dictionary
    from fairseq.models.transformer import TransformerModel
    from fairseq.models.transformer.transformer_legacy import base_architecture

    arguments, state = zoo.convert.to_fairseq(model, plugin=False)
    args = Namespace(**arguments)
    base_architecture(args)
    symbols = Dictionary()
    for i in range(4, model.layout.source_vocabulary):
        symbols.add_symbol(f"t{i}")
    converted = TransformerModel.build_model(args, Namespace(source_dictionary=symbols, target_dictionary=symbols))
    converted.load_state_dict(state)
    return converted


class FairseqLoss(nn.Module):
    """fairseq's Transformer with its label_smoothed_cross_entropy."""

    def __init__(self, model: zoo.Transformer) -> None:
        super().__init__()
        self.model = fairseq_model(model)

    def forward(self, source: Tensor, target: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        """Return the loss, summed over tokens, and the same without a graph."""
        from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss

        out = self.model(source, (source != PAD).sum(1), target)
        lprobs = self.model.get_normalized_probs(out, log_probs=True).flatten(0, 1)
        return label_smoothed_nll_loss(lprobs, labels.flatten(), smoothing, ignore_index=PAD, reduce=True)


def saved_bytes(model: nn.Module, batch: Batch) -> int:
    """Return the bytes that the loss of a batch saves for backward, without parameters, buffers and the batch."""
    return kept_bytes(lambda: model(*batch, 0.1), (*batch, *model.parameters(), *model.buffers()))


def training_step(model: nn.Module, batch: Batch) -> Callable[[], None]:
    """Return a function that runs one training step: forward, backward and Adam."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 0.0, betas=(0.9, 0.98), fused=True)
    tokens = int((batch[2] != PAD).sum())

    def step() -> None:
        (model(*batch, 0.1)[0] / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def calibrated(model: zoo.Transformer, batch: Batch) -> zoo.Transformer:
    """Initialise the data-dependent biases of a rescale net, and return the net."""
    if model.scheme.name == "rescale":
        zoo.calibrate(model, [batch[:2]], forward=lambda net, pair: net(*pair))
    return model


def sentences_of(path: Path, coder: Any, count: int) -> list[list[int]]:
    """Return the token ids of ``count`` lines, spread evenly over a file, of at most 200 tokens each."""
    lines = list(read_lines(path))
    chosen = [lines[i * len(lines) // count] for i in range(min(count, len(lines)))]
    return [[*ids[:200], EOS] for ids in coder.source.encode(chosen)]


Translate = Callable[[int], list[list[int]]]  # batch size -> tokens of each sentence's best translation


def our_decoder(model: zoo.Transformer, sentences: list[list[int]], settings: Beam, device: str) -> Translate:
    """Return a function that translates with our beam search."""

    def translate(size: int) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in sentences]
        for rows in longest_first(sentences, size):
            source = padded([sentences[i] for i in rows]).to(device)
            for i, hypotheses in zip(rows, beam_search(model, source, settings), strict=True):
                found[i] = hypotheses[0].tokens
        return found

    return translate


def fairseq_decoder(model: zoo.Transformer, sentences: list[list[int]], settings: Beam, device: str) -> Translate:
    """Return a function that translates with fairseq's SequenceGenerator and the weights of a net of ours."""
    from fairseq.sequence_generator import SequenceGenerator

    converted = fairseq_model(model).to(device).eval()
    converted.prepare_for_inference_(Namespace(generation=Namespace(no_beamable_mm=False, retain_iter_history=False)))
    symbols = converted.decoder.dictionary
    limits = {"max_len_a": settings.max_ratio, "max_len_b": settings.max_extra}
    generator = SequenceGenerator([converted], symbols, beam_size=settings.beam, **limits)

    @torch.inference_mode()
    def translate(size: int) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in sentences]
        for rows in longest_first(sentences, size):
            width = max(len(sentences[i]) for i in rows)
            # fairseq requires padding at the left.
            source = torch.tensor([[PAD] * (width - len(sentences[i])) + sentences[i] for i in rows]).to(device)
            lengths = torch.tensor([len(sentences[i]) for i in rows]).to(device)
            sample = {"net_input": {"src_tokens": source, "src_lengths": lengths}}
            for i, hypotheses in zip(rows, generator.generate([converted], sample), strict=True):
                found[i] = [t for t in hypotheses[0]["tokens"].tolist() if t != EOS]
        return found

    return translate


def marian_decoder(
    model: zoo.Transformer, sentences: list[list[int]], lengths: int, beam: int, device: str
) -> Translate:
    """Return a function that translates with Hugging Face's generate and a Marian net of random weights.

    Args:
        model: net of ours whose sizes the Marian net has.
        sentences: token ids of the sentences.
        lengths: number of tokens of every translation.
        beam: number of beams.
        device: device of the net.
    """
    from transformers import MarianConfig, MarianMTModel

    # 1. Build a net of the same sizes and tokens.
    layout = model.layout
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=layout.source_vocabulary,
        d_model=layout.dim,
        encoder_layers=layout.encoder_layers,
        decoder_layers=layout.decoder_layers,
        encoder_attention_heads=layout.heads,
        decoder_attention_heads=layout.heads,
        encoder_ffn_dim=layout.hidden,
        decoder_ffn_dim=layout.hidden,
        activation_function="relu",
        max_position_embeddings=1024,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_eos_token_id=None,
        scale_embedding=True,
    )
    marian = MarianMTModel(config).to(device).eval()

    # 2. Generate translations of a fixed length, because random weights would not end them.
    @torch.inference_mode()
    def translate(size: int) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in sentences]
        for rows in longest_first(sentences, size):
            source = padded([sentences[i] for i in rows]).to(device)
            mask = (source != PAD).long()
            out = marian.generate(
                source,
                attention_mask=mask,
                num_beams=beam,
                min_new_tokens=lengths,
                max_new_tokens=lengths,
                do_sample=False,
            )
            for i, tokens in zip(rows, out.tolist(), strict=True):
                found[i] = tokens
        return found

    return translate


def best_size(translate: Translate, sizes: list[int], device: str) -> int:
    """Return the batch size with the shortest time; each is timed twice."""
    seconds = {}
    for size in sizes:
        steps: dict[str, Callable[[], object]] = {"translate": functools.partial(translate, size)}
        seconds[size] = min(measure.interleave(steps, 2, title=f"batch {size}", device=device, warmup=0)["translate"])
    return min(seconds, key=lambda size: seconds[size])


def has(package: str) -> bool:
    """Return whether a package is installed; print a line if it is not."""
    installed = importlib.util.find_spec(package) is not None
    if not installed:
        print_line(f"{package} is not installed: left out")
    return installed


def memory(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the bytes saved for backward; return the rows of the results."""
    results: list[dict[str, Any]] = []
    for net in arguments.net:
        sizes = NETS[net]
        batch = made_batch(sizes, arguments.sentences, arguments.length)
        for drops, options in DROPS.items():
            saved = {s: saved_bytes(sizes.net(s, **options).train(), batch) for s in arguments.schemes}
            saved["torch"] = saved_bytes(TorchTransformer(sizes, options.get("drop_rate", 0.0)).train(), batch)
            rows = [[s, f"{n / saved['pre_ln']:.3f}", f"{n / 2**20:.1f}"] for s, n in saved.items()]
            measure.show(f"{net}, dropout: {drops}: saved for backward", ["", "/ pre_ln", "MiB"], rows)
            results += [
                {"net": net, "mode": "memory", "drops": drops, "rival": s, "bytes": n} for s, n in saved.items()
            ]
    return results


def train(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the time of a training step; return the rows of the results. Tokens per second are its inverse."""
    results: list[dict[str, Any]] = []
    with_fairseq = has("fairseq")
    for net in arguments.net:
        sizes, device = NETS[net], arguments.device
        batch = made_batch(sizes, arguments.sentences, arguments.length, device)
        options = DROPS[arguments.drops]
        models: dict[str, nn.Module] = {
            s: calibrated(sizes.net(s, **options), made_batch(sizes, 8, 20)) for s in arguments.schemes
        }
        models["torch"] = TorchTransformer(sizes, options.get("drop_rate", 0.0))
        if with_fairseq:
            models["fairseq"] = FairseqLoss(sizes.net("pre_ln", **options))
        steps: dict[str, Callable[[], object]] = {s: training_step(m.to(device), batch) for s, m in models.items()}
        title = f"{net}, {arguments.sentences} sentences of {arguments.length}, dropout: {arguments.drops}"
        seconds = measure.interleave(steps, arguments.repeats, title=title, device=device)
        base = "pre_ln" if "pre_ln" in steps else next(iter(steps))
        rows = measure.ratios(seconds, base)
        measure.show_ratios(f"{title}: training step", base, rows)
        results += [{"net": net, "mode": "train", "rival": variant, **row} for variant, row in rows.items()]
    return results


def decode(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the time to translate a set, each decoder at its best batch size; return the rows of the results."""
    entry = zoo.get_weights(arguments.weights)
    sentences = sentences_of(arguments.text, entry.transforms(), arguments.count)
    if not arguments.random:
        model: Any = zoo.create_model(entry.config.name, entry.name).eval()
        # The limit is so high that no translation meets it: fairseq's limit is that of a batch, ours of a sentence.
        settings = Beam(beam=arguments.beam, max_ratio=0.0, max_extra=200)
        return decode_with(arguments, entry.name, model, sentences, settings)
    results = []
    length = round(sum(map(len, sentences)) / len(sentences))
    for net in arguments.net:
        model = NETS[net].net("pre_ln").eval()
        settings = Beam(beam=arguments.beam, max_ratio=0.0, max_extra=length)
        results += decode_with(arguments, f"{net} with random weights", model, sentences, settings)
    return results


def decode_with(
    arguments: argparse.Namespace, name: str, model: zoo.Transformer, sentences: list[list[int]], settings: Beam
) -> list[dict[str, Any]]:
    """Run ``decode`` with one net.

    Args:
        arguments: arguments of the command line.
        name: name of the net in tables.
        model: net in eval mode.
        sentences: token ids of the sentences.
        settings: settings of the beam search.
    """
    # 1. Set up the decoders. Marian has random weights, so that it gets the mean length of our translations.
    device, beam = arguments.device, settings.beam
    decoders = {"ours": our_decoder(zoo.fold(model).to(device), sentences, settings, device)}
    if model.scheme.name in ("pre_ln", "post_ln") and has("fairseq"):
        decoders["fairseq"] = fairseq_decoder(model, sentences, settings, device)
    found = decoders["ours"](arguments.batches[0])
    if has("transformers"):
        mean = round(sum(map(len, found)) / len(found))
        decoders["marian"] = marian_decoder(model, sentences, mean, beam, device)
    # 2. Find each decoder's best batch size, and compare our hypotheses with fairseq's.
    chosen = {name: best_size(translate, arguments.batches, device) for name, translate in decoders.items()}
    equal = None
    if "fairseq" in decoders:
        theirs = decoders["fairseq"](chosen["fairseq"])
        equal = sum(a == b for a, b in zip(decoders["ours"](chosen["ours"]), theirs, strict=True))
        print(f"{equal} of {len(found)} hypotheses are equal to fairseq's")
    # 3. Measure the time.
    steps: dict[str, Callable[[], object]] = {
        name: functools.partial(translate, chosen[name]) for name, translate in decoders.items()
    }
    title = f"{name}, {len(sentences)} sentences, beam {beam}, batch sizes {chosen}"
    rows = measure.ratios(measure.interleave(steps, arguments.repeats, title=title, device=device), "ours")
    measure.show_ratios(f"{title}: decoding", "ours", rows)
    facts = {"mode": "decode", "weights": name, "sentences": len(sentences), "equal": equal}
    return [{**facts, "rival": variant, "batch": chosen[variant], **row} for variant, row in rows.items()]


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measure.parser((__doc__ or "").split("\n")[0], nets=tuple(NETS))
    parser.add_argument("--mode", nargs="+", default=["memory", "train"], choices=["memory", "train", "decode"])
    parser.add_argument(
        "--schemes",
        nargs="+",
        default=["pre_ln", "rescale", "post_ln", "none"],
        choices=SCHEMES,
        help="schemes to compare",
    )
    parser.add_argument("--sentences", type=int, default=64, help="number of sentences of a batch")
    parser.add_argument("--length", type=int, default=32, help="number of tokens of a sentence")
    parser.add_argument("--drops", default="none", choices=list(DROPS), help="dropout of the training step")
    parser.add_argument("--repeats", type=int, default=30, help="interleaved rounds")
    parser.add_argument("--weights", help="decode: name.tag or a safetensors file, with fairseq only pre_ln or post_ln")
    parser.add_argument("--random", action="store_true", help="decode: nets of --net with random weights")
    parser.add_argument("--text", type=Path, help="decode: source sentences, one a line")
    parser.add_argument("--count", type=int, default=200, help="decode: number of sentences")
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[16, 32, 64, 128], help="decode: sizes to choose from"
    )
    arguments = parser.parse_args()
    if "decode" in arguments.mode and (arguments.weights is None or arguments.text is None):
        parser.error("--mode decode requires --weights and --text")
    measure.start(arguments)
    modes = {"memory": memory, "train": train, "decode": decode}
    measure.finish(arguments, [row for mode in arguments.mode for row in modes[mode](arguments)])


if __name__ == "__main__":
    main()
