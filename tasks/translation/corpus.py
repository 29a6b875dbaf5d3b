"""The prepared corpus: token ids in memory-mapped files, written once by ``prepare``.

Files of its folder:

- ``corpus.json``: languages, counts and settings.
- ``joint.model``, or ``source.model`` and ``target.model``: sentencepiece vocabularies.
- ``NAME.source.ids`` and ``NAME.target.ids`` of train and val: ids of all sentences in a row, uint16 or int32.
- ``NAME.source.ends.npy`` and ``NAME.target.ends.npy``: end of each sentence in the ids, int64.
- ``NAME.source.txt`` and ``NAME.target.txt``: text of the sets that are scored.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.config import check
from tasks.errors import ConfigError, DataError
from tasks.progress import print_line
from tasks.shards import chunks
from tasks.translation.clean import Cleaner
from tasks.translation.config import CorpusSection, VocabularySection
from tasks.translation.sources import find_pairs
from tasks.translation.text import Pair, read_pairs
from tasks.translation.vocabulary import train_vocabulary
from zoo.files import write_json
from zoo.text import Vocabulary
from zoo.transforms import TextTransform
from zoo.weights import get_weights

VERSION = 1  # of the files; a corpus of another version is refused
_CHUNK = 20_000  # pairs that are tokenised at a time
_SIDES = ("source", "target")
_NAMES = {"joint": ("joint",), "separate": _SIDES}  # names of the files of vocabularies


class Sentences:
    """The sentences of one side of a set: arrays of token ids without </s>, which are read from disk on access.

    Args:
        folder: folder of the corpus.
        name: name of the set and the side, such as "train.source".
        dtype: type of the stored ids.

    Attributes:
        lengths: number of tokens of each sentence.

    Raises:
        DataError: files whose sizes do not match.
    """

    def __init__(self, folder: Path, name: str, dtype: str) -> None:
        ends = np.load(folder / f"{name}.ends.npy", mmap_mode="r")
        self.ends = ends
        self.lengths = np.diff(ends, prepend=0)
        size = int(ends[-1]) if len(ends) else 0
        path = folder / f"{name}.ids"
        if path.stat().st_size != size * np.dtype(dtype).itemsize:
            raise DataError(f"{path}: size does not match {name}.ends.npy; delete {folder} and prepare again")
        self.ids = np.memmap(path, dtype=dtype, mode="r") if size else np.zeros(0, dtype)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        end = int(self.ends[index])
        return np.asarray(self.ids[end - int(self.lengths[index]) : end], dtype=np.int64)


class _Writer:
    """Writer of the sentences of one side of a set; see ``Sentences`` for the arguments."""

    def __init__(self, folder: Path, name: str, dtype: str) -> None:
        self.folder, self.name, self.dtype = folder, name, dtype
        self.file = (folder / f"{name}.ids").open("wb")
        self.ends: list[np.ndarray] = []
        self.size = 0

    def add(self, sentences: list[list[int]]) -> None:
        """Write sentences after those before."""
        lengths = np.fromiter((len(s) for s in sentences), np.int64, len(sentences))
        self.ends.append(self.size + lengths.cumsum())
        self.size += int(lengths.sum())
        np.fromiter((i for s in sentences for i in s), self.dtype).tofile(self.file)

    def close(self) -> None:
        """Write the ends of the sentences."""
        self.file.close()
        np.save(self.folder / f"{self.name}.ends.npy", np.concatenate(self.ends or [np.zeros(0, np.int64)]))


class Corpus:
    """A prepared corpus.

    Args:
        folder: folder of the corpus.

    Attributes:
        info: content of ``corpus.json``.
        vocabularies: vocabularies of source and target.

    Raises:
        DataError: a folder without a corpus, or a corpus of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.info: dict[str, Any] = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{folder}: no prepared corpus; make it with: rescalenet prepare CONFIG") from None
        if self.info.get("version") != VERSION:
            version = self.info.get("version")
            raise DataError(f"{folder}: corpus of version {version}, must be {VERSION}; delete it and prepare again")
        files = [folder / f"{name}.model" for name in _NAMES[self.info["share"]]]
        found = [Vocabulary(file.read_bytes(), str(file)) for file in files]
        self.vocabularies = found[0], found[-1]

    @property
    def transform(self) -> TextTransform:
        """Input transform of the nets that are trained on the corpus."""
        source, target = self.info["languages"]
        return TextTransform.from_vocabularies((source, target), *self.vocabularies)

    def expect(self, section: CorpusSection) -> None:
        """Check that the corpus was prepared with some settings; the folder of the text may differ.

        Raises:
            DataError: a corpus with other settings.
        """
        # The settings may come from an earlier version and lack new fields, which then have their defaults.
        try:
            stored = check(self.info["settings"], CorpusSection, str(self.folder / "corpus.json"))
        except ConfigError as error:
            raise DataError(f"{error}; delete {self.folder} and prepare again") from None
        names = [name for name in CorpusSection.model_fields if name != "root"]
        if differing := [name for name in names if getattr(section, name) != getattr(stored, name)]:
            raise DataError(
                f"{self.folder}: prepared with another data.corpus ({', '.join(differing)}); "
                "delete it and prepare again, or choose another data.folder"
            )

    def sentences(self, name: str) -> tuple[Sentences, Sentences]:
        """Return the source and target sentences of ``train`` or ``val``."""
        dtypes = self.info["dtypes"]
        return Sentences(self.folder, f"{name}.source", dtypes[0]), Sentences(self.folder, f"{name}.target", dtypes[1])

    def text(self, name: str) -> list[Pair]:
        """Return the pairs of a scored set as text."""
        source, target = (self.folder / f"{name}.{side}.txt" for side in _SIDES)
        return list(read_pairs(source, target, tuple(self.info["languages"])))


