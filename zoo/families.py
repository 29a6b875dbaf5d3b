"""Families: models made around registered nets, such as detectors, that are too many to register one by one.

A package registers a family in the entry-point group ``rescalenet.families``. The entry point's name is the shell
pattern of the models' names, so that the package is imported only when a name matches::

    [options.entry_points]
    rescalenet.families =
        *_rcnn_*_fpn = tasks.detection.detector:FAMILY
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from zoo.errors import ZooError
from zoo.specs import ModelInfo

GROUP = "rescalenet.families"


class Family(Protocol):
    """The methods of a family that the registry calls."""

    def names(self) -> Iterable[str]:
        """Return the names of the models that ``list_models`` lists."""
        ...

    def info(self, name: str) -> ModelInfo:
        """Return the schemes, options, weights and defaults of a model.

        Raises:
            ZooError: a name that matches the pattern but is no model of the family.
        """
        ...

    def create(self, name: str, weights: str | None = None, **options: Any) -> Any:
        """Return a model, fresh or with weights.

        Args:
            name: name of the model.
            weights: weights that ``zoo.create_model`` was given, or None.
            options: keyword arguments that ``zoo.create_model`` was given, ``scheme`` and ``num_classes`` among them.

        Raises:
            ZooError: unknown name or option, or one that contradicts the weights.
        """
        ...


FAMILIES: dict[str, Family] = {}  # registered in code, by shell pattern


def register_family(pattern: str, family: Family) -> None:
    """Add a family to the registry, for code that is not installed with an entry point.

    Args:
        pattern: shell pattern that the names of the family's models match.
        family: the family.

    Raises:
        ZooError: a pattern that is taken.
    """
    if pattern in FAMILIES or pattern in _installed():
        raise ZooError(f"a family with the pattern {pattern!r} is registered already")
    FAMILIES[pattern] = family


def find_family(name: str) -> Family | None:
    """Return the family whose pattern a name matches; None if there is none.

    Raises:
        ZooError: a family that cannot be imported.
    """
    for pattern in (*FAMILIES, *_installed()):
        if fnmatch.fnmatchcase(name, pattern):
            return _family(pattern)
    return None


def all_families() -> list[Family]:
    """Return every family, including those of installed packages.

    Raises:
        ZooError: a family that cannot be imported.
    """
    return [_family(pattern) for pattern in (*FAMILIES, *_installed())]


def _family(pattern: str) -> Family:
    if pattern in FAMILIES:
        return FAMILIES[pattern]
    point = _installed()[pattern]
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        package = f"package {point.dist.name}" if point.dist else "its package"
        raise ZooError(
            f"models named {pattern} are made by {point.value}, which cannot be imported ({error}); "
            f"install {package} again or remove it"
        ) from None


@functools.cache
def _installed() -> dict[str, EntryPoint]:
    """Return the entry points of installed packages, by pattern."""
    return {point.name: point for point in entry_points(group=GROUP)}
