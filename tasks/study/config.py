"""The file of a study: which runs it has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, field_validator, model_validator

from tasks.config import PathText, Strict, check, find_config, parse_override, read_yaml
from tasks.yamltext import Written

Overrides = dict[str, Annotated[Any, Written]]  # dotted key of a config -> value

Value = TypeVar("Value")

_NAME = re.compile(r"\w[\w.=,+-]*")  # of schemes and trials, which name folders


class Variants(Strict):
    """Settings that are tried: a list by name, and all combinations of a grid."""

    trials: dict[str, Overrides] = Field({}, description="overrides of each trial, by the name that the tables show")
    grid: dict[str, list[Annotated[Any, Written]]] = Field(
        {}, description="values of each dotted key; every combination is a trial"
    )

    @field_validator("trials")
    @classmethod
    def _names_of_trials(cls, trials: dict[str, Overrides]) -> dict[str, Overrides]:
        _check_names(trials)
        return trials

    @field_validator("grid")
    @classmethod
    def _values(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if empty := [key for key, values in grid.items() if not values]:
            raise ValueError(f"{empty[0]} has no values")
        return grid


class SchemeSection(Variants):
    """A scheme, and what is tried for it alone."""

    overrides: Overrides = Field({}, description="overrides of all runs of the scheme, such as model.options: {}")


class Stage(Strict):
    """Runs that have the same purpose."""

    overrides: Overrides = Field({}, description="overrides of these runs, such as data.split: holdout")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="values of train.seed")

    @field_validator("seeds")
    @classmethod
    def _different_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return _check_different(seeds)


class Screening(Stage):
    """The runs that choose a setting. They evaluate training samples that are held out."""


class Finals(Stage):
    """The runs of each scheme's best setting. They evaluate the test set, once, at their end."""

    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="values of train.seed")
    schemes: tuple[str, ...] | None = Field(None, description="schemes that are compared; default: all")
    baseline: str | None = Field(None, description="scheme that the others are compared with; default: the first")

    @field_validator("schemes")
    @classmethod
    def _different_schemes(cls, schemes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if schemes is None else _check_different(schemes)


class StudyConfig(Variants):
    """A study of one recipe. ``trials`` and ``grid`` at the top are tried for every scheme."""

    recipe: PathText = Field(description="config file of one run, or the name of a recipe that ships")
    output: PathText = Field(description="folder of all runs and tables")
    overrides: Overrides = Field({}, description="overrides of all runs")
    last_overrides: Overrides = Field({}, description="overrides of all runs that win over every other, as a command's")
    schemes: dict[str, SchemeSection] = Field(min_length=1, description="values of model.scheme")
    screening: Screening = Screening()
    finals: Finals = Finals()
    fit_batches: int = Field(
        80, ge=1, description="training batches whose loss is measured in evaluation mode, without augmentation"
    )

    @field_validator("schemes")
    @classmethod
    def _names_of_schemes(cls, schemes: dict[str, SchemeSection]) -> dict[str, SchemeSection]:
        _check_names(schemes)
        return schemes

    @model_validator(mode="after")
    def _compared_schemes(self) -> StudyConfig:
        for key, names in (("schemes", self.compared), ("baseline", (self.baseline,))):
            if unknown := [name for name in names if name not in self.schemes]:
                raise ValueError(f"finals.{key}: {unknown[0]!r} is not one of {', '.join(self.schemes)}")
        if self.baseline not in self.compared:
            raise ValueError(f"finals.baseline: {self.baseline!r} is not one of finals.schemes")
        return self

    @model_validator(mode="after")
    def _own_keys(self) -> StudyConfig:
        given = [self.overrides, self.last_overrides, self.screening.overrides, self.finals.overrides]
        given += [section.overrides for section in self.schemes.values()]
        given += [trial for part in (self, *self.schemes.values()) for trial in [*part.trials.values(), part.grid]]
        for key, instead in (("train.seed", "seeds"), ("output", "the study's output")):
            if any(key in overrides for overrides in given):
                raise ValueError(f"{key} cannot be an override; it follows from {instead}")
        return self

    @property
    def compared(self) -> tuple[str, ...]:
        """Schemes that have final runs."""
        return self.finals.schemes or tuple(self.schemes)

    @property
    def baseline(self) -> str:
        """Scheme that the others are compared with."""
        return self.finals.baseline or self.compared[0]


def _check_different(values: tuple[Value, ...]) -> tuple[Value, ...]:
    """Return values of which none occurs twice."""
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{twice[0]} occurs twice; remove one")
    return values


def _check_names(names: dict[str, Any]) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r}: must be letters, digits or . = , + - _ and begin with a letter or digit")


def read_study(name: str, overrides: Sequence[str] = (), output: Path | None = None) -> StudyConfig:
    """Read the file of a study.

    Args:
        name: path, or name of a study that ships (``studies/cifar10``).
        overrides: overrides of all runs that win over those of the file, as ``key=value``.
        output: folder in place of the file's.

    Raises:
        ConfigError: there is no such file, or it is not valid.
    """
    path: Path = find_config(name)
    content = read_yaml(path)
    if overrides:
        content["last_overrides"] = {
            **(content.get("last_overrides") or {}),
            **dict(parse_override(text) for text in overrides),
        }
    if output is not None:
        content["output"] = str(output)
    return check(content, StudyConfig, str(path))
