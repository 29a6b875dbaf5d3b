"""The table of export targets, and a target of another package."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from tasks.spec import task_specs
from zoo import export, plugins
from zoo.errors import ExportError, ZooError
from zoo.export import TARGETS, Target, Verified, describe_targets, register_target, targets_for


@pytest.fixture
def table(monkeypatch):
    """Targets that a test registers are forgotten after it."""
    monkeypatch.setattr(export, "TARGETS", dict(TARGETS))


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_functions_of_a_target_exist(name):
    pytest.importorskip("torch")
    target = TARGETS[name]
    assert target.name == name
    assert target.ending.startswith(".")
    for reference in target.functions.values():
        module, _, function = reference.partition(":")
        __import__(module)
        assert callable(getattr(sys.modules[module], function))


def test_every_task_has_a_target():
    for spec in task_specs().values():
        assert targets_for(spec.input_kind), spec.name
    assert next(iter(targets_for("images"))) == "onnx"
    assert list(targets_for("text")) == ["fairseq"]


def test_a_target_is_an_entry_of_the_table(table, monkeypatch, tmp_path):
    module = ModuleType("their_target")

    def write(model, path, example, weights):
        path.write_text(f"{weights.name}: {type(model).__name__} of {tuple(example[0].shape)}")
        return Verified(path, 0.0, "one batch", "their runtime 1.0")

    module.write = write
    monkeypatch.setitem(sys.modules, "their_target", module)
    target = register_target(Target("theirs", {"images": "their_target:write"}, ".txt"))
    assert list(targets_for("images")) == ["onnx", "torchvision", "theirs"]
    assert "theirs (images)" in describe_targets()
    with pytest.raises(ZooError, match="'theirs' is registered already"):
        register_target(target)
    path = tmp_path / "a.txt"
    example = (torch.zeros(1, 3, 4, 4),)
    verified = target.export("images", nn.Identity(), path, example, SimpleNamespace(name="w"))
    assert path.read_text() == "w: Identity of (1, 3, 4, 4)"
    assert str(verified) == f"{path}: agrees in their runtime 1.0 to 0.0e+00 at one batch"


def test_a_missing_package_is_named_with_its_extra():
    target = Target("x", {"images": "no_such_package:write"}, ".x", extra="onnx")
    with pytest.raises(ExportError, match=r"needs no_such_package: pip install 'rescalenet-zoo\[onnx\]'"):
        target.export("images", nn.Identity(), Path("x"), (), None)


def test_a_target_that_cannot_be_imported_is_left_out_with_a_warning(table, monkeypatch, caplog):
    class Point:
        dist, group = None, "rescalenet.targets"

        def __init__(self, name):
            self.name = self.value = name

        def load(self):
            if self.name == "broken":
                raise ImportError("no module of theirs")
            return Target(self.name, {"images": "m:f"}, ".x")

    monkeypatch.setattr(plugins, "entry_points", lambda group: [Point("good"), Point("broken")])
    try:
        for cache in (export._load_entry_points, plugins.find_plugins):
            cache.cache_clear()
        assert "good" in targets_for("images")
        assert "left out: broken (rescalenet.targets) cannot be imported (no module of theirs)" in caplog.text
    finally:
        for cache in (export._load_entry_points, plugins.find_plugins):
            cache.cache_clear()
