"""The binarised corpus: token ids in memory-mapped files, built once by ``prepare``.

A folder: ``corpus.json`` (languages, counts, settings), ``joint.model`` or ``source.model`` and ``target.model``
(sentencepiece), ``NAME.source.ids``/``.ends.npy`` and ``NAME.target.ids``/``.ends.npy`` for train and val (ids of all
sentences one after the other, uint16 or int32; where each ends, int64), and ``NAME.source.txt``/``.target.txt`` for
the sets that are scored.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tasks.config import check
from tasks.errors import ConfigError, DataError
from tasks.progress import print_line
from tasks.shards import chunks
from tasks.translation.clean import Cleaner
from tasks.translation.config import CorpusSection
from tasks.translation.sources import Source, find_pairs
from tasks.translation.text import Pair, read_lines, read_pairs
from tasks.translation.vocabulary import train_vocabulary
from zoo.files import write_json
from zoo.text import Vocabulary
from zoo.transforms import TextTransform
from zoo.weights import get_weights

_CHUNK = 20_000  # pairs that are tokenised at a time
VERSION = 1
_NAMES = {"joint": ("joint",), "separate": ("source", "target")}  # of the vocabularies' files


class Sentences:
    """The sentences of one side of a set, each an array of ids without </s>, read from disk when asked for."""

    def __init__(self, folder: Path, name: str, dtype: str) -> None:
        ends = np.load(folder / f"{name}.ends.npy", mmap_mode="r")
        self.ends = ends
        self.lengths = np.diff(ends, prepend=0)
        size = int(ends[-1]) if len(ends) else 0
        path = folder / f"{name}.ids"
        if path.stat().st_size != size * np.dtype(dtype).itemsize:
            raise DataError(f"{path}: has another size than {name}.ends.npy tells; prepare the corpus again")
        self.ids = np.memmap(path, dtype=dtype, mode="r") if size else np.zeros(0, dtype)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        end = int(self.ends[index])
        return np.asarray(self.ids[end - int(self.lengths[index]) : end], dtype=np.int64)


class _Writer:
    """Writes the sentences of one side."""

    def __init__(self, folder: Path, name: str, dtype: str) -> None:
        self.folder, self.name, self.dtype = folder, name, dtype
        self.file = (folder / f"{name}.ids").open("wb")
        self.ends: list[np.ndarray] = []
        self.size = 0

    def add(self, sentences: list[list[int]]) -> None:
        lengths = np.fromiter((len(s) for s in sentences), np.int64, len(sentences))
        ends = self.size + lengths.cumsum()
        self.ends.append(ends)
        self.size = int(ends[-1])
        np.fromiter((i for s in sentences for i in s), self.dtype).tofile(self.file)

    def close(self) -> None:
        self.file.close()
        np.save(self.folder / f"{self.name}.ends.npy", np.concatenate(self.ends or [np.zeros(0, np.int64)]))


class Corpus:
    """A prepared corpus.

    Raises:
        DataError: there is none in the folder, or it is of another version or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.info: dict[str, Any] = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{folder}: no prepared corpus; make it with: rescalenet prepare CONFIG") from None
        if self.info.get("version") != VERSION:
            raise DataError(f"{folder}: a corpus of version {self.info.get('version')}; prepare it again")
        files = [folder / f"{name}.model" for name in _NAMES[self.info["share"]]]
        found = [Vocabulary(file.read_bytes(), str(file)) for file in files]
        self.vocabularies = found[0], found[-1]

    @property
    def transform(self) -> TextTransform:
        """What a net that is trained on it expects."""
        source, target = self.info["languages"]
        return TextTransform.from_vocabularies((source, target), *self.vocabularies)

    def expect(self, section: CorpusSection) -> None:
        """Refuse a corpus that other settings made; where its text lay does not matter.

        Raises:
            DataError: other settings.
        """
        # Settings of an earlier version may lack fields: those have their defaults.
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
        """Source and target of ``train`` or ``val``."""
        dtypes = self.info["dtypes"]
        return Sentences(self.folder, f"{name}.source", dtypes[0]), Sentences(self.folder, f"{name}.target", dtypes[1])

    def text(self, name: str) -> list[Pair]:
        """The pairs of a set that is scored, as text."""
        source, target = (self.folder / f"{name}.{side}.txt" for side in ("source", "target"))
        return list(read_pairs(source, target, tuple(self.info["languages"])))


def prepare(section: CorpusSection, folder: Path) -> Corpus:
    """Clean the text, train the vocabularies, write the binarised corpus: whole, or not at all.

    A corpus with these settings that is there already stays.

    Raises:
        DataError: text that is missing or not right, or another corpus in the folder.
    """
    settings = section.model_dump(mode="json")
    if folder.exists():
        found = Corpus(folder)
        found.expect(section)
        print_line(f"{folder}: prepared already")
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):  # a kill in the middle of writing
        shutil.rmtree(stale)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        _fill(section, temporary, settings)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Corpus(folder)


