"""``rescalenet check`` for translation: every pair is read once, as ``rescalenet prepare`` reads and cleans it."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tasks.check import Report
from tasks.errors import DataError, UserError
from tasks.outputs import OutputFolder
from tasks.printing import brief
from tasks.translation.clean import Cleaner, digest
from tasks.translation.config import TranslationConfig
from tasks.translation.corpus import Corpus, with_defaults
from tasks.translation.languages import count_words, language_of
from tasks.translation.overlap import Overlap
from tasks.translation.scores import Scoring
from tasks.translation.sources import Source, find_pairs
from tasks.translation.text import Pair
from zoo.cleaning import clean
from zoo.files import write_text

FILES = ("check.json", "samples.txt")  # what is written
SAMPLES = 10  # pairs of each set that are shown
_LETTERS = 200_000  # letters of each side of a set from which its script is found
_SIDES = ("source", "target")
# Scripts of languages, in the words of Unicode's names of letters; those that are not here are not checked.
_SCRIPTS = {
    **dict.fromkeys(("cs", "da", "de", "en", "es", "et", "fi", "fr", "hr", "hu", "is", "it", "lt"), ("LATIN",)),
    **dict.fromkeys(("lv", "nl", "no", "pl", "pt", "ro", "sl", "sv", "tr", "vi"), ("LATIN",)),
    **dict.fromkeys(("ru", "uk", "bg", "be", "mk"), ("CYRILLIC",)),
    **dict.fromkeys(("ar", "fa", "ur", "ps"), ("ARABIC",)),
    **dict.fromkeys(("hi", "mr", "ne"), ("DEVANAGARI",)),
    "zh": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL", "CJK"),
    "th": ("THAI",),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "ka": ("GEORGIAN",),
    "km": ("KHMER",),
    "bn": ("BENGALI",),
    "ta": ("TAMIL",),
}
# What wrong decoding leaves in text: replacement characters, UTF-8 read as Latin-1; and entities of HTML.
_ODD = {
    "replacement characters (U+FFFD), of a wrong encoding": re.compile("\ufffd"),
    "UTF-8 that was read as Latin-1": re.compile("[\u00c3\u00c2\u00c5][\u0080-\u00bf]|\u00e2\u20ac"),
    "entities of HTML, such as &amp;": re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{1,6});"),
}


@dataclass
class CheckedSet:
    """What was found in a set of pairs.

    Attributes:
        name: name of the set: train, val, or that of a test set.
        read: number of pairs.
        words: number of words of each pair, of the source and of the target.
        letters: number of letters by script, of the source and of the target.
        copies: number of pairs whose sides are equal.
        odd: number of pairs by kind of damage.
        repeated: number of pairs that occurred before in the set.
        samples: pairs that are shown.
    """

    name: str
    read: int = 0
    words: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    letters: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    copies: int = 0
    odd: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    samples: list[Pair] = field(default_factory=list)

    def look(self, pairs: Iterator[Pair]) -> Iterator[Pair]:
        """Look at pairs and yield them again."""
        seen: set[bytes] = set()
        for pair in pairs:
            cleaned = Pair(*map(clean, pair))
            self.read += 1
            for side, text in enumerate(cleaned):
                self.words[side].append(count_words(text))
                if self.letters[side].total() < _LETTERS:
                    self.letters[side].update(_script(c) for c in text if c.isalpha())
            self.copies += cleaned.source == cleaned.target != ""
            for kind, pattern in _ODD.items():
                self.odd[kind] += any(pattern.search(text) is not None for text in pair)
            both = digest("\t".join(cleaned))
            self.repeated += both in seen
            seen.add(both)
            # pairs at growing distances, so that the whole set is represented
            if self.read & (self.read - 1) == 0 or len(self.samples) < SAMPLES // 2:
                self.samples.append(pair)
            yield pair
        self.samples = self.samples[: SAMPLES // 2] + self.samples[SAMPLES // 2 :][-(SAMPLES // 2) :]

    def script(self, side: int) -> str:
        """Return the script of most letters of a side; empty without letters."""
        return max(self.letters[side], key=lambda name: self.letters[side][name], default="")


def _script(letter: str) -> str:
    """Return the script of a letter, the first word of its name."""
    return unicodedata.name(letter, "OTHER").partition(" ")[0].partition("-")[0]


def check_data(config: TranslationConfig, out: Path | None, limit: int | None, *, overwrite: bool = False) -> bool:
    """Check the text of a config, print the report, and return whether training would run.

    Args:
        config: config of a run.
        out: folder for ``FILES``; None: nothing is written.
        limit: number of pairs of each set to look at, evenly spread; None: all. The text is read to its end.
        overwrite: whether earlier results in the folder are replaced.

    Raises:
        UserError, ZooError: languages that are missing, weights that cannot be read, a folder that cannot be written or
            has earlier results.
    """
    section, report = with_defaults(config), Report()
    root, languages = Path(section.root), section.languages
    folder = None if out is None else OutputFolder(out, FILES, [root], overwrite=overwrite)
    report.content |= {"languages": list(languages), "sets": {}}
    # 1. Look at each set; what cannot be read stops training, and the other sets are looked at.
    entries = {"val": (section.val,), **{name: (entry,) for name, entry in section.test.items()}}
    if section.holdout:
        del entries["val"]
        report.lines.append(f"val: every {section.holdout}th training pair is held out")
    cleaner, overlap = Cleaner(section.clean), Overlap()
    checked = []
    for name, texts in {**entries, "train": section.train}.items():
        found = CheckedSet(name)
        pairs = _readable(name, [partial(find_pairs, root, text, languages, section.columns) for text in texts], report)
        looked = found.look(pairs if limit is None else iter(_spread(pairs, limit)))
        if name == "train":
            for _ in overlap.watch(cleaner(looked)):
                pass
        else:
            overlap.add(name, looked)
        if not found.read:
            report.stops.append(f"{name}: has no pairs")
        else:
            checked.append(found)
    checked.sort(key=lambda each: each.name != "train")  # first in the report
    for found in checked:
        _describe(found, languages, report)
    # 2. Describe what the cleaning drops, and pairs of the evaluation that are trained on.
    report.lines.append(f"training text: {cleaner}")
    report.content["cleaning"] = dict(cleaner.counts)
    kept, read = cleaner.counts["kept"], cleaner.counts["read"]
    if read and not kept:
        report.stops.append("cleaning drops every training pair; change data.corpus.clean")
    elif kept < read / 2:
        report.warnings.append(f"cleaning drops {read - kept} of {read} training pairs; look at data.corpus.clean")
    report.warnings += overlap.findings()
    for found in checked:
        if found.name in overlap.common:
            report.content["sets"][found.name]["in_train"] = len(overlap.common[found.name])
    # 3. Try what training does at its start.
    report.stops += _stops(config, section.languages[1])
    # 4. Write the results.
    samples = [f"{each.name}\t{pair.source}\t{pair.target}" for each in checked for pair in each.samples]
    if folder is not None:
        report.write(folder.path)
        write_text("".join(f"{' '.join(line.splitlines())}\n" for line in samples), folder.path / "samples.txt")
    return report.show()


def _readable(name: str, texts: list[Callable[[], Source]], report: Report) -> Iterator[Pair]:
    """Yield the pairs of a set's texts, and report what ends one of them early."""
    for find in texts:
        try:
            yield from find()()
        except DataError as error:
            report.stops.append(f"{name}: {error}")


