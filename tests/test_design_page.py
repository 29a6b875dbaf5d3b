"""docs/design.md names every module, and no module that does not exist."""

import re

from tests.helpers.paths import ROOT

PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
TASKS = ("classification", "detection", "video", "translation")


def tables():
    """The rows of the two tables of modules."""
    start, end = PAGE.index("| module of `zoo`"), PAGE.index("**Training.**")
    return [row for row in PAGE[start:end].splitlines() if row.startswith("|")]


def test_every_module_is_named():
    named = set(re.findall(r"`(?:\w+/)*(\w+)(?:\.py|/)`", "\n".join(tables())))
    modules = {
        path.stem if path.stem != "__init__" else path.parent.name
        for package in ("zoo", "tasks")
        for path in (ROOT / package).rglob("*.py")
        if "export" not in path.parts and "convert" not in path.parts  # one module a target, a source
    }
    assert sorted(modules - named - {"zoo", "tasks"}) == []


def test_every_path_exists():
    folders = [ROOT, ROOT / "zoo", ROOT / "tasks", *(ROOT / "tasks" / task for task in TASKS)]
    folders += [ROOT / "zoo" / name for name in ("schemes", "nets", "products", "sources", "convert")] + [
        ROOT / "tasks" / "engine",
        ROOT / "tasks" / "study",
    ]
    for path in re.findall(r"`([\w/.]+(?:\.py|/))`", PAGE):
        if "NAME" not in path:
            assert any((folder / path).exists() for folder in folders), path
