"""The layers of the code, read from its import statements: what docs/design.md promises about them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "setup.cfg").is_file())
TASKS = ("classification", "detection", "video", "translation")
# Packages of extras, and those whose import takes long and that few commands need.
OPTIONAL = {
    "datasets",
    "detectron2",
    "fairseq",
    "faster_coco_eval",
    "imagecodecs",
    "importlib.metadata",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "captum",
    "sacrebleu",
    "sentencepiece",
    "sklearn",
    "tensorboard",
    "timm",
    "torch.utils.tensorboard",
    "torchvision.transforms",
    "tifffile",
}
# Commands import what they need when they run: --help reads their options and must not load torch.
LAZY = ("tasks.cli", "tasks.spec", *(f"tasks.{task}.commands" for task in TASKS))


def modules() -> dict[str, Path]:
    """Name and file of every module of the two packages."""
    found = {}
    for package in ("zoo", "tasks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str, *, inside: bool) -> Iterator[tuple[str, int]]:
    """The modules that a module imports, with the line: at its top level, or ``inside`` of functions.

    Imports for type checking do not count.
    """
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    in_functions = {id(child) for function in functions for child in ast.walk(function)}
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    guarded = {id(child) for guard in guards for child in ast.walk(guard)}
    for node in ast.walk(tree):
        if id(node) in guarded or (id(node) in in_functions) != inside:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in MODULES else node.module), node.lineno


def test_the_imports_have_no_cycle():
    graph = {name: {found for found, _ in imports(name, inside=False) if found in MODULES} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for found in graph[name] - {name}:
                visit(found, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("name", [name for name in MODULES if name.partition(".")[0] == "zoo"])
def test_zoo_does_not_know_tasks(name):
    for inside in (False, True):
        assert [found for found, _ in imports(name, inside=inside) if found.partition(".")[0] == "tasks"] == []


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[:1] == ["tasks"]])
def test_a_task_does_not_know_its_siblings(name):
    parts = name.split(".")
    if len(parts) < 2 or parts[1] not in TASKS:
        pytest.skip("not in a task's folder")
    siblings = {f"tasks.{task}" for task in TASKS if task != parts[1]}
    for inside in (False, True):
        found = [f for f, _ in imports(name, inside=inside) if ".".join(f.split(".")[:2]) in siblings]
        assert found == []


@pytest.mark.parametrize("name", [name for name in MODULES if name not in LAZY])
def test_functions_import_optional_packages_only(name):
    stray = [
        f"{found} (line {line})"
        for found, line in imports(name, inside=True)
        if found not in OPTIONAL and found.partition(".")[0] not in OPTIONAL
    ]
    assert stray == []


def test_shared_modules_do_not_know_the_tasks():
    shared = [name for name in MODULES if name.startswith("tasks.") and name.split(".")[1] not in (*TASKS, "demo")]
    for name in shared:
        found = [
            f
            for f, _ in imports(name, inside=False)
            if f.split(".")[:1] == ["tasks"] and f.split(".")[1:2] and f.split(".")[1] in TASKS
        ]
        assert found == [], name
