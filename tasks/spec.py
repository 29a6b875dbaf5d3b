"""The table of tasks, from which the command line and the engine learn about each task.

A task is a folder ``tasks/NAME`` whose ``spec.py`` has a ``SPEC``. A package outside of this one registers its task by
an entry point of the group ``rescalenet.tasks`` (value: ``module:SPEC``) or by ``register_task``.

``rescalenet --help`` reads the table and should not load torch. So a spec only names the modules that need torch, and
the functions here import such modules when they run.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from tasks.errors import ConfigError, UserError
from zoo.errors import suggestion
from zoo.plugins import load_plugins

if TYPE_CHECKING:
    import zoo
    from tasks.config import RunConfig
    from tasks.engine import Task
    from tasks.report import Evaluation

BUILT_IN = ("classification", "detection", "video", "translation")
ENTRY_POINTS = "rescalenet.tasks"


@dataclass(frozen=True)
class Command:
    """A command of a task.

    Attributes:
        run: function of the command; its last argument is an instance of ``options``.
        options: dataclass of the options that the task adds to the command (``tasks.options``).
        files: names of the files that ``eval`` writes besides ``metrics.json``.
    """

    run: Callable[..., Any]
    options: type
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskSpec:
    """Description of a task for the shared code. Strings of the form ``module:name`` are imported when they are used.

    Attributes:
        name: name of the task in configs.
        input_kind: kind of input of the task's nets, which determines the export targets (``zoo.export``).
        config: class of the task's configs.
        task: class that the engine trains, made from a config.
        transform: class of the input transform of the task's weights.
        eval: ``(weights, data, out, workers, options) -> Evaluation``.
        predict: ``(weights, inputs, out, options) -> bool``, which is whether any input could be read.
        export: ``(weights, request, options) -> Deployment``, what ``rescalenet export`` writes (``tasks.exporting``).
        check: ``(config or folder, out, options) -> bool``, which is whether training would run; None: no check.
        score: ``(results, data, out, options) -> Evaluation``, of results in a file; None: no such command.
        recognises: function from a file or folder to whether ``check`` takes it, without a config, as data of the task.
        prepare: ``config -> Path``, which makes what ``train`` reads or would make at its start, and returns its place;
            None: nothing is to be made.
        predict_out: default folder of the files that ``predict`` writes; None: it writes no files.
    """

    name: str
    input_kind: str
    config: str
    task: str
    transform: str
    eval: Command
    predict: Command
    export: Command
    check: Command | None = None
    score: Command | None = None
    recognises: Callable[[Path], bool] | None = None
    prepare: str | None = None
    predict_out: Path | None = Path("out/predict")

    def options(self, command: str, given: Mapping[str, Any], weights: str) -> Any:
        """Return the options of a command, with defaults where None or False is given.

        Args:
            command: eval, predict, export, check or score.
            given: values of the options of all tasks.
            weights: name of the weights, for messages.

        Raises:
            UserError: the task does not have an option that was given.
        """
        options = getattr(self, command).options
        known = {field.name for field in dataclasses.fields(options)}
        chosen = without_defaults(given)
        for key in chosen:
            if key not in known:
                raise UserError(f"--{key.replace('_', '-')} is not for {self.name}, which {weights} is of")
        return options(**chosen)


def without_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a user gave: the command line has None or False for the others."""
    return {key: value for key, value in options.items() if value is not None and value is not False}


_registered: dict[str, TaskSpec] = {}


def register_task(spec: TaskSpec) -> TaskSpec:
    """Add a task to the table.

    Raises:
        ValueError: the name is taken.
    """
    if spec.name in task_specs():
        raise ValueError(f"task {spec.name!r} is registered already")
    _registered[spec.name] = spec
    return spec


@functools.cache
def _found() -> dict[str, TaskSpec]:
    """Load the specs of this package and of entry points."""
    specs: list[TaskSpec] = [importlib.import_module(f"tasks.{name}.spec").SPEC for name in BUILT_IN]
    specs += load_plugins(ENTRY_POINTS)
    return {spec.name: spec for spec in specs}


def task_specs() -> dict[str, TaskSpec]:
    """Return the specs of all tasks by name."""
    return {**_found(), **_registered}


