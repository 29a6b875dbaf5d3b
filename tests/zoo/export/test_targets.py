"""The table of export targets, and a target of another package."""

import configparser
import contextlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from tasks.spec import task_specs
from zoo import export, plugins
from zoo.errors import ExportError, ZooError
from zoo.export import TARGETS, Target, describe_targets, register_target, targets_for
from zoo.export.graphs import Settings
from zoo.export.images import export_net

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "setup.cfg").is_file())


@pytest.fixture
def table(monkeypatch):
    """Targets that a test registers are forgotten after it."""
    monkeypatch.setattr(export, "TARGETS", dict(TARGETS))


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_target_has_its_functions(name):
    """Of targets whose packages are installed; the others name what is missing, with the extra that installs it."""
    target = TARGETS[name]
    assert target.name == name
    assert importlib.util.find_spec(target.module) is not None
    functions = None
    with contextlib.suppress(ExportError):
        functions = target.functions()
    if functions is None:
        assert target.extra is not None
        with pytest.raises(ExportError, match=rf"needs \S+: pip install 'rescalenet-zoo\[{target.extra}\]'"):
            target.functions()
        return
    assert callable(functions.write)
    assert callable(functions.load)
    assert set(target.versions()) >= {target.runtime or target.packages[0]}


def test_every_extra_of_a_target_is_one_of_the_package():
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    for target in TARGETS.values():
        assert target.extra is None or target.extra in extras, target.name


def test_every_task_has_a_target():
    for spec in task_specs().values():
        assert targets_for(spec.input_kind), spec.name
        assert next(iter(targets_for(spec.input_kind))) == "onnx"
    assert "fairseq" in targets_for("text")
    assert "fairseq" not in targets_for("images")


def test_a_target_is_an_entry_of_the_table(table, monkeypatch, tmp_path):
    module = ModuleType("their_target")

    def write(graph, folder, settings):
        torch.save(graph.module.state_dict(), folder / "model.theirs")

    def load(graph, folder):
        return lambda inputs: [np.stack([x.sum((1, 2, 3)), x.mean((1, 2, 3))], 1) for x in inputs]

    module.write, module.load, module.VERSIONS = write, load, {"their runtime": "1.0"}
    monkeypatch.setitem(sys.modules, "their_target", module)
    before = list(targets_for("images"))
    target = register_target(Target("theirs", "their_target", ("images",), runtime="their runtime"))
    assert list(targets_for("images")) == [*before, "theirs"]
    assert "theirs (images)" in describe_targets()
    with pytest.raises(ZooError, match="'theirs' is registered already"):
        register_target(target)

    class Sums(nn.Module):
        def forward(self, x):
            return torch.stack([x.sum((1, 2, 3)), x.mean((1, 2, 3))], 1)

    inputs = [torch.randn(count, 3, 4, 4) for count in (1, 2)]
    made = export_net(Sums(), inputs, tmp_path / "a", "theirs", folded=False)
    assert re.match(
        rf"{tmp_path / 'a'}: agrees in their runtime 1.0 to \S+ at inputs of 1 x 3 x 4 x 4, 2 x 3 x 4 x 4$", str(made)
    )
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    assert manifest["target"] == "theirs"
    assert manifest["versions"]["their runtime"] == "1.0"
    assert list(manifest["files"]) == ["model.theirs"]
    with pytest.raises(ExportError, match="takes images, not clips"):
        export_net(Sums(), [x[:, :, None] for x in inputs], tmp_path / "b", "theirs", folded=False)
    with pytest.raises(ExportError, match="--half is not for this target; leave it out"):
        export_net(Sums(), inputs, tmp_path / "b", "theirs", folded=False, settings=Settings(half=True))


def test_a_missing_package_is_named_with_its_extra():
    target = Target("x", "no_such_package", ("images",), extra="onnx")
    with pytest.raises(ExportError, match=r"needs no_such_package: pip install 'rescalenet-zoo\[onnx\]'"):
        target.functions()


def test_a_target_that_cannot_be_imported_is_left_out_with_a_warning(table, monkeypatch, caplog):
    class Point:
        dist, group = None, "rescalenet.targets"

        def __init__(self, name):
            self.name = self.value = name

        def load(self):
            if self.name == "broken":
                raise ImportError("no module of theirs")
            return Target(self.name, "m", ("images",))

    monkeypatch.setattr(plugins, "entry_points", lambda group: [Point("good"), Point("broken")])
    try:
        for cache in (export._load_entry_points, plugins.find_plugins):
            cache.cache_clear()
        assert "good" in targets_for("images")
        assert "left out: broken (rescalenet.targets) cannot be imported (no module of theirs)" in caplog.text
    finally:
        for cache in (export._load_entry_points, plugins.find_plugins):
            cache.cache_clear()