def _spread(pairs: Iterable[Pair], limit: int) -> list[Pair]:
    """Return at most ``limit`` pairs, evenly spread, of which at most twice as many are in memory at a time."""
    kept: list[Pair] = []
    step = 1
    for number, pair in enumerate(pairs):
        if number % step == 0:
            kept.append(pair)
        if len(kept) == 2 * limit:
            kept, step = kept[::2], 2 * step
    count = min(len(kept), limit)
    return [kept[i * len(kept) // count] for i in range(count)]


def _describe(found: CheckedSet, languages: tuple[str, str], report: Report) -> None:
    """Add the lengths, scripts and faults of a set to the report."""
    name = found.name
    content: dict[str, Any] = {"pairs": found.read, "copies": found.copies, "repeated": found.repeated}
    report.content["sets"][name] = content
    parts = []
    # Lengths and scripts of each side.
    for side, language in enumerate(languages):
        words = sorted(found.words[side])
        middle, longest = words[len(words) // 2], words[-1]
        script = found.script(side)
        content[_SIDES[side]] = {
            "language": language,
            "words": {"median": middle, "max": longest},
            "empty": sum(count == 0 for count in words),
            "scripts": dict(found.letters[side].most_common(5)),
        }
        parts.append(f"{language} {middle} words (at most {longest}), {script.capitalize() or 'no letters'}")
        # A script of another language is a mistake of files or of their order.
        expected = _SCRIPTS.get(language_of(language))
        if script and expected and script not in expected:
            other = _SCRIPTS.get(language_of(languages[1 - side]), ())
            hint = "are source and target exchanged?" if script in other else "is it the right file?"
            report.warnings.append(
                f"{name}: the {_SIDES[side]} is written in {script.capitalize()}, not {language}; {hint}"
            )
    report.lines.append(f"{name}: {found.read} pairs; median length: {'; '.join(parts)}")
    report.lines += [f"{name}: {brief(pair.source, 60)} = {brief(pair.target, 60)}" for pair in found.samples[:2]]
    # Damage, copies and repeated pairs.
    content["odd"] = {kind: count for kind, count in found.odd.items() if count}
    for kind, count in content["odd"].items():
        report.warnings.append(f"{name}: pairs with {kind}: {count} of {found.read}")
    if found.copies:
        report.warnings.append(f"{name}: pairs whose source and target are equal: {found.copies} of {found.read}")
    if name != "train" and found.repeated:
        report.warnings.append(f"{name}: pairs that occur more than once: {found.repeated} of {found.read}")


def _stops(config: TranslationConfig, language: str) -> list[str]:
    """Return what keeps the training from starting, besides the text."""
    stops = []
    try:
        Scoring.of(language, config.data.tokenize)
    except UserError as error:
        stops.append(f"data.tokenize: {error}")
    folder = Path(config.data.folder)
    if folder.is_dir() and any(folder.iterdir()):
        try:
            Corpus(folder).expect(with_defaults(config))
        except UserError as error:
            stops.append(str(error))
    return stops
