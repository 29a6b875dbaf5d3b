"""Options of the command line that tasks declare: a dataclass for each task and command.

A field is an option: ``top: Top = 5`` is ``--top`` with 5 as its default. Its help text is ``typer.Option(help=...)``
without the default, which is added here. An option that several tasks declare has one type, and one help text.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from tasks.errors import UserError
from tasks.spec import task_specs
from zoo.errors import suggestion

Top = Annotated[int, typer.Option(min=1, help="Number of classes to report.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples of a forward; lower it where memory runs out.")]
Workers = Annotated[int, typer.Option(min=0, help="Number of processes that read the data.")]
OutputFormat = Annotated[
    str, typer.Option(help="Results on stdout: text, json (an object a line) or csv (with a header).")
]
Overwrite = Annotated[bool, typer.Option(help="Replace earlier results of the same names.")]
Threshold = Annotated[
    str, typer.Option(metavar="P,...", help="Lowest score that is reported; other ones by class, as in 0.5,cat=0.3.")
]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:1, mps ...; default: the machine's accelerator, or the CPU.", show_default=False
    ),
]
ClassFilter = Annotated[str, typer.Option(metavar="A,B,...", help="Classes to report, with commas between them.")]
Augmentation = Annotated[
    str,
    typer.Option(
        help="Test-time augmentation: flip takes a picture and its mirror image; of detectors also sizes, as in "
        "flip,0.75,1.25."
    ),
]
Clips = Annotated[int, typer.Option(min=1, max=10_000, help="Clips of each video; 10 is usual.")]
Limit = Annotated[int, typer.Option(min=1, help="Samples of each set to look at, evenly spread; default: all.")]
Normalize = Annotated[bool, typer.Option(help="Standardise inside the graph, which then takes RGB in 0..1.")]
Softmax = Annotated[bool, typer.Option(help="Return probabilities instead of logits.")]
Features = Annotated[bool, typer.Option(help="Export the feature maps; of a detector, its body and pyramid.")]
Side = Annotated[int, typer.Option(min=1, help="Side of the input, in pixels; default: the weights'.")]


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Options of ``rescalenet predict`` in every task."""

    workers: Workers = 0
    format: OutputFormat = "text"
    overwrite: Overwrite = False


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """Options of ``rescalenet check`` in every task."""

    limit: Limit | None = None
    overwrite: Overwrite = False


def chosen_classes(option: str | None, classes: Sequence[str], source: str) -> frozenset[str] | None:
    """Return the classes that ``--classes`` names; None, which is all of them, without the option.

    Args:
        option: names with commas between them, or one name that has commas itself.
        classes: names of all classes.
        source: name of the weights, for the message.

    Raises:
        UserError: an unknown class.
    """
    if option is None:
        return None
    names = [option] if option in classes else [name.strip() for name in option.split(",") if name.strip()]
    for name in names or [option]:
        if name not in classes:
            raise UserError(f"--classes: {name!r} is not a class of {source}{suggestion(name, classes)}")
    return frozenset(names)


def thresholds(option: str, classes: Sequence[str], source: str, default: float) -> dict[str, float]:
    """Return the lowest score of each class that ``--threshold`` names.

    Args:
        option: a number for all classes, numbers of single classes as ``NAME=P``, or both, with commas between them.
        classes: names of all classes.
        source: name of the weights, for the message.
        default: number for the other classes where the option names single ones only.

    Raises:
        UserError: an unknown class, or what is no number from 0 to 1.
    """
    general: list[float] = []
    single: dict[str, float] = {}
    for part in option.split(","):
        name, equals, number = part.strip().rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1 or (not equals and general):
            raise UserError(f"--threshold {option}: must be a number from 0 to 1, or also by class, as in 0.5,cat=0.3")
        if not equals:
            general.append(value)
        elif name not in classes:
            raise UserError(f"--threshold: {name!r} is not a class of {source}{suggestion(name, classes)}")
        else:
            single[name] = value
    return {**dict.fromkeys(classes, general[0] if general else default), **single}


def flips(option: str | None) -> bool:
    """Return whether ``--tta`` averages over mirror images.

    Raises:
        UserError: another augmentation.
    """
    if option not in (None, "flip"):
        raise UserError(f"--tta {option}: must be flip")
    return option == "flip"


def takes_task_options(command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds the options of all tasks for ``command`` to a function.

    The function receives them by keyword, None for those that the user did not give.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]

        @functools.wraps(function)
        def wrapper(*arguments: Any, **options: Any) -> None:
            function(*arguments, **options)

        parameters = [*own, *parameters_of(command)]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def parameters_of(command: str) -> list[inspect.Parameter]:
    """Return the options that tasks declare for a command, as parameters that typer understands."""
    declared: dict[str, dict[str, Any]] = {}  # option -> task -> default
    hints: dict[str, Any] = {}
    specs = {task: spec for task, spec in task_specs().items() if getattr(spec, command) is not None}
    for task, spec in specs.items():
        options = getattr(spec, command).options
        for name, hint in get_type_hints(options, include_extras=True).items():
            hints.setdefault(name, hint)
        for field in dataclasses.fields(options):
            declared.setdefault(field.name, {})[task] = field.default
    return [_parameter(name, hints[name], of, everyone=len(of) == len(specs)) for name, of in declared.items()]


def _parameter(name: str, hint: Any, defaults: Mapping[str, Any], *, everyone: bool) -> inspect.Parameter:
    """Make the parameter of one option. Its default is None, which distinguishes a missing option from a given one.

    Args:
        name: name of the field.
        hint: ``Annotated[type, typer.Option(...)]``, or its union with None.
        defaults: mapping from each task that declares the option to its default.
        everyone: whether all tasks declare the option.
    """
    (annotated,) = (part for part in (hint, *get_args(hint)) if get_origin(part) is Annotated)
    kind, declaration = get_args(annotated)
    info = copy(declaration)
    if kind is bool:
        info.param_decls = (f"--{name.replace('_', '-')}",)  # by default typer adds --no-...
    shown = {task: value for task, value in defaults.items() if value is not None and value is not False}
    if shown:
        values = set(shown.values())
        text = f"{values.pop()}" if len(values) == 1 else ", ".join(f"{task} {v}" for task, v in shown.items())
        info.help = f"{info.help} Default: {text}."
    if not everyone:
        info.rich_help_panel = " and ".join(task if i else task.capitalize() for i, task in enumerate(defaults))
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, info]
    )