def prepare(section: CorpusSection, folder: Path) -> Corpus:
    """Clean the text, train the vocabularies, write the corpus and return it; an error leaves no folder.

    A corpus in the folder with the same settings is not written again.

    Args:
        section: settings of the corpus.
        folder: folder of the corpus.

    Raises:
        DataError: text that is missing or malformed, or another corpus in the folder.
    """
    if folder.exists():
        found = Corpus(folder)
        found.expect(section)
        print_line(f"{folder}: prepared already")
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):  # left by a process that was killed
        shutil.rmtree(stale)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        _fill(section, temporary)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Corpus(folder)


def _fill(section: CorpusSection, folder: Path) -> None:
    """Write all files of a corpus into an empty folder."""
    root, languages, holdout = Path(section.root), (section.source, section.target), section.holdout
    # 1. Find all texts and read the sets that are scored, because errors in them should come before the long work.
    training = [find_pairs(root, entry, languages) for entry in section.train]
    entries = dict(section.test) if holdout else {**section.test, "val": section.val}
    scored = {name: list(find_pairs(root, entry, languages)()) for name, entry in entries.items()}
    for name, pairs in scored.items():
        if not pairs:
            raise DataError(f"{root}: {entries[name]} has no pairs")

    # 2. Clean the training text into a file, which is read several times below.
    cleaner, clean = Cleaner(section.clean), folder / "train.tsv"
    with clean.open("w", encoding="utf-8") as file:
        for pair in cleaner(pair for read in training for pair in read()):
            file.write("\t".join(pair) + "\n")
    print_line(f"training text: {cleaner}")
    kept = cleaner.counts["kept"]
    if not kept:
        raise DataError(f"{root}: cleaning drops every training pair ({cleaner}); change data.corpus.clean")
    if kept < holdout:
        raise DataError(f"data.corpus.holdout={holdout} needs at least {holdout} pairs, the corpus has {kept}")

    def cleaned(*, held_out: bool) -> Iterator[Pair]:
        """Yield the held-out pairs or the others."""
        for number, pair in enumerate(read_pairs(clean, clean, languages), 1):
            if (holdout > 0 and number % holdout == 0) == held_out:
                yield pair

    # 3. Train the vocabularies, and write the token ids.
    vocabularies = _vocabularies(section.vocabulary, folder, lambda: cleaned(held_out=False))
    dtypes = ["uint16" if len(v) <= 1 << 16 else "int32" for v in vocabularies]
    counts: dict[str, int] = {}
    counts["train"], dropped = _write_ids(
        folder, "train", cleaned(held_out=False), vocabularies, dtypes, drop_empty=True
    )
    cleaner.counts["untokenisable"] += dropped
    if holdout:
        scored["val"] = list(cleaned(held_out=True))
    counts["val"], _ = _write_ids(folder, "val", scored["val"], vocabularies, dtypes, drop_empty=False)

    # 4. Write the scored sets as text, and the description of the corpus.
    for name, pairs in scored.items():
        counts[name] = len(pairs)
        for i, side in enumerate(_SIDES):
            text = "".join(pair[i] + "\n" for pair in pairs)
            (folder / f"{name}.{side}.txt").write_text(text, encoding="utf-8")
    clean.unlink()
    info = {
        "version": VERSION,
        "languages": languages,
        "share": section.vocabulary.share,
        "sizes": [len(v) for v in vocabularies],
        "dtypes": dtypes,
        "pairs": counts,
        "cleaning": dict(cleaner.counts),
        "settings": section.model_dump(mode="json"),
    }
    write_json(info, folder / "corpus.json")


