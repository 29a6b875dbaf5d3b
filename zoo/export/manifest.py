"""The manifest of an export: what the files are, how to feed them, and how close they are to the net in PyTorch."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from zoo._version import __version__
from zoo.errors import ExportError, ZooError
from zoo.export import Target
from zoo.export.graphs import Deployment, Graph, Port, Settings
from zoo.export.verification import Difference
from zoo.files import sha256_of
from zoo.jsontext import first_error, read_json

MANIFEST = "manifest.json"
FORMAT = 1
LONGEST = 2**24  # bytes of a manifest


class Source(pydantic.BaseModel):
    """The weights of an export: their name and the hash of their file."""

    name: str
    sha256: str


class Manifest(pydantic.BaseModel):
    """The fields of a manifest that ``rescalenet export --check`` reads. A user's program reads the others too.

    Attributes:
        format: version of the manifest.
        target: name of the target.
        kind: kind of input (``zoo.export.Target``).
        weights: weights of the net; None for a net that no file has.
        half: whether weights are in half precision.
        calibration: number of inputs that quantisation was calibrated on; 0 without quantisation.
        arguments: arguments of the command, with which the graphs are made again.
        files: sha256 of each file of the folder, by its path.
    """

    format: int
    target: str
    kind: str
    weights: Source | None
    half: bool = False
    calibration: int = 0
    arguments: dict[str, Any] = pydantic.Field(default_factory=dict)
    files: dict[str, str]


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of an export.

    Raises:
        ExportError: a folder without one, or one that is damaged or of a later version.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate(read_json(path, longest=LONGEST))
    except pydantic.ValidationError as error:
        raise ExportError(f"{path}: {first_error(error, 'a manifest')}; export again") from None
    except ZooError as error:
        raise ExportError(f"{path}: {error}; export again") from None
    if manifest.format > FORMAT:
        raise ExportError(f"{path}: format={manifest.format}: of a later version of this package; update")
    return manifest


def files_in(folder: Path) -> dict[str, Path]:
    """Return the files of an export by their paths in it, without the manifest and without what Python caches."""
    found = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.relative_to(folder).parts
    }
    found.pop(MANIFEST, None)
    return found


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check that the files of an export are those that were written.

    Raises:
        ExportError: the first file that is missing or changed.
    """
    found = files_in(folder)
    for name, sha256 in manifest.files.items():
        if name not in found:
            raise ExportError(f"{folder}: {name} is missing; export again")
        if sha256_of(found[name]) != sha256:
            raise ExportError(f"{folder / name}: is not the file that was exported (sha256); export again")


def remark_of(deployment: Deployment, target: Target) -> str:
    """Return the note for users of an export, from the target and from its module."""
    functions = target.functions()
    own = functions.remark(deployment) if hasattr(functions, "remark") else ""
    return "; ".join(text for text in (target.remark, own) if text)


def describe(
    deployment: Deployment,
    target: Target,
    settings: Settings,
    differences: Mapping[str, Difference],
    folder: Path,
) -> dict[str, Any]:
    """Return the manifest of an export.

    Args:
        deployment: graphs that were exported.
        target: target.
        settings: settings of the export.
        differences: largest differences of each graph.
        folder: folder of the files.
    """
    weights = deployment.weights
    return {
        "format": FORMAT,
        "target": target.name,
        "kind": deployment.kind,
        "versions": {
            "rescalenet-zoo": __version__,
            "python": platform.python_version(),
            **target.versions(),
        },
        "weights": None if weights is None else {"name": weights.name, "sha256": sha256_of(weights.path)},
        "remark": remark_of(deployment, target),
        "half": settings.half,
        "calibration": len(settings.calibration),
        **_description_for(deployment, target),
        "graphs": [
            _describe_graph(graph, target, differences[graph.name]) | _describe_int8(graph, target, settings, folder)
            for graph in deployment.graphs
        ],
        "files": {name: sha256_of(path) for name, path in files_in(folder).items()},
    }


def metadata_of(deployment: Deployment, target: Target) -> dict[str, str]:
    """Return the description of a deployment for the metadata of its files: JSON, except for single texts.

    The arguments of the command, which have paths of this disk, are no part of it.
    """
    description = _description_for(deployment, target)
    description.pop("arguments", None)
    if deployment.weights is not None:
        description["weights"] = deployment.weights.name
        description["licence"] = str(deployment.weights.meta.get("licence", "unknown"))
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items() if value}


def _description_for(deployment: Deployment, target: Target) -> dict[str, Any]:
    """Return the description of a deployment, with the layout of its input in the target's files."""
    description = dict(deployment.description)
    if target.channels_last and "input" in description:
        layout = description["input"]["layout"].replace("C", "") + "C"
        description["input"] = {**description["input"], "layout": layout}
    return description


def _describe_graph(graph: Graph, target: Target, difference: Difference) -> dict[str, Any]:
    first = graph.samples[0]
    return {
        "name": graph.name,
        "inputs": [_describe_input(port, x.shape, target) for port, x in zip(graph.inputs, first, strict=True)],
        "outputs": [
            {"name": port.name, "axes": _in_layout(port.axes, target), "dtype": port.dtype} for port in graph.outputs
        ],
        "compared_at": graph.shown,
        "largest_difference": {"absolute": difference.absolute, "relative": difference.relative}
        | ({} if difference.agreement is None else {"agreement": difference.agreement}),
    }


def _describe_int8(graph: Graph, target: Target, settings: Settings, folder: Path) -> dict[str, Any]:
    """Return what of a quantised graph computes in float between quantised operators: their number by type."""
    if not settings.calibration:
        return {}
    return {"float_islands": target.functions().float_islands(graph, folder)}


def _describe_input(port: Port, shape: tuple[int, ...], target: Target) -> dict[str, Any]:
    """Return the description of an input: its axes are numbers where the target fixes them."""
    axes = [
        axis if isinstance(axis, str) and ("batch" if axis == "batch" else "size") in target.dynamic else length
        for axis, length in zip(port.axes, shape, strict=True)
    ]
    return {"name": port.name, "axes": _in_layout(axes, target), "dtype": port.dtype}


def _in_layout(axes: Sequence[int | str], target: Target) -> list[int | str]:
    """Return the axes of an input or output in the order of the target's files."""
    batch, *others = axes
    if not target.channels_last or len(axes) < 4:  # features (N, C), and logits of text (B, T, V)
        return list(axes)
    return [batch, *others[1:], *others[:1]]
