"""``rescalenet eval | predict | export`` for translation, and their options.

The command line reads the options before it knows whether torch is needed, so the functions import what needs it.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from tasks.errors import UserError
from tasks.files import input_path
from tasks.options import BatchSize, CheckOptions, PredictOptions
from tasks.progress import print_line

if TYPE_CHECKING:
    import zoo
    from tasks.exporting import ExportRequest
    from tasks.report import Evaluation
    from tasks.translation import search
    from tasks.translation.columns import Columns
    from tasks.translation.scores import Scoring
    from zoo.export.graphs import Deployment


FILE = "translations.json"  # what ``predict`` writes for all sentences together


MaxLength = Annotated[
    int,
    typer.Option(
        min=1, help="Tokens above which a line is translated in parts, at ends of sentences; default: the weights'."
    ),
]


@dataclass(frozen=True)
class TranslationEvalOptions:
    """Options of ``rescalenet eval``."""

    batch_size: BatchSize = 64
    beam: Annotated[int, typer.Option(min=1, help="Width of the beam search; 1 is greedy.")] = 5
    length_penalty: Annotated[float, typer.Option(help="Exponent of the length in a score.")] = 1.0
    max_length: MaxLength | None = None
    reference: Annotated[
        list[Path] | None,
        typer.Option(parser=input_path, help="File with a further reference on each line; more than once."),
    ] = None
    columns: Annotated[
        str | None, typer.Option(metavar="A,B", help="Columns of source and target in a .tsv, by number or name.")
    ] = None
    metrics: Annotated[str, typer.Option(metavar="A,B,...", help="Scores: bleu, chrf, chrf++, ter.")] = "bleu,chrf"
    tokenize: Annotated[
        str | None, typer.Option(help="Tokeniser of sacrebleu's BLEU; default: that of the target language.")
    ] = None
    lowercase: Annotated[bool, typer.Option(help="Case does not count in scores.")] = False
    tokenized: Annotated[bool, typer.Option(help="The text is Moses-tokenised.")] = False

    def chosen_columns(self) -> Columns | None:
        """Return the columns of source and target; None if the option is not given.

        Raises:
            UserError: not two different columns.
        """
        from tasks.translation.columns import checked_columns

        if self.columns is None:
            return None
        try:
            return checked_columns(self.columns.split(","))
        except ValueError as error:
            raise UserError(f"--columns {self.columns}: {error}") from None

    def scoring(self, language: str) -> Scoring:
        """Return the settings of the scores.

        Args:
            language: code of the target language.

        Raises:
            UserError: an unknown name, or options that exclude each other.
        """
        from tasks.translation.scores import Scoring

        if self.tokenized and self.tokenize is not None:
            raise UserError("--tokenize is not for --tokenized text, of which BLEU takes the words as they are")
        names = tuple(dict.fromkeys(name.strip() for name in self.metrics.lower().split(",") if name.strip()))
        return Scoring.of(
            language, self.tokenize, lowercase=self.lowercase, metrics=names or ("",), tokenized=self.tokenized
        )


def run_eval(
    entry: zoo.Weights, data: Path, out: Path | None, workers: int, options: TranslationEvalOptions
) -> Evaluation:
    """Translate a set and return its scores; write ``hypotheses.txt`` and ``metrics.json``."""
    from tasks.devices import describe_run, process_state
    from tasks.report import Evaluation
    from tasks.translation.evaluate import as_dict, evaluate_pairs, read_set
    from tasks.translation.search import Beam
    from zoo.files import write_json, write_text
    from zoo.transforms import TextTransform

    assert isinstance(entry.transform, TextTransform)
    scoring = options.scoring(entry.transform.target)
    settings = Beam(beam=options.beam, length_penalty=options.length_penalty)
    pairs = read_set(entry, data, options.reference or (), options.chosen_columns())
    if process_state().is_main_process:
        print_line(describe_run(process_state(), "fp32"))
    scores, texts = evaluate_pairs(
        entry,
        pairs,
        settings,
        scoring,
        batch_size=options.batch_size,
        longest=options.max_length,
        progress=True,
    )
    if out is not None and process_state().is_main_process:
        write_text("".join(f"{text}\n" for text in texts), out / "hypotheses.txt")
        write_json({"weights": entry.name, "search": asdict(settings), **as_dict(scores)}, out / "metrics.json")
    translators = len(pairs[0].references)
    references = f", {translators} references" if translators > 1 else ""
    heading = f"{len(pairs)} sentences{references}, beam {options.beam}, length penalty {options.length_penalty:g}"
    metrics = {name: found.value for name, found in zip(scoring.metrics, scores, strict=False)}
    return Evaluation(metrics, [heading, *map(str, scores)])


@dataclass(frozen=True)
class TranslationPredictOptions(PredictOptions):
    """Options of ``rescalenet predict``. Those of beam search exclude those of sampling; None is the default."""

    nbest: Annotated[int, typer.Option(min=1, help="Print number, score and text of this many.")] = 1
    beam: Annotated[int | None, typer.Option(min=1, help="Width of the beam search, by default 5; 1 is greedy.")] = None
    length_penalty: Annotated[float | None, typer.Option(help="Exponent of the length in a score, by default 1.")] = (
        None
    )
    sample: Annotated[bool, typer.Option(help="Sample instead of searching.")] = False
    temperature: Annotated[float | None, typer.Option(help="Temperature of samples, by default 1.")] = None
    top_k: Annotated[
        int | None, typer.Option(min=0, help="Sample from the k tokens of highest probability; 0: from all.")
    ] = None
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Sample from the most probable tokens that have this mass.")
    ] = None
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of samples, by default 0.")] = None
    max_length: MaxLength | None = None
    batch_size: BatchSize = 64
    attention: Annotated[bool, typer.Option(help="Write pictures of the cross-attention.")] = False

    def search(self) -> search.Beam | search.Sampling:
        """Return the settings of the search.

        Raises:
            UserError: an option of beam search with ``sample``, one of sampling without it, or a value out of range.
        """
        from tasks.translation.search import Beam, Sampling

        groups = (("beam", "length_penalty"), ("temperature", "top_k", "top_p", "seed"))
        others, own = groups if self.sample else groups[::-1]
        if stray := [key for key in others if getattr(self, key) is not None]:
            flag = f"--{stray[0].replace('_', '-')}"
            raise UserError(
                f"{flag} is for beam search, not with --sample" if self.sample else f"{flag} is for --sample"
            )
        given = {key: getattr(self, key) for key in own if getattr(self, key) is not None}
        if self.sample:
            return Sampling(count=self.nbest, **given)
        given.setdefault("beam", max(self.nbest, 5))
        if self.nbest > given["beam"]:
            raise UserError(f"--nbest {self.nbest}: must not exceed --beam ({given['beam']})")
        return Beam(**given)


def run_predict(entry: zoo.Weights, inputs: list[str], out: Path | None, options: TranslationPredictOptions) -> bool:
    """Print the translations in the order of the sentences, as soon as they are known; return True.

    Each translation is a line. With ``nbest`` > 1, the line has the number of the sentence, score and text, separated
    by tabs.

    Raises:
        UserError: options that exclude each other (``TranslationPredictOptions.search``), or ``attention`` without
            ``out``.
    """
    from tasks.devices import describe_run, process_state
    from tasks.outputs import Entries, OutputFolder, try_to_draw
    from tasks.printing import Results, checked_format
    from tasks.translation.attention import attention_picture
    from tasks.translation.evaluate import load_folded
    from tasks.translation.pieces import Splitter
    from tasks.translation.predict import Translator
    from zoo.transforms import TextTransform

    # 1. Check the options and the folder, and load the net.
    settings, nbest, size = options.search(), options.nbest, options.batch_size
    format = checked_format(options.format)
    inputs = inputs or ["-"]
    if options.attention and out is None:
        raise UserError("--attention writes pictures: give their folder with --out FOLDER")
    assert isinstance(entry.transform, TextTransform)
    languages = entry.transform.source, entry.transform.target
    sources = [path for argument in inputs if (path := _text_file(argument, languages)) is not None]
    folder = None if out is None else OutputFolder(out, [FILE], sources, overwrite=options.overwrite)
    print_line(describe_run(process_state(), "fp32"))
    model, coder = load_folded(entry)
    splitter = Splitter.of(entry, model, coder, options.max_length)
    translator = Translator(
        model, coder, settings, window=8 * size, batch_size=size, splitter=splitter, live=_waits(inputs, sources)
    )
    if inputs == ["-"] and sys.stdin.isatty():
        print_line(f"{entry.name}: type sentences, one a line; end with Ctrl-D")
    # 2. Translate and print.
    results = Results(format, ("line", "rank", "score", "source", "text"))
    entries = None if folder is None else Entries(folder.path)
    lines = Lines(inputs, languages)
    for number, result in enumerate(translator(lines), 1):
        pairs = list(zip(result.texts, result.scores, strict=True))[:nbest]
        line = "\n".join(text if nbest == 1 else f"{number}\t{value:.4f}\t{text}" for text, value in pairs)
        content = {"source": result.source, "texts": result.texts[:nbest], "scores": result.scores[:nbest]}
        rows = [(number, rank, value, result.source, text) for rank, (text, value) in enumerate(pairs, 1)]
        results.add(line, content, rows)
        if folder is not None and entries is not None:
            entries.add(content)
            if options.attention:
                for place, part in enumerate(result.parts, 1):
                    ending = f"_{place}" if len(result.parts) > 1 else ""
                    path = folder.path / f"attention_{number}{ending}.png"
                    try_to_draw(partial(attention_picture, model, coder, *part, path), path)
    # 3. Write the translations as JSON, and report inputs that ended early.
    if folder is not None and entries is not None:
        entries.write(folder.path / FILE)
    if translator.in_parts > 1:
        print_line(f"{translator.in_parts} lines were translated in parts")
    lines.raise_errors()
    return True


class Lines:
    """The sentences of the arguments: - is standard input, a path the lines of a file, other text a sentence.

    A file that cannot be read to its end does not keep the others from being read.

    Args:
        inputs: arguments.
        languages: codes of the source and the target language.
    """

    def __init__(self, inputs: list[str], languages: tuple[str, str]) -> None:
        self.inputs, self.languages = inputs, languages
        self.errors: list[UserError] = []

    def __iter__(self) -> Iterator[str]:
        for argument in self.inputs:
            try:
                yield from _lines(argument, self.languages)
            except UserError as error:
                self.errors.append(error)

    def raise_errors(self) -> None:
        """Raise the error of the inputs that could not be read to their ends, if there are any.

        Raises:
            UserError: its message names each.
        """
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            for error in self.errors:
                print_line(str(error))
            raise UserError(f"{len(self.errors)} of {len(self.inputs)} inputs could not be read to their ends")


def _lines(argument: str, languages: tuple[str, str]) -> Iterator[str]:
    """Yield the sentences of an argument; see ``Lines``."""
    from tasks.translation.lines import decode_lines
    from tasks.translation.text import read_segments

    if argument == "-":
        with _standard_input() as file:
            yield from decode_lines(file, "standard input")
    elif (path := _text_file(argument, languages)) is not None:
        yield from read_segments(path, languages[0])
    else:
        yield argument


def _descriptor() -> int | None:
    """Return the number of the file behind standard input; None where there is none, as in tests."""
    try:
        return sys.stdin.fileno()
    except (OSError, ValueError, AttributeError):
        return None


def _waits(inputs: list[str], files: list[Path]) -> bool:
    """Return whether lines of an input may come one after the other, as from a terminal or another program."""
    number = _descriptor() if "-" in inputs else None
    piped = number is not None and not stat.S_ISREG(os.fstat(number).st_mode)
    return piped or not all(map(os.path.isfile, files))


def _standard_input() -> AbstractContextManager[IO[bytes]]:
    """Return standard input, as a file of its own: at its end Python waits for a thread that reads ``sys.stdin``."""
    number = _descriptor()
    return nullcontext(sys.stdin.buffer) if number is None else open(number, "rb", closefd=False)


def _text_file(argument: str, languages: tuple[str, str]) -> Path | None:
    """Return the path of the file or pipe that an argument names; None for a sentence and for standard input.

    Args:
        argument: argument of the command line.
        languages: codes of the source and the target language, which names of files end with.

    Raises:
        UserError: a folder, or one word that can only be the name of a file, and there is none.
    """
    if argument == "-":
        return None
    try:
        path = input_path(argument)
    except UserError:  # a sentence with a dollar sign, or an empty one
        return None
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder; give files with a sentence on each line")
    if os.path.exists(path):  # Path.exists raises an error for a name that is too long
        return path
    if _is_file_name(argument, languages):
        raise UserError(f"{path}: no such file; to translate this text itself, give it on standard input")
    return None


def _is_file_name(argument: str, languages: tuple[str, str]) -> bool:
    """Return whether a word is written as the name of a file: as a path, or with an ending of files of text."""
    from tasks.translation.lines import COMPRESSED
    from tasks.translation.text import STRUCTURED

    if any(map(str.isspace, argument)) or "://" in argument:
        return False
    endings = (".txt", ".tsv", *STRUCTURED, *COMPRESSED, *(f".{code.lower()}" for code in languages))
    return argument.startswith(("./", "../", "/", "~/")) or Path(argument).suffix.lower() in endings


@dataclass(frozen=True)
class TranslationCheckOptions(CheckOptions):
    """Options of ``rescalenet check``."""


def run_check(data: Any, out: Path | None, options: TranslationCheckOptions) -> bool:
    """Check the text of a config; writes ``check.json`` and ``samples.txt`` into ``out``."""
    from tasks.translation.check import check_data

    return check_data(data, out, options.limit, overwrite=options.overwrite)


@dataclass(frozen=True)
class TranslationExportOptions:
    """Options of ``rescalenet export``: none."""


def run_export(entry: zoo.Weights, request: ExportRequest, options: TranslationExportOptions) -> Deployment:
    """Return the graphs to export with their description."""
    from tasks.translation.export import deployment

    return deployment(entry, request, options)


def prepare(config: Any) -> Path:
    """Clean the text of a config, train the vocabulary and write the corpus; return its folder."""
    from tasks.translation.corpus import prepare as prepare_corpus
    from tasks.translation.corpus import with_defaults

    folder = Path(config.data.folder)
    prepare_corpus(with_defaults(config), folder)
    return folder
