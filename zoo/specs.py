"""What is registered: one ``ModelSpec`` a net. ``zoo.registry`` makes nets from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from zoo.errors import ZooError, suggestion
from zoo.nets.base import Net

Takes = Literal["images", "clips", "text"]


@dataclass(frozen=True)
class ModelSpec:
    """A registered net: its class, the layout of the family, and defaults.

    Attributes:
        family: the class; its ``build`` is called.
        layout: the family's config; its ``OPTIONS`` are what ``create_model`` lets users change.
        num_classes, input_size: defaults; min_size: smallest input side that works. 0 for nets that take text.
        schemes: those that it supports; None for all of the family.
        frames: default length of a clip; None for nets that take no clips.
        takes: its input.
    """

    name: str
    family: type[Net]
    layout: Any
    num_classes: int
    input_size: int
    min_size: int
    paper: str
    schemes: tuple[str, ...] | None = None
    frames: int | None = None
    takes: Takes = "images"

    @property
    def supported(self) -> tuple[str, ...]:
        """Names of the schemes."""
        return tuple(self.family.schemes) if self.schemes is None else self.schemes


MODELS: dict[str, ModelSpec] = {}


def register_model(spec: ModelSpec) -> None:
    """Add a net to the registry.

    Raises:
        ZooError: if the name is taken, or has the dot that separates names from tags.
    """
    if spec.name in MODELS:
        raise ZooError(f"a model named {spec.name!r} is registered already")
    if "." in spec.name:
        raise ZooError(f"model name {spec.name!r}: the dot is for weight tags")
    MODELS[spec.name] = spec


def get_spec(name: str) -> ModelSpec:
    if name not in MODELS:
        raise ZooError(f"unknown model {name!r}{suggestion(name, sorted(MODELS))}")
    return MODELS[name]
