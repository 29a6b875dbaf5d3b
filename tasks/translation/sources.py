"""Sources of parallel text: files on disk, test sets of sacrebleu, data sets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tasks.errors import DataError
from tasks.translation.text import Pair, kind_of, read_pairs
from zoo.errors import one_line

Source = Callable[[], Iterator[Pair]]


def find_pairs(root: Path, entry: str, languages: tuple[str, str]) -> Source:
    """Find parallel text by name; return a function that reads its pairs from the start at each call.

    Args:
        root: folder of the files.
        entry: name of the text. ``sacrebleu:NAME`` is a test set of sacrebleu, such as ``sacrebleu:wmt14/full``.
            ``hf:NAME[@CONFIG]:SPLIT`` is a data set of the Hugging Face hub whose rows are ``{"translation":
            {language: text}}``, such as ``hf:wmt/wmt14@de-en:train``. Other names are files, see ``find_pair_files``.
        languages: codes of the source and the target language.

    Raises:
        DataError: a text that does not exist, or cannot be downloaded.
    """
    if entry.startswith("sacrebleu:"):
        source, target = _sacrebleu(entry.removeprefix("sacrebleu:"), languages)
        return lambda: read_pairs(source, target, languages)
    if entry.startswith("hf:"):
        return _hub(entry.removeprefix("hf:"), languages)
    source, target = find_pair_files(root, entry, languages)
    return lambda: read_pairs(source, target, languages)


def _sacrebleu(name: str, languages: tuple[str, str]) -> tuple[Path, Path]:
    """Return the files of source and first reference of a test set; sacrebleu downloads them to its own cache."""
    from sacrebleu.utils import get_available_testsets_for_langpair, get_reference_files, get_source_file

    pair = "-".join(languages)
    known = get_available_testsets_for_langpair(pair)
    if name not in known:
        raise DataError(f"sacrebleu:{name}: no such test set for {pair}; known: {', '.join(sorted(known))}")
    try:
        return Path(get_source_file(name, pair)), Path(get_reference_files(name, pair)[0])
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
        entry: name below ``root``: a .tsv or .xml file, or the common beginning of two files (``train`` for train.en
            and train.de), or a name with ``{lang}`` in place of the language (``newstest2014.tok.{lang}.gz``). The
            endings .gz, .txt and .sgm may be left out.
        languages: codes of the source and the target language.

    Raises:
        DataError: files that do not exist.
    """
    if kind_of(Path(entry)) in (".tsv", ".xml"):
        if not (path := root / entry).is_file():
            raise DataError(f"{path}: no such file")
        return path, path
    pattern = entry if "{lang}" in entry else f"{entry}.{{lang}}"
    source, target = (_with_ending(root / pattern.replace("{lang}", language)) for language in languages)
    return source, target


def _with_ending(path: Path) -> Path:
    """Return the first existing file that has this path, with or without a known ending after it."""
    for end in ("", ".gz", ".txt", ".txt.gz", ".sgm", ".sgm.gz"):
        if (found := path.with_name(path.name + end)).is_file():
            return found
    raise DataError(f"{path}: no such file, nor with .gz, .txt or .sgm after it")