def resolve(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the config of a file or a shipped recipe, change it by dotted overrides, and check it.

    Raises:
        ConfigError: there is no such file or task, or the config is not valid (see ``tasks.config``).
    """
    from tasks import config as cfg

    path = cfg.find_config(name)
    content = cfg.apply_overrides(cfg.read_yaml(path), overrides)
    return check(content, str(path))


def check(content: dict[str, object], source: str) -> RunConfig:
    """Return the typed config of the task that the content names.

    Args:
        content: mapping of sections.
        source: file of the content, for messages.

    Raises:
        ConfigError: there is no such task, or the config is not valid (see ``tasks.config.check``).
    """
    from tasks import config as cfg

    specs, task = task_specs(), content.get("task")
    if not isinstance(task, str) or task not in specs:
        raise ConfigError(f"{source}: task={task!r}{suggestion(str(task), specs)}")
    return cfg.check(content, resolve_name(specs[task].config), source)


def make_task(config: RunConfig) -> Task:
    """Make the task of a config, which finds its data."""
    return resolve_name(task_specs()[config.task].task)(config)


def run_check(data: str, overrides: Sequence[str], out: Path | None, options: Mapping[str, Any]) -> bool:
    """Check the data of a config, file or folder by its task's check, and return whether training would run.

    Args:
        data: name of a config, or data of a task (``TaskSpec.recognises``); another folder is one of images.
        overrides: dotted overrides of the config.
        out: folder of the files that the check writes; None: it writes none.
        options: values of the options of all tasks.

    Raises:
        ConfigError: the config is not valid.
        UserError: overrides of a folder, or a task without a check.
    """
    given: Any
    path = Path(data)
    specs = task_specs()
    owner = next((s for s in specs.values() if s.recognises is not None and path.exists() and s.recognises(path)), None)
    if owner is None and path.is_dir():
        owner = specs["classification"]
    if owner is not None:
        if overrides:
            what = "folder" if path.is_dir() else "file of data"
            raise UserError(f"{data}: a {what} has no settings to override ({overrides[0]}); give a config")
        spec, given = owner, path
    else:
        given = resolve(data, overrides)
        spec = task_specs()[given.task]
    if spec.check is None:
        raise UserError(f"{data}: there is no check of the data of {spec.name} yet")
    return bool(spec.check.run(given, out, spec.options("check", options, data)))


def run_score(results: Path, data: Path, out: Path | None, options: Mapping[str, Any]) -> Evaluation:
    """Evaluate results in a file by the task that has such files: detection.

    Args:
        results: path of the results.
        data: path of the set.
        out: folder of the files that are written; None: none is.
        options: values of the options of all tasks.
    """
    spec = next(spec for spec in task_specs().values() if spec.score is not None)
    assert spec.score is not None
    return spec.score.run(results, data, out, spec.options("score", options, str(results)))


def run_prepare(name: str, overrides: Sequence[str]) -> Path:
    """Prepare the data of a config for training, and return the file or folder that was made.

    Args:
        name: name of the config.
        overrides: dotted overrides of the config.

    Raises:
        ConfigError: the config is not valid.
        UserError: a task whose data needs no preparation, or data that cannot be prepared.
    """
    config = resolve(name, overrides)
    specs = task_specs()
    if (prepare := specs[config.task].prepare) is None:
        able = " and ".join(sorted(spec.name for spec in specs.values() if spec.prepare))
        raise UserError(f"{name}: a config of {config.task}, whose data needs no preparation; that of {able} does")
    path: Path = resolve_name(prepare)(config)
    return path


def spec_of(entry: zoo.Weights) -> TaskSpec:
    """Return the spec of the task that weights are for, found by the class of their input transform.

    Raises:
        UserError: no installed task has weights with such a transform.
    """
    for spec in task_specs().values():
        if resolve_name(spec.transform) is type(entry.transform):
            return spec
    raise UserError(
        f"{entry.name}: no task reads {type(entry.transform).__name__}; install the package that registers one "
        f"({ENTRY_POINTS})"
    )


def task_of(entry: zoo.Weights) -> str:
    """Return the name of the task that weights are for."""
    return spec_of(entry).name


def load_model(entry: zoo.Weights) -> Any:
    """Load the net of weights: a ``zoo.Backbone``, a ``zoo.Transformer``, or a detector."""
    import zoo

    return zoo.create_model(entry.config.name, entry.name)
