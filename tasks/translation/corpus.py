"""The prepared corpus: token ids in memory-mapped files, written once by ``prepare``.

Files of its folder:

- ``corpus.json``: languages, counts and settings.
- ``joint.model``, or ``source.model`` and ``target.model``: sentencepiece vocabularies.
- ``NAME.source.ids`` and ``NAME.target.ids`` of train and val: ids of all sentences in a row, uint16 or int32.
- ``NAME.source.ends.npy`` and ``NAME.target.ends.npy``: end of each sentence in the ids, int64.
- ``NAME.source.txt`` and ``NAME.target.txt``: text of the sets that are scored.
"""

from __future__ import annotations

import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pydantic
from pydantic import ConfigDict, Field

from tasks.arrays import reading_arrays
from tasks.config import check
from tasks.errors import ConfigError, DataError
from tasks.progress import print_line
from tasks.shards import chunks
from tasks.translation.clean import JOINED, Cleaner
from tasks.translation.config import LANGUAGE, CorpusSection, SetName, TranslationConfig, VocabularySection
from tasks.translation.lines import read_lines
from tasks.translation.overlap import Overlap
from tasks.translation.sources import find_pairs
from tasks.translation.text import Pair, read_pairs
from tasks.translation.vocabulary import train_vocabulary
from zoo.cleaning import CLEANING, clean
from zoo.errors import ZooError, one_line
from zoo.files import atomic_folder, write_json
from zoo.jsontext import first_error, read_json
from zoo.text import Vocabulary
from zoo.transforms import TextTransform
from zoo.weights import get_weights

# what numpy raises where it parses the header of a damaged array, which is a Python dictionary
_UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, tokenize.TokenError)
VERSION = 1  # of the files; a corpus of another version is refused
_CHUNK = 20_000  # pairs that are tokenised at a time
_SIDES = ("source", "target")
_NAMES = {"joint": ("joint",), "separate": _SIDES}  # names of the files of vocabularies


LONGEST = 2**24  # bytes of corpus.json
Language = Annotated[str, Field(pattern=LANGUAGE)]
Count = Annotated[int, Field(ge=0)]


class _Info(pydantic.BaseModel):
    """JSON form of ``corpus.json``."""

    model_config = ConfigDict(strict=True)

    version: Literal[1]  # VERSION
    languages: tuple[Language, Language] = Field(strict=False)
    share: Literal["joint", "separate"]
    sizes: tuple[Count, Count] = Field(strict=False)
    dtypes: tuple[Literal["uint16", "int32"], Literal["uint16", "int32"]] = Field(strict=False)
    pairs: dict[SetName, Count]
    cleaning: dict[str, Count]
    cleaning_rules: Annotated[int, Field(ge=1, le=CLEANING)] = 1  # version of ``zoo.cleaning.clean``
    settings: dict[str, Any]


class Storage(NamedTuple):
    """What ``corpus.json`` states about the sentences of one side of a set.

    Attributes:
        dtype: type of the stored ids.
        pieces: number of pieces of the vocabulary, which all ids are below.
        sentences: number of sentences.
    """

    dtype: str
    pieces: int
    sentences: int


class Sentences:
    """The sentences of one side of a set: arrays of token ids without </s>, which are read from disk on access.

    Args:
        folder: folder of the corpus.
        name: name of the set and the side, such as "train.source".
        stored: statement of the corpus about them.

    Attributes:
        lengths: number of tokens of each sentence.

    Raises:
        DataError: files that are missing, damaged or do not match; ids outside of the vocabulary (on access).
    """

    def __init__(self, folder: Path, name: str, stored: Storage) -> None:
        self.path, self.pieces = folder / f"{name}.ids", stored.pieces
        self.ends = _load_ends(folder / f"{name}.ends.npy", stored.sentences)
        self.lengths = np.diff(self.ends, prepend=0)
        size = int(self.ends[-1]) if len(self.ends) else 0
        if len(self.lengths) and int(self.lengths.min()) < 0:
            raise DataError(f"{folder / name}.ends.npy: its ends do not rise; {_again(folder)}")
        if not self.path.is_file() or self.path.stat().st_size != size * np.dtype(stored.dtype).itemsize:
            raise DataError(f"{self.path}: size does not match {name}.ends.npy; {_again(folder)}")
        self.ids = np.memmap(self.path, dtype=stored.dtype, mode="r") if size else np.zeros(0, stored.dtype)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        end = int(self.ends[index])
        found = np.asarray(self.ids[end - int(self.lengths[index]) : end], dtype=np.int64)
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) < self.pieces:
            raise DataError(
                f"{self.path}: sentence {index} has ids outside of its vocabulary of {self.pieces} pieces; "
                f"{_again(self.path.parent)}"
            )
        return found


