"""Sources of parallel text: files on disk, test sets of sacrebleu, data sets of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tasks.errors import DataError
from tasks.translation.columns import Columns
from tasks.translation.documents import paired
from tasks.translation.lines import COMPRESSED, kind_of
from tasks.translation.text import STRUCTURED, Pair, read_pairs, read_segments
from zoo.errors import one_line

Source = Callable[[], Iterator[Pair]]


def find_pairs(root: Path, entry: str, languages: tuple[str, str], columns: Columns | None = None) -> Source:
    """Find parallel text by name; return a function that reads its pairs from the start at each call.

    Args:
        root: folder of the files.
        entry: name of the text. ``sacrebleu:NAME`` is a test set of sacrebleu, such as ``sacrebleu:wmt14/full``.
            ``hf:NAME[@CONFIG]:SPLIT`` is a data set of the Hugging Face hub whose rows are ``{"translation":
            {language: text}}``, such as ``hf:wmt/wmt14@de-en:train``. Other names are files, see ``find_pair_files``.
        languages: codes of the source and the target language.
        columns: columns of a .tsv file; see ``tasks.translation.columns.read_columns``.

    Raises:
        DataError: a text that does not exist, or cannot be downloaded.
    """
    if entry.startswith("hf:"):
        return _hub(entry.removeprefix("hf:"), languages)
    source, targets = _files(root, entry, languages)
    return lambda: read_pairs(source, targets[0], languages, columns)


class Referenced(NamedTuple):
    """A sentence with its references.

    Attributes:
        source: sentence in the source language.
        references: reference of each translator; None where one has none.
    """

    source: str
    references: tuple[str | None, ...]


def read_referenced(
    root: Path,
    entry: str,
    languages: tuple[str, str],
    further: Sequence[Path] = (),
    columns: Columns | None = None,
) -> list[Referenced]:
    """Return the sentences of a set with all of their references.

    Args:
        root: folder of the files.
        entry: name of the set; see ``find_pairs``.
        languages: codes of the source and the target language.
        further: files with a further reference on each line.
        columns: columns of a .tsv file; see ``tasks.translation.columns.read_columns``.

    Raises:
        DataError: a set that does not exist, cannot be downloaded, or has other numbers of lines.
    """
    if entry.startswith("hf:"):
        found = [Referenced(pair.source, (pair.target,)) for pair in find_pairs(root, entry, languages)()]
    else:
        source, targets = _files(root, entry, languages)
        if kind_of(source) in STRUCTURED and kind_of(targets[0]) in STRUCTURED:
            found = [Referenced(text, tuple(each)) for text, each in paired(source, targets[0], languages)]
        else:
            pairs = read_pairs(source, targets[0], languages, columns)
            found = [Referenced(pair.source, (pair.target,)) for pair in pairs]
            further = [*targets[1:], *further]
    for path in further:
        lines = list(read_segments(path, languages[1]))
        if len(lines) != len(found):
            raise DataError(f"{path}: has {len(lines)} lines, the set {len(found)}: must have a reference for each")
        found = [Referenced(each.source, (*each.references, line)) for each, line in zip(found, lines, strict=True)]
    return found


def _files(root: Path, entry: str, languages: tuple[str, str]) -> tuple[Path, list[Path]]:
    """Return the file of the sources and those of the references; see ``find_pairs``."""
    if entry.startswith("sacrebleu:"):
        return _sacrebleu(entry.removeprefix("sacrebleu:"), languages)
    source, target = find_pair_files(root, entry, languages)
    return source, [target, *_further_references(target, languages[1])]


def _sacrebleu(name: str, languages: tuple[str, str]) -> tuple[Path, list[Path]]:
    """Return the files of source and references of a test set; sacrebleu downloads them to its own cache."""
    from sacrebleu.utils import get_available_testsets_for_langpair, get_reference_files, get_source_file

    pair = "-".join(languages)
    known = get_available_testsets_for_langpair(pair)
    if name not in known:
        raise DataError(f"sacrebleu:{name}: no such test set for {pair}; known: {', '.join(sorted(known))}")
    try:
        return Path(get_source_file(name, pair)), [Path(file) for file in get_reference_files(name, pair)]
    except (OSError, SystemExit) as error:  # sacrebleu exits the process if a download fails
        raise DataError(
            f"sacrebleu:{name}: cannot be downloaded ({one_line(error)}); download its files yourself"
        ) from None


def _hub(name: str, languages: tuple[str, str]) -> Source:
    """Return a function that reads the pairs of a data set of the Hugging Face hub; see ``find_pairs``."""
    head, _, split = name.partition(":")
    path, _, config = head.partition("@")
    if not path or not split:
        raise DataError(f"hf:{name}: has no name or no split; write hf:NAME:SPLIT or hf:NAME@CONFIG:SPLIT")
    try:
        import datasets
    except ImportError:
        raise DataError(f"hf:{name}: requires the package datasets (pip install datasets)") from None
    try:
        rows: Any = datasets.load_dataset(path, config or None, split=split, streaming=True)
    except Exception as error:  # the hub, the network and the builders of data sets raise many types
        raise DataError(f"hf:{name}: cannot be loaded ({' '.join(str(error).split())})") from None

    def read() -> Iterator[Pair]:
        for number, row in enumerate(rows):
            try:  # splitlines, because a sentence of a corpus is one line and these texts may have line breaks
                yield Pair(*(" ".join(row["translation"][language].splitlines()) for language in languages))
            except (KeyError, TypeError, AttributeError):
                both = " and ".join(languages)
                raise DataError(f"hf:{name}, row {number}: no 'translation' with {both} in {sorted(row)}") from None

    return read


def find_pair_files(root: Path, entry: str, languages: tuple[str, str]) -> tuple[Path, Path]:
    """Return the source and the target file of a name; both are the same file if it contains pairs.

    Args:
        root: folder of the files.
        entry: name below ``root``:

            - a .tsv, .xml or .tmx file
            - two names: ``source.txt::target.txt``
            - the common beginning of two files: ``train`` for train.en and train.de, ``newstest2014-deen`` for
              newstest2014-deen-src.de.sgm and newstest2014-deen-ref.en.sgm, ``wmt22.de-en`` for wmt22.de-en.src.de and
              wmt22.de-en.ref.A.en; or one of the two files
            - a name with ``{lang}`` in place of the language (``newstest2014.tok.{lang}.gz``)

            The endings .txt, .sgm, .gz, .xz, .bz2 and .zst may be left out.
        languages: codes of the source and the target language.

    Raises:
        DataError: files that do not exist.
    """
    left, two, right = entry.partition("::")
    if two:
        return _with_ending(root / left), _with_ending(root / right)
    path = root / entry
    if kind_of(path) in PAIRED:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        return path, path
    if "{lang}" in entry:
        patterns = [(entry, entry)]
    else:
        patterns = [(f"{entry}{a}", f"{entry}{b}") for a, b in _SIDES]
        patterns += [(swapped, swapped) for swapped in _one_of_two(path, entry, languages)]
    for pattern in patterns:
        names = [root / name.replace("{lang}", code) for name, code in zip(pattern, languages, strict=True)]
        source, target = _existing(names[0]), _existing(names[1]) or _first_reference(names[1])
        if source is not None and target is not None:
            return source, target
    names = [root / name.replace("{lang}", code) for name, code in zip(patterns[0], languages, strict=True)]
    return _with_ending(names[0]), _with_ending(names[1])


PAIRED = (".tsv", ".xml", ".tmx")  # endings of files with both languages
# Ends of the names of source and target: plain ones, those of WMT until 2020, those after.
_SIDES = ((".{lang}", ".{lang}"), ("-src.{lang}", "-ref.{lang}"), (".src.{lang}", ".ref.{lang}"))
_ENDS = ("", ".txt", ".sgm", ".sgml")


def _one_of_two(path: Path, entry: str, languages: tuple[str, str]) -> Iterator[str]:
    """Yield the patterns of which an existing file is the source or the target."""
    if not path.is_file():
        return
    for code in languages:
        for end in (f"{end}{packed}" for end in _ENDS for packed in ("", *COMPRESSED)):
            if entry.endswith(f".{code}{end}"):
                yield entry.removesuffix(f"{code}{end}") + "{lang}" + end


def _existing(path: Path) -> Path | None:
    """Return the first existing file that has this path, with or without a known ending after it."""
    for end in (f"{end}{packed}" for end in _ENDS for packed in ("", *COMPRESSED)):
        if (found := path.with_name(path.name + end)).is_file():
            return found
    return None


def _first_reference(path: Path) -> Path | None:
    """Return the file of the first translator, as in wmt22.de-en.ref.A.en for wmt22.de-en.ref.en, if there is one."""
    begin, _, code = path.name.rpartition(".")
    return next(iter(_references(path.parent, begin, code)), None) if begin.endswith(".ref") else None


def _further_references(target: Path, language: str) -> list[Path]:
    """Return the files of the other translators, beside one as in wmt22.de-en.ref.A.en."""
    begin, found, _ = target.name.partition(".ref.")
    if not found:
        return []
    return [path for path in _references(target.parent, f"{begin}.ref", language) if path != target]


def _references(folder: Path, begin: str, code: str) -> list[Path]:
    """Return the files BEGIN.TRANSLATOR.CODE in a folder, with known endings, in the order of their names."""
    if not folder.is_dir():
        return []
    ends = "|".join(re.escape(f"{end}{packed}") for end in _ENDS for packed in ("", *COMPRESSED))
    pattern = re.compile(rf"{re.escape(begin)}\.[^.]+\.{re.escape(code)}(?:{ends})")
    return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))


def _with_ending(path: Path) -> Path:
    """Return the first existing file that has this path, with or without a known ending after it.

    Raises:
        DataError: there is none.
    """
    if (found := _existing(path)) is None:
        raise DataError(f"{path}: no such file, nor with .txt or .sgm, .gz, .xz, .bz2 or .zst after it")
    return found