def _fill(section: CorpusSection, folder: Path, settings: dict[str, Any]) -> None:
    root, languages = Path(section.root), (section.source, section.target)

    def find(entry: str) -> Source:
        return find_pairs(root, entry, languages)

    training = [find(entry) for entry in section.train]
    evaluation = dict(section.test)
    if not section.holdout:
        evaluation["val"] = section.val
    scored = {name: list(find(entry)()) for name, entry in evaluation.items()}  # before the long work: it may be wrong
    for name, pairs in scored.items():
        if not pairs:
            raise DataError(f"{root}: {evaluation[name]} has no pairs")

    def raw() -> Iterator[Pair]:
        for read in training:
            yield from read()

    cleaner = Cleaner(section.clean)
    counts: dict[str, int] = {}
    with (folder / "train.tsv").open("w", encoding="utf-8") as clean:  # what both passes below read
        for pair in cleaner(raw()):
            clean.write("\t".join(pair) + "\n")
    print_line(f"training text: {cleaner}")
    kept = cleaner.counts["kept"]
    if not kept:
        raise DataError(f"{root}: no pair is left of the training text ({cleaner})")
    held = section.holdout
    if kept < held:
        raise DataError(f"holdout={held}: one of {held} pairs, and there are {kept}")

    def cleaned(part: str) -> Iterator[Pair]:
        for number, line in enumerate(read_lines(folder / "train.tsv"), 1):
            if (held and number % held == 0) == (part == "val"):
                source, _, target = line.partition("\t")
                yield Pair(source, target)

    vocabularies = _vocabularies(section, folder, lambda: cleaned("train"))
    dtypes = ["uint16" if len(v) <= 1 << 16 else "int32" for v in vocabularies]

    def write(name: str, pairs: Iterable[Pair], *, drop_empty: bool) -> None:
        writers = [_Writer(folder, f"{name}.{s}", d) for s, d in zip(("source", "target"), dtypes, strict=True)]
        count = 0
        for chunk in chunks(pairs, _CHUNK):
            sides = [v.encode([p[i] for p in chunk]) for i, v in enumerate(vocabularies)]
            if drop_empty:  # characters that the normalization drops were all there was
                both = [(s, t) for s, t in zip(*sides, strict=True) if s and t]
                cleaner.counts["untokenisable"] += len(chunk) - len(both)
                sides = [list(side) for side in zip(*both, strict=True)] or [[], []]
            for writer, side in zip(writers, sides, strict=True):
                writer.add(side)
            count += len(sides[0])
        for writer in writers:
            writer.close()
        counts[name] = count
        print_line(f"{name}: {count} pairs, {writers[0].size} source and {writers[1].size} target tokens")

    write("train", cleaned("train"), drop_empty=True)
    if held:
        scored["val"] = list(cleaned("val"))
    write("val", scored["val"], drop_empty=False)
    for name, pairs in scored.items():
        counts[name] = len(pairs)
        for i, side in enumerate(("source", "target")):
            text = "".join(pair[i] + "\n" for pair in pairs)
            (folder / f"{name}.{side}.txt").write_text(text, encoding="utf-8")
    (folder / "train.tsv").unlink()
    info = {
        "version": VERSION,
        "languages": languages,
        "share": section.vocabulary.share,
        "sizes": [len(v) for v in vocabularies],
        "dtypes": dtypes,
        "pairs": counts,
        "cleaning": dict(cleaner.counts),
        "settings": settings,
    }
    write_json(info, folder / "corpus.json")


def _vocabularies(
    section: CorpusSection, folder: Path, pairs: Callable[[], Iterator[Pair]]
) -> tuple[Vocabulary, Vocabulary]:
    wanted = section.vocabulary
    if wanted.weights is not None:
        entry = get_weights(wanted.weights)
        if not isinstance(entry.transform, TextTransform):
            raise DataError(f"vocabulary.weights={wanted.weights}: not weights of a translation net")
        coder = entry.transform.build()
        share = "joint" if coder.source is coder.target else "separate"
        if share != wanted.share:
            raise DataError(f"vocabulary.share={wanted.share}: the weights {entry.name} have {share} vocabularies")
        for name, vocabulary in zip(_NAMES[share], (coder.source, coder.target), strict=False):
            (folder / f"{name}.model").write_bytes(vocabulary.model)
        return coder.source, coder.target

    def trained(name: str, texts: Iterable[str]) -> Vocabulary:
        vocabulary = train_vocabulary(texts, wanted.size, wanted.kind, coverage=wanted.coverage)
        (folder / f"{name}.model").write_bytes(vocabulary.model)
        print_line(f"{name} vocabulary: {len(vocabulary)} {wanted.kind} pieces")
        return vocabulary

    if wanted.share == "joint":
        joint = trained("joint", (text for pair in pairs() for text in pair))
        return joint, joint
    return trained("source", (p.source for p in pairs())), trained("target", (p.target for p in pairs()))