def _load_ends(path: Path, count: int) -> np.ndarray:
    """Return the ends of ``count`` sentences, mapped from the file.

    Raises:
        DataError: a file that is missing or is no such array.
    """
    try:
        with reading_arrays():
            ends = np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)}); {_again(path.parent)}") from None
    if not isinstance(ends, np.ndarray) or ends.dtype != np.int64 or ends.shape != (count,):
        raise DataError(f"{path}: must be an int64 array of {count} ends; {_again(path.parent)}")
    return ends


def _again(folder: Path) -> str:
    return f"delete {folder} and prepare again"


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
        DataError: a folder without a corpus, a corpus of another version, or a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = _read_info(folder)
        files = [folder / f"{name}.model" for name in _NAMES[self.info["share"]]]
        try:
            found = [Vocabulary(file.read_bytes(), str(file)) for file in files]
        except OSError as error:
            raise DataError(f"{error.filename}: {error.strerror}; {_again(folder)}") from None
        self.vocabularies = found[0], found[-1]
        if (sizes := [len(v) for v in self.vocabularies]) != list(self.info["sizes"]):
            raise DataError(f"{folder}: corpus.json states sizes={self.info['sizes']}, not {sizes}; {_again(folder)}")

    @property
    def transform(self) -> TextTransform:
        """Input transform of the nets that are trained on the corpus."""
        source, target = self.info["languages"]
        cleaning = self.info.get("cleaning_rules", 1)
        return TextTransform.from_vocabularies((source, target), *self.vocabularies, cleaning=cleaning)

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
        count = self.info["pairs"].get(name, 0)
        stored = [Storage(*each, count) for each in zip(self.info["dtypes"], self.info["sizes"], strict=True)]
        return Sentences(self.folder, f"{name}.source", stored[0]), Sentences(self.folder, f"{name}.target", stored[1])

    def text(self, name: str) -> list[Pair]:
        """Return the pairs of a scored set as text."""
        source, target = (self.folder / f"{name}.{side}.txt" for side in _SIDES)
        return list(read_pairs(source, target, tuple(self.info["languages"])))


def with_defaults(config: TranslationConfig) -> CorpusSection:
    """Return the settings of the corpus, with the languages and vocabularies of ``model.weights`` as defaults.

    Args:
        config: config of a run.

    Raises:
        ConfigError: weights of another kind of net, or a language that is missing.
        ZooError: weights that cannot be read.
    """
    section, weights = config.data.corpus, config.model.weights
    if weights is not None:
        entry = get_weights(weights, model=config.model.name)
        transform = entry.transform
        if not isinstance(transform, TextTransform):
            raise ConfigError(f"model.weights={weights}: must be weights of a translation net")
        changes: dict[str, Any] = {"source": section.source or transform.source}
        changes["target"] = section.target or transform.target
        if section.vocabulary == VocabularySection():
            share = "joint" if transform.target_model is None else "separate"
            changes["vocabulary"] = VocabularySection(share=share, weights=entry.name)
        section = section.model_copy(update=changes)
    section.languages  # noqa: B018  raises the error
    return section


