"""Families: models made around registered nets, such as detectors, that are too many to register one by one.

A package registers a family in the entry-point group ``rescalenet.families``. The entry point's name is the shell
pattern of the models' names, so that the package is imported only when a name matches::

    [options.entry_points]
    rescalenet.families =
        *_rcnn_*_fpn = tasks.detection.detector:FAMILY
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from zoo.arguments import text
from zoo.errors import ZooError
from zoo.plugins import find_plugins, load_plugin, load_plugins
from zoo.specs import ModelInfo

GROUP = "rescalenet.families"


class Family(Protocol):
    """The methods of a family that the registry calls.

    A family may also have ``build(config)``, which returns a fresh model of any scheme from its ``zoo.ModelConfig``, as
    ``zoo.build_model`` does for nets. ``zoo.save_weights`` then compares the tensors of a model with it.
    """

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


@runtime_checkable
class ReadsBatchNorm(Protocol):
    """A family that reads checkpoints of other projects; ``zoo.convert.from_batchnorm`` calls this method."""

    def from_batchnorm(
        self,
        state: Mapping[str, Tensor],
        name: str | None,
        *,
        model: nn.Module | None,
        eps: float | None,
        form: Any,
        **options: Any,
    ) -> Any:
        """Return the ``zoo.convert.Conversion`` of a checkpoint of the family's models; None if it is none of them.

        Args:
            state: state dict of another project.
            name: name of the model, None to infer it.
            model: module that the state dict is of, None if a state dict was given.
            eps: eps of the norms, None for the usual one.
            form: form of the conversion.
            options: options that ``zoo.convert.from_batchnorm`` was given.

        Raises:
            ZooError: a checkpoint that no model of the family equals, with the reason.
        """
        ...


@runtime_checkable
class ReadsDetectron2(Protocol):
    """A family that reads detectors which detectron2 trained; ``zoo.convert.from_detectron2`` calls this method."""

    def from_detectron2(
        self,
        state: Mapping[str, Tensor],
        name: str,
        *,
        net: Any,
        transform: Any,
        source: str,
        **options: Any,
    ) -> Any:
        """Return the ``zoo.convert.Conversion`` of a detector.

        Args:
            state: tensors of pyramid and heads, by detectron2's keys.
            name: name of the model.
            net: backbone, a net of the zoo.
            transform: input that the backbone expects.
            source: name of the checkpoint, for messages.
            options: options that ``zoo.convert.from_detectron2`` was given.

        Raises:
            ZooError: a checkpoint that no model of the family equals, with the reason.
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
    if text(pattern, "pattern") in FAMILIES or pattern in find_plugins(GROUP):
        raise ZooError(f"a family with the pattern {pattern!r} is registered already")
    FAMILIES[pattern] = family


def find_family(name: str) -> Family | None:
    """Return the family whose pattern a name matches; None if there is none.

    Raises:
        ZooError: a family that cannot be imported.
    """
    for pattern in FAMILIES:
        if fnmatch.fnmatchcase(name, pattern):
            return FAMILIES[pattern]
    for pattern, point in find_plugins(GROUP).items():
        if fnmatch.fnmatchcase(name, pattern):
            return load_plugin(point)
    return None


def all_families() -> list[Family]:
    """Return every family, including those of installed packages that can be imported."""
    return [*FAMILIES.values(), *load_plugins(GROUP)]
