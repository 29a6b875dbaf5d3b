"""``rescalenet eval | predict | export`` for translation."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

import zoo
from tasks.devices import process_state
from tasks.errors import DataError, UserError
from tasks.progress import print_line
from tasks.run import load_model
from tasks.translation.evaluate import Score, as_dict, score, tokens_within, translate_ids
from tasks.translation.predict import Translated, Translator
from tasks.translation.search import Beam, Sampling
from tasks.translation.sources import find_pairs
from tasks.translation.text import Pair, decode_lines, read_lines
from zoo.files import write_json, write_text
from zoo.text import Tokenizer
from zoo.transforms import TextTransform


def load_folded(entry: zoo.Weights) -> tuple[zoo.Transformer, Tokenizer]:
    """The net of weights, folded, on this process's device, and what makes its input."""
    model = zoo.fold(load_model(entry)).to(process_state().device)
    assert isinstance(model, zoo.Transformer)
    return model, _transform(entry).build()


def _transform(entry: zoo.Weights) -> TextTransform:
    assert isinstance(entry.transform, TextTransform)
    return entry.transform


def read_set(entry: zoo.Weights, data: Path) -> list[Pair]:
    """The pairs of a set to evaluate, in the languages of the weights.

    Args:
        data: files, as ``tasks.translation.sources.find_files`` names them, or ``sacrebleu:`` and ``hf:`` names.

    Raises:
        DataError: no such set, or one without sentences.
    """
    transform = _transform(entry)
    named = str(data).startswith(("sacrebleu:", "hf:"))
    root, name = (Path(), str(data)) if named else (data.parent, data.name)
    pairs = list(find_pairs(root, name, (transform.source, transform.target))())
    if not pairs:
        raise DataError(f"{data}: no sentences")
    return pairs


def evaluate_pairs(
    entry: zoo.Weights,
    pairs: list[Pair],
    settings: Beam,
    *,
    batch_size: int = 64,
    tokenized: bool = False,
    progress: bool = False,
) -> tuple[list[Score], list[str]]:
    """Scores and translations of a set: see ``tasks.translation.evaluate.score``."""
    model, coder = load_folded(entry)
    limit = model.layout.max_length - 1
    sources, cut = tokens_within(limit, coder.source.encode([pair.source for pair in pairs]))
    if cut and process_state().is_main_process:
        print_line(f"{cut} sources have more than the {limit} tokens that the net takes: cut there")
    found = translate_ids(model, sources, settings, batch_size, progress=progress)
    texts = [coder.decode(hypotheses[0].tokens) for hypotheses in found]
    return score(texts, [pair.target for pair in pairs], tokenized=tokenized), texts


def evaluate(
    entry: zoo.Weights,
    data: Path,
    out: Path | None,
    batch_size: int | None,
    workers: int,
    beam: int = 5,
    length_penalty: float = 1.0,
    tokenized: bool = False,
) -> None:
    """BLEU and chrF with signatures; ``hypotheses.txt`` and ``metrics.json``."""
    pairs = read_set(entry, data)
    settings = Beam(beam=beam, length_penalty=length_penalty)
    scores, texts = evaluate_pairs(
        entry, pairs, settings, batch_size=batch_size or 64, tokenized=tokenized, progress=True
    )
    if not process_state().is_main_process:
        return
    typer.echo(f"{len(pairs)} sentences, beam {beam}, length penalty {length_penalty:g}")
    for line in scores:
        typer.echo(str(line))
    if out is not None:
        write_text("".join(f"{text}\n" for text in texts), out / "hypotheses.txt")
        write_json({"weights": entry.name, "search": asdict(settings), **as_dict(scores)}, out / "metrics.json")


def _lines(inputs: list[str]) -> Iterator[str]:
    """The sentences of the arguments: - is standard input, the name of a file its lines, else a sentence."""
    for argument in inputs:
        if argument == "-":
            yield from decode_lines(sys.stdin.buffer, "standard input")
        elif os.path.isfile(argument):  # Path.is_file raises at a sentence too long for a name
            yield from read_lines(Path(argument))
        else:
            yield argument


def _settings(nbest: int, sample: bool, searching: dict[str, Any], sampling: dict[str, Any]) -> Beam | Sampling:
    """How to translate, from the options that were given (not None)."""
    chosen, other = (sampling, searching) if sample else (searching, sampling)
    if stray := [key for key, value in other.items() if value is not None]:
        flag = f"--{stray[0].replace('_', '-')}"
        raise UserError(f"{flag} is for beam search, not with --sample" if sample else f"{flag} is for --sample")
    given = {key: value for key, value in chosen.items() if value is not None}
    if sample:
        return Sampling(count=nbest, **given)
    given.setdefault("beam", max(nbest, 5))
    if nbest > given["beam"]:
        raise UserError(f"--nbest {nbest}: more than --beam {given['beam']} gives")
    return Beam(**given)


def predict(
    entry: zoo.Weights,
    inputs: list[str],
    out: Path | None,
    nbest: int = 1,
    beam: int | None = None,
    length_penalty: float | None = None,
    sample: bool = False,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    batch_size: int = 64,
    attention: bool = False,
) -> bool:
    """Translations on standard output, in order, as soon as they are there.

    One line each; with ``nbest`` as many a sentence, of its number, score and text, separated by tabs.

    Raises:
        UserError: an option of the beam search with ``sample``, one of sampling without, or a value out of range.
    """
    settings = _settings(
        nbest,
        sample,
        {"beam": beam, "length_penalty": length_penalty},
        {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed},
    )
    inputs = inputs or ["-"]
    model, coder = load_folded(entry)
    interactive = inputs == ["-"] and sys.stdin.isatty()
    translator = Translator(model, coder, settings, window=1 if interactive else 8 * batch_size, batch_size=batch_size)
    if attention and out is None:
        raise UserError("--attention writes pictures: say where with --out FOLDER")
    if interactive:
        print_line(f"{entry.name}: type sentences, one a line; end with Ctrl-D")
    done: list[Translated] = []
    for number, result in enumerate(translator(_lines(inputs)), 1):
        for text, value in list(zip(result.texts, result.scores, strict=True))[:nbest]:
            typer.echo(text if nbest == 1 else f"{number}\t{value:.4f}\t{text}")
        sys.stdout.flush()
        if out is not None:
            done.append(result)
        if attention and out is not None and result.texts[0]:
            from tasks.translation.attention import attention_picture

            attention_picture(model, coder, result.source, result.texts[0], out / f"attention_{number}.png")
    if out is not None:
        write_json([_record(result, nbest) for result in done], out / "translations.json")
        print_line(f"written to {out}")
    return True


def _record(result: Translated, nbest: int) -> dict[str, object]:
    """For JSON."""
    return {"source": result.source, "texts": result.texts[:nbest], "scores": result.scores[:nbest]}


def export(entry: zoo.Weights, target: Path, fold: bool) -> str:
    """A fairseq checkpoint with its dictionaries; what to say of it."""
    from zoo.export.fairseq import export_fairseq

    return str(export_fairseq(entry, target))
