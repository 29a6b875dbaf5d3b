"""The table of registered nets: one ``ModelSpec`` each, from which ``zoo.registry`` makes nets.

``ModelInfo`` is the description of a model that users get.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

from zoo.arguments import instance_of, text
from zoo.errors import ZooError, suggestion
from zoo.nets.base import Net

InputKind = Literal["images", "clips", "text", "image_lists"]

TASKS: dict[InputKind, str] = {
    "images": "classification",
    "clips": "video",
    "text": "translation",
    "image_lists": "detection",
}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A registered net: its class, its layout and its defaults.

    Attributes:
        name: name of the net, without a dot.
        family: class of the net; the registry calls its ``build``.
        layout: dataclass instance with the sizes of the net; the fields named in its ``OPTIONS`` are what
            ``create_model`` accepts as options.
        num_classes: default number of classes; 0 for nets that take text.
        input_size: side in pixels of the square input that the net was designed for; 0 for text.
        min_size: smallest side in pixels that works; 0 for text.
        paper: address or citation of the publication.
        schemes: names of the schemes that the net supports; None for all of the family.
        frames: default length of a clip; None for nets that take no clips.
        input_kind: kind of input that ``forward`` takes.
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
    input_kind: InputKind = "images"

    @property
    def takes(self) -> InputKind:
        """``input_kind`` under its name of version 0.1.0; deprecated."""
        warnings.warn("ModelSpec.takes is named input_kind", DeprecationWarning, stacklevel=2)
        return self.input_kind

    @property
    def supported(self) -> tuple[str, ...]:
        """Names of the schemes that the net supports."""
        if self.schemes is not None:
            return self.schemes
        known = self.family.schemes
        return tuple(name for name, scheme in known.items() if self.family.residual or not scheme.residual_only)


@dataclass(frozen=True)
class ModelInfo:
    """Description of a model, which ``model_info`` returns.

    Attributes:
        name: name of the model.
        family: class of the model.
        schemes: values of ``scheme=`` that the model supports.
        options: options of the architecture, with their defaults.
        scheme_options: options of each scheme, with their defaults.
        weights: tags of the weights that can be loaded by name.
        input_kind: ``images``, ``clips``, ``text``, or ``image_lists`` for detectors.
        task: task of the model: ``classification``, ``video``, ``translation`` or ``detection``.
        num_classes: default number of classes; 0 for nets that take text, whose options set the sizes of their
            vocabularies.
        input_size: side in pixels of the square input that the net was designed for, or of a detector's short side;
            0 for text.
        min_size: smallest side in pixels that works; 0 for text.
        frames: length of the clips that the net was designed for (any length works); None for nets that take no clips.
        paper: address or citation of the publication.
    """

    name: str
    family: str
    schemes: tuple[str, ...]
    options: dict[str, Any]
    scheme_options: dict[str, dict[str, Any]]
    weights: tuple[str, ...]
    input_kind: InputKind
    task: str
    num_classes: int
    input_size: int
    min_size: int
    frames: int | None
    paper: str

    @property
    def takes(self) -> InputKind:
        """``input_kind`` under its name of version 0.1.0; deprecated."""
        warnings.warn("ModelInfo.takes is named input_kind", DeprecationWarning, stacklevel=2)
        return self.input_kind


MODELS: dict[str, ModelSpec] = {}  # by name


def register_model(spec: ModelSpec) -> None:
    """Add a net to the registry.

    Args:
        spec: description of the net.

    Raises:
        ZooError: a name that is taken, or that has the dot that separates names from tags.
    """
    instance_of(spec, "register_model", ModelSpec)
    if spec.name in MODELS:
        raise ZooError(f"a model named {spec.name!r} is registered already")
    if "." in spec.name:
        raise ZooError(f"model name {spec.name!r}: must not contain a dot, the dot is for weight tags")
    MODELS[spec.name] = spec


def get_spec(name: str) -> ModelSpec:
    """Return the description of a registered net.

    Raises:
        ZooError: unknown name, with near matches.
    """
    if text(name, "name of a model") not in MODELS:
        raise ZooError(f"unknown model {name!r}{suggestion(name, sorted(MODELS))}")
    return MODELS[name]
