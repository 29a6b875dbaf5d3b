"""Where parallel text comes from: files on disk, sacrebleu's test sets, Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tasks.errors import DataError
from tasks.translation.text import Pair, kind_of, read_pairs

Source = Callable[[], Iterator[Pair]]


def find_pairs(root: Path, entry: str, languages: tuple[str, str]) -> Source:
    """What reads the pairs that a name stands for, each time from the start. It is found now, and read later.

    Args:
        entry: ``sacrebleu:NAME`` for a test set of sacrebleu, as ``sacrebleu:wmt14/full``; ``hf:NAME[@CONFIG]:SPLIT``
            for a data set of the Hugging Face hub whose rows are ``{"translation": {language: text}}``, as
            ``hf:wmt/wmt14@de-en:train``; else files, see ``find_files``.

    Raises:
        DataError: there is no such text, or no network to get it.
    """
    if entry.startswith("sacrebleu:"):
        source, target = _sacrebleu(entry.removeprefix("sacrebleu:"), languages)
        return lambda: read_pairs(source, target, languages)
    if entry.startswith("hf:"):
        return _hub(entry.removeprefix("hf:"), languages)
    source, target = find_files(root, entry, languages)
    return lambda: read_pairs(source, target, languages)


def _sacrebleu(name: str, languages: tuple[str, str]) -> tuple[Path, Path]:
    """Source and first reference of a test set, downloaded to sacrebleu's own cache if they are not there."""
    from sacrebleu.utils import get_available_testsets_for_langpair, get_reference_files, get_source_file

    pair = "-".join(languages)
    known = get_available_testsets_for_langpair(pair)
    if name not in known:
        raise DataError(f"sacrebleu:{name}: no such test set for {pair} (known: {', '.join(sorted(known))})")
    try:
        return Path(get_source_file(name, pair)), Path(get_reference_files(name, pair)[0])
    except (OSError, SystemExit) as error:  # sacrebleu exits where a download fails
        raise DataError(f"sacrebleu:{name}: cannot be downloaded ({error}); get the files by hand") from None


def _hub(name: str, languages: tuple[str, str]) -> Source:
    head, _, split = name.partition(":")
    path, _, config = head.partition("@")
    if not path or not split:
        raise DataError(f"hf:{name}: write hf:NAME:SPLIT or hf:NAME@CONFIG:SPLIT")
    try:
        import datasets
    except ImportError:
        raise DataError(f"hf:{name}: needs the package datasets (pip install datasets)") from None
    try:
        rows: Any = datasets.load_dataset(path, config or None, split=split, streaming=True)
    except Exception as error:  # whatever the hub, the network or a data set's builder say
        raise DataError(f"hf:{name}: cannot be loaded ({' '.join(str(error).split())})") from None

    def read() -> Iterator[Pair]:
        for number, row in enumerate(rows):
            try:  # a text may have line breaks; a sentence of a corpus is a line
                yield Pair(*(" ".join(row["translation"][language].splitlines()) for language in languages))
            except (KeyError, TypeError, AttributeError):
                raise DataError(
                    f"hf:{name}, row {number}: no 'translation' with {' and '.join(languages)} in {sorted(row)}"
                ) from None

    return read


def find_files(root: Path, entry: str, languages: tuple[str, str]) -> tuple[Path, Path]:
    """The two files that a name stands for.

    Args:
        entry: below root: a .tsv or .xml file; or what comes before the languages in the names of two files, as
            ``train`` for train.en and train.de; or a name with ``{lang}`` in place of the language, as
            ``newstest2014.tok.{lang}.gz``. Endings .gz, .txt, .sgm are found.

    Raises:
        DataError: there are no such files.
    """
    if kind_of(Path(entry)) in (".tsv", ".xml"):
        if not (path := root / entry).is_file():
            raise DataError(f"{path}: no such file")
        return path, path
    pattern = entry if "{lang}" in entry else f"{entry}.{{lang}}"
    found = []
    for language in languages:
        name = pattern.replace("{lang}", language)
        candidates = [root / f"{name}{end}" for end in ("", ".gz", ".txt", ".txt.gz", ".sgm", ".sgm.gz")]
        there = [candidate for candidate in candidates if candidate.is_file()]
        if not there:
            raise DataError(f"{root / name}: no such file, nor with .gz, .txt or .sgm after it")
        found.append(there[0])
    return found[0], found[1]
