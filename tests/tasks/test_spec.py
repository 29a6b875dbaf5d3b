"""The table of tasks: what is found by name, by config and by weights, and tasks of other packages."""

import dataclasses
import importlib
import sys
from dataclasses import dataclass
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Annotated

import pytest
import typer

import zoo
from tasks import spec
from tasks.errors import ConfigError, UserError
from tasks.options import BatchSize, Top, parameters_of
from tasks.video.commands import VideoPredictOptions

COMMANDS = ("eval", "predict", "export")


@pytest.fixture
def registry(monkeypatch):
    """Tasks that a test registers are forgotten after it."""
    monkeypatch.setattr(spec, "_registered", {})


@pytest.mark.parametrize("name", spec.BUILT_IN)
def test_the_references_of_a_spec_name_its_classes(name):
    found = spec.task_specs()[name]
    assert found.name == name
    assert resolve_name(found.config).model_fields["task"].annotation.__args__ == (name,)
    for method in ("build_model", "train_set", "losses", "evaluate", "save_weights"):
        assert hasattr(resolve_name(found.task), method)
    for command in COMMANDS:
        options = getattr(found, command).options
        assert options() == options()  # every option has a default, and is compared by value


def test_weights_choose_their_task_by_their_transform():
    transforms = [resolve_name(found.transform) for found in spec.task_specs().values()]
    assert len(set(transforms)) == len(transforms)
    assert spec.task_of(zoo.get_weights("rescalenet20_cifar.cifar10")) == "classification"
    assert spec.task_of(zoo.get_weights("rescale_r3d_10.shapes")) == "video"


def test_weights_that_no_task_reads_are_named():
    weights = SimpleNamespace(name="theirs.tag", transform=object())
    with pytest.raises(UserError, match=r"theirs\.tag: no task reads object; install the package"):
        spec.spec_of(weights)


def test_an_unknown_task_of_a_config_is_named():
    with pytest.raises(ConfigError, match=r"a\.yaml: task='vidoe' \(did you mean video\?\)"):
        spec.check({"task": "vidoe"}, "a.yaml")


def test_the_old_module_has_the_same_functions():
    sys.modules.pop("tasks.run", None)
    with pytest.warns(DeprecationWarning, match=r"tasks\.run has moved to tasks\.spec"):
        run = importlib.import_module("tasks.run")
    for name in run.__all__:
        assert getattr(run, name) is getattr(spec, name)


def test_options_are_checked_against_the_task():
    video = spec.task_specs()["video"]
    assert video.options("predict", {"top": 3, "tile": None, "sample": False}, "w") == VideoPredictOptions(top=3)
    with pytest.raises(UserError, match="^--tile is not for video, which w is of$"):
        video.options("predict", {"tile": 3}, "w")
    with pytest.raises(UserError, match="^--top-k is not for video"):
        video.options("predict", {"top_k": 0}, "w")  # 0 is a value
    assert video.options("eval", {"batch_size": None}, "w").batch_size == 8


def test_a_task_is_a_spec(registry):
    """Of another package: its options join those of the others, in panels by task."""

    @dataclass(frozen=True)
    class Options:
        top: Top = 2
        batch_size: BatchSize = 4
        radius: Annotated[float | None, typer.Option(help="Radius in pixels.")] = None
        fine: Annotated[bool, typer.Option(help="Fine.")] = False

    original = spec.task_specs()["classification"]
    command = spec.Command(lambda *arguments: True, Options)
    spec.register_task(dataclasses.replace(original, name="points", predict=command))
    found = {parameter.name: parameter.annotation.__metadata__[0] for parameter in parameters_of("predict")}
    assert found["radius"].rich_help_panel == found["fine"].rich_help_panel == "Points"
    assert found["fine"].param_decls == ("--fine",)
    assert found["top"].rich_help_panel == "Classification and video and points"
    assert found["top"].help.endswith("Default: classification 5, video 5, points 2.")
    assert all(parameter.default is None for parameter in parameters_of("predict"))
    assert {p.name: p.annotation.__metadata__[0] for p in parameters_of("eval")}["batch_size"].rich_help_panel is None
    with pytest.raises(ValueError, match="'points' is registered already"):
        spec.register_task(dataclasses.replace(original, name="points"))


@pytest.mark.parametrize("command", COMMANDS)
def test_tasks_with_the_same_option_agree_on_it(command):
    """One help text is shown for it."""
    hints: dict[str, object] = {}
    for found in spec.task_specs().values():
        for name, hint in getattr(found, command).options.__annotations__.items():
            assert hints.setdefault(name, hint) == hint, f"--{name} of {found.name}"
