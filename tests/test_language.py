"""The rules of language of CONTRIBUTING.md that a program can check, over all modules of the two packages.

``pytest tests/test_language.py -k PATH`` prints every finding of the modules whose path contains PATH.
"""

from __future__ import annotations

import ast
import io
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "setup.cfg").is_file())
FILES = sorted(
    path.relative_to(ROOT).as_posix() for package in ("zoo", "tasks") for path in ROOT.glob(f"{package}/**/*.py")
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def words(text: str) -> set[str]:
    """Return the words of a text."""
    return set(text.split())


# An entry "name: text" of a docstring is a noun phrase that can be read without the name. It begins with none of these.
ENTRY_OPENINGS = words(
    "after and are as at because before behind beside between but by during except for from gives has have how if in "
    "into is its like of on or over per say says since so than that their to under until upon was what when where "
    "which while who whom whose why with within without"
)

# House words: words that the project once used in a sense of its own. The right side is the standard word.
HOUSE_WORDS = {
    r"hold(s|ing)?|held": "store, keep, contain, apply",
    r"say(s|ing)?|said": "state, report, print, name",
    r"tell(s|ing)?|told": "report, distinguish, determine",
    r"mend(s|ed|ing)?": "fix",
    r"want(s|ed|ing)?": "require, request",
    r"aim(s|ed|ing)?": "target",
    r"rivals?": "baseline",
    r"floors?": "lower limit; bare convolutions",
    r"lean(s|er|ing)?": "small",
    r"rooms?": "module, space, memory",
    r"whoever": "the caller, the user",
    r"nobody": "no caller, no user",
    r"nominal": "of the formulas, unscaled",
    r"METHOD": "docs/method.md with the number of the formula",
}
# Uses of these words that are standard English or names of others. Each is removed from the text before the search.
ALLOWED = {
    r"math\.floor|floor\(|floor or ceil": "the function of mathematics",
    r"\.nominal\b|^nominal: ": "the method of zoo.Net, and its messages",
    r"(hold|held)[- ]?out": "data kept apart from training",
}
# Identifiers that name a variable by a house word or by nothing.
IDENTIFIERS = {"there", "held", "hold", "wanted", "want", "wants", "said", "told", "whoever", "nobody", "rival", "mend"}

# A function's docstring begins with a verb in the imperative ("Return the mean"). These beginnings are none.
NOT_VERBS = words(
    "a after all an and any as at before by each every everything false for from half how if in it its more most no "
    "none not nothing of on one only our per some something that the their these they this those three to true two "
    "what when where whether which who why with without "  # articles, pronouns, prepositions, question words
    "default entry error factor gain input largest length list name new normal number output parameter probability "
    "shape size smallest sorted standard total value"  # nouns and adjectives, as in "Largest error"
)
VERBS_IN_S = words("access address assess compress discuss express guess pass press process suppress")
# Public methods that a base class of another library defines and documents.
OF_OTHERS = words(
    "forward backward train extra_repr "  # torch
    "make_params transform normalize "  # torchvision
    "build_model max_positions output_shape size_divisibility "  # fairseq, detectron2
    "find_spec exec_module list_commands get_command write flush close"  # importlib, click, io
)

# A function with this many lines of code in its body has comments: this many on ten lines.
LONG, COMMENTS = 30, 0.4
DIRECTIVE = re.compile(r"#\s*(noqa|type:|pragma|fmt:|ruff|mypy)")


@cache
def source(file: str) -> str:
    """Return the text of a file of the repository."""
    return (ROOT / file).read_text(encoding="utf-8")


def documented(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Yield each module, class and function that has a docstring, with it."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and (text := ast.get_docstring(node)):
            yield node, text


def entries(docstring: str) -> Iterator[str]:
    """Yield the texts of the entries of ``Args:`` and ``Attributes:``, and what ``Returns:`` states."""
    section = ""
    for line in docstring.splitlines():
        if header := re.fullmatch(r"(\w+):", line):
            section = header[1]
        elif line and not line.startswith(" "):
            section = ""
        elif section in ("Args", "Attributes") and (entry := re.match(r" {4}([\w*`]+(?:, [\w*`]+)*): (.*)", line)):
            yield entry[2]
        elif section == "Returns" and line.strip():
            yield line.strip()
            section = ""


def first_word(text: str) -> str:
    """Return the first word in lower case; empty if the text begins with another character."""
    return re.split(r"[^\w'-]", text, maxsplit=1)[0].lower()


def entry_findings(text: str) -> list[str]:
    """Find entries of docstrings that do not stand alone."""
    return [
        f"line {getattr(node, 'lineno', 1)}: {entry!r} does not stand alone"
        for node, docstring in documented(ast.parse(text))
        for entry in entries(docstring)
        if first_word(entry) in ENTRY_OPENINGS and not entry.startswith(("at least ", "at most "))
    ]


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield what people read in a module, with its line: comments, docstrings, and strings of several words."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not DIRECTIVE.match(token.string):
            yield token.start[0], token.string
    nodes = list(ast.walk(ast.parse(text)))
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in parts and " " not in node.value.strip():
                continue
            for offset, line in enumerate(node.value.splitlines()):
                yield node.lineno + offset, line


def word_findings(text: str) -> list[str]:
    """Find house words in prose and in identifiers."""
    found = []
    for number, line in prose(text):
        for allowed in ALLOWED:
            line = re.sub(allowed, " ", line)
        for house_word, instead in HOUSE_WORDS.items():
            flags = 0 if house_word.isupper() else re.IGNORECASE
            found += [f"line {number}: {m[0]!r} ({instead})" for m in re.finditer(rf"\b({house_word})\b", line, flags)]
    for node in ast.walk(ast.parse(text)):
        name = node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else None
        if name in IDENTIFIERS:
            found.append(f"line {node.lineno}: the name {name!r} does not state what it stands for")
    return found


def comment_findings(text: str) -> list[str]:
    """Find long functions with few comments."""
    code, comments = set(), set()  # lines
    ignored = (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if not DIRECTIVE.match(token.string):
                comments.add(token.start[0])
        elif token.type not in ignored:
            code |= set(range(token.start[0], token.end[0] + 1))
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, FUNCTIONS):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                lines = range(body[0].lineno, (node.end_lineno or 0) + 1)
                # comments above the body's first statement count
                around = range(
                    (node.body[0].end_lineno if len(body) < len(node.body) else node.lineno) or 0, lines.stop
                )
                length, count = len(code.intersection(lines)), len(comments.intersection(around))
                if length >= LONG and count < COMMENTS * length / 10:
                    found.append(f"line {node.lineno}: {node.name} has {length} lines of code and {count} comments")
    return found


def base_names(node: ast.ClassDef) -> list[str]:
    """Return the names of a class's bases, without their modules and parameters."""
    return [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]


@cache
def protocol_methods() -> set[str]:
    """Return the names of the methods that protocols document, for the classes that implement them."""
    return {method for bases, methods in classes().values() if "Protocol" in bases for method in methods}


@cache
def classes() -> dict[str, tuple[set[str], set[str]]]:
    """Return for each class of the two packages the names of its bases and of its methods with a docstring."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for file in FILES:
        for node in ast.walk(ast.parse(source(file))):
            if isinstance(node, ast.ClassDef):
                bases, methods = found.setdefault(node.name, (set(), set()))
                bases |= set(base_names(node))
                methods |= {m.name for m in node.body if isinstance(m, FUNCTIONS) and ast.get_docstring(m)}
    return found


def inherits_docstring(owner: ast.ClassDef, method: str) -> bool:
    """Return whether a base of the class documents the method, or a protocol or another library does."""
    if method in OF_OTHERS or method in protocol_methods():
        return True
    pending, seen = base_names(owner), set()
    while pending:
        name = pending.pop()
        if name not in seen and name in classes():
            seen.add(name)
            bases, methods = classes()[name]
            if method in methods:
                return True
            pending += bases
    return False


def definitions(tree: ast.Module) -> Iterator[tuple[ast.ClassDef | None, ast.ClassDef | Function]]:
    """Yield the classes and functions of a module and the methods of its classes, each with its class."""
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, *FUNCTIONS)):
            yield None, node
        if isinstance(node, ast.ClassDef):
            yield from ((node, method) for method in node.body if isinstance(method, FUNCTIONS))


def is_property(node: ast.AST) -> bool:
    """Return whether a definition is a property, whose docstring may be a noun phrase."""
    return isinstance(node, FUNCTIONS) and any("property" in ast.unparse(d) for d in node.decorator_list)


def is_imperative(line: str) -> bool:
    """Return whether a line can begin with a verb in the imperative: a check of its first two words."""
    match = re.match(r"([A-Z][a-z]+)\b(?: (\w+))?", line)
    if not match:
        return False
    word, second = match[1].lower(), match[2]
    third_person = word.endswith("s") and word not in VERBS_IN_S
    return word not in NOT_VERBS and not third_person and second != "of"


def docstring_findings(text: str) -> list[str]:
    """Find public definitions without a docstring, and docstrings with a wrong first line."""
    tree = ast.parse(text)
    found = [] if ast.get_docstring(tree) or not tree.body else ["line 1: the module has no docstring"]
    for owner, node in definitions(tree):
        if any("overload" in ast.unparse(decorator) for decorator in node.decorator_list):
            continue
        docstring = ast.get_docstring(node)
        name = node.name if owner is None else f"{owner.name}.{node.name}"
        if not docstring:
            public = not any(part.startswith("_") for part in name.split("."))
            if public and not (owner and inherits_docstring(owner, node.name)):
                found.append(f"line {node.lineno}: {name} has no docstring")
            continue
        line = docstring.splitlines()[0]
        if not line.endswith("."):
            found.append(f"line {node.lineno}: {name}: the first line does not end with a period: {line!r}")
        if isinstance(node, FUNCTIONS) and not is_property(node) and not is_imperative(line):
            found.append(f"line {node.lineno}: {name}: does not begin with a verb in the imperative: {line!r}")
    return found


RULES: dict[str, Callable[[str], list[str]]] = {
    "entries": entry_findings,
    "words": word_findings,
    "comments": comment_findings,
    "docstrings": docstring_findings,
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("rule", RULES)
def test_modules_follow_the_rules(rule, file):
    found = RULES[rule](source(file))
    assert not found, "\n".join(["", *(f"{file}, {finding}" for finding in found)])


def function(body: str, docstring: str = "Return nothing.") -> str:
    """Return the source of a module with one function."""
    return f'"""A module."""\n\n\ndef public(x):\n    """{docstring}"""\n{textwrap.indent(body, "    ")}\n'


LINES = "\n".join(f"x = {i}" for i in range(30))
# For each rule, sources that it accepts and sources that it finds something in.
EXAMPLES = {
    "entries": (
        [
            "Return x.\n\n    Args:\n        seed, mean: seed of the draws: of all.\n    ",
            "Return x.\n\n    Args:\n        flag: whether x is used.\n        images: at least one image.\n    ",
            "Return x.\n\n    Raises:\n        ZooError: for x.\n    ",
        ],
        [
            "Return x.\n\n    Args:\n        seed: of the draws.\n    ",
            "Return x.\n\n    Args:\n        x: the input.\n        seed, mean: what the draws use.\n    ",
            "Return x.\n\n    Returns:\n        What x is.\n    ",
        ],
    ),
    "docstrings": (
        ["Return the mean.", "Process x.", "Yield each mean."],
        [
            "The mean.",
            "Returns the mean.",
            "Return the mean",
            "Mean of x.",
            "(N,) -> (N,).",
            "``x``.",
            "Whether x.",
            "",
        ],
    ),
}
EXAMPLE_SOURCES = [
    *((rule, True, function("", text)) for rule, (good, _) in EXAMPLES.items() for text in good),
    *((rule, False, function("", text)) for rule, (_, bad) in EXAMPLES.items() for text in bad),
    ("docstrings", False, '"""A module."""\n\n\ndef public():\n    pass\n'),
    ("docstrings", True, '"""A module."""\n\n\ndef _private():\n    pass\n'),
    (
        "docstrings",
        True,
        '"""A module."""\n\n\nclass A:\n    """An A."""\n\n    @property\n    def b(self):\n        """The b."""\n',
    ),
    ("docstrings", False, "x = 1\n"),
    ("words", True, function('raise ValueError("the threshold has to be > 0")  # math.floor')),
    ("words", True, function("x = net.nominal(name, output)  # net.nominal(name, output) divides by the scale")),
    ("words", False, function('raise ValueError("x is wanted")')),
    ("words", False, function('raise ValueError(f"{x} holds {x}")')),
    ("words", False, function("x = 1  # what x says")),
    ("words", False, function("there = 1")),
    ("words", False, function("x = 1", "Return what METHOD gives.")),
    ("comments", True, function("# a reason\n" + LINES + "\n# a second reason  # noqa\nx = 31")),
    ("comments", True, function("\n".join(LINES.splitlines()[:-1]))),
    ("comments", False, function("# a reason\n" + LINES + "  # noqa")),
]


@pytest.mark.parametrize(("rule", "accepted", "text"), EXAMPLE_SOURCES)
def test_rules_can_fail(rule, accepted, text):
    assert (RULES[rule](text) == []) is accepted