def prepare(section: CorpusSection, folder: Path) -> Corpus:
    """Clean the text, train the vocabularies, write the corpus and return it; an error leaves no folder.

    A corpus in the folder with the same settings is not written again.

    Args:
        section: settings of the corpus.
        folder: folder of the corpus.

    Raises:
        DataError: text that is missing or malformed, or another corpus in the folder.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"data.folder={folder}: is a file; choose another")
    if folder.is_dir() and (names := {each.name for each in folder.iterdir()}):
        if "corpus.json" not in names:
            raise DataError(f"data.folder={folder}: has files but no corpus.json; choose another, or empty it")
        found = Corpus(folder)
        found.expect(section)
        print_line(f"{folder}: prepared already")
        return found
    atomic_folder(folder, lambda temporary: _fill(section, temporary))
    return Corpus(folder)


def _read_info(folder: Path) -> dict[str, Any]:
    """Return the content of ``corpus.json``.

    Raises:
        DataError: no such file, or one that is of another version or damaged.
    """
    path = folder / "corpus.json"
    if not path.is_file():
        raise DataError(f"{folder}: no prepared corpus; make it with: rescalenet prepare CONFIG")
    try:
        content = read_json(path, longest=LONGEST)
        version = content.get("version") if isinstance(content, dict) else None
        if version != VERSION and isinstance(version, int):
            raise DataError(f"{folder}: corpus of version {version}, must be {VERSION}; delete it and prepare again")
        _Info.model_validate(content)
    except pydantic.ValidationError as error:
        reason = first_error(error, "corpus.json")
    except ZooError as error:
        reason = str(error)
    else:
        return content
    raise DataError(f"{path}: not the description of a corpus ({reason}); {_again(folder)}")


def _fill(section: CorpusSection, folder: Path) -> None:
    """Write all files of a corpus into an empty folder."""
    root, languages, holdout = Path(section.root), section.languages, section.holdout
    # 1. Find all texts and read the sets that are scored, because errors in them should come before the long work.
    training = [find_pairs(root, entry, languages, section.columns) for entry in section.train]
    entries = dict(section.test) if holdout else {**section.test, "val": section.val}
    scored = {name: list(find_pairs(root, entry, languages, section.columns)()) for name, entry in entries.items()}
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
        for number, pair in enumerate(map(_pair, read_lines(clean)), 1):
            if (holdout > 0 and number % holdout == 0) == held_out:
                yield pair

    # 3. Train the vocabularies, and write the token ids.
    joined = cleaner.counts[JOINED] > 0
    vocabularies = _vocabularies(section.vocabulary, folder, lambda: cleaned(held_out=False), joined=joined)
    dtypes = ["uint16" if len(v) <= 1 << 16 else "int32" for v in vocabularies]
    if holdout:
        scored["val"] = list(cleaned(held_out=True))
    overlap = Overlap()
    for name, pairs in scored.items():
        overlap.add(name, pairs)
    counts: dict[str, int] = {}
    counts["train"], dropped = _write_ids(
        folder, "train", overlap.watch(cleaned(held_out=False)), vocabularies, dtypes, drop_empty=True
    )
    cleaner.counts["untokenisable"] += dropped
    if dropped:
        print_line(f"train: dropped {dropped} pairs more, of which a side has no tokens")
    counts["val"], _ = _write_ids(folder, "val", scored["val"], vocabularies, dtypes, drop_empty=False)

    for line in overlap.findings():
        print_line(line)

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
        "cleaning_rules": CLEANING,
        "settings": section.model_dump(mode="json"),
    }
    write_json(info, folder / "corpus.json")


def _pair(line: str) -> Pair:
    """Return the pair of a line of cleaned text, in which a tab stands between source and target alone."""
    return Pair(*line.split("\t"))


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
        sides = [v.encode([clean(p[i]) for p in chunk]) for i, v in enumerate(vocabularies)]
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
    section: VocabularySection, folder: Path, pairs: Callable[[], Iterator[Pair]], *, joined: bool
) -> tuple[Vocabulary, Vocabulary]:
    """Train the vocabularies, or take those of weights; write their files, and return source and target.

    Args:
        section: settings of the vocabularies.
        folder: folder of the corpus.
        pairs: function that reads the training pairs from the start.
        joined: whether the text has joiners, which are part of its spelling.
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
        vocabulary = train_vocabulary(texts, section.size, section.kind, coverage=section.coverage, joined=joined)
        (folder / f"{name}.model").write_bytes(vocabulary.model)
        print_line(f"{name} vocabulary: {len(vocabulary)} {section.kind} pieces")
        return vocabulary

    if section.share == "joint":
        joint = train("joint", (text for pair in pairs() for text in pair))
        return joint, joint
    return train("source", (p.source for p in pairs())), train("target", (p.target for p in pairs()))
