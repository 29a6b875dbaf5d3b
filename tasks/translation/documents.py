"""Sentences with ids: WMT's .sgm and .xml, and .tmx. They are paired by the ids of their documents and segments."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from tasks.errors import DataError
from tasks.printing import brief
from tasks.progress import print_line
from tasks.translation.languages import language_of
from tasks.translation.lines import damage, kind_of, open_bytes, read_lines
from zoo.errors import one_line

Key = tuple[str, str]  # ids of a document and of a segment in it
_PART = 2**20  # bytes that are parsed at a time
LONGEST_SEGMENT = 2**20  # characters


@dataclass
class Text:
    """The segments of one language by one author.

    Attributes:
        kind: src, ref or hyp.
        language: code of the language; empty where the file does not state it.
        author: translator or system; empty where the file does not state it.
        segments: text of each segment, in the order of the file.
    """

    kind: str
    language: str
    author: str
    segments: dict[Key, str] = field(default_factory=dict)


class Documents:
    """The texts of a file.

    Args:
        path: path of the file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.texts: dict[tuple[str, str, str], Text] = {}

    def add(self, text: tuple[str, str, str], key: Key, content: str) -> None:
        """Add a segment to the text of a kind, language and author.

        Raises:
            DataError: there is a segment of this id already.
        """
        found = self.texts.setdefault(text, Text(*text))
        if key in found.segments:
            raise DataError(
                f"{self.path}: document {brief(key[0], 80)} has segment {brief(key[1], 80)} twice ({' '.join(text)}); "
                "ids must be unique"
            )
        found.segments[key] = " ".join(content.split())

    def chosen(self, language: str, *, source: bool) -> list[Text]:
        """Return the texts in a language: the source, or all references.

        A source may be a reference of the other direction, and the other way round.

        Args:
            language: code of the language.
            source: whether the source is chosen, which is one text.

        Raises:
            DataError: there is no text in this language.
        """
        texts = [text for text in self.texts.values() if text.kind != "hyp"]
        own = [t for t in texts if t.language in ("", language)]
        own = own or [t for t in texts if language_of(t.language) == language_of(language)]
        if not own:
            found = ", ".join(sorted({text.language for text in texts})) or "none"
            raise DataError(f"{self.path}: no document has text in {language!r}, only in {found}")
        kind = "src" if source else "ref"
        return ([t for t in own if t.kind == kind] or own)[: 1 if source else None]


def read_documents(path: Path) -> Documents:
    """Return the texts of an .sgm, .xml or .tmx file.

    Raises:
        DataError: a file that is missing or damaged, is no such file, or has an id twice.
    """
    documents = Documents(path)
    if kind_of(path) in (".sgm", ".sgml"):
        _read_sgm(path, documents)
    else:
        _XmlReader(path, documents).run()
    if not documents.texts:
        raise DataError(f"{path}: has no segments (<seg>)")
    return documents


def paired(source: Path, target: Path, languages: tuple[str, str]) -> Iterator[tuple[str, list[str | None]]]:
    """Yield each source segment with its references, by the ids of document and segment, in the source's order.

    Segments without a counterpart are left out, and counted in a line.

    Args:
        source: path of the source file.
        target: path of the file of the references, which may be the same.
        languages: codes of the source and the target language.

    Yields:
        The source, and for each text of references its segment; None where it has none, but at least one has.

    Raises:
        DataError: a file that ``read_documents`` refuses, a language that is missing, or no segment with a counterpart.
    """
    documents = read_documents(source)
    text = documents.chosen(languages[0], source=True)[0]
    references = (documents if target == source else read_documents(target)).chosen(languages[1], source=False)
    count = 0
    for key, content in text.segments.items():
        found = [reference.segments.get(key) for reference in references]
        if any(each is not None for each in found):
            count += 1
            yield content, found
    others = {key for reference in references for key in reference.segments} - text.segments.keys()
    if not count:
        raise DataError(f"{target}: no segment has the ids of one in {source}; are they of the same set?")
    if count < len(text.segments):
        print_line(
            f"{target}: left out: {len(text.segments) - count} of {len(text.segments)} source segments, which "
            "have no reference"
        )
    if others:
        print_line(f"{target}: left out: {len(others)} references, which have no source segment")


# -- .sgm, which is seldom valid XML --------------------------------------------------------------------

_TAG = re.compile(r"<(/?)(srcset|refset|tstset|doc|hl|seg)\b([^<>]*)>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""([\w:]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")
_SETS = {"srcset": "src", "refset": "ref", "tstset": "hyp"}


