"""``import zoo`` is light, its lists of names agree, and the module paths of 0.1.0 still work."""

import ast
import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import zoo
from zoo import _moved

HEAVY = ("torch", "torchvision", "tasks", "sentencepiece", "pydantic")


def test_import_loads_neither_torch_nor_torchvision():
    code = f"import sys, zoo, zoo.errors, zoo.files; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_lists_of_names_agree():
    """What type checkers see, what is imported on first use, and what ``__all__`` names."""
    tree = ast.parse(Path(zoo.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {(node.module, alias.name) for node in block.body for alias in node.names}
    lazy = {(module, name) for module, names in zoo._MODULES.items() for name in names}
    assert seen == lazy | {("zoo", "convert")}
    assert sorted(zoo.__all__) == sorted([name for _, name in seen] + ["__version__"])
    assert len(set(zoo.__all__)) == len(zoo.__all__)


@pytest.mark.parametrize("name", zoo.__all__)
def test_every_name_is_there(name):
    assert getattr(zoo, name) is not None
    assert name in dir(zoo)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'zoo' has no attribute 'nonsense'"):
        _ = zoo.nonsense


OLD = {
    "zoo.backbone": {"Backbone": "zoo.nets.base", "param_groups": "zoo.nets.parameters"},
    "zoo.checkpoint": {
        "get_weights": "zoo.weights",
        "load_state": "zoo.states",
        "InputTransform": "zoo.transforms",
        "write_json": "zoo.files",
    },
    "zoo.functional": {},
    "zoo.linear": {},
    "zoo.rescale": {"coefficients": "zoo.method", "calibrate": "zoo.calibration"},
    "zoo.residual": {"ResidualNet": "zoo.nets.residual"},
    "zoo.resnet": {"ResNet": "zoo.nets.resnet"},
    "zoo.resnet3d": {"ResNet3d": "zoo.nets.resnet3d"},
    "zoo.transformer": {"Transformer": "zoo.nets.transformer"},
    "zoo.transformer_schemes": {},
    "zoo.vgg": {"VGG": "zoo.nets.vgg"},
}


def test_every_moved_module_is_tested():
    assert OLD.keys() == _moved.MOVED.keys()


@pytest.mark.parametrize("old", OLD)
def test_old_module_paths_give_the_same_objects(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to {_moved.MOVED[old][0]}"):
        module = importlib.import_module(old)
    for name, home in OLD[old].items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="has no|have no"):
        _ = module.nonsense


def test_old_names_of_modules_that_are_still_there():
    with pytest.warns(DeprecationWarning, match=r"zoo\.text\.TextTransform has moved to zoo\.transforms"):
        assert zoo.text.TextTransform is zoo.TextTransform
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert zoo.text.Tokenizer
    with pytest.raises(AttributeError, match=r"module 'zoo\.text' has no attribute 'nonsense'"):
        _ = zoo.text.nonsense


def test_names_that_were_renamed_too():
    sys.modules.pop("zoo.rescale", None)
    with pytest.warns(DeprecationWarning, match="zoo.rescale has moved"):
        from zoo.rescale import positions
    assert positions is zoo.calibration.only_positions
    with pytest.warns(DeprecationWarning, match=r"zoo\.layers\.RescaledAdd has moved to zoo\.joins\.RescaledJoin"):
        from zoo.layers import RescaledAdd
    assert RescaledAdd is zoo.joins.RescaledJoin


def test_an_old_module_is_no_package():
    """Its successor may be one, whose ``__path__`` would make its modules importable twice."""
    sys.modules.pop("zoo.functional", None)
    with pytest.warns(DeprecationWarning, match="zoo.functional"):
        module = importlib.import_module("zoo.functional")
    assert not hasattr(module, "__path__")


@pytest.mark.parametrize(
    "code", ["import zoo.checkpoint", "import zoo; zoo.checkpoint", "from zoo import checkpoint", "import tasks.run"]
)
def test_a_deprecation_is_shown_once_at_the_line_of_a_script(tmp_path, code):
    """Python's default filter shows deprecations at lines of ``__main__`` only."""
    script = tmp_path / "script.py"
    script.write_text(f"\n{code}\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stderr.count("DeprecationWarning") == 1, done.stderr
    assert f"{script}:2: DeprecationWarning" in done.stderr