def _write_ids(
    folder: Path,
    name: str,
    pairs: Iterable[Pair],
    vocabularies: tuple[Vocabulary, Vocabulary],
    dtypes: Sequence[str],
    *,
    drop_empty: bool,
) -> tuple[int, int]:
    """Write the token ids of a set; return the numbers of written and of dropped pairs.

    Args:
        folder: folder of the corpus.
        name: name of the set.
        pairs: pairs of the set.
        vocabularies: vocabularies of source and target.
        dtypes: types of the stored ids of source and target.
        drop_empty: drop pairs of which a side has no tokens. The normalization of sentencepiece removes some
            characters, and a sentence may have no others.
    """
    writers = [_Writer(folder, f"{name}.{side}", dtype) for side, dtype in zip(_SIDES, dtypes, strict=True)]
    count = dropped = 0
    for chunk in chunks(pairs, _CHUNK):
        sides = [v.encode([p[i] for p in chunk]) for i, v in enumerate(vocabularies)]
        if drop_empty:
            both = [(s, t) for s, t in zip(*sides, strict=True) if s and t]
            sides = [[s for s, _ in both], [t for _, t in both]]
        for writer, side in zip(writers, sides, strict=True):
            writer.add(side)
        count += len(sides[0])
        dropped += len(chunk) - len(sides[0])
    for writer in writers:
        writer.close()
    print_line(f"{name}: {count} pairs, {writers[0].size} source and {writers[1].size} target tokens")
    return count, dropped


def _vocabularies(
    section: VocabularySection, folder: Path, pairs: Callable[[], Iterator[Pair]]
) -> tuple[Vocabulary, Vocabulary]:
    """Train the vocabularies, or take those of weights; write their files, and return source and target.

    Args:
        section: settings of the vocabularies.
        folder: folder of the corpus.
        pairs: function that reads the training pairs from the start.
    """
    # 1. Use the vocabularies of weights.
    if section.weights is not None:
        entry = get_weights(section.weights)
        if not isinstance(entry.transform, TextTransform):
            raise DataError(f"data.corpus.vocabulary.weights={section.weights}: must be weights of a translation net")
        coder = entry.transform.build()
        share = "joint" if coder.source is coder.target else "separate"
        if share != section.share:
            raise DataError(
                f"data.corpus.vocabulary.share={section.share}: the weights {entry.name} have {share} vocabularies; "
                f"set data.corpus.vocabulary.share={share}"
            )
        for name, vocabulary in zip(_NAMES[share], (coder.source, coder.target), strict=False):
            (folder / f"{name}.model").write_bytes(vocabulary.model)
        return coder.source, coder.target

    # 2. Train new vocabularies.
    def train(name: str, texts: Iterable[str]) -> Vocabulary:
        """Train a vocabulary and write its file."""
        vocabulary = train_vocabulary(texts, section.size, section.kind, coverage=section.coverage)
        (folder / f"{name}.model").write_bytes(vocabulary.model)
        print_line(f"{name} vocabulary: {len(vocabulary)} {section.kind} pieces")
        return vocabulary

    if section.share == "joint":
        joint = train("joint", (text for pair in pairs() for text in pair))
        return joint, joint
    return train("source", (p.source for p in pairs())), train("target", (p.target for p in pairs()))