def _read_sgm(path: Path, documents: Documents) -> None:
    """Add the texts of an .sgm file: <srcset>, <refset> or <tstset>, <doc docid sysid>, <seg id>.

    Raises:
        DataError: a segment without an end.
    """
    content = "\n".join(read_lines(path))
    kind, author = "src", ""
    ids = _Ids()
    begin: int | None = None  # of the segment that is open
    opened = 0  # documents without their ends
    for found in _TAG.finditer(content):
        closing, name = found[1] == "/", found[2].lower()
        if begin is not None and not (closing and name == "seg"):
            where = f"document {brief(ids.document, 80)}, segment {brief(ids.segment, 80)}"
            raise DataError(f"{path}: {where}: has no </seg>; get it again")
        if closing:
            if begin is not None:
                documents.add((kind, "", author), ids.key, html.unescape(content[begin : found.start()]))
                begin = None
            opened -= name == "doc"
            continue
        attributes = {a[1].lower(): html.unescape(a[2] or a[3] or a[4] or "") for a in _ATTRIBUTE.finditer(found[3])}
        if name in _SETS:
            kind = _SETS[name]
        elif name == "doc":
            opened += 1
            ids.begin_document(attributes.get("docid") or attributes.get("id"))
            author = attributes.get("sysid", "") if kind != "src" else ""
        elif name == "seg":
            ids.begin_segment(attributes.get("id"))
            begin = found.end()
    if begin is not None or opened > 0:
        raise DataError(f"{path}: ends within a {'document' if begin is None else 'segment'}; get it again")


class _Ids:
    """The ids of the present document and segment; those that the file does not state are their numbers."""

    def __init__(self) -> None:
        self.documents, self.segments = 0, 0
        self.document, self.segment = "", ""

    @property
    def key(self) -> Key:
        return self.document, self.segment

    def begin_document(self, name: str | None) -> None:
        self.documents += 1
        self.segments = 0
        self.document = f"number {self.documents}" if name is None else name

    def begin_text(self) -> None:
        self.segments = 0

    def begin_segment(self, name: str | None) -> None:
        self.segments += 1
        self.segment = f"number {self.segments}" if name is None else name


# -- .xml and .tmx -------------------------------------------------------------------------------------


_CODES = ("bpt", "ept", "ph", "it", "ut")


class _XmlReader:
    """Reader of WMT's format since 2021 and of TMX.

    WMT: <doc id>, in it <src lang>, <ref lang translator>, <hyp language system>, in these <seg id>. TMX: <tu>, in it
    <tuv xml:lang>, in this <seg>: each unit is a document. The first language of TMX is the source.

    Args:
        path: path of the file.
        documents: texts to which the segments are added.
    """

    def __init__(self, path: Path, documents: Documents) -> None:
        self.path, self.documents = path, documents
        self.ids = _Ids()
        self.text: tuple[str, str, str] | None = None  # present text
        self.content: list[str] | None = None  # of the present segment
        self.size = 0
        self.codes = 0  # depth within elements of TMX that have mark-up as their text
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self.parser.EntityDeclHandler = self._entity

    def run(self) -> None:
        """Read the file.

        Raises:
            DataError: a file that is damaged, is not XML, or declares entities.
        """
        with open_bytes(self.path) as file:
            while True:
                try:
                    part = file.read(_PART)
                except Exception as error:  # each library of compressed files has errors of its own
                    raise damage(str(self.path), f"after line {self.parser.CurrentLineNumber}", error) from None
                try:
                    self.parser.Parse(part, not part)
                except (expat.ExpatError, ValueError, LookupError) as error:  # of the encoding that it names, too
                    raise DataError(f"{self.path}: not XML ({one_line(error)})") from None
                if not part:
                    return

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name in ("doc", "tu"):
            self.ids.begin_document(attributes.get("id") or attributes.get("docid"))
        elif name in ("src", "ref", "hyp"):
            language = attributes.get("lang") or attributes.get("language") or ""
            author = attributes.get("translator") or attributes.get("system") or ""
            self.text = (name, language, author)
            self.ids.begin_text()
        elif name == "tuv":
            self.text = ("src", attributes.get("xml:lang") or attributes.get("lang") or "", "")
            self.ids.begin_text()
        elif name in _CODES:
            self.codes += 1
        elif name == "seg" and self.text is not None:
            if self.content is not None:
                raise DataError(f"{self.path}, line {self.parser.CurrentLineNumber}: a segment within a segment")
            self.ids.begin_segment(attributes.get("id"))
            self.content, self.size = [], 0

    def _end(self, name: str) -> None:
        if name == "seg" and self.content is not None and self.text is not None:
            self.documents.add(self.text, self.ids.key, "".join(self.content))
            self.content = None
        elif name in _CODES:
            self.codes -= 1
        elif name in ("src", "ref", "hyp", "tuv"):
            self.text = None

    def _characters(self, text: str) -> None:
        if self.content is None or self.codes:
            return
        self.size += len(text)
        if self.size > LONGEST_SEGMENT:
            raise DataError(f"{self.path}: a segment of more than {LONGEST_SEGMENT} characters; get it again")
        self.content.append(text)

    def _entity(self, name: str, *declaration: Any) -> None:
        raise DataError(f"{self.path}: declares the entity {brief(name, 40)}, which such files do not need; remove it")
