"""Export to other frameworks: one file for each target, verified in the target's own runtime.

``TARGETS`` is the table of targets. A package outside of this one adds its target by an entry point of the group
``rescalenet.targets`` (value: ``module:TARGET``) or by ``register_target``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from zoo.errors import ExportError, ZooError
from zoo.plugins import load_plugins

if TYPE_CHECKING:
    from torch import nn

    from zoo.weights import Weights

ENTRY_POINTS = "rescalenet.targets"


@dataclass(frozen=True)
class Verified:
    """An export that was read again by its target's runtime.

    Attributes:
        path: file or folder that was written.
        max_error: largest error over all checked inputs and outputs, in the measure that the target documents.
        inputs: description of the checked inputs.
        runtime: name and version of the runtime.
    """

    path: Path
    max_error: float
    inputs: str
    runtime: str

    def __str__(self) -> str:
        return f"{self.path}: agrees in {self.runtime} to {self.max_error:.1e} at {self.inputs}"


@dataclass(frozen=True)
class Target:
    """A framework that weights can be exported to.

    Attributes:
        name: name of the target, as ``rescalenet export --to`` takes it.
        functions: ``module:name`` of a function ``(model, path, example, weights) -> Verified`` by kind of input. Its
            module is imported when it is used. Kinds are
            ``images`` (a net of batches (N, C, H, W)), ``clips`` (of (N, C, T, H, W)), ``image_lists`` (a detector of
            lists of images (C, H, W)) and ``text`` (of token ids of source and target).
        ending: ending of the file or folder.
        extra: extra of this package that installs the target's packages; None if it needs none.
        folded: whether the function gets the folded net (``zoo.fold``), unless the user requests the net as trained.
    """

    name: str
    functions: Mapping[str, str]
    ending: str
    extra: str | None = None
    folded: bool = True

    def export(self, kind: str, model: nn.Module, path: Path, example: tuple[Any, ...], weights: Weights) -> Verified:
        """Write the file and verify it.

        Args:
            kind: kind of the net's input, one of ``functions``.
            model: net of the weights.
            path: file or folder to write.
            example: arguments of a call of the net.
            weights: weights that the net was made from.

        Raises:
            ExportError: packages that are missing, an export that fails, or outputs that differ.
        """
        try:
            function = resolve_name(self.functions[kind])
        except ModuleNotFoundError as error:
            hint = f": pip install 'rescalenet-zoo[{self.extra}]'" if self.extra else ""
            raise ExportError(f"export to {self.name} needs {error.name}{hint}") from None
        return function(model, path, example, weights)


TARGETS: dict[str, Target] = {}


def register_target(target: Target) -> Target:
    """Add a target to the table.

    Raises:
        ZooError: the name is taken.
    """
    if target.name in TARGETS:
        raise ZooError(f"export target {target.name!r} is registered already")
    TARGETS[target.name] = target
    return target


register_target(
    Target(
        "onnx",
        {
            "images": "zoo.export.onnx:export_batches",
            "clips": "zoo.export.onnx:export_batches",
            "image_lists": "zoo.export.onnx:export_image_lists",
        },
        ending=".onnx",
        extra="onnx",
    )
)
register_target(
    Target("torchvision", {"images": "zoo.export.torchvision_layout:export_state"}, ending=".pth", folded=False)
)
register_target(Target("fairseq", {"text": "zoo.export.fairseq:export_text"}, ending=".fairseq", folded=False))


@functools.cache
def _load_entry_points() -> None:
    """Register the targets of other packages."""
    for target in load_plugins(ENTRY_POINTS):
        register_target(target)


def targets_for(kind: str) -> dict[str, Target]:
    """Return the targets that take nets of this kind of input, by name; the first is the default."""
    _load_entry_points()
    return {name: target for name, target in TARGETS.items() if kind in target.functions}


def describe_targets() -> str:
    """Return a line of all targets with the kinds of input that they take, for help texts."""
    _load_entry_points()
    return "; ".join(f"{name} ({', '.join(target.functions)})" for name, target in TARGETS.items())
